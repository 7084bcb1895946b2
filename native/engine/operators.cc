#include "engine/operators.h"

#include "engine/operators/rules.h"

namespace quern {
namespace {

// Refuses an output that is too large or that is not of one image.
void check_output(const Node& node, const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t dimension : shape) {
    if (dimension < 1 || dimension > kMaxValueElements / count) {
      refuse(node, "the output " + to_string(shape) + " is larger than " +
                       std::to_string(kMaxValueElements) + " elements");
    }
    count *= dimension;
  }
  if (shape[0] != 1 && node.op->kind != OpKind::kConstant) {
    refuse(node, "the output " + to_string(shape) + " does not begin with dimension 1");
  }
}

}  // namespace

const Operator* find_operator(std::string_view name) {
  for (const auto family : {convolution_operators(), elementwise_operators(), pooling_operators(),
                            reduction_operators(), data_movement_operators()}) {
    for (const Operator& op : family) {
      if (op.name == name) return &op;
    }
  }
  return nullptr;
}

void check_shapes(const Graph& graph) {
  for (const Node& node : graph.nodes) {
    const Shape shape = node.op->infer_shape(node, graph);
    check_output(node, shape);
    const Shape& declared = declared_shape(node, graph);
    if (shape != declared) {
      refuse(node,
             "the output is " + to_string(shape) + ", the file declares " + to_string(declared));
    }
  }
}

void refuse(const Node& node, const std::string& sentence) {
  throw WeightsError("node " + in_quotes(node.name) + " (" + std::string(node.op->name) +
                     "): " + sentence);
}

const Shape& input_shape(const Node& node, const Graph& graph, std::size_t index) {
  return graph.values[node.inputs.at(index)].shape;
}

const Shape& declared_shape(const Node& node, const Graph& graph) {
  return graph.values[node.output].shape;
}

const Tensor& tensor(const Node& node, const Graph& graph, std::string_view role) {
  return graph.tensors[node.tensors.find(role)->second];
}

const std::vector<std::int64_t>& integers(const Node& node, std::string_view attribute) {
  return node.attributes.find(attribute)->second;
}

std::int64_t integer(const Node& node, std::string_view attribute) {
  return integers(node, attribute)[0];
}

float number(const Node& node, std::string_view attribute) {
  return node.numbers.find(attribute)->second;
}

// ---- operators/rules.h ----

const Shape& image_shape(const Node& node, const Graph& graph) {
  const Shape& input = input_shape(node, graph, 0);
  if (input.size() != 4 || input[0] != 1) {
    refuse(node, "the input " + to_string(input) + " is not [1,C,H,W]");
  }
  return input;
}

std::size_t axis_of(const Node& node, const Shape& input) {
  const std::int64_t axis = integer(node, "axis");
  if (axis >= static_cast<std::int64_t>(input.size())) {
    refuse(node, "the input " + to_string(input) + " has no axis " + std::to_string(axis));
  }
  return static_cast<std::size_t>(axis);
}

const std::vector<std::int64_t>& axes_of(const Node& node, const Shape& input) {
  const auto& axes = integers(node, "axes");
  std::int64_t previous = -1;
  for (const std::int64_t axis : axes) {
    if (axis >= static_cast<std::int64_t>(input.size())) {
      refuse(node, "the input " + to_string(input) + " has no axis " + std::to_string(axis));
    }
    if (axis <= previous) refuse(node, "the axes " + to_string(axes) + " are not ascending");
    previous = axis;
  }
  return axes;
}

}  // namespace quern
