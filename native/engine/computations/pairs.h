// Matrix products by products of pairs (kernels/pairs.cc), where the instruction set has them and
// the input allows it. Private to this folder.
//
// x + w keeps few digits of the smaller one, so both must be of about one size: each output
// channel's weights are multiplied by a power of two (its balance) that makes them 1 on average,
// and an input whose largest number is far from that is multiplied as ever.
#pragma once

#include "engine/aligned.h"
#include "engine/computation.h"

namespace quern {

// An input and its sums of pairs.
struct Factor {
  const float* data = nullptr;
  const std::int64_t* offsets = nullptr;  // of its blocks
  const float* pairs = nullptr;           // nullptr: not to be multiplied by pairs
};

class BalancedWeights {
 public:
  // Multiplies [blocks][runs][16][16] by their balances, in place, where the kernels have products
  // of pairs and those pay, mostly of so many pixels; else nothing is changed by this class.
  BalancedWeights(const Kernels& kernels, float* weights, std::int64_t blocks, std::int64_t runs,
                  std::int64_t pixels);

  // What the pairs of so many pixels take.
  std::int64_t pair_floats(std::int64_t pixels) const { return balanced() ? pixels : 0; }
  // The factor, with its pairs written to `pairs` where it may be multiplied by them.
  Factor factor(const float* data, const std::int64_t* offsets, std::int64_t pixels,
                float* pairs) const;
  // The convolution `c` but for its input and weights, the latter those of `block` and following.
  // It has one row, at most 4 blocks, and limits.
  void convolve(Convolve c, const Factor& factor, std::int64_t block) const;

 private:
  bool balanced() const { return balances_ != nullptr; }
  void convolve_plainly(const Convolve& c) const;

  const Kernels* kernels_;
  const float* weights_;
  std::int64_t runs_;
  AlignedFloats balances_, pairs_;  // [blocks][16]; pairs_: sums of products of weights
};

}  // namespace quern
