// What computes nothing: each element of the output is one of the input's, a tensor's, or a given
// number. Orders are row-major over logical shapes, whatever the layout in memory.
#include <array>

#include "engine/operators/rules.h"

namespace quern {
namespace {

// ---- constant: the tensor `value`, of any shape ----

constexpr std::array<std::string_view, 1> kValue = {"value"};

Shape constant_shape(const Node& node, const Graph& graph) {
  return tensor(node, graph, "value").shape;
}

// ---- reshape: the node's "shape" is the target ----

Shape reshape_shape(const Node& node, const Graph& graph) {
  const Shape& input = input_shape(node, graph, 0);
  const Shape& target = declared_shape(node, graph);
  if (element_count(input) != element_count(target)) {
    refuse(node, "the input " + to_string(input) + " has not the number of elements of " +
                     to_string(target));
  }
  return target;
}

// ---- permute: axis i of the output is axis order[i] of the input ----

constexpr std::array kPermuteAttributes = {integers_rule("order", 1, kMaxRank, 0, kMaxAxis)};

Shape permute_shape(const Node& node, const Graph& graph) {
  const Shape& input = input_shape(node, graph, 0);
  const auto& order = integers(node, "order");
  std::array<bool, kMaxRank> taken = {};
  bool fits = order.size() == input.size();
  Shape output;
  for (const std::int64_t from : order) {
    const auto axis = static_cast<std::size_t>(from);
    fits = fits && axis < input.size() && !taken[axis];
    if (!fits) {
      refuse(node, "the order " + to_string(order) +
                       " is no permutation of the axes of the input " + to_string(input));
    }
    taken[axis] = true;
    output.push_back(input[axis]);
  }
  return output;
}

// ---- slice: the elements from `start` up to, not including, `end` along `axis` ----

constexpr std::array kSliceAttributes = {
    kAxisRule,
    integer_rule("start", 0, kMaxValueElements),
    integer_rule("end", 1, kMaxValueElements),
};

Shape slice_shape(const Node& node, const Graph& graph) {
  const Shape& input = input_shape(node, graph, 0);
  const std::size_t axis = axis_of(node, input);
  const std::int64_t start = integer(node, "start");
  const std::int64_t end = integer(node, "end");
  if (start >= end || end > input[axis]) {
    refuse(node, "the input " + to_string(input) + " has no elements from " +
                     std::to_string(start) + " to " + std::to_string(end) + " along axis " +
                     std::to_string(axis));
  }
  Shape output = input;
  output[axis] = end - start;
  return output;
}

// ---- concat: the inputs one after the other along `axis`, equal in all other dimensions ----

constexpr std::array kConcatAttributes = {kAxisRule};

Shape concat_shape(const Node& node, const Graph& graph) {
  const Shape& first = input_shape(node, graph, 0);
  const std::size_t axis = axis_of(node, first);
  Shape output = first;
  for (std::size_t i = 1; i < node.inputs.size(); ++i) {
    const Shape& other = input_shape(node, graph, i);
    bool fits = other.size() == first.size();
    for (std::size_t k = 0; fits && k < first.size(); ++k) fits = k == axis || other[k] == first[k];
    if (!fits) {
      refuse(node, "the inputs " + to_string(first) + " and " + to_string(other) +
                       " differ beside axis " + std::to_string(axis));
    }
    output[axis] += other[axis];
  }
  return output;
}

// ---- channel_shuffle: [1,C,H,W] as [1,groups,C/groups,H,W], these two axes swapped ----

constexpr std::array kShuffleAttributes = {integer_rule("groups", 1, kMaxGroups)};

Shape shuffle_shape(const Node& node, const Graph& graph) {
  const Shape& input = image_shape(node, graph);
  const std::int64_t groups = integer(node, "groups");
  if (input[1] % groups != 0) {
    refuse(node, "the channels of the input " + to_string(input) + " don't divide into " +
                     std::to_string(groups) + " groups");
  }
  return input;
}

// ---- pad: [1,C,H,W] with `value` around it ----

constexpr std::array kPadAttributes = {
    integers_rule("padding", 4, 0, kMaxStep),  // top, left, bottom, right
    number_rule("value"),
};

Shape pad_shape(const Node& node, const Graph& graph) {
  const Shape& input = image_shape(node, graph);
  const auto& padding = integers(node, "padding");
  return {1, input[1], padding[0] + input[2] + padding[2], padding[1] + input[3] + padding[3]};
}

constexpr std::array kOperators = {
    Operator{.kind = OpKind::kConstant,
             .name = "constant",
             .inputs = {0, 0},
             .tensors = kValue,
             .infer_shape = constant_shape},
    Operator{.kind = OpKind::kReshape, .name = "reshape", .infer_shape = reshape_shape},
    Operator{.kind = OpKind::kPermute,
             .name = "permute",
             .attributes = kPermuteAttributes,
             .infer_shape = permute_shape},
    Operator{.kind = OpKind::kSlice,
             .name = "slice",
             .attributes = kSliceAttributes,
             .infer_shape = slice_shape},
    Operator{.kind = OpKind::kConcat,
             .name = "concat",
             .inputs = {1, 4096},
             .attributes = kConcatAttributes,
             .infer_shape = concat_shape},
    Operator{.kind = OpKind::kChannelShuffle,
             .name = "channel_shuffle",
             .attributes = kShuffleAttributes,
             .infer_shape = shuffle_shape},
    Operator{.kind = OpKind::kPad,
             .name = "pad",
             .attributes = kPadAttributes,
             .infer_shape = pad_shape},
};

}  // namespace

std::span<const Operator> data_movement_operators() { return kOperators; }

}  // namespace quern
