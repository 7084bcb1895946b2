// What computes each element of the output from one element of each input: activations as in
// torch.nn.functional, and add, sub, mul with numpy's broadcasting.
#include <algorithm>
#include <array>

#include "engine/operators/rules.h"

namespace quern {
namespace {

constexpr std::array kLeakyReluAttributes = {number_rule("negative_slope")};
// 0: x/2 (1 + erf(x/sqrt 2)); 1: its approximation by tanh.
constexpr std::array kGeluAttributes = {integer_rule("tanh", 0, 1)};

Shape same_shape(const Node& node, const Graph& graph) { return input_shape(node, graph, 0); }

// One rank; along each axis the dimensions are equal, or one is 1 and its element is repeated.
Shape broadcast_shape(const Node& node, const Graph& graph) {
  const Shape& a = input_shape(node, graph, 0);
  const Shape& b = input_shape(node, graph, 1);
  bool fits = a.size() == b.size();
  Shape output = a;
  for (std::size_t axis = 0; fits && axis < a.size(); ++axis) {
    fits = a[axis] == b[axis] || a[axis] == 1 || b[axis] == 1;
    output[axis] = std::max(a[axis], b[axis]);
  }
  if (!fits) {
    refuse(node, "the inputs " + to_string(a) + " and " + to_string(b) + " don't broadcast");
  }
  return output;
}

constexpr Operator activation(OpKind kind, std::string_view name,
                              std::span<const AttributeRule> attributes = {}) {
  return {.kind = kind, .name = name, .attributes = attributes, .infer_shape = same_shape};
}

constexpr Operator arithmetic(OpKind kind, std::string_view name) {
  return {.kind = kind, .name = name, .inputs = {2, 2}, .infer_shape = broadcast_shape};
}

constexpr std::array kOperators = {
    activation(OpKind::kRelu, "relu"),
    activation(OpKind::kRelu6, "relu6"),
    activation(OpKind::kLeakyRelu, "leaky_relu", kLeakyReluAttributes),
    activation(OpKind::kSilu, "silu"),
    activation(OpKind::kGelu, "gelu", kGeluAttributes),
    activation(OpKind::kHardswish, "hardswish"),
    activation(OpKind::kHardsigmoid, "hardsigmoid"),
    activation(OpKind::kSigmoid, "sigmoid"),
    activation(OpKind::kTanh, "tanh"),
    arithmetic(OpKind::kAdd, "add"),
    arithmetic(OpKind::kSub, "sub"),
    arithmetic(OpKind::kMul, "mul"),
};

}  // namespace

std::span<const Operator> elementwise_operators() { return kOperators; }

}  // namespace quern
