// What decode.cc and the two file formats agree on: a format reads rows as the file stores them,
// and one function turns such rows into the wanted mode.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "image/row_reader.h"

namespace quern {

// How a decoded row stores its pixels, 8 bits a sample.
enum class PixelLayout { kGray, kGrayAlpha, kRgb, kRgba, kPalette, kInvertedCmyk };

struct PixelFormat {
  PixelLayout layout = PixelLayout::kGray;
  std::array<std::array<std::uint8_t, 3>, 256> palette = {};  // kPalette only

  int samples() const;  // bytes a pixel
};

// One row of `width` pixels to `mode`, as Pillow's convert() (libImaging/Convert.c).
void convert_row(const std::uint8_t* in, const PixelFormat& format, int width, ColorMode mode,
                 std::uint8_t* out);

// Throws ImageError 413 when the image is larger than `max_pixels` or than kMaxSide on a side.
void check_size(std::uint64_t height, std::uint64_t width, std::size_t max_pixels);

std::unique_ptr<RowReader> open_jpeg(std::span<const std::uint8_t> file, ColorMode mode,
                                     std::size_t max_pixels);
std::unique_ptr<RowReader> open_png(std::span<const std::uint8_t> file, ColorMode mode,
                                    std::size_t max_pixels);

}  // namespace quern
