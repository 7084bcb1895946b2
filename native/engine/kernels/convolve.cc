// Convolution as a matrix product that reads its input where it lies: a tile of pixels by blocks of
// output channels is kept in registers while the taps and input channels go by. Each step takes one
// number of each pixel's input times 16 weights.
#include "engine/kernels/kernel_functions.h"
#include "engine/kernels/vector.h"

namespace quern::QUERN_INSTRUCTIONS {
namespace {

// Registers that hold sums; the rest are for weights and input numbers. NEON needs more of those:
// it multiplies nothing straight from memory.
constexpr int kSums = kLanes == 4 ? 20 : kRegisters == 32 ? 28 : 12;
constexpr int kMostPixels = kLanes == 1 ? 2 : kSums / kPerBlock > 14 ? 14 : kSums / kPerBlock;
// More would save nothing: the weights are read once a tile.
constexpr int kMostBlocks = kLanes == 4 ? 2 : 4;

// The widest tile for so many pixels: 1 or 2 blocks, 4 for a single pixel, whose sums would leave
// the multiplier waiting for its own results.
constexpr int blocks_for(int pixels) {
  int blocks = 1;
  while (blocks < kMostBlocks && 2 * blocks * pixels * kPerBlock <= kSums) blocks *= 2;
  return blocks == 4 && pixels > 1 ? 2 : blocks;
}

template <int kPixels, int kBlocks, int kRun>
__attribute__((noinline)) void tile(const Convolve& c, const float* input, const float* weights,
                                    const float* bias, const float* scale, const float* residual,
                                    float* output, const float* ahead) {
  constexpr int kColumns = kBlocks * kPerBlock;
  const std::int64_t weights_block = c.runs * kRun * kBlock;
  const std::int64_t step = kRun == kBlock ? kBlock : c.step;
  Register sums[kPixels][kColumns];
#pragma GCC unroll kUnroll
  for (int column = 0; column < kColumns; ++column) {
    const Register value = load(bias + column * kLanes);
#pragma GCC unroll kUnroll
    for (int pixel = 0; pixel < kPixels; ++pixel) sums[pixel][column] = value;
  }
  for (std::int64_t run = 0; run < c.runs; ++run) {
    const float* in = input + c.offsets[run];
    if constexpr (kRun == 1) __builtin_prefetch(ahead + c.ahead_offsets[run], 0, 2);
    for (int k = 0; k < kRun; ++k, weights += kBlock) {
      Register weight[kColumns];
#pragma GCC unroll kUnroll
      for (int column = 0; column < kColumns; ++column) {
        weight[column] =
            load(weights + column / kPerBlock * weights_block + column % kPerBlock * kLanes);
        // Those of the next blocks: they mostly come from beyond the second-level cache.
        if (kRun == kBlock && column % kPerBlock == 0) {
          __builtin_prefetch(weights + (column / kPerBlock + kBlocks) * weights_block, 0, 2);
        }
      }
#pragma GCC unroll kUnroll
      for (int pixel = 0; pixel < kPixels; ++pixel) {
#pragma GCC unroll kUnroll
        for (int column = 0; column < kColumns; ++column) {
          sums[pixel][column] += in[pixel * step + k] * weight[column];
        }
      }
    }
  }
  const Register low = broadcast(c.low);
  const Register high = broadcast(c.high);
#pragma GCC unroll kUnroll
  for (int column = 0; column < kColumns; ++column) {
    float* out = output + column / kPerBlock * c.output_plane + column % kPerBlock * kLanes;
    if (residual != nullptr) {
      const float* more =
          residual + column / kPerBlock * c.residual_plane + column % kPerBlock * kLanes;
#pragma GCC unroll kUnroll
      for (int pixel = 0; pixel < kPixels; ++pixel) {
        sums[pixel][column] += load(more + pixel * kBlock);
      }
    }
    if (scale != nullptr) {
      const Register factor = load(scale + column * kLanes);
#pragma GCC unroll kUnroll
      for (int pixel = 0; pixel < kPixels; ++pixel) sums[pixel][column] *= factor;
    }
#pragma GCC unroll kUnroll
    for (int pixel = 0; pixel < kPixels; ++pixel) {
      store(out + pixel * kBlock, at_most(at_least(sums[pixel][column], low), high));
    }
  }
}

using Tile = void (*)(const Convolve&, const float*, const float*, const float*, const float*,
                      const float*, float*, const float*);

// How many of the pixels left in a row the next tile takes: tiles of about one size, of one block
// narrower ones where those keep the multiplier as busy; wide ones of even widths only. A planar
// input, that of one layer of a network, has to do with a few sizes. All for the program's size.
template <int kRun>
constexpr int next_width(std::int64_t left, int blocks) {
  if (kRun == kBlock) {
    const int most = blocks < blocks_for(kMostPixels) ? kMostPixels / 2 : kMostPixels;
    const std::int64_t tiles = (left + most - 1) / most;
    const std::int64_t width = (left + tiles - 1) / tiles;
    if (width <= 8 || width % 2 == 0) return static_cast<int>(width);
    return static_cast<int>(tiles == 1 ? (left + 1) / 2 : width - 1);
  }
  int width = kMostPixels;
  while (width > left) width /= 2;
  return width;
}

template <int kRun>
constexpr int widest_blocks(int pixels) {
  return kRun == kBlock || blocks_for(pixels) < 2 ? blocks_for(pixels) : 2;
}

template <int kRun, int kBlocks, int kPixels>
constexpr Tile tile_or_null() {
  if constexpr (next_width<kRun>(kPixels, kBlocks) == kPixels &&
                kBlocks <= widest_blocks<kRun>(kPixels)) {
    return &tile<kPixels, kBlocks, kRun>;
  } else {
    return nullptr;
  }
}

struct Tiles {
  Tile of[kMostPixels];  // by pixels - 1
};

template <int kRun, int kBlocks, int... kPixels>
constexpr Tiles tiles(Sequence<kPixels...> /*all*/) {
  return {{tile_or_null<kRun, kBlocks, kPixels + 1>()...}};
}

template <int kRun>
void run(const Convolve& c) {
  static constexpr Tiles kTiles[] = {tiles<kRun, 1>(Counting<kMostPixels>()),
                                     tiles<kRun, 2>(Counting<kMostPixels>()),
                                     {},
                                     tiles<kRun, 4>(Counting<kMostPixels>())};
  const std::int64_t weights_block = c.runs * kRun * kBlock;
  int blocks = widest_blocks<kRun>(next_width<kRun>(c.pixels, kMostBlocks));
  for (std::int64_t block = 0; block < c.blocks; block += blocks) {
    while (blocks > c.blocks - block) blocks /= 2;
    const float* weights = c.weights + block * weights_block;
    const float* bias = c.bias + block * kBlock;
    const float* scale = c.scale == nullptr ? nullptr : c.scale + block * kBlock;
    for (std::int64_t row = 0; row < c.rows; ++row) {
      const float* input = c.input + row * c.input_row;
      const float* residual = c.residual == nullptr
                                  ? nullptr
                                  : c.residual + block * c.residual_plane + row * c.residual_row;
      float* output = c.output + block * c.output_plane + row * c.output_row;
      const float* ahead = c.ahead + row * c.ahead_row;
      for (std::int64_t left = c.pixels; left > 0;) {
        const int width = next_width<kRun>(left, blocks);
        kTiles[blocks - 1].of[width - 1](c, input, weights, bias, scale, residual, output, ahead);
        left -= width;
        input += width * c.step;
        if constexpr (kRun == 1) ahead += width * c.step;
        output += width * kBlock;
        if (residual != nullptr) residual += width * kBlock;
      }
    }
  }
}

}  // namespace

void convolve(const Convolve& c) {
  if (c.run == kBlock) {
    run<kBlock>(c);
  } else {
    run<1>(c);
  }
}

}  // namespace quern::QUERN_INSTRUCTIONS
