// The table of operators that format version 1 knows.
#include <array>
#include <string>

#include "engine/kernels.h"

namespace quern {

const Operator* find_operator(std::string_view name) {
  static constexpr std::array<const Operator*, 9> kOperators = {
      &kConv2d, &kLinear, &kRelu, &kRelu6, &kSigmoid, &kAdd, &kMul, &kGlobalAveragePool, &kFlatten,
  };
  for (const Operator* op : kOperators) {
    if (op->name == name) return op;
  }
  return nullptr;
}

void refuse(const Node& node, const std::string& sentence) {
  throw WeightsError("node " + in_quotes(node.name) + " (" + std::string(node.op->name) +
                     "): " + sentence);
}

const Shape& input_shape(const Node& node, const Graph& graph, std::size_t index) {
  return graph.values[node.inputs.at(index)].shape;
}

const Tensor& tensor(const Node& node, const Graph& graph, std::string_view role) {
  return graph.tensors[node.tensors.find(role)->second];
}

const std::vector<std::int64_t>& attribute(const Node& node, std::string_view name) {
  return node.attributes.find(name)->second;
}

}  // namespace quern
