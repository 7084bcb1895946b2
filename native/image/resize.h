// Pillow's resize, bit for bit: another filter moves pixels by up to 21 grey levels and with them
// the answer of the model.
#pragma once

#include <vector>

#include "image/image.h"
#include "image/resize_kernels.h"

namespace quern {

// What resize() and its first pass may write: a very narrow image would else grow without bound.
inline constexpr std::int64_t kMaxResizedPixels = 50'000'000;

// Resizes uint8 [H, W, C] to [height, width, C]. kBilinear and kBicubic are Pillow's antialiased
// filters (libImaging/Resample.c: 22-bit fixed-point coefficients, uint8 between the passes,
// horizontal pass first as in Pillow up to 12); kNearest is Pillow's (libImaging/Geometry.c,
// ImagingScaleAffine). An image that already has the size is copied.
// Throws std::invalid_argument when a side is less than 1, ImageError 413 beyond the bounds above
// and kMaxSide.
Image resize(const Image& image, int height, int width, Interpolation interpolation);

// How the pixels of one side of the result are made.
struct Axis {
  std::vector<Window> windows;   // by output pixel
  std::vector<Weights> weights;  // empty: each is a copy of its window's one pixel
  int first = 0, last = 0;       // the input pixels [first, last) that the windows hold
};

// resize() of rows as they come, and only of the part of the result that is wanted.
class RowResizer {
 public:
  // Most rows that push() takes.
  static constexpr int kMaxRows = 16;

  // From [height, width, channels] to `wanted` of [new_height, new_width, channels], which must not
  // be empty. Throws as resize() does.
  RowResizer(int height, int width, int channels, int new_height, int new_width,
             Interpolation interpolation, const Area& wanted,
             const ResizeKernels& kernels = best_resize_kernels());

  // The part of the input that push() takes.
  Area source() const;
  // The next rows of source(), `count` <= kMaxRows of them, `stride` bytes apart; next() must have
  // returned nullptr since the last ones. kSlack bytes behind each row are read, and ignored.
  void push(const std::uint8_t* rows, std::size_t stride, int count);
  // The next row of `wanted`, valid until the next call; nullptr: it takes more rows, or was last.
  const std::uint8_t* next();

 private:
  std::uint8_t* narrowed(int y) {
    return narrowed_.data() + static_cast<std::size_t>(y % capacity_) * stride_;
  }

  const ResizeKernels& kernels_;
  int channels_;
  Axis columns_, rows_;
  int row_bytes_;       // of `wanted`
  std::size_t stride_;  // of the rows below
  int capacity_;        // rows that narrowed_ holds
  std::vector<std::uint8_t>
      narrowed_;  // rows of source() after the first pass; row y at y % capacity_
  std::vector<std::uint8_t> finished_;
  std::vector<const std::uint8_t*> window_rows_;
  int pushed_ = 0, made_ = 0;  // rows
};

}  // namespace quern
