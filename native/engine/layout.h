// How values lie in memory. An image [1, C, H, W] is kept in blocks of 16 channels,
// [ceil(C / 16)][H][W][16]: one pixel of one block is one cache line, every kernel's strides are
// known when it is compiled, and a kernel needs no code for the last channels. Every other shape
// is dense in row-major order; [1, n] is so the same memory as [1, n, 1, 1].
//
// The unused channels of the last block hold finite numbers that mean nothing: kernels may compute
// with them (times a weight of zero), and must write finite numbers there.
#pragma once

#include <cstdint>

namespace quern {

constexpr int kBlock = 16;

struct Extent {
  std::int64_t channels = 1, height = 1, width = 1;

  std::int64_t blocks() const { return (channels + kBlock - 1) / kBlock; }
  std::int64_t row() const { return width * kBlock; }    // floats of one row of one block
  std::int64_t plane() const { return height * row(); }  // floats of one block
  std::int64_t floats() const { return blocks() * plane(); }
  // Where in the memory of the value the element is.
  std::int64_t offset(std::int64_t channel, std::int64_t y, std::int64_t x) const {
    return channel / kBlock * plane() + y * row() + x * kBlock + channel % kBlock;
  }
};

struct Rows {
  std::int64_t first = 0, last = 0;  // [first, last)
};

// A value, or those rows of it that are in memory: pixel x of row y of block b is at
// data + b * plane + y * row + x * 16.
struct View {
  float* data = nullptr;
  std::int64_t plane = 0;
};

}  // namespace quern
