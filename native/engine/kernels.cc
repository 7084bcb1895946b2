#include "engine/kernels.h"

namespace quern {

bool is_view(const Node& node) { return node.op->kind == OpKind::kReshape; }

std::unique_ptr<Kernel> prepare(const Node& node, const Graph& graph) {
  std::unique_ptr<Kernel> kernel;
  switch (node.op->kind) {
    case OpKind::kConv2d:
      kernel = prepare_conv2d(node, graph);
      break;
    case OpKind::kLinear:
      kernel = prepare_linear(node, graph);
      break;
    case OpKind::kRelu:
    case OpKind::kRelu6:
    case OpKind::kSigmoid:
    case OpKind::kAdd:
    case OpKind::kMul:
      kernel = prepare_elementwise(node, graph);
      break;
    case OpKind::kAdaptiveAveragePool2d:
      kernel = prepare_pool(node, graph);
      break;
    default:
      break;
  }
  if (kernel == nullptr) refuse(node, "this engine cannot compute it");
  return kernel;
}

}  // namespace quern
