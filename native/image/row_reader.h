// An image that is read from top to bottom, a few rows at a time: what the network needs of it can
// be made while the rows are in cache, and the whole image is never in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "image/image.h"

namespace quern {

// Memory for rows on their way. libjpeg-turbo writes past the cache to rows that are aligned for
// its SIMD, which costs more than the rest of a conversion when they are read at once: these rows
// are not aligned.
class RowBuffer {
 public:
  RowBuffer() = default;
  RowBuffer(RowBuffer&&) = default;
  RowBuffer& operator=(RowBuffer&&) = default;
  // `slack`: bytes behind the last row that may be read.
  RowBuffer(int count, std::size_t row_bytes, std::size_t slack = 0)
      : stride_((row_bytes + kAlignment - 1) / kAlignment * kAlignment),
        bytes_(stride_ * static_cast<std::size_t>(count) + slack + 2 * kAlignment) {
    const std::size_t past = reinterpret_cast<std::uintptr_t>(bytes_.data()) % kAlignment;
    first_ = bytes_.data() + (kAlignment - past) + kAlignment / 4;
  }

  std::uint8_t* data() { return first_; }
  std::size_t stride() const { return stride_; }  // bytes from row to row

 private:
  static constexpr std::size_t kAlignment = 32;  // of AVX2; SSE2 has 16

  std::size_t stride_ = 0;
  std::vector<std::uint8_t> bytes_;
  std::uint8_t* first_ = nullptr;
};

class RowReader {
 public:
  virtual ~RowReader() = default;

  // Of the whole image.
  virtual int height() const = 0;
  virtual int width() const = 0;

  // Called once, before read(): the part that will be read. Returns the columns that read() gives,
  // which are these or more (top and bottom are as wanted).
  virtual Area start(const Area& wanted) = 0;
  // The next `count` rows, uint8 [count, columns, channels], each row `stride` bytes after the one
  // before.
  virtual void read(int count, std::uint8_t* out, std::size_t stride) = 0;
  // Reads the file to its end: it is refused wherever it is damaged.
  virtual void finish() = 0;
};

// The reader of a JPEG or PNG file in `mode`, its header read. `file` must outlive it. It and its
// functions throw ImageError as decode() does.
std::unique_ptr<RowReader> open_image(std::span<const std::uint8_t> file, ColorMode mode,
                                      std::size_t max_pixels);

}  // namespace quern
