// JPEG by libjpeg-turbo's libjpeg interface, with the settings Pillow uses
// (libImaging/JpegDecode.c): accurate integer DCT, fancy upsampling, which are libjpeg's defaults.
#include <algorithm>
#include <csetjmp>
#include <memory>
#include <string>
#include <vector>

// clang-format off
#include <cstddef>  // jpeglib.h needs size_t and FILE, and doesn't ask for them
#include <cstdio>
#include <jpeglib.h>
// clang-format on

#include "image/codecs.h"
#include "image/huffman.h"

namespace quern {
namespace {

// A progressive file may ask for any number of passes over the image; real ones have about ten.
constexpr int kMaxScans = 500;

// The columns read on either side of the wanted ones: upsampling blends a pixel with those up to two
// columns away, so that the outermost ones of a crop are not those of the whole image.
constexpr int kMargin = 4;

// How many rows libjpeg is asked for at once; it gives what it has.
constexpr int kRowsAtOnce = 4;

// libjpeg reports errors by a function that must not return: it jumps back to the latest setjmp.
// No object with a destructor lives in a function that calls setjmp.
struct Decompressor {
  jpeg_decompress_struct jpeg = {};
  jpeg_error_mgr errors = {};
  jpeg_progress_mgr progress = {};
  std::jmp_buf failed = {};
  char message[JMSG_LENGTH_MAX] = "";

  Decompressor() = default;
  Decompressor(const Decompressor&) = delete;
  Decompressor& operator=(const Decompressor&) = delete;
  ~Decompressor() { jpeg_destroy_decompress(&jpeg); }  // harmless before jpeg_create_decompress
};

Decompressor& decompressor_of(j_common_ptr jpeg) {
  return *static_cast<Decompressor*>(jpeg->client_data);
}

[[noreturn]] void on_error(j_common_ptr jpeg) {
  Decompressor& self = decompressor_of(jpeg);
  jpeg->err->format_message(jpeg, self.message);
  std::longjmp(self.failed, 1);
}

// Warnings (level -1) say that the data are damaged and libjpeg made something up: refused.
void on_message(j_common_ptr jpeg, int level) {
  if (level < 0) on_error(jpeg);
}

void on_progress(j_common_ptr jpeg) {
  Decompressor& self = decompressor_of(jpeg);
  if (self.jpeg.input_scan_number > kMaxScans) {
    std::snprintf(self.message, sizeof(self.message), "more than %d scans", kMaxScans);
    std::longjmp(self.failed, 1);
  }
}

// Each step gives false when libjpeg failed; self.message then says why.

bool read_header(Decompressor& self, std::span<const std::uint8_t> file) {
  jpeg_decompress_struct& jpeg = self.jpeg;
  jpeg.err = jpeg_std_error(&self.errors);
  self.errors.error_exit = on_error;
  self.errors.emit_message = on_message;
  self.progress.progress_monitor = on_progress;
  if (setjmp(self.failed) != 0) return false;
  jpeg.client_data = &self;  // before creation too, which may fail, and which keeps it
  jpeg_create_decompress(&jpeg);
  jpeg.progress = &self.progress;
  jpeg_mem_src(&jpeg, file.data(), file.size());
  jpeg_read_header(&jpeg, TRUE);
  return true;
}

// `columns`: the wanted ones, widened to those that rows will have.
bool start_rows(Decompressor& self, Area& columns) {
  jpeg_decompress_struct& jpeg = self.jpeg;
  if (setjmp(self.failed) != 0) return false;
  jpeg_start_decompress(&jpeg);
  replace_huffman_decoder(jpeg);
  const int width = static_cast<int>(jpeg.output_width);
  columns.left = std::max(columns.left - kMargin, 0);
  columns.right = std::min(columns.right + kMargin, width);
  if (jpeg_has_multiple_scans(&jpeg) || columns.width() == width) {
    columns.left = 0;
    columns.right = width;
    return true;
  }
  auto left = static_cast<JDIMENSION>(columns.left);
  auto count = static_cast<JDIMENSION>(columns.width());
  jpeg_crop_scanline(&jpeg, &left, &count);  // moves `left` to where a block begins
  columns.left = static_cast<int>(left);
  return true;
}

// `row` has room for one row of the file; nullptr: straight to `out`, whose mode is the file's.
bool read_rows(Decompressor& self, const PixelFormat& format, ColorMode mode, std::uint8_t* row,
               int count, std::uint8_t* out, std::size_t stride) {
  jpeg_decompress_struct& jpeg = self.jpeg;
  if (setjmp(self.failed) != 0) return false;
  const int width = static_cast<int>(jpeg.output_width);
  for (int y = 0; y < count;) {
    JSAMPROW targets[kRowsAtOnce];
    const int asked = row == nullptr ? std::min(count - y, kRowsAtOnce) : 1;
    std::uint8_t* const first = out + static_cast<std::size_t>(y) * stride;
    for (int i = 0; i < asked; ++i) targets[i] = first + static_cast<std::size_t>(i) * stride;
    if (row != nullptr) targets[0] = row;
    y += static_cast<int>(jpeg_read_scanlines(&jpeg, targets, static_cast<JDIMENSION>(asked)));
    if (row != nullptr) convert_row(row, format, width, mode, first);
  }
  return true;
}

// `row` has room for one row of the file.
bool skip_rows(Decompressor& self, int count, std::uint8_t* row) {
  jpeg_decompress_struct& jpeg = self.jpeg;
  if (setjmp(self.failed) != 0) return false;
  if (!jpeg_has_multiple_scans(&jpeg)) {
    jpeg_skip_scanlines(&jpeg, static_cast<JDIMENSION>(count));
    return true;
  }
  for (int y = 0; y < count; ++y) jpeg_read_scanlines(&jpeg, &row, 1);
  return true;
}

bool read_end(Decompressor& self) {
  if (setjmp(self.failed) != 0) return false;
  jpeg_finish_decompress(&self.jpeg);
  return true;
}

class JpegReader : public RowReader {
 public:
  JpegReader(std::span<const std::uint8_t> file, ColorMode mode, std::size_t max_pixels)
      : mode_(mode) {
    check(read_header(self_, file));
    jpeg_decompress_struct& jpeg = self_.jpeg;
    switch (jpeg.num_components) {
      case 1:
        format_.layout = PixelLayout::kGray;
        jpeg.out_color_space = JCS_GRAYSCALE;
        break;
      case 3:
        format_.layout = PixelLayout::kRgb;
        jpeg.out_color_space = JCS_RGB;
        break;
      case 4:
        format_.layout = PixelLayout::kInvertedCmyk;
        jpeg.out_color_space = JCS_CMYK;
        break;
      default:
        throw ImageError(415, "a JPEG image with " + std::to_string(jpeg.num_components) +
                                  " components is not supported");
    }
    check_size(jpeg.image_height, jpeg.image_width, max_pixels);
  }

  int height() const override { return static_cast<int>(self_.jpeg.image_height); }
  int width() const override { return static_cast<int>(self_.jpeg.image_width); }

  Area start(const Area& wanted) override {
    Area area = wanted;
    check(start_rows(self_, area));
    row_ = RowBuffer(1, static_cast<std::size_t>(area.width() * format_.samples()));
    check(skip_rows(self_, area.top, row_.data()));
    return area;
  }

  void read(int count, std::uint8_t* out, std::size_t stride) override {
    const bool converts = format_.samples() != channels_of(mode_);
    check(read_rows(self_, format_, mode_, converts ? row_.data() : nullptr, count, out, stride));
  }

  void finish() override {
    const int left = height() - static_cast<int>(self_.jpeg.output_scanline);
    if (left > 0) {
      // Skipping the last row too would leave the rest of the file unread, and so unchecked.
      check(skip_rows(self_, left - 1, row_.data()));
      check(read_rows(self_, format_, mode_, nullptr, 1, row_.data(), 0));
    }
    check(read_end(self_));
  }

 private:
  void check(bool succeeded) const {
    if (succeeded) return;
    throw ImageError(400, "the JPEG image is damaged or truncated: " + std::string(self_.message));
  }

  Decompressor self_;
  ColorMode mode_;
  PixelFormat format_;
  RowBuffer row_;  // as the file has it
};

}  // namespace

std::unique_ptr<RowReader> open_jpeg(std::span<const std::uint8_t> file, ColorMode mode,
                                     std::size_t max_pixels) {
  return std::make_unique<JpegReader>(file, mode, max_pixels);
}

}  // namespace quern
