// JPEG by libjpeg-turbo's libjpeg interface, with the settings Pillow uses
// (libImaging/JpegDecode.c): accurate integer DCT, fancy upsampling, which are libjpeg's defaults.
#include <csetjmp>
#include <string>
#include <vector>

// clang-format off
#include <cstddef>  // jpeglib.h needs size_t and FILE, and doesn't ask for them
#include <cstdio>
#include <jpeglib.h>
// clang-format on

#include "image/codecs.h"

namespace quern {
namespace {

// A progressive file may ask for any number of passes over the image; real ones have about ten.
constexpr int kMaxScans = 500;

// libjpeg reports errors by a function that must not return: it jumps back to the latest setjmp.
// No object with a destructor lives in a function that calls setjmp.
struct Reader {
  jpeg_decompress_struct jpeg = {};
  jpeg_error_mgr errors = {};
  jpeg_progress_mgr progress = {};
  std::jmp_buf failed = {};
  char message[JMSG_LENGTH_MAX] = "";

  Reader() = default;
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { jpeg_destroy_decompress(&jpeg); }  // harmless before jpeg_create_decompress
};

Reader& reader_of(j_common_ptr jpeg) { return *static_cast<Reader*>(jpeg->client_data); }

[[noreturn]] void on_error(j_common_ptr jpeg) {
  Reader& reader = reader_of(jpeg);
  jpeg->err->format_message(jpeg, reader.message);
  std::longjmp(reader.failed, 1);
}

// Warnings (level -1) say that the data are damaged and libjpeg made something up: refused.
void on_message(j_common_ptr jpeg, int level) {
  if (level < 0) on_error(jpeg);
}

void on_progress(j_common_ptr jpeg) {
  Reader& reader = reader_of(jpeg);
  if (reader.jpeg.input_scan_number > kMaxScans) {
    std::snprintf(reader.message, sizeof(reader.message), "more than %d scans", kMaxScans);
    std::longjmp(reader.failed, 1);
  }
}

// Each step gives false when libjpeg failed; reader.message then says why.

bool read_header(Reader& reader, std::span<const std::uint8_t> file) {
  jpeg_decompress_struct& jpeg = reader.jpeg;
  jpeg.err = jpeg_std_error(&reader.errors);
  reader.errors.error_exit = on_error;
  reader.errors.emit_message = on_message;
  reader.progress.progress_monitor = on_progress;
  if (setjmp(reader.failed) != 0) return false;
  jpeg.client_data = &reader;  // before creation too, which may fail, and which keeps it
  jpeg_create_decompress(&jpeg);
  jpeg.progress = &reader.progress;
  jpeg_mem_src(&jpeg, file.data(), file.size());
  jpeg_read_header(&jpeg, TRUE);
  return true;
}

// nullptr `row`: straight into the image, whose mode is the file's.
bool read_rows(Reader& reader, const PixelFormat& format, ColorMode mode, std::uint8_t* row,
               Image& image) {
  jpeg_decompress_struct& jpeg = reader.jpeg;
  if (setjmp(reader.failed) != 0) return false;
  jpeg_start_decompress(&jpeg);
  while (jpeg.output_scanline < jpeg.output_height) {
    std::uint8_t* const out = image.row(static_cast<int>(jpeg.output_scanline));
    JSAMPROW target = row == nullptr ? out : row;
    jpeg_read_scanlines(&jpeg, &target, 1);
    if (row != nullptr) convert_row(row, format, image.width, mode, out);
  }
  jpeg_finish_decompress(&jpeg);
  return true;
}

[[noreturn]] void refuse(const Reader& reader) {
  throw ImageError(400, "the JPEG image is damaged or truncated: " + std::string(reader.message));
}

}  // namespace

Image decode_jpeg(std::span<const std::uint8_t> file, ColorMode mode, std::size_t max_pixels) {
  Reader reader;
  if (!read_header(reader, file)) refuse(reader);
  jpeg_decompress_struct& jpeg = reader.jpeg;

  PixelFormat format;
  switch (jpeg.num_components) {
    case 1:
      format.layout = PixelLayout::kGray;
      jpeg.out_color_space = JCS_GRAYSCALE;
      break;
    case 3:
      format.layout = PixelLayout::kRgb;
      jpeg.out_color_space = JCS_RGB;
      break;
    case 4:
      format.layout = PixelLayout::kInvertedCmyk;
      jpeg.out_color_space = JCS_CMYK;
      break;
    default:
      throw ImageError(415, "a JPEG image with " + std::to_string(jpeg.num_components) +
                                " components is not supported");
  }
  Image image = allocate_image(jpeg.image_height, jpeg.image_width, mode, max_pixels);
  std::vector<std::uint8_t> row;
  if (format.samples() != image.channels) {
    row.resize(static_cast<std::size_t>(image.width) * static_cast<std::size_t>(format.samples()));
  }
  if (!read_rows(reader, format, mode, row.empty() ? nullptr : row.data(), image)) refuse(reader);
  return image;
}

}  // namespace quern
