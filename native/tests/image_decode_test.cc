// Refusals and damage, under the sanitizers; that the pixels are Pillow's is asked in
// tests/test_image.py.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <zlib.h>

#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "image/decode.h"

// clang-format off
#include <cstddef>  // jpeglib.h needs size_t and FILE, and doesn't ask for them
#include <cstdio>
#include <jpeglib.h>
// clang-format on

using namespace quern;

namespace {

using Bytes = std::vector<std::uint8_t>;

void put_u32(Bytes& out, std::size_t value) {
  for (int shift = 24; shift >= 0; shift -= 8)
    out.push_back(static_cast<std::uint8_t>(value >> shift));
}

void put_chunk(Bytes& out, const std::string& type, const Bytes& data) {
  put_u32(out, data.size());
  Bytes checked(type.begin(), type.end());
  checked.insert(checked.end(), data.begin(), data.end());
  out.insert(out.end(), checked.begin(), checked.end());
  put_u32(out, crc32(0, checked.data(), static_cast<uInt>(checked.size())));
}

// A PNG file: `rows` holds filter bytes and samples.
Bytes png(std::size_t width, std::size_t height, int depth, int color, const Bytes& rows,
          int interlace = 0, const Bytes& palette = {}) {
  Bytes out = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
  Bytes header;
  put_u32(header, width);
  put_u32(header, height);
  for (const int field : {depth, color, 0, 0, interlace}) {
    header.push_back(static_cast<std::uint8_t>(field));
  }
  put_chunk(out, "IHDR", header);
  if (!palette.empty()) put_chunk(out, "PLTE", palette);
  Bytes packed(compressBound(static_cast<uLong>(rows.size())));
  uLongf size = static_cast<uLongf>(packed.size());
  REQUIRE(compress(packed.data(), &size, rows.data(), static_cast<uLong>(rows.size())) == Z_OK);
  packed.resize(size);
  put_chunk(out, "IDAT", packed);
  put_chunk(out, "IEND", {});
  return out;
}

Bytes small_png() { return png(2, 2, 8, 2, {0, 1, 2, 3, 4, 5, 6, 0, 7, 8, 9, 10, 11, 12}); }

Bytes jpeg(int width, int height, bool progressive) {
  jpeg_compress_struct c = {};
  jpeg_error_mgr errors = {};
  c.err = jpeg_std_error(&errors);
  jpeg_create_compress(&c);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&c, &memory, &size);
  c.image_width = static_cast<JDIMENSION>(width);
  c.image_height = static_cast<JDIMENSION>(height);
  c.input_components = 3;
  c.in_color_space = JCS_RGB;
  jpeg_set_defaults(&c);
  if (progressive) jpeg_simple_progression(&c);
  jpeg_start_compress(&c, TRUE);
  Bytes row(static_cast<std::size_t>(width) * 3);
  for (int y = 0; y < height; ++y) {
    for (std::size_t x = 0; x < row.size(); ++x) {
      row[x] = static_cast<std::uint8_t>(static_cast<std::size_t>(y) * 31 + x * 7);
    }
    JSAMPROW pointer = row.data();
    jpeg_write_scanlines(&c, &pointer, 1);
  }
  jpeg_finish_compress(&c);
  Bytes bytes(memory, memory + size);
  jpeg_destroy_compress(&c);
  std::free(memory);
  return bytes;
}

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
  CHECK(status(jpeg(40, 30, false), ColorMode::kL, 1199) == 413);
  CHECK(status(jpeg(40, 30, false), ColorMode::kL, 1200) == 200);
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
  for (const Bytes& file : {small_png(), jpeg(40, 30, false), jpeg(40, 30, true)}) {
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
  for (const Bytes& file : {small_png(), palette, jpeg(40, 30, false), jpeg(40, 30, true)}) {
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
