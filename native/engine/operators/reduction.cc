// What takes a sum over some axes: mean, softmax, layer_norm. Any shape.
#include <array>

#include "engine/operators/rules.h"

namespace quern {
namespace {

// ---- mean over `axes`, each of which becomes 1 ----

constexpr std::array kMeanAttributes = {kAxesRule};

Shape mean_shape(const Node& node, const Graph& graph) {
  Shape output = input_shape(node, graph, 0);
  for (const std::int64_t axis : axes_of(node, output)) output[static_cast<std::size_t>(axis)] = 1;
  return output;
}

// ---- softmax along `axis` ----

constexpr std::array kSoftmaxAttributes = {kAxisRule};

Shape softmax_shape(const Node& node, const Graph& graph) {
  const Shape& input = input_shape(node, graph, 0);
  axis_of(node, input);
  return input;
}

// ---- layer_norm over `axes`, with the biased variance: weight and bias have the dimensions of
// these axes, in ascending order ----

constexpr std::array<std::string_view, 2> kWeightAndBias = {"weight", "bias"};
constexpr std::array kLayerNormAttributes = {
    kAxesRule, number_rule("epsilon", 0.0F),  // the square root is of variance + epsilon
};

Shape layer_norm_shape(const Node& node, const Graph& graph) {
  const Shape& input = input_shape(node, graph, 0);
  Shape normalised;
  for (const std::int64_t axis : axes_of(node, input)) {
    normalised.push_back(input[static_cast<std::size_t>(axis)]);
  }
  for (const std::string_view role : kWeightAndBias) {
    const Shape& shape = tensor(node, graph, role).shape;
    if (shape != normalised) {
      refuse(node, "the " + std::string(role) + " " + to_string(shape) +
                       " is not the shape of the axes, " + to_string(normalised));
    }
  }
  return input;
}

constexpr std::array kOperators = {
    Operator{.kind = OpKind::kMean,
             .name = "mean",
             .attributes = kMeanAttributes,
             .infer_shape = mean_shape},
    Operator{.kind = OpKind::kSoftmax,
             .name = "softmax",
             .attributes = kSoftmaxAttributes,
             .infer_shape = softmax_shape},
    Operator{.kind = OpKind::kLayerNorm,
             .name = "layer_norm",
             .tensors = kWeightAndBias,
             .attributes = kLayerNormAttributes,
             .infer_shape = layer_norm_shape},
};

}  // namespace

std::span<const Operator> reduction_operators() { return kOperators; }

}  // namespace quern
