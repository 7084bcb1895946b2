#include <doctest/doctest.h>

#include <stdexcept>

#include "image/preprocess.h"
#include "image/resize.h"

using namespace quern;

namespace {

// A gray image whose pixel at (y, x) is 10 y + x.
Image numbered(int height, int width) {
  Image image{height, width, 1, {}};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) image.pixels.push_back(static_cast<std::uint8_t>(10 * y + x));
  }
  return image;
}

Preprocess crop_only(int height, int width) {
  Preprocess settings;
  settings.mode = ColorMode::kL;
  settings.crop = Size{height, width, false};
  return settings;
}

// The first output pixel, back as a gray level: where the crop began.
int first_pixel(const Image& image, int height, int width) {
  std::vector<float> out(static_cast<std::size_t>(height * width));
  preprocess(image, crop_only(height, width), height, width, out);
  return static_cast<int>(out[0] * 255.0F + 0.5F);
}

}  // namespace

TEST_CASE("a crop begins where Python's round() puts it") {
  CHECK(first_pixel(numbered(1, 5), 1, 4) == 0);  // 0.5 -> 0
  CHECK(first_pixel(numbered(1, 7), 1, 4) == 2);  // 1.5 -> 2
  CHECK(first_pixel(numbered(1, 9), 1, 4) == 2);  // 2.5 -> 2
  CHECK(first_pixel(numbered(7, 6), 4, 4) == 21);
}

TEST_CASE("a crop larger than the image is padded with zeros") {
  std::vector<float> out(16, -1.0F);
  preprocess(numbered(1, 1 + 1), crop_only(4, 4), 4, 4, out);
  std::vector<float> wanted(16, 0.0F);
  wanted[1 * 4 + 2] = 1.0F / 255.0F;  // 0 and 1 stand at row 1, columns 1 and 2
  CHECK(out == wanted);
}

TEST_CASE("the size after resize keeps the aspect, rounded down") {
  Preprocess settings;
  settings.resize = Size{256, 256, true};
  CHECK(preprocessed_size(settings, 427, 640) == std::array<std::int64_t, 2>{256, 383});
  CHECK(preprocessed_size(settings, 640, 427) == std::array<std::int64_t, 2>{383, 256});
  CHECK(preprocessed_size(settings, 10, 10) == std::array<std::int64_t, 2>{256, 256});
  settings.crop = Size{224, 220, false};
  CHECK(preprocessed_size(settings, 10, 10) == std::array<std::int64_t, 2>{224, 220});
}

TEST_CASE("an image that comes out in another size is refused with 400") {
  Preprocess settings;
  settings.mode = ColorMode::kL;
  std::vector<float> out(16);
  try {
    preprocess(numbered(4, 5), settings, 4, 4, out);
    FAIL("accepted");
  } catch (const ImageError& error) {
    CHECK(error.status() == 400);
  }
  CHECK_THROWS_AS(preprocess(numbered(4, 4), settings, 4, 4, std::span(out).first(15)),
                  std::invalid_argument);
}

TEST_CASE("normalisation is (value / 255 - mean) / std of each channel") {
  Image image{1, 1, 3, {0, 51, 255}};
  Preprocess settings;
  settings.mean = {0.5F, 0.2F, 0.0F};
  settings.std = {0.5F, 1.0F, 2.0F};
  std::vector<float> out(3);
  preprocess(image, settings, 1, 1, out);
  CHECK(out[0] == -1.0F);
  CHECK(out[1] == doctest::Approx(0.0F));
  CHECK(out[2] == 0.5F);
}

TEST_CASE("resizing is bounded") {
  const auto status = [](const Image& image, int height, int width) {
    try {
      resize(image, height, width, Interpolation::kBilinear);
    } catch (const ImageError& error) {
      return error.status();
    }
    return 200;
  };
  CHECK(status(numbered(1, 1), 65'536, 1) == 413);
  CHECK(status(numbered(1, 1), 60'000, 60'000) == 413);
  // The first pass alone would write 60000 x 60000.
  CHECK(status(Image{60'000, 1, 1, std::vector<std::uint8_t>(60'000)}, 1, 60'000) == 413);
  CHECK_THROWS_AS(status(numbered(2, 2), 0, 2), std::invalid_argument);

  // A strip whose longer side would become 4 million pixels before the crop.
  Preprocess settings = crop_only(64, 64);
  settings.resize = Size{64, 64, true};
  std::vector<float> out(64 * 64);
  CHECK_THROWS_AS(
      preprocess(Image{1, 65'000, 1, std::vector<std::uint8_t>(65'000)}, settings, 64, 64, out),
      ImageError);
}

TEST_CASE("a constant image stays constant under every filter") {
  for (const Interpolation interpolation :
       {Interpolation::kNearest, Interpolation::kBilinear, Interpolation::kBicubic}) {
    for (const int level : {0, 1, 127, 255}) {
      const Image image{5, 7, 1, std::vector<std::uint8_t>(35, static_cast<std::uint8_t>(level))};
      const Image out = resize(image, 3, 11, interpolation);
      CHECK(out.pixels == std::vector<std::uint8_t>(33, static_cast<std::uint8_t>(level)));
    }
  }
}
