// PNG by libpng, as Pillow reads it (PngImagePlugin.py): no gamma, no background, alpha dropped,
// the first frame of an animation.
#include <png.h>

#include <csetjmp>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "image/codecs.h"

namespace quern {
namespace {

// libpng reports errors by a function that must not return: it jumps back to the latest setjmp.
// No object with a destructor lives in a function that calls setjmp.
struct Decompressor {
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::span<const std::uint8_t> rest;  // of the file
  char message[160] = "";

  Decompressor() = default;
  Decompressor(const Decompressor&) = delete;
  Decompressor& operator=(const Decompressor&) = delete;
  ~Decompressor() { png_destroy_read_struct(&png, &info, nullptr); }
};

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  Decompressor& self = *static_cast<Decompressor*>(png_get_error_ptr(png));
  std::strncpy(self.message, message, sizeof(self.message) - 1);
  png_longjmp(png, 1);
}

// Warnings are about colour profiles and the like; damaged pixels are errors.
void on_warning(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep out, std::size_t count) {
  Decompressor& self = *static_cast<Decompressor*>(png_get_io_ptr(png));
  if (count > self.rest.size()) png_error(png, "the file ends early");
  std::memcpy(out, self.rest.data(), count);
  self.rest = self.rest.subspan(count);
}

// Each step gives false when libpng failed; self.message then says why.

bool read_header(Decompressor& self, std::span<const std::uint8_t> file) {
  self.rest = file;
  self.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &self, on_error, on_warning);
  if (self.png == nullptr) return false;
  if (setjmp(png_jmpbuf(self.png)) != 0) return false;
  self.info = png_create_info_struct(self.png);
  if (self.info == nullptr) return false;
  png_set_read_fn(self.png, &self, read_bytes);
  png_set_crc_action(self.png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  png_set_benign_errors(self.png, 0);
  // Text, profiles, times: their bytes are checked and skipped, never unpacked.
  png_set_keep_unknown_chunks(self.png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
  png_set_user_limits(self.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // check_size() has ours
  png_read_info(self.png, self.info);
  return true;
}

// Asks libpng for whole bytes; gives the number of passes over the image, or 0 when it failed.
int prepare_rows(Decompressor& self, PixelLayout layout) {
  if (setjmp(png_jmpbuf(self.png)) != 0) return 0;
  if (layout == PixelLayout::kGray) png_set_expand_gray_1_2_4_to_8(self.png);
  if (layout == PixelLayout::kPalette) png_set_packing(self.png);
  const int passes = png_set_interlace_handling(self.png);
  png_read_update_info(self.png, self.info);
  return passes;
}

// A row of an interlaced image is only finished by the last pass; each adds to what is there.
bool read_row(Decompressor& self, std::uint8_t* row) {
  if (setjmp(png_jmpbuf(self.png)) != 0) return false;
  png_read_row(self.png, row, nullptr);
  return true;
}

bool read_end(Decompressor& self) {
  if (setjmp(png_jmpbuf(self.png)) != 0) return false;
  png_read_end(self.png, nullptr);
  return true;
}

// Colours that the file does not define stay black, as in Pillow.
void read_palette(const Decompressor& self, PixelFormat& format) {
  png_colorp colors = nullptr;
  int count = 0;
  png_get_PLTE(self.png, self.info, &colors, &count);
  for (int i = 0; i < count; ++i) {
    format.palette[static_cast<std::size_t>(i)] = {colors[i].red, colors[i].green, colors[i].blue};
  }
}

PixelLayout layout_of(const Decompressor& self) {
  switch (png_get_color_type(self.png, self.info)) {
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

class PngReader : public RowReader {
 public:
  PngReader(std::span<const std::uint8_t> file, ColorMode mode, std::size_t max_pixels)
      : mode_(mode) {
    check(read_header(self_, file));
    if (png_get_bit_depth(self_.png, self_.info) == 16) {
      throw ImageError(415, "a PNG image with 16 bits a sample is not supported: send 8");
    }
    height_ = png_get_image_height(self_.png, self_.info);
    width_ = png_get_image_width(self_.png, self_.info);
    check_size(height_, width_, max_pixels);
    format_.layout = layout_of(self_);
    if (format_.layout == PixelLayout::kPalette) read_palette(self_, format_);
  }

  int height() const override { return static_cast<int>(height_); }
  int width() const override { return static_cast<int>(width_); }

  Area start(const Area& wanted) override {
    wanted_ = wanted;
    const int passes = prepare_rows(self_, format_.layout);
    check(passes != 0);
    row_bytes_ = png_get_rowbytes(self_.png, self_.info);
    interlaced_ = passes > 1;
    rows_.resize(row_bytes_ * (interlaced_ ? height_ : 1));
    // All but the last pass of an interlaced image.
    for (int pass = 1; pass < passes; ++pass) {
      for (int y = 0; y < height(); ++y) check(read_row(self_, row(y)));
    }
    for (; y_ < wanted.top; ++y_) check(read_row(self_, row(y_)));
    return wanted;
  }

  void read(int count, std::uint8_t* out, std::size_t stride) override {
    const int first = wanted_.left * format_.samples();
    for (; count > 0; --count, ++y_, out += stride) {
      check(read_row(self_, row(y_)));
      convert_row(row(y_) + first, format_, wanted_.width(), mode_, out);
    }
  }

  void finish() override {
    for (; y_ < height(); ++y_) check(read_row(self_, row(y_)));
    check(read_end(self_));
  }

 private:
  void check(bool succeeded) const {
    if (succeeded) return;
    throw ImageError(400, "the PNG image is damaged or truncated: " + std::string(self_.message));
  }

  std::uint8_t* row(int y) {
    return rows_.data() + (interlaced_ ? static_cast<std::size_t>(y) * row_bytes_ : 0);
  }

  Decompressor self_;
  ColorMode mode_;
  PixelFormat format_;
  std::size_t height_ = 0, width_ = 0;
  Area wanted_;
  bool interlaced_ = false;
  std::size_t row_bytes_ = 0;
  std::vector<std::uint8_t> rows_;  // as the file has them: one, or all when interlaced
  int y_ = 0;                       // the next row
};

}  // namespace

std::unique_ptr<RowReader> open_png(std::span<const std::uint8_t> file, ColorMode mode,
                                    std::size_t max_pixels) {
  return std::make_unique<PngReader>(file, mode, max_pixels);
}

}  // namespace quern
