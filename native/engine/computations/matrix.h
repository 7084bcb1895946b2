// Linear layers and 1x1 convolutions as what they are: a matrix and a bias. Private to this folder.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "engine/aligned.h"
#include "engine/computation.h"

namespace quern {

struct Matrix {
  std::span<const float> weight;  // [outputs][inputs], and what else a convolution's has
  std::span<const float> bias;
};

inline Matrix matrix_of(const Node& node, const Graph& graph) {
  return {tensor(node, graph, "weight").data, tensor(node, graph, "bias").data};
}

// `second` after `first`; `weight` and `bias` hold what it refers to.
Matrix compose(const Matrix& second, const Matrix& first, const Kernels& kernels,
               std::vector<float>& weight, std::vector<float>& bias);

inline AlignedFloats zeros(std::int64_t count) {
  AlignedFloats floats = allocate_floats(static_cast<std::size_t>(count));
  std::fill_n(floats.get(), count, 0.0F);
  return floats;
}

}  // namespace quern
