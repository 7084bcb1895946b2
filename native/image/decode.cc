#include "image/decode.h"

#include <algorithm>
#include <array>

#include "image/codecs.h"

namespace quern {
namespace {

using Rgb = std::array<std::uint8_t, 3>;

// ITU-R 601 luma in 16-bit fixed point: Pillow's L24 in libImaging/Convert.c.
std::uint8_t luma(const Rgb& c) {
  return static_cast<std::uint8_t>((c[0] * 19595U + c[1] * 38470U + c[2] * 7471U + 0x8000U) >> 16U);
}

// Adobe stores CMYK inverted: the samples are 255-C, 255-M, 255-Y, 255-K. Pillow's cmyk2rgb.
Rgb rgb_of_inverted_cmyk(const std::uint8_t* in) {
  const int not_black = in[3];
  Rgb rgb = {};
  for (std::size_t i = 0; i < 3; ++i) {
    const int product = (255 - in[i]) * not_black + 128;  // rounded division by 255
    const int ink = ((product >> 8) + product) >> 8;
    rgb[i] = static_cast<std::uint8_t>(std::clamp(not_black - ink, 0, 255));
  }
  return rgb;
}

void put(const Rgb& rgb, ColorMode mode, std::uint8_t*& out) {
  if (mode == ColorMode::kL) {
    *out++ = luma(rgb);
  } else {
    out = std::copy(rgb.begin(), rgb.end(), out);
  }
}

void put_gray(std::uint8_t gray, ColorMode mode, std::uint8_t*& out) {
  out = std::fill_n(out, mode == ColorMode::kL ? 1 : 3, gray);
}

bool starts_with(std::span<const std::uint8_t> file, std::initializer_list<std::uint8_t> bytes) {
  return file.size() >= bytes.size() && std::equal(bytes.begin(), bytes.end(), file.begin());
}

}  // namespace

int PixelFormat::samples() const {
  switch (layout) {
    case PixelLayout::kGray:
    case PixelLayout::kPalette:
      return 1;
    case PixelLayout::kGrayAlpha:
      return 2;
    case PixelLayout::kRgb:
      return 3;
    default:
      return 4;
  }
}

void convert_row(const std::uint8_t* in, const PixelFormat& format, int width, ColorMode mode,
                 std::uint8_t* out) {
  const int step = format.samples();
  for (int x = 0; x < width; ++x, in += step) {
    switch (format.layout) {
      case PixelLayout::kGray:
      case PixelLayout::kGrayAlpha:
        put_gray(in[0], mode, out);
        break;
      case PixelLayout::kRgb:
      case PixelLayout::kRgba:
        put({in[0], in[1], in[2]}, mode, out);
        break;
      case PixelLayout::kPalette:
        put(format.palette[in[0]], mode, out);
        break;
      case PixelLayout::kInvertedCmyk:
        put(rgb_of_inverted_cmyk(in), mode, out);
        break;
    }
  }
}

Image allocate_image(std::uint64_t height, std::uint64_t width, ColorMode mode,
                     std::size_t max_pixels) {
  if (width > kMaxSide || height > kMaxSide || height * width > max_pixels) {
    throw ImageError(413, "the image has " + std::to_string(width) + "x" + std::to_string(height) +
                              " pixels, at most " + std::to_string(max_pixels) + " and " +
                              std::to_string(kMaxSide) + " on a side are accepted");
  }
  Image image;
  image.height = static_cast<int>(height);
  image.width = static_cast<int>(width);
  image.channels = mode == ColorMode::kL ? 1 : 3;
  image.pixels.resize(image.row_bytes() * height);
  return image;
}

Image decode(std::span<const std::uint8_t> file, ColorMode mode, std::size_t max_pixels) {
  if (file.empty()) throw ImageError(400, "no image: the file is empty");
  if (starts_with(file, {0xFF, 0xD8, 0xFF})) return decode_jpeg(file, mode, max_pixels);
  if (starts_with(file, {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'})) {
    return decode_png(file, mode, max_pixels);
  }
  throw ImageError(415, "not an image type we support: send JPEG or PNG");
}

}  // namespace quern
