// A convolution whose input lies in blocks, by Winograd's inner product (A New Algorithm for Inner
// Product, 1968): with an input x and weights w, two products are one, and sums of one side alone,
//   x0 w0 + x1 w1 = (x0 + w1) (x1 + w0) - x0 x1 - w0 w1
// x0 x1 is the same for all output channels and w0 w1 for all pixels: they are computed once. Where
// a CPU adds beside its multiplications, as AMD's Zen does, five pairs and six channels multiplied
// as ever keep both busy: 10 additions and 11 multiplications do what 16 would.
#include "engine/kernels/kernel_functions.h"
#include "engine/kernels/vector.h"

namespace quern::QUERN_INSTRUCTIONS {
#if defined(__AVX512F__)
namespace {

// As few as hide the latency of their sums: what one tile ends with goes on beside the next one's
// beginning.
constexpr int kPixels = kPairedPixels;
constexpr int kHalf = kBlock / 2;  // channels c and c + kHalf are a pair, if they are one

// kPairs pairs from (c, c + 8) on, and of the channels single, single + 8, single + 1, single + 9
// the first kSingles.
template <int kPairs, int kSingles>
inline void step(const float* in, const float* weights, int c, int single, Register* sums) {
  Register low[kPairs];
  Register high[kPairs];
  Register weight[kSingles];
#pragma GCC unroll kUnroll
  for (int i = 0; i < kPairs; ++i) {
    low[i] = load(weights + (c + i) * kBlock);
    high[i] = load(weights + (c + i + kHalf) * kBlock);
  }
#pragma GCC unroll kUnroll
  for (int i = 0; i < kSingles; ++i) {
    weight[i] = load(weights + (single + i / 2 + i % 2 * kHalf) * kBlock);
  }
#pragma GCC unroll kUnroll
  for (int pixel = 0; pixel < kPixels; ++pixel) {
    const float* x = in + pixel * kBlock;
    const float* y = x + kHalf;
    // Mixed, so that there is always something to add and something to multiply.
#pragma GCC unroll kUnroll
    for (int i = 0; i < kPairs; ++i) {
      sums[pixel] += (x[c + i] + high[i]) * (y[c + i] + low[i]);
#pragma GCC unroll kUnroll
      for (int j = i * kSingles / kPairs; j < (i + 1) * kSingles / kPairs; ++j) {
        sums[pixel] += x[single + j / 2 + j % 2 * kHalf] * weight[j];
      }
    }
  }
}

// A block of output channels.
struct Block {
  const float* weights;
  Register start, factor, scale, low, high;
  const float* residual;  // nullptr: none
};

// Its kPixels outputs from `pixel` on.
inline void tile(const Convolve& c, const Block& block, std::int64_t pixel, const float* ahead,
                 std::int64_t lines, float* output) {
  Register sums[kPixels];
#pragma GCC unroll kUnroll
  for (int i = 0; i < kPixels; ++i) sums[i] = block.start - c.input_pairs[pixel + i];
  const float* const input = c.input + pixel * kBlock;
  const float* weights = block.weights;
  for (std::int64_t run = 0; run < c.runs; ++run, weights += kBlock * kBlock) {
    const float* in = input + c.offsets[run];
    for (std::int64_t i = 0; i < lines; ++i, ahead += kBlock) __builtin_prefetch(ahead, 0, 2);
    step<3, 2>(in, weights, 0, kPairedChannels, sums);
    step<2, 4>(in, weights, 3, kPairedChannels + 1, sums);
  }
#pragma GCC unroll kUnroll
  for (int i = 0; i < kPixels; ++i) sums[i] *= block.factor;
  if (block.residual != nullptr) {
#pragma GCC unroll kUnroll
    for (int i = 0; i < kPixels; ++i) {
      sums[i] += load(block.residual + (pixel + i) * kBlock);
      sums[i] *= block.scale;
    }
  }
#pragma GCC unroll kUnroll
  for (int i = 0; i < kPixels; ++i) {
    store(output + (pixel + i) * kBlock, at_most(at_least(sums[i], block.low), block.high));
  }
}

}  // namespace

void convolve_pairs(const Convolve& c) {
  for (std::int64_t b = 0; b < c.blocks; ++b) {
    const Register balance = load(c.balance + b * kBlock);
    Block block;
    block.weights = c.weights + b * c.runs * kBlock * kBlock;
    block.start = load(c.bias + b * kBlock) * balance - load(c.weight_pairs + b * kBlock);
    block.scale = c.scale == nullptr ? broadcast(1.0F) : load(c.scale + b * kBlock);
    block.factor = (c.residual == nullptr ? block.scale : broadcast(1.0F)) / balance;
    block.low = broadcast(c.low);
    block.high = broadcast(c.high);
    block.residual = c.residual == nullptr ? nullptr : c.residual + b * c.residual_plane;
    // Few tiles would wait for their weights: those of the next block are fetched meanwhile.
    const float* ahead = block.weights + c.runs * kBlock * kBlock;
    const std::int64_t lines = kBlock * kPixels / c.pixels;
    for (std::int64_t pixel = 0; pixel < c.pixels; pixel += kPixels) {
      // The last tile may repeat some of the pixels before.
      tile(c, block, pixel + kPixels <= c.pixels ? pixel : c.pixels - kPixels, ahead, lines,
           c.output + b * c.output_plane);
      ahead += lines * c.runs * kBlock;
    }
  }
}

// Four pixels at a time.
float sum_pairs(const float* input, const std::int64_t* offsets, std::int64_t runs,
                std::int64_t pixels, float* pairs) {
  typedef float Half __attribute__((vector_size(kHalf * sizeof(float))));
  constexpr int kTogether = 4;
  Integers largest[kTogether] = {};
  for (std::int64_t next = 0; next < pixels; next += kTogether) {
    const std::int64_t pixel = next + kTogether <= pixels ? next : pixels - kTogether;
    Half sums[kTogether] = {};
    for (std::int64_t run = 0; run < runs; ++run) {
      const float* in = input + offsets[run] + pixel * kBlock;
#pragma GCC unroll kUnroll
      for (int i = 0; i < kTogether; ++i, in += kBlock) {
        // As integers, magnitudes are in the same order, and NaN is the largest.
        const Integers magnitude = (Integers)load(in) & 0x7fffffff;
        largest[i] = magnitude > largest[i] ? magnitude : largest[i];
        sums[i] += *reinterpret_cast<const Half*>(in) * *reinterpret_cast<const Half*>(in + kHalf);
      }
    }
    for (int i = 0; i < kTogether; ++i) {
      static_assert(kPairedChannels == 5);
      const Half& sum = sums[i];
      pairs[pixel + i] = (sum[0] + sum[1]) + (sum[2] + sum[3]) + sum[4];
    }
  }
  int most = 0;
  for (int i = 0; i < kTogether * kLanes; ++i) {
    const int magnitude = largest[i / kLanes][i % kLanes];
    most = magnitude > most ? magnitude : most;
  }
  float value;
  __builtin_memcpy(&value, &most, sizeof value);
  return value;
}
#endif

}  // namespace quern::QUERN_INSTRUCTIONS
