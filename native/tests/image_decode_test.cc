// Refusals and damage, under the sanitizers; that the pixels are Pillow's is asked in
// tests/test_image.py.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <random>
#include <string>
#include <vector>

#include "image/decode.h"
#include "image_files.h"

using namespace quern;

namespace {

// The status decode() refuses with, 200 when it does not.
int status(const Bytes& file, ColorMode mode = ColorMode::kRgb,
           std::size_t max_pixels = kDefaultMaxPixels) {
  try {
    decode(file, mode, max_pixels);
  } catch (const ImageError& error) {
    CHECK(std::string(error.what()).size() > 10);
    return error.status();
  }
  return 200;
}

}  // namespace

TEST_CASE("pixels of a PNG file") {
  const Image rgb = decode(small_png(), ColorMode::kRgb);
  CHECK(rgb.height == 2);
  CHECK(rgb.width == 2);
  CHECK(rgb.pixels == Bytes{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
  CHECK(decode(small_png(), ColorMode::kL).pixels == Bytes{2, 5, 8, 11});
}

TEST_CASE("types that are not supported") {
  CHECK(status({}) == 400);
  CHECK(status({'G', 'I', 'F', '8', '9', 'a'}) == 415);
  CHECK(status({'h', 'e', 'l', 'l', 'o'}) == 415);
  CHECK(status({0xFF, 0xD8}) == 415);
  CHECK(status({0xFF, 0xD8, 0xFF}) == 400);
  CHECK(status(png(1, 1, 16, 0, {0, 1, 2})) == 415);
}

TEST_CASE("the size is refused before there is memory for it") {
  CHECK(status(small_png(), ColorMode::kRgb, 3) == 413);
  CHECK(status(small_png(), ColorMode::kRgb, 4) == 200);
  CHECK(status(png(60'000, 60'000, 8, 2, {0})) == 413);
  CHECK(status(png(2'000'000'000, 1, 8, 2, {0})) == 413);
  CHECK(status(png(70'000, 1, 1, 0, Bytes(8751))) == 413);
  CHECK(status(png(60'000, 60'000, 8, 2, {0}, 1)) == 413);
  CHECK(status(jpeg(40, 30), ColorMode::kL, 1199) == 413);
  CHECK(status(jpeg(40, 30), ColorMode::kL, 1200) == 200);
}

TEST_CASE("fewer rows than the header says") {
  CHECK(status(png(2, 3, 8, 2, {0, 1, 2, 3, 4, 5, 6, 0, 7, 8, 9, 10, 11, 12})) == 400);
}

TEST_CASE("a palette image without a palette, and colours beyond it") {
  CHECK(status(png(2, 1, 8, 3, {0, 0, 1})) == 400);
  const Image image = decode(png(2, 1, 8, 3, {0, 0, 200}, 0, {9, 8, 7}), ColorMode::kRgb);
  CHECK(image.pixels == Bytes{9, 8, 7, 0, 0, 0});
}

TEST_CASE("every truncation is refused") {
  for (const Bytes& file : {small_png(), jpeg(40, 30), progressive_jpeg(40, 30)}) {
    REQUIRE(status(file) == 200);
    for (std::size_t n = 0; n < file.size(); ++n) {
      CHECK(status(Bytes(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(n))) >= 400);
    }
  }
}

TEST_CASE("random damage is refused or decoded, never worse") {
  std::mt19937 random(3);  // fixed: a failure can be repeated
  const Bytes palette =
      png(8, 4, 4, 3, {0, 1, 2, 3, 4, 0, 5, 6, 7, 8, 0, 9, 1, 2, 3, 0, 4, 5, 6, 7}, 0,
          {1, 2, 3, 4, 5, 6, 7, 8, 9});
  for (const Bytes& file : {small_png(), palette, jpeg(40, 30), progressive_jpeg(40, 30)}) {
    for (int round = 0; round < 2000; ++round) {
      Bytes damaged = file;
      for (unsigned count = 1 + random() % 3; count > 0; --count) {
        damaged[random() % damaged.size()] = static_cast<std::uint8_t>(random());
      }
      const int result = status(damaged, ColorMode::kRgb, 100'000);
      CHECK((result == 200 || result == 400 || result == 413 || result == 415));
    }
  }
}
