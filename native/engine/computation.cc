#include "engine/computation.h"

namespace quern {

Extent extent_of(const Shape& shape) {
  if (shape.size() == 4 && shape[0] == 1) return {shape[1], shape[2], shape[3]};
  return {element_count(shape), 1, 1};
}

Extent extent_of(const Graph& graph, std::size_t value) {
  return extent_of(graph.values[value].shape);
}

bool is_depthwise(const Node& node, const Graph& graph) {
  if (node.op->kind != OpKind::kConv2d) return false;
  const Shape& weight = tensor(node, graph, "weight").shape;
  return weight[1] == 1 && integer(node, "groups") == weight[0] && weight[0] > 1;
}

bool is_pointwise(const Node& node, const Graph& graph) {
  if (node.op->kind == OpKind::kLinear) return true;
  if (node.op->kind != OpKind::kConv2d || integer(node, "groups") != 1) return false;
  const Shape& weight = tensor(node, graph, "weight").shape;
  std::int64_t sum = weight[2] + weight[3];  // of what is 1, and of the padding
  for (const std::int64_t stride : integers(node, "stride")) sum += stride;
  for (const std::int64_t padding : integers(node, "padding")) sum += padding;
  return sum == 4;
}

bool reads_planar(const Node& node, const Graph& graph) {
  return node.op->kind == OpKind::kConv2d && integer(node, "groups") == 1 &&
         !is_depthwise(node, graph);
}

std::unique_ptr<Computation> prepare(const Operation& operation, const Graph& graph,
                                     const Kernels& kernels) {
  if (operation.node == nullptr) return prepare_packing(graph.values[0].shape);
  switch (operation.node->op->kind) {
    case OpKind::kConv2d:
      if (is_depthwise(*operation.node, graph)) {
        return prepare_depthwise(operation, graph, kernels);
      }
      if (winograd_pays(operation, graph)) return prepare_winograd(operation, graph, kernels);
      if (strassen_pays(operation, graph, kernels)) {
        return prepare_strassen(operation, graph, kernels);
      }
      return prepare_convolution(operation, graph, kernels);
    case OpKind::kLinear:
      return prepare_convolution(operation, graph, kernels);
    case OpKind::kMaxPool2d:
    case OpKind::kAveragePool2d:
    case OpKind::kAdaptiveAveragePool2d:
    case OpKind::kAdaptiveMaxPool2d:
      return prepare_pooling(operation, graph, kernels);
    case OpKind::kMean:
    case OpKind::kSoftmax:
    case OpKind::kLayerNorm:
      return prepare_reduction(operation, graph, kernels);
    case OpKind::kConstant:
    case OpKind::kReshape:
    case OpKind::kPermute:
    case OpKind::kSlice:
    case OpKind::kConcat:
    case OpKind::kChannelShuffle:
    case OpKind::kPad:
      return prepare_data_movement(operation, graph, kernels);
    default:
      return prepare_elementwise(operation, graph, kernels);
  }
}

}  // namespace quern
