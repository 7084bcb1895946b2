// Depthwise convolution: each channel by itself, 16 at a time. Kernels three wide, the usual ones,
// load each input once for all of a row's pixels that it is a tap of. For any other several pixels
// are computed side by side in the middle of a row; at its ends, where taps fall into the padding,
// one.
#include "engine/kernels/kernel_functions.h"
#include "engine/kernels/vector.h"

namespace quern::QUERN_INSTRUCTIONS {
namespace {

constexpr int kPixels = kLanes == 1 ? 1 : (kRegisters == 32 ? 16 : 8) / kPerBlock;
constexpr int kMostOfThree = kLanes == 1 ? 1 : kRegisters == 32 ? 14 : 7;

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

// kWidth pixels side by side of a kernel three wide. The first input of the first one may be
// outside the image, and so may the last of the last one.
template <int kWidth, int kStride>
__attribute__((noinline)) void three_wide(const Depthwise& d, const float* rows, Taps down,
                                          bool first_outside, bool last_outside, float* output) {
  constexpr int kInputs = (kWidth - 1) * kStride + 3;
  const Register low = broadcast(d.low);
  const Register high = broadcast(d.high);
  for (int r = 0; r < kBlock; r += kLanes) {
    Register sums[kWidth];
#pragma GCC unroll kUnroll
    for (int p = 0; p < kWidth; ++p) sums[p] = load(d.bias + r);
    for (std::int64_t y = down.first; y < down.last; ++y) {
      const float* in = rows + y * d.dilation_y * d.in_width * kBlock + r;
      const float* weights = d.weights + y * 3 * kBlock + r;
      const Register weight[] = {load(weights), load(weights + kBlock), load(weights + 2 * kBlock)};
#pragma GCC unroll kUnroll
      for (int i = 0; i < kInputs; ++i) {
        const bool outside = (i == 0 && first_outside) || (i == kInputs - 1 && last_outside);
        const Register value = outside ? Register{} : load_once(in + i * kBlock);
#pragma GCC unroll kUnroll
        for (int tap = 0; tap < 3; ++tap) {
          const int p = (i - tap) / kStride;
          if (i >= tap && (i - tap) % kStride == 0 && p < kWidth) sums[p] += value * weight[tap];
        }
      }
    }
#pragma GCC unroll kUnroll
    for (int p = 0; p < kWidth; ++p) {
      store(output + p * kBlock + r, at_most(at_least(sums[p], low), high));
    }
  }
}

using ThreeWide = void (*)(const Depthwise&, const float*, Taps, bool, bool, float*);

// By the stride - 1, then each half as wide as the one before.
template <int kWidth>
constexpr ThreeWide kThreeWide[2][4] = {{&three_wide<kWidth, 1>, &three_wide<kWidth / 2 | 1, 1>,
                                         &three_wide<kWidth / 4 | 1, 1>, &three_wide<1, 1>},
                                        {&three_wide<kWidth, 2>, &three_wide<kWidth / 2 | 1, 2>,
                                         &three_wide<kWidth / 4 | 1, 2>, &three_wide<1, 2>}};

// All pixels of a row, in tiles as wide as they come.
void row_of_three(const Depthwise& d, const float* rows, Taps down, float* output) {
  const ThreeWide* tile = kThreeWide<kMostOfThree>[d.stride_x - 1];
  std::int64_t width = kMostOfThree;
  for (std::int64_t x = 0; x < d.out_width; x += width) {
    for (; x + width > d.out_width; ++tile) width /= 2;
    const std::int64_t first = x * d.stride_x - d.left;
    const std::int64_t last = (x + width - 1) * d.stride_x - d.left + 2;
    (*tile)(d, rows + first * kBlock, down, first < 0, last >= d.in_width, output + x * kBlock);
  }
}

bool is_three_wide(const Depthwise& d) {
  return kLanes > 1 && d.kernel_width == 3 && d.dilation_x == 1 &&
         (d.stride_x == 1 || d.stride_x == 2) && d.left <= 1 &&
         (d.out_width - 1) * d.stride_x - d.left + 2 <= d.in_width;
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
  const bool three = is_three_wide(d);
  for (std::int64_t y = d.first; y < d.last; ++y) {
    const std::int64_t top = y * d.stride_y - d.top;
    const Taps down = inside(top, d.dilation_y, d.kernel_height, d.in_height);
    const float* rows = d.input + top * d.in_width * kBlock;
    float* output = d.output + y * d.out_width * kBlock;
    if (three) {
      row_of_three(d, rows, down, output);
      continue;
    }
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
