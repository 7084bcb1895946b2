// From the bytes of a JPEG or PNG file to pixels, byte for byte as Pillow's
// Image.open(file).convert(mode) gives them: training saw Pillow's pixels, so must serving.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "image/image.h"

namespace quern {

inline constexpr std::size_t kDefaultMaxPixels = 50'000'000;

// Decodes a whole JPEG or PNG file (the type is read from its first bytes, never from a name).
// Result: uint8 [height, width, 1] for kL, [height, width, 3] for kRgb. Alpha is dropped, EXIF
// rotation and gamma are not applied, as in Pillow. Refused: any libjpeg warning, truncated files,
// wrong checksums, 16-bit PNG, 12-bit JPEG. Pillow's pixels are those of the libjpeg-turbo inside
// it: a progressive file that leaves coefficients out is smoothed, and before 3.0.1 otherwise. The
// size is compared with `max_pixels` and kMaxSide before memory for pixels is allocated. Throws
// ImageError: 400 damaged, 413 too many pixels, 415 neither JPEG nor PNG or a variant of them that
// is not supported.
Image decode(std::span<const std::uint8_t> file, ColorMode mode,
             std::size_t max_pixels = kDefaultMaxPixels);

}  // namespace quern
