// An image that is read from top to bottom, a few rows at a time: what the network needs of it can
// be made while the rows are in cache, and the whole image is never in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "image/image.h"

namespace quern {

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
