#include "engine/computations/pairs.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace quern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kMostBlocks = 4;  // of one call
// Of the largest number of an input: balanced weights are 1 on average, and two digits of seven are
// the most that a sum may lose.
constexpr float kLeast = 1.0F / 16;
constexpr float kMost = 64;
constexpr double kLargestExponent = 40;

// Whether not too much is lost in the last tile, which repeats pixels.
bool pays(std::int64_t pixels) {
  const std::int64_t repeated = (kPairedPixels - pixels % kPairedPixels) % kPairedPixels;
  return pixels >= kPairedPixels && repeated * 6 <= pixels;
}

// A power of two, exact to multiply by.
float balance_of(double mean_square) {
  const double exponent = std::round(-0.5 * std::log2(mean_square));  // of 0: infinite
  return static_cast<float>(std::exp2(std::clamp(exponent, -kLargestExponent, kLargestExponent)));
}

}  // namespace

BalancedWeights::BalancedWeights(const Kernels& kernels, float* weights, std::int64_t blocks,
                                 std::int64_t runs, std::int64_t pixels)
    : kernels_(&kernels), weights_(weights), runs_(runs) {
  if (kernels.convolve_pairs == nullptr || !pays(pixels)) return;
  const auto channels = static_cast<std::size_t>(blocks * kBlock);
  balances_ = allocate_floats(channels);
  pairs_ = allocate_floats(channels);
  for (std::int64_t channel = 0; channel < blocks * kBlock; ++channel) {
    float* const first = weights + channel / kBlock * runs * kBlock * kBlock + channel % kBlock;
    double squares = 0;
    for (std::int64_t i = 0; i < runs * kBlock; ++i) {
      const double weight = first[i * kBlock];
      squares += weight * weight;
    }
    const float balance = balance_of(squares / static_cast<double>(runs * kBlock));
    double pairs = 0;
    for (std::int64_t i = 0; i < runs * kBlock; ++i) {
      first[i * kBlock] *= balance;
      if (i % kBlock < kBlock / 2 || i % kBlock >= kBlock / 2 + kPairedChannels) continue;
      pairs += double{first[i * kBlock]} * first[(i - kBlock / 2) * kBlock];
    }
    balances_[static_cast<std::size_t>(channel)] = balance;
    pairs_[static_cast<std::size_t>(channel)] = static_cast<float>(pairs);
  }
}

Factor BalancedWeights::factor(const float* data, const std::int64_t* offsets, std::int64_t pixels,
                               float* pairs) const {
  if (!balanced() || pixels < kPairedPixels) return {data, offsets, nullptr};
  const float largest = kernels_->sum_pairs(data, offsets, runs_, pixels, pairs);
  return {data, offsets, largest >= kLeast && largest <= kMost ? pairs : nullptr};
}

void BalancedWeights::convolve(Convolve c, const Factor& factor, std::int64_t block) const {
  c.input = factor.data;
  c.offsets = factor.offsets;
  c.input_pairs = factor.pairs;
  c.runs = runs_;
  c.run = kBlock;
  c.step = kBlock;
  c.rows = 1;
  c.weights = weights_ + block * runs_ * kBlock * kBlock;
  if (!balanced()) return kernels_->convolve(c);
  c.balance = balances_.get() + block * kBlock;
  c.weight_pairs = pairs_.get() + block * kBlock;
  if (factor.pairs == nullptr) return convolve_plainly(c);
  kernels_->convolve_pairs(c);
}

// The weights' balances are taken back afterwards.
void BalancedWeights::convolve_plainly(const Convolve& c) const {
  alignas(64) std::array<float, kMostBlocks * kBlock> bias;
  alignas(64) std::array<float, kMostBlocks * kBlock> factor;
  for (std::size_t i = 0; i < static_cast<std::size_t>(c.blocks * kBlock); ++i) {
    bias[i] = c.bias[i] * c.balance[i];
    factor[i] = 1 / c.balance[i];
    if (c.residual == nullptr && c.scale != nullptr) factor[i] *= c.scale[i];
  }
  Convolve plain = c;
  plain.bias = bias.data();
  plain.residual = nullptr;
  plain.scale = factor.data();
  if (c.residual != nullptr) {
    plain.low = -kInfinity;
    plain.high = kInfinity;
  }
  kernels_->convolve(plain);
  if (c.residual == nullptr) return;
  for (std::int64_t b = 0; b < c.blocks; ++b) {
    float* const output = c.output + b * c.output_plane;
    const auto combine = [&](Arithmetic arithmetic, const float* with, std::int64_t step, float low,
                             float high) {
      kernels_->combine(arithmetic, output, with, step, low, high, output, c.pixels * kBlock);
    };
    const float* const residual = c.residual + b * c.residual_plane;
    if (c.scale == nullptr) {
      combine(Arithmetic::kAdd, residual, kBlock, c.low, c.high);
    } else {
      combine(Arithmetic::kAdd, residual, kBlock, -kInfinity, kInfinity);
      combine(Arithmetic::kMul, c.scale + b * kBlock, 0, c.low, c.high);
    }
  }
}

}  // namespace quern
