// PNG by libpng, as Pillow reads it (PngImagePlugin.py): no gamma, no background, alpha dropped,
// the first frame of an animation.
#include <png.h>

#include <csetjmp>
#include <cstring>
#include <string>
#include <vector>

#include "image/codecs.h"

namespace quern {
namespace {

// libpng reports errors by a function that must not return: it jumps back to the latest setjmp.
// No object with a destructor lives in a function that calls setjmp.
struct Reader {
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::span<const std::uint8_t> rest;  // of the file
  char message[160] = "";

  Reader() = default;
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
};

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  Reader& reader = *static_cast<Reader*>(png_get_error_ptr(png));
  std::strncpy(reader.message, message, sizeof(reader.message) - 1);
  png_longjmp(png, 1);
}

// Warnings are about colour profiles and the like; damaged pixels are errors.
void on_warning(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep out, std::size_t count) {
  Reader& reader = *static_cast<Reader*>(png_get_io_ptr(png));
  if (count > reader.rest.size()) png_error(png, "the file ends early");
  std::memcpy(out, reader.rest.data(), count);
  reader.rest = reader.rest.subspan(count);
}

// Each step gives false when libpng failed; reader.message then says why.

bool read_header(Reader& reader, std::span<const std::uint8_t> file) {
  reader.rest = file;
  reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, on_error, on_warning);
  if (reader.png == nullptr) return false;
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  reader.info = png_create_info_struct(reader.png);
  if (reader.info == nullptr) return false;
  png_set_read_fn(reader.png, &reader, read_bytes);
  png_set_crc_action(reader.png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  png_set_benign_errors(reader.png, 0);
  // Text, profiles, times: their bytes are checked and skipped, never unpacked.
  png_set_keep_unknown_chunks(reader.png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
  png_set_user_limits(reader.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // allocate_image() has ours
  png_read_info(reader.png, reader.info);
  return true;
}

// `raw` has room for one row, or, when the file is interlaced, for all of them.
bool read_rows(Reader& reader, const PixelFormat& format, ColorMode mode, std::uint8_t* raw,
               std::size_t raw_row_bytes, int passes, Image& image) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  for (int pass = 0; pass < passes; ++pass) {
    for (int y = 0; y < image.height; ++y) {
      std::uint8_t* const row =
          passes == 1 ? raw : raw + static_cast<std::size_t>(y) * raw_row_bytes;
      png_read_row(reader.png, row, nullptr);
      if (pass == passes - 1) convert_row(row, format, image.width, mode, image.row(y));
    }
  }
  png_read_end(reader.png, nullptr);
  return true;
}

[[noreturn]] void refuse(const Reader& reader) {
  throw ImageError(400, "the PNG image is damaged or truncated: " + std::string(reader.message));
}

// Colours that the file does not define stay black, as in Pillow.
void read_palette(const Reader& reader, PixelFormat& format) {
  png_colorp colors = nullptr;
  int count = 0;
  png_get_PLTE(reader.png, reader.info, &colors, &count);
  for (int i = 0; i < count; ++i) {
    format.palette[static_cast<std::size_t>(i)] = {colors[i].red, colors[i].green, colors[i].blue};
  }
}

PixelLayout layout_of(const Reader& reader) {
  switch (png_get_color_type(reader.png, reader.info)) {
    case PNG_COLOR_TYPE_GRAY:
      return PixelLayout::kGray;
    case PNG_COLOR_TYPE_GRAY_ALPHA:
      return PixelLayout::kGrayAlpha;
    case PNG_COLOR_TYPE_PALETTE:
      return PixelLayout::kPalette;
    case PNG_COLOR_TYPE_RGB_ALPHA:
      return PixelLayout::kRgba;
    default:
      return PixelLayout::kRgb;
  }
}

// Asks libpng for whole bytes; gives the number of passes over the image, or 0 when it failed.
int prepare_rows(Reader& reader, PixelLayout layout) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return 0;
  if (layout == PixelLayout::kGray) png_set_expand_gray_1_2_4_to_8(reader.png);
  if (layout == PixelLayout::kPalette) png_set_packing(reader.png);
  const int passes = png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  return passes;
}

}  // namespace

Image decode_png(std::span<const std::uint8_t> file, ColorMode mode, std::size_t max_pixels) {
  Reader reader;
  if (!read_header(reader, file)) refuse(reader);
  if (png_get_bit_depth(reader.png, reader.info) == 16) {
    throw ImageError(415, "a PNG image with 16 bits a sample is not supported: send 8");
  }
  Image image = allocate_image(png_get_image_height(reader.png, reader.info),
                               png_get_image_width(reader.png, reader.info), mode, max_pixels);
  PixelFormat format;
  format.layout = layout_of(reader);
  if (format.layout == PixelLayout::kPalette) read_palette(reader, format);
  const int passes = prepare_rows(reader, format.layout);
  if (passes == 0) refuse(reader);
  const std::size_t raw_row_bytes = png_get_rowbytes(reader.png, reader.info);
  const auto rows = static_cast<std::size_t>(passes == 1 ? 1 : image.height);
  std::vector<std::uint8_t> raw(raw_row_bytes * rows);
  if (!read_rows(reader, format, mode, raw.data(), raw_row_bytes, passes, image)) refuse(reader);
  return image;
}

}  // namespace quern
