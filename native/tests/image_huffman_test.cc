// Our Huffman decoder in libjpeg against libjpeg's own.
#include <doctest/doctest.h>

#include <algorithm>
#include <csetjmp>
#include <random>
#include <string>

#include "image/huffman.h"
#include "image_files.h"

using namespace quern;

namespace {

struct Outcome {
  bool replaced = false;
  std::string refusal;  // libjpeg's words
  Bytes pixels;         // as the file has them
};

struct Decoding {
  jpeg_decompress_struct jpeg = {};
  jpeg_error_mgr errors = {};
  std::jmp_buf refused = {};
  Outcome outcome;
};

[[noreturn]] void on_error(j_common_ptr jpeg) {
  Decoding& decoding = *static_cast<Decoding*>(jpeg->client_data);
  char message[JMSG_LENGTH_MAX];
  jpeg->err->format_message(jpeg, message);
  decoding.outcome.refusal = message;
  std::longjmp(decoding.refused, 1);
}

void on_message(j_common_ptr jpeg, int level) {
  if (level < 0) on_error(jpeg);
}

void decode(Decoding& decoding, const Bytes& file, bool replace) {
  jpeg_decompress_struct& jpeg = decoding.jpeg;
  jpeg.err = jpeg_std_error(&decoding.errors);
  decoding.errors.error_exit = on_error;
  decoding.errors.emit_message = on_message;
  if (setjmp(decoding.refused) != 0) return;
  jpeg.client_data = &decoding;
  jpeg_create_decompress(&jpeg);
  jpeg_mem_src(&jpeg, file.data(), file.size());
  jpeg_read_header(&jpeg, TRUE);
  if (std::size_t{jpeg.image_width} * jpeg.image_height > 1'000'000) return;  // damaged sizes
  jpeg.out_color_space = jpeg.jpeg_color_space;
  jpeg_start_decompress(&jpeg);
  const jpeg_entropy_decoder* const before = jpeg.entropy;
  if (replace) replace_huffman_decoder(jpeg);
  decoding.outcome.replaced = jpeg.entropy != before;
  const std::size_t row =
      std::size_t{jpeg.output_width} * static_cast<std::size_t>(jpeg.output_components);
  decoding.outcome.pixels.resize(row * jpeg.output_height);
  while (jpeg.output_scanline < jpeg.output_height) {
    JSAMPROW target = decoding.outcome.pixels.data() + row * jpeg.output_scanline;
    jpeg_read_scanlines(&jpeg, &target, 1);
  }
  jpeg_finish_decompress(&jpeg);
}

Outcome outcome_of(const Bytes& file, bool replace) {
  Decoding decoding;
  decode(decoding, file, replace);
  jpeg_destroy_decompress(&decoding.jpeg);
  if (!decoding.outcome.refusal.empty()) decoding.outcome.pixels.clear();
  return decoding.outcome;
}

bool says(const Outcome& outcome, const std::string& words) {
  return outcome.refusal.find(words) != std::string::npos;
}

// 0xFF twice with a 0 behind, which no encoder writes: libjpeg takes it for one 0xFF, and leaves in
// the block what it had decoded before it noticed.
bool has_doubled_ff(const Bytes& file) {
  const Bytes doubled = {0xFF, 0xFF, 0x00};
  return std::search(file.begin(), file.end(), doubled.begin(), doubled.end()) != file.end();
}

// Whether the file was decoded.
bool check_same(const Bytes& file) {
  const Outcome own = outcome_of(file, true);
  const Outcome libjpeg = outcome_of(file, false);
  if (own.refusal.empty() && says(libjpeg, "extraneous bytes")) return true;
  if (libjpeg.refusal.empty() && says(own, "bad Huffman code")) return false;
  if (libjpeg.refusal.empty() && has_doubled_ff(file) && !own.refusal.empty()) return false;
  CAPTURE(own.refusal);
  CAPTURE(libjpeg.refusal);
  CHECK(own.refusal.empty() == libjpeg.refusal.empty());
  CHECK(own.pixels == libjpeg.pixels);
  return own.refusal.empty();
}

std::vector<JpegOptions> baseline_kinds() {
  std::vector<JpegOptions> kinds;
  for (const J_COLOR_SPACE colors : {JCS_GRAYSCALE, JCS_RGB, JCS_CMYK}) {
    for (const int quality : {1, 30, 75, 95, 100}) {
      for (const bool own_codes : {false, true}) {
        kinds.push_back({.colors = colors, .quality = quality, .own_codes = own_codes});
        kinds.push_back({.colors = colors,
                         .horizontal = 1,
                         .vertical = 1,
                         .quality = quality,
                         .own_codes = own_codes});
      }
      kinds.push_back({.colors = colors, .quality = quality, .long_codes = true});
    }
  }
  return kinds;
}

// Where the data of the first scan begin.
std::size_t data_begin(const Bytes& file) {
  std::size_t at = 2;
  while (file[at + 1] != 0xDA) at += 2U + file[at + 2] * 256U + file[at + 3];
  return at + 2U + file[at + 2] * 256U + file[at + 3];
}

}  // namespace

TEST_CASE("pixels are those of libjpeg's decoder") {
  for (const JpegOptions& options : baseline_kinds()) {
    CAPTURE(options.colors);
    CAPTURE(options.quality);
    CAPTURE(options.own_codes);
    CAPTURE(options.long_codes);
    for (const int width : {1, 8, 17, 200}) {
      for (const int height : {1, 16, 90}) {
        const Bytes file = jpeg(width, height, options);
        CHECK(outcome_of(file, true).replaced);
        CHECK(check_same(file));
      }
    }
  }
}

TEST_CASE("what it can't decode is left to libjpeg's") {
  for (const JpegOptions& options :
       {JpegOptions{.progressive = true}, JpegOptions{.arithmetic = true},
        JpegOptions{.restart_interval = 2}}) {
    const Bytes file = jpeg(60, 40, options);
    CHECK_FALSE(outcome_of(file, true).replaced);
    CHECK(check_same(file));
  }
}

TEST_CASE("damaged files are refused as by libjpeg's, or have its pixels") {
  std::mt19937 random(5);  // fixed: a failure can be repeated
  int decoded = 0, refused = 0;
  for (const JpegOptions& options : baseline_kinds()) {
    const Bytes file = jpeg(70, 50, options);
    const std::size_t begin = data_begin(file);
    for (int round = 0; round < 150; ++round) {
      Bytes damaged = file;
      const std::size_t first = round % 4 == 0 ? 2 : begin;
      for (unsigned count = 1 + random() % 3; count > 0; --count) {
        const std::size_t at = first + random() % (damaged.size() - first);
        const std::uint8_t value = random() % 4 == 0 ? 0xFF : static_cast<std::uint8_t>(random());
        switch (random() % 4) {
          case 0:
            damaged.insert(damaged.begin() + static_cast<std::ptrdiff_t>(at), value);
            break;
          case 1:
            damaged.erase(damaged.begin() + static_cast<std::ptrdiff_t>(at));
            break;
          default:
            damaged[at] = value;
        }
      }
      ++(check_same(damaged) ? decoded : refused);
    }
  }
  CHECK(decoded > 1000);
  CHECK(refused > 1000);
}

TEST_CASE("every end of the data") {
  for (const JpegOptions& options : {JpegOptions{}, JpegOptions{.quality = 100}}) {
    const Bytes file = jpeg(40, 24, options);
    const auto begin = static_cast<std::ptrdiff_t>(data_begin(file));
    const auto end = static_cast<std::ptrdiff_t>(file.size()) - 2;  // without the last marker
    for (std::ptrdiff_t cut = begin; cut < end; ++cut) {
      Bytes shorter(file.begin(), file.begin() + cut);
      CHECK_FALSE(check_same(shorter));
      shorter.insert(shorter.end(), {0xFF, 0xD9});
      CHECK_FALSE(check_same(shorter));
    }
    for (const std::uint8_t more : {0x00, 0x55, 0xFF}) {
      for (std::size_t count = 1; count < 5000; count = count < 20 ? count + 1 : count * 2) {
        Bytes longer = file;
        longer.insert(longer.end() - 2, count, more);
        const bool decoded = check_same(longer);
        CHECK(decoded == (more == 0xFF || count <= 7));
      }
    }
  }
}
