// Depthwise convolution: each channel by itself, 16 at a time. In the middle of a row several
// pixels are computed side by side; at its ends, where taps fall into the padding, one.
#include "engine/kernels/kernel_functions.h"
#include "engine/kernels/vector.h"

namespace quern::QUERN_INSTRUCTIONS {
namespace {

constexpr int kPixels = kLanes == 1 ? 1 : (kRegisters == 32 ? 16 : 8) / kPerBlock;

// The taps [first, last) of one axis that fall inside [0, size) from `start` on.
struct Taps {
  std::int64_t first, last;
};

Taps inside(std::int64_t start, std::int64_t dilation, std::int64_t kernel, std::int64_t size) {
  Taps taps = {0, kernel};
  while (taps.first < kernel && start + taps.first * dilation < 0) ++taps.first;
  while (taps.last > taps.first && start + (taps.last - 1) * dilation >= size) --taps.last;
  return taps;
}

// kWidth pixels side by side, all of whose taps `across` are inside the image; kStep floats lie
// between the first taps of two.
template <int kWidth, int kStep>
__attribute__((noinline)) void pixels(const Depthwise& d, const float* rows, Taps down, Taps across,
                                      float* output) {
  Register sums[kWidth][kPerBlock];
#pragma GCC unroll kUnroll
  for (int r = 0; r < kPerBlock; ++r) {
    const Register bias = load(d.bias + r * kLanes);
#pragma GCC unroll kUnroll
    for (int p = 0; p < kWidth; ++p) sums[p][r] = bias;
  }
  for (std::int64_t y = down.first; y < down.last; ++y) {
    const float* row = rows + y * d.dilation_y * d.in_width * kBlock;
    const float* weights = d.weights + y * d.kernel_width * kBlock;
    for (std::int64_t x = across.first; x < across.last; ++x) {
      const float* in = row + x * d.dilation_x * kBlock;
#pragma GCC unroll kUnroll
      for (int r = 0; r < kPerBlock; ++r) {
        const Register weight = load(weights + x * kBlock + r * kLanes);
#pragma GCC unroll kUnroll
        for (int p = 0; p < kWidth; ++p) sums[p][r] += load(in + p * kStep + r * kLanes) * weight;
      }
    }
  }
  const Register low = broadcast(d.low);
  const Register high = broadcast(d.high);
#pragma GCC unroll kUnroll
  for (int p = 0; p < kWidth; ++p) {
#pragma GCC unroll kUnroll
    for (int r = 0; r < kPerBlock; ++r) {
      store(output + p * kBlock + r * kLanes, at_most(at_least(sums[p][r], low), high));
    }
  }
}

// The pixels [x, end) of a row, whose first taps are at `in` and on; as many as kWidth allows.
template <int kWidth, int kStep>
std::int64_t middle(const Depthwise& d, const float* in, Taps down, std::int64_t x,
                    std::int64_t end, float* output) {
  for (; x + kWidth <= end; x += kWidth, in += kWidth * kStep) {
    pixels<kWidth, kStep>(d, in, down, {0, d.kernel_width}, output + x * kBlock);
  }
  return x;
}

template <int kWidth>
std::int64_t middle(const Depthwise& d, const float* rows, Taps down, std::int64_t x,
                    std::int64_t end, float* output) {
  const float* in = rows + (x * d.stride_x - d.left) * kBlock;
  if (d.stride_x == 1) return middle<kWidth, kBlock>(d, in, down, x, end, output);
  if (d.stride_x == 2) return middle<kWidth, 2 * kBlock>(d, in, down, x, end, output);
  return x;
}

}  // namespace

void depthwise(const Depthwise& d) {
  // Pixels [begin, end) have all their taps inside.
  const std::int64_t reach = (d.kernel_width - 1) * d.dilation_x;
  std::int64_t begin = (d.left + d.stride_x - 1) / d.stride_x;
  const std::int64_t room = d.in_width - 1 - reach + d.left;
  std::int64_t end = room < 0 ? 0 : room / d.stride_x + 1;
  if (end > d.out_width) end = d.out_width;
  if (begin > end) begin = end;
  for (std::int64_t y = d.first; y < d.last; ++y) {
    const std::int64_t top = y * d.stride_y - d.top;
    const Taps down = inside(top, d.dilation_y, d.kernel_height, d.in_height);
    const float* rows = d.input + top * d.in_width * kBlock;
    float* output = d.output + y * d.out_width * kBlock;
    for (std::int64_t x = 0; x < d.out_width; ++x) {
      if (x == begin) {
        x = middle<kPixels>(d, rows, down, x, end, output);
        if constexpr (kPixels > 4) x = middle<4>(d, rows, down, x, end, output);
        if (x == d.out_width) break;
      }
      const std::int64_t left = x * d.stride_x - d.left;
      pixels<1, 0>(d, rows + left * kBlock, down,
                   inside(left, d.dilation_x, d.kernel_width, d.in_width), output + x * kBlock);
    }
  }
}

}  // namespace quern::QUERN_INSTRUCTIONS
