// Convolution as a matrix product that reads its input where it lies: a tile of pixels by blocks of
// output channels is kept in registers while the taps and input channels go by. Each step takes one
// number of each pixel's input times 16 weights.
#include "engine/kernels/kernel_functions.h"
#include "engine/kernels/vector.h"

namespace quern::QUERN_INSTRUCTIONS {
namespace {

// Registers that hold sums; the rest are for weights and an input number.
constexpr int kSums = kRegisters == 32 ? 28 : 12;
constexpr int kMostPixels = kLanes == 1 ? 2 : kSums / kPerBlock > 14 ? 14 : kSums / kPerBlock;
constexpr int kMostBlocks = 4;  // more would save nothing: the weights are read once a tile

// The widest tile for so many pixels: 1, 2 or 4 blocks.
constexpr int blocks_for(int pixels) {
  int blocks = 1;
  while (blocks < kMostBlocks && 2 * blocks * pixels * kPerBlock <= kSums) blocks *= 2;
  return blocks;
}

template <int kPixels, int kBlocks, int kRun>
__attribute__((noinline)) void tile(const Convolve& c, const float* input, const float* weights,
                                    const float* bias, const float* residual, float* output) {
  constexpr int kColumns = kBlocks * kPerBlock;
  const std::int64_t weights_block = c.runs * kRun * kBlock;
  Register sums[kPixels][kColumns];
#pragma GCC unroll 32
  for (int column = 0; column < kColumns; ++column) {
    const Register value = load(bias + column * kLanes);
#pragma GCC unroll 32
    for (int pixel = 0; pixel < kPixels; ++pixel) sums[pixel][column] = value;
  }
  for (std::int64_t run = 0; run < c.runs; ++run) {
    const float* in = input + c.offsets[run];
#pragma GCC unroll 4
    for (int k = 0; k < kRun; ++k, weights += kBlock) {
      Register weight[kColumns];
#pragma GCC unroll 32
      for (int column = 0; column < kColumns; ++column) {
        weight[column] =
            load(weights + column / kPerBlock * weights_block + column % kPerBlock * kLanes);
      }
#pragma GCC unroll 32
      for (int pixel = 0; pixel < kPixels; ++pixel) {
#pragma GCC unroll 32
        for (int column = 0; column < kColumns; ++column) {
          sums[pixel][column] += in[pixel * kRun + k] * weight[column];
        }
      }
    }
  }
  const Register low = broadcast(c.low);
  const Register high = broadcast(c.high);
#pragma GCC unroll 32
  for (int column = 0; column < kColumns; ++column) {
    float* out = output + column / kPerBlock * c.output_plane + column % kPerBlock * kLanes;
    if (residual != nullptr) {
      const float* more =
          residual + column / kPerBlock * c.residual_plane + column % kPerBlock * kLanes;
#pragma GCC unroll 32
      for (int pixel = 0; pixel < kPixels; ++pixel) {
        sums[pixel][column] += load(more + pixel * kBlock);
      }
    }
#pragma GCC unroll 32
    for (int pixel = 0; pixel < kPixels; ++pixel) {
      store(out + pixel * kBlock, at_most(at_least(sums[pixel][column], low), high));
    }
  }
}

using Tile = void (*)(const Convolve&, const float*, const float*, const float*, const float*,
                      float*);

// tiles[pixels - 1]: for the widest blocks that fit, halved `kHalvings` times.
template <int kRun, int kBlocks>
struct Tiles {
  Tile of[kMostPixels];
};

template <int kRun, int kBlocks, int kPixels>
constexpr Tile tile_or_null() {
  if constexpr (kBlocks <= blocks_for(kPixels)) {
    return &tile<kPixels, kBlocks, kRun>;
  } else {
    return nullptr;
  }
}

template <int kRun, int kBlocks, int... kPixels>
constexpr Tiles<kRun, kBlocks> tiles(Sequence<kPixels...> /*all*/) {
  return {{tile_or_null<kRun, kBlocks, kPixels + 1>()...}};
}

template <int kRun>
Tile find_tile(int pixels, int blocks) {
  static constexpr auto kOne = tiles<kRun, 1>(Counting<kMostPixels>());
  static constexpr auto kTwo = tiles<kRun, 2>(Counting<kMostPixels>());
  static constexpr auto kFour = tiles<kRun, 4>(Counting<kMostPixels>());
  return blocks == 4   ? kFour.of[pixels - 1]
         : blocks == 2 ? kTwo.of[pixels - 1]
                       : kOne.of[pixels - 1];
}

template <int kRun>
void run(const Convolve& c) {
  const std::int64_t count = (c.pixels + kMostPixels - 1) / kMostPixels;
  // Tiles of one size, or two that differ by a pixel.
  const int smaller = static_cast<int>(c.pixels / count);
  const std::int64_t larger_tiles = c.pixels % count;
  const int widest = blocks_for(larger_tiles > 0 ? smaller + 1 : smaller);
  const std::int64_t weights_block = c.runs * kRun * kBlock;
  for (std::int64_t block = 0; block < c.blocks;) {
    int blocks = widest;
    while (blocks > c.blocks - block) blocks /= 2;
    const Tile small = find_tile<kRun>(smaller, blocks);
    const Tile large = larger_tiles > 0 ? find_tile<kRun>(smaller + 1, blocks) : small;
    const float* weights = c.weights + block * weights_block;
    const float* bias = c.bias + block * kBlock;
    for (std::int64_t row = 0; row < c.rows; ++row) {
      const float* input = c.input + row * c.input_row;
      const float* residual = c.residual == nullptr
                                  ? nullptr
                                  : c.residual + block * c.residual_plane + row * c.residual_row;
      float* output = c.output + block * c.output_plane + row * c.output_row;
      for (std::int64_t i = 0; i < count; ++i) {
        const int pixels = i < larger_tiles ? smaller + 1 : smaller;
        (i < larger_tiles ? large : small)(c, input, weights, bias, residual, output);
        input += pixels * kRun;
        output += pixels * kBlock;
        if (residual != nullptr) residual += pixels * kBlock;
      }
    }
    block += blocks;
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
