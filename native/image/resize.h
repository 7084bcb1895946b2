// Pillow's resize, bit for bit: another filter moves pixels by up to 21 grey levels and with them
// the answer of the model.
#pragma once

#include "image/image.h"

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

}  // namespace quern
