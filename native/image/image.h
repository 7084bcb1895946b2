// The words every part of the image path shares: what pixels are, and how a bad image is reported.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace quern {

// The longest side of an image on its way through: JPEG's own limit.
inline constexpr int kMaxSide = 65'535;

// Pillow's mode names: kL is 8-bit gray, kRgb is 8-bit red, green, blue.
enum class ColorMode { kL, kRgb };

enum class Interpolation { kNearest, kBilinear, kBicubic };

constexpr int channels_of(ColorMode mode) { return mode == ColorMode::kL ? 1 : 3; }

// A rectangle of pixels: rows [top, bottom), columns [left, right).
struct Area {
  int top = 0, bottom = 0, left = 0, right = 0;

  int height() const { return bottom - top; }
  int width() const { return right - left; }
};

// uint8 [height, width, channels], rows packed, channels interleaved.
struct Image {
  int height = 0;
  int width = 0;
  int channels = 0;
  std::vector<std::uint8_t> pixels;

  std::size_t row_bytes() const {
    return static_cast<std::size_t>(width) * static_cast<std::size_t>(channels);
  }
  const std::uint8_t* row(int y) const {
    return pixels.data() + static_cast<std::size_t>(y) * row_bytes();
  }
  std::uint8_t* row(int y) { return pixels.data() + static_cast<std::size_t>(y) * row_bytes(); }
};

// An image that cannot be answered. what() is one sentence for the client; status() is the HTTP
// status that belongs to it: 400 undecodable, 413 too many pixels, 415 not a type we support.
class ImageError : public std::runtime_error {
 public:
  ImageError(int status, const std::string& sentence)
      : std::runtime_error(sentence), status_(status) {}
  int status() const { return status_; }

 private:
  int status_;
};

}  // namespace quern
