// conv2d and linear, as in torch.nn.functional: what a weight and a bias are applied to.
#include <array>

#include "engine/operators/rules.h"

namespace quern {
namespace {

constexpr std::array<std::string_view, 2> kWeightAndBias = {"weight", "bias"};

void check_bias(const Node& node, const Graph& graph, std::int64_t outputs) {
  const Shape& bias = tensor(node, graph, "bias").shape;
  if (bias != Shape{outputs}) {
    refuse(node, "the bias " + to_string(bias) + " is not [" + std::to_string(outputs) + "]");
  }
}

// ---- conv2d: weight [O,I/groups,h,w], a padding with zeros for each side ----

constexpr std::array kConv2dAttributes = {
    integers_rule("stride", 2, 1, kMaxStep),
    integers_rule("padding", 4, 0, kMaxStep),  // top, left, bottom, right
    integers_rule("dilation", 2, 1, kMaxStep),
    integer_rule("groups", 1, kMaxGroups),
};

Shape conv2d_shape(const Node& node, const Graph& graph) {
  const Shape& input = image_shape(node, graph);
  const Shape& weight = tensor(node, graph, "weight").shape;
  const auto& stride = integers(node, "stride");
  const auto& padding = integers(node, "padding");
  const auto& dilation = integers(node, "dilation");
  const std::int64_t groups = integer(node, "groups");
  if (weight.size() != 4) refuse(node, "the weight " + to_string(weight) + " is not [O,I,H,W]");
  if (input[1] % groups != 0 || weight[0] % groups != 0 || weight[1] != input[1] / groups) {
    refuse(node, "the weight " + to_string(weight) + " does not fit the input " + to_string(input) +
                     " in " + std::to_string(groups) + " groups");
  }
  check_bias(node, graph, weight[0]);
  Shape output = {1, weight[0], 0, 0};
  for (std::size_t axis = 0; axis < 2; ++axis) {
    const std::int64_t padded = input[2 + axis] + padding[axis] + padding[2 + axis];
    const std::int64_t reach = dilation[axis] * (weight[2 + axis] - 1) + 1;
    if (reach > padded) {
      refuse(node, "the weight " + to_string(weight) + " is larger than the padded input");
    }
    output[2 + axis] = (padded - reach) / stride[axis] + 1;
  }
  return output;
}

// ---- linear: weight [out,in] ----

Shape linear_shape(const Node& node, const Graph& graph) {
  const Shape& input = input_shape(node, graph, 0);
  const Shape& weight = tensor(node, graph, "weight").shape;
  if (input.size() != 2 || input[0] != 1) {
    refuse(node, "the input " + to_string(input) + " is not [1,n]");
  }
  if (weight.size() != 2 || weight[1] != input[1]) {
    refuse(node, "the weight " + to_string(weight) + " does not fit the input " + to_string(input));
  }
  check_bias(node, graph, weight[0]);
  return {1, weight[0]};
}

constexpr std::array kOperators = {
    Operator{.kind = OpKind::kConv2d,
             .name = "conv2d",
             .tensors = kWeightAndBias,
             .attributes = kConv2dAttributes,
             .infer_shape = conv2d_shape},
    Operator{.kind = OpKind::kLinear,
             .name = "linear",
             .tensors = kWeightAndBias,
             .infer_shape = linear_shape},
};

}  // namespace

std::span<const Operator> convolution_operators() { return kOperators; }

}  // namespace quern
