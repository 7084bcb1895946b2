#include "engine/computations/finish.h"

#include <algorithm>
#include <limits>

namespace quern {

Finish::Finish(const Operation& operation, const Graph& graph, const Kernels& kernels)
    : low(-std::numeric_limits<float>::infinity()),
      high(std::numeric_limits<float>::infinity()),
      kernels_(kernels),
      out_(extent_of(graph, operation.output)),
      activation_(operation.activation),
      slope_(operation.slope) {
  if (activation_ == Activation::kRelu || activation_ == Activation::kRelu6) low = 0;
  if (activation_ == Activation::kRelu6) high = 6;
  if (low == 0) activation_ = Activation::kNone;
}

void Finish::rest(const Arguments& arguments, std::int64_t first_block, std::int64_t blocks,
                  Rows rows) const {
  const std::int64_t pixels = (rows.last - rows.first) * out_.width;
  for (std::int64_t block = first_block; block < first_block + blocks; ++block) {
    float* const output =
        arguments.output.data + block * arguments.output.plane + rows.first * out_.row();
    if (activation_ != Activation::kNone) {
      kernels_.activate(activation_, slope_, output, output, pixels * kBlock);
    }
    if (arguments.means == nullptr) continue;
    float* const means = arguments.means + block * kBlock;
    if (rows.first == 0) std::fill_n(means, kBlock, 0.0F);
    kernels_.accumulate(output, pixels, means);
    if (rows.last < out_.height) continue;
    const float scale = 1.0F / static_cast<float>(out_.height * out_.width);
    for (int i = 0; i < kBlock; ++i) means[i] *= scale;
  }
}

}  // namespace quern
