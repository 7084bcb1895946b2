// JPEG and PNG files for the tests, made in memory: also such as no ordinary program writes.
#pragma once

#include <doctest/doctest.h>
#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

// clang-format off
#include <cstddef>  // jpeglib.h needs size_t and FILE, and doesn't ask for them
#include <cstdio>
#include <jpeglib.h>
// clang-format on

using Bytes = std::vector<std::uint8_t>;

inline void put_u32(Bytes& out, std::size_t value) {
  for (int shift = 24; shift >= 0; shift -= 8)
    out.push_back(static_cast<std::uint8_t>(value >> shift));
}

inline void put_chunk(Bytes& out, const std::string& type, const Bytes& data) {
  put_u32(out, data.size());
  Bytes checked(type.begin(), type.end());
  checked.insert(checked.end(), data.begin(), data.end());
  out.insert(out.end(), checked.begin(), checked.end());
  put_u32(out, crc32(0, checked.data(), static_cast<uInt>(checked.size())));
}

// A PNG file: `rows` holds filter bytes and samples.
inline Bytes png(std::size_t width, std::size_t height, int depth, int color, const Bytes& rows,
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

inline Bytes small_png() { return png(2, 2, 8, 2, {0, 1, 2, 3, 4, 5, 6, 0, 7, 8, 9, 10, 11, 12}); }

struct JpegOptions {
  J_COLOR_SPACE colors = JCS_RGB;    // of the samples; JPEG stores RGB as YCbCr
  int horizontal = 2, vertical = 2;  // sampling factors of the first component, the rest have 1
  bool progressive = false;
  bool arithmetic = false;
  unsigned restart_interval = 0;  // in blocks of all components (MCU)
  int quality = 75;
  bool own_codes = false;   // counted out for this image
  bool long_codes = false;  // the shortest ones for what is rarest
};

// The codes of the standard's example for what comes seldom are given to what comes often.
inline void lengthen_codes(JHUFF_TBL& table) {
  int count = 0;
  for (int length = 1; length <= 16; ++length) count += table.bits[length];
  std::reverse(table.huffval, table.huffval + count);
}

inline Bytes jpeg(int width, int height, const JpegOptions& options = {}) {
  jpeg_compress_struct c = {};
  jpeg_error_mgr errors = {};
  c.err = jpeg_std_error(&errors);
  jpeg_create_compress(&c);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&c, &memory, &size);
  const int samples = options.colors == JCS_GRAYSCALE ? 1 : (options.colors == JCS_CMYK ? 4 : 3);
  c.image_width = static_cast<JDIMENSION>(width);
  c.image_height = static_cast<JDIMENSION>(height);
  c.input_components = samples;
  c.in_color_space = options.colors;
  jpeg_set_defaults(&c);
  c.comp_info[0].h_samp_factor = options.horizontal;
  c.comp_info[0].v_samp_factor = options.vertical;
  c.arith_code = options.arithmetic ? TRUE : FALSE;
  c.restart_interval = options.restart_interval;
  jpeg_set_quality(&c, options.quality, TRUE);
  c.optimize_coding = options.own_codes ? TRUE : FALSE;
  for (int i = 0; options.long_codes && i < 2; ++i) {
    lengthen_codes(*c.dc_huff_tbl_ptrs[i]);
    lengthen_codes(*c.ac_huff_tbl_ptrs[i]);
  }
  if (options.progressive) jpeg_simple_progression(&c);
  jpeg_start_compress(&c, TRUE);
  Bytes row(static_cast<std::size_t>(width) * static_cast<std::size_t>(samples));
  std::uint32_t noise = 1;
  for (int y = 0; y < height; ++y) {
    for (std::size_t x = 0; x < row.size(); ++x) {
      noise = noise * 1664525U + 1013904223U;
      row[x] = static_cast<std::uint8_t>(static_cast<std::size_t>(y) * 3 + x * 7 + (noise >> 27U));
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

inline Bytes progressive_jpeg(int width, int height) {
  JpegOptions options;
  options.progressive = true;
  return jpeg(width, height, options);
}
