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

// kWidth pixels side by side, all of whose taps `across` are inside the image.
template <int kWidth>
inline void pixels(const Depthwise& d, const float* rows, Taps down, Taps across, std::int64_t step,
                   float* output) {
  Register sums[kWidth][kPerBlock];
#pragma GCC unroll 16
  for (int r = 0; r < kPerBlock; ++r) {
    const Register bias = load(d.bias + r * kLanes);
#pragma GCC unroll 16
    for (int p = 0; p < kWidth; ++p) sums[p][r] = bias;
  }
  for (std::int64_t y = down.first; y < down.last; ++y) {
    const float* row = rows + y * d.dilation_y * d.in_width * kBlock;
    const float* weights = d.weights + y * d.kernel_width * kBlock;
    for (std::int64_t x = across.first; x < across.last; ++x) {
      const float* in = row + x * d.dilation_x * kBlock;
#pragma GCC unroll 16
      for (int r = 0; r < kPerBlock; ++r) {
        const Register weight = load(weights + x * kBlock + r * kLanes);
#pragma GCC unroll 16
        for (int p = 0; p < kWidth; ++p) sums[p][r] += load(in + p * step + r * kLanes) * weight;
      }
    }
  }
  const Register low = broadcast(d.low);
  const Register high = broadcast(d.high);
#pragma GCC unroll 16
  for (int p = 0; p < kWidth; ++p) {
#pragma GCC unroll 16
    for (int r = 0; r < kPerBlock; ++r) {
      store(output + p * kBlock + r * kLanes, at_most(at_least(sums[p][r], low), high));
    }
  }
}

// kStep: the stride in floats, or 0 where it is not known when compiled.
template <int kStep>
void run(const Depthwise& d) {
  const std::int64_t step = kStep > 0 ? kStep : d.stride_x * kBlock;
  // Pixels [begin, end) have all their taps inside.
  const std::int64_t reach = (d.kernel_width - 1) * d.dilation_x;
  std::int64_t begin = (d.left + d.stride_x - 1) / d.stride_x;
  const std::int64_t room = d.in_width - 1 - reach + d.left;
  std::int64_t end = room < 0 ? 0 : room / d.stride_x + 1;
  if (end > d.out_width) end = d.out_width;
  if (begin > end) begin = end;
  const Taps whole = {0, d.kernel_width};
  for (std::int64_t y = d.first; y < d.last; ++y) {
    const std::int64_t top = y * d.stride_y - d.top;
    const Taps down = inside(top, d.dilation_y, d.kernel_height, d.in_height);
    const float* rows = d.input + top * d.in_width * kBlock;
    float* output = d.output + y * d.out_width * kBlock;
    const auto edge = [&](std::int64_t x) {
      const std::int64_t left = x * d.stride_x - d.left;
      pixels<1>(d, rows + left * kBlock, down,
                inside(left, d.dilation_x, d.kernel_width, d.in_width), 0, output + x * kBlock);
    };
    std::int64_t x = 0;
    for (; x < begin; ++x) edge(x);
    const float* in = rows + (x * d.stride_x - d.left) * kBlock;
    for (; x + kPixels <= end; x += kPixels, in += kPixels * step) {
      pixels<kPixels>(d, in, down, whole, step, output + x * kBlock);
    }
    if constexpr (kPixels > 4) {
      for (; x + 4 <= end; x += 4, in += 4 * step) {
        pixels<4>(d, in, down, whole, step, output + x * kBlock);
      }
    }
    for (; x < end; ++x, in += step) pixels<1>(d, in, down, whole, step, output + x * kBlock);
    for (; x < d.out_width; ++x) edge(x);
  }
}

}  // namespace

void depthwise(const Depthwise& d) {
  if (d.stride_x == 1) {
    run<kBlock>(d);
  } else if (d.stride_x == 2) {
    run<2 * kBlock>(d);
  } else {
    run<0>(d);
  }
}

}  // namespace quern::QUERN_INSTRUCTIONS
