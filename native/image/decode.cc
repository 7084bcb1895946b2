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

// `rgb_of` gives the colour at a pixel's samples.
template <typename RgbOf>
void convert_colors(const std::uint8_t* in, int samples, int width, ColorMode mode,
                    std::uint8_t* out, const RgbOf& rgb_of) {
  for (int x = 0; x < width; ++x, in += samples) {
    const Rgb rgb = rgb_of(in);
    if (mode == ColorMode::kL) {
      *out++ = luma(rgb);
    } else {
      out = std::copy(rgb.begin(), rgb.end(), out);
    }
  }
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
  const int samples = format.samples();
  switch (format.layout) {
    case PixelLayout::kGray:
    case PixelLayout::kGrayAlpha:
      for (int x = 0; x < width; ++x, in += samples) out = std::fill_n(out, channels_of(mode), *in);
      break;
    case PixelLayout::kRgb:
    case PixelLayout::kRgba:
      convert_colors(in, samples, width, mode, out, [](const std::uint8_t* pixel) {
        return Rgb{pixel[0], pixel[1], pixel[2]};
      });
      break;
    case PixelLayout::kPalette:
      convert_colors(in, samples, width, mode, out,
                     [&](const std::uint8_t* pixel) { return format.palette[*pixel]; });
      break;
    case PixelLayout::kInvertedCmyk:
      convert_colors(in, samples, width, mode, out, rgb_of_inverted_cmyk);
      break;
  }
}

void check_size(std::uint64_t height, std::uint64_t width, std::size_t max_pixels) {
  if (width > kMaxSide || height > kMaxSide || height * width > max_pixels) {
    throw ImageError(413, "the image has " + std::to_string(width) + "x" + std::to_string(height) +
                              " pixels, at most " + std::to_string(max_pixels) + " and " +
                              std::to_string(kMaxSide) + " on a side are accepted");
  }
}

std::unique_ptr<RowReader> open_image(std::span<const std::uint8_t> file, ColorMode mode,
                                      std::size_t max_pixels) {
  if (file.empty()) throw ImageError(400, "no image: the file is empty");
  if (starts_with(file, {0xFF, 0xD8, 0xFF})) return open_jpeg(file, mode, max_pixels);
  if (starts_with(file, {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'})) {
    return open_png(file, mode, max_pixels);
  }
  throw ImageError(415, "not an image type we support: send JPEG or PNG");
}

Image decode(std::span<const std::uint8_t> file, ColorMode mode, std::size_t max_pixels) {
  const std::unique_ptr<RowReader> reader = open_image(file, mode, max_pixels);
  Image image;
  image.height = reader->height();
  image.width = reader->width();
  image.channels = channels_of(mode);
  image.pixels.resize(image.row_bytes() * static_cast<std::size_t>(image.height));
  reader->start({0, image.height, 0, image.width});
  reader->read(image.height, image.pixels.data(), image.row_bytes());
  reader->finish();
  return image;
}

}  // namespace quern
