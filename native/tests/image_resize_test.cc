// The kernels of every instruction set give the same bytes, and a part of a resized image is what
// the whole has there; that these are Pillow's is asked in tests/test_image.py.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "image/resize.h"

using namespace quern;

namespace {

int between(std::mt19937& random, int least, int most) {
  return std::uniform_int_distribution<int>(least, most)(random);
}

// Black, white and noise: black and white make bicubic overshoot most.
Image noise(std::mt19937& random, int height, int width, int channels) {
  Image image{height, width, channels, {}};
  image.pixels.resize(image.row_bytes() * static_cast<std::size_t>(height));
  for (std::uint8_t& sample : image.pixels) {
    sample = static_cast<std::uint8_t>(random() % 2 == 0 ? random() : random() % 2 * 255);
  }
  return image;
}

Image part_of(const Image& image, const Area& area) {
  Image part{area.height(), area.width(), image.channels, {}};
  for (int y = area.top; y < area.bottom; ++y) {
    part.pixels.insert(part.pixels.end(), image.row(y) + area.left * image.channels,
                       image.row(y) + area.right * image.channels);
  }
  return part;
}

// By RowResizer, from rows that come `step` at a time.
Image resized_part(const Image& image, int height, int width, Interpolation interpolation,
                   const Area& wanted, const ResizeKernels& kernels, int step) {
  RowResizer resizer(image.height, image.width, image.channels, height, width, interpolation,
                     wanted, kernels);
  const Area source = resizer.source();
  Image part{wanted.height(), wanted.width(), image.channels, {}};
  for (int y = source.top; y < source.bottom; y += step) {
    const int count = std::min(step, source.bottom - y);
    Image rows = part_of(image, {y, y + count, source.left, source.right});
    rows.pixels.resize(rows.pixels.size() + kSlack, 0xA5);
    resizer.push(rows.pixels.data(), rows.row_bytes(), count);
    while (const std::uint8_t* row = resizer.next()) {
      part.pixels.insert(part.pixels.end(), row, row + part.row_bytes());
    }
  }
  CHECK(resizer.next() == nullptr);
  return part;
}

std::vector<const ResizeKernels*> all_kernels() {
  std::vector<const ResizeKernels*> kernels = {&kScalarResize};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) {
    kernels.push_back(&kAvx2Resize);
  } else {
    MESSAGE("this CPU has no AVX2: its kernels are not tested");
  }
#endif
  return kernels;
}

}  // namespace

TEST_CASE("a part of a resized image, by each instruction set") {
  std::mt19937 random(4);  // fixed: a failure can be repeated
  for (int round = 0; round < 300; ++round) {
    const Image image =
        noise(random, between(random, 1, 90), between(random, 1, 90), random() % 4 == 0 ? 1 : 3);
    const int height = between(random, 1, 90), width = between(random, 1, 90);
    const auto interpolation = static_cast<Interpolation>(random() % 3);
    Area wanted;
    wanted.top = between(random, 0, height - 1);
    wanted.bottom = between(random, wanted.top + 1, height);
    wanted.left = between(random, 0, width - 1);
    wanted.right = between(random, wanted.left + 1, width);
    const Image whole = resized_part(image, height, width, interpolation, {0, height, 0, width},
                                     kScalarResize, RowResizer::kMaxRows);
    const Image expected = part_of(whole, wanted);
    for (const ResizeKernels* kernels : all_kernels()) {
      const int step = between(random, 1, RowResizer::kMaxRows);
      const Image part = resized_part(image, height, width, interpolation, wanted, *kernels, step);
      REQUIRE(part.pixels == expected.pixels);
    }
    CHECK(resize(image, height, width, interpolation).pixels == whole.pixels);
  }
}
