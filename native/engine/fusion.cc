#include "engine/fusion.h"

#include <algorithm>
#include <numeric>

namespace quern {
namespace {

std::optional<Activation> activation_of(const Node& node) {
  switch (node.op->kind) {
    case OpKind::kRelu:
      return Activation::kRelu;
    case OpKind::kRelu6:
      return Activation::kRelu6;
    case OpKind::kLeakyRelu:
      return Activation::kLeakyRelu;
    case OpKind::kSilu:
      return Activation::kSilu;
    case OpKind::kGelu:
      return integer(node, "tanh") != 0 ? Activation::kGeluTanh : Activation::kGelu;
    case OpKind::kHardswish:
      return Activation::kHardswish;
    case OpKind::kHardsigmoid:
      return Activation::kHardsigmoid;
    case OpKind::kSigmoid:
      return Activation::kSigmoid;
    case OpKind::kTanh:
      return Activation::kTanh;
    default:
      return std::nullopt;
  }
}

bool is_convolution(const Operation& operation) {
  if (operation.node == nullptr) return false;
  const OpKind kind = operation.node->op->kind;
  return kind == OpKind::kConv2d || kind == OpKind::kLinear;
}

bool is_arithmetic(const Operation& operation) {
  if (operation.node == nullptr) return false;
  const OpKind kind = operation.node->op->kind;
  return kind == OpKind::kAdd || kind == OpKind::kSub || kind == OpKind::kMul;
}

// Whether both shapes have their elements in the same order in memory.
bool same_memory(const Shape& a, const Shape& b) {
  const Extent first = extent_of(a);
  const Extent second = extent_of(b);
  return a == b || (first.height * first.width == 1 && second.height * second.width == 1);
}

class Fusion {
 public:
  explicit Fusion(Graph& graph) : graph_(graph) {
    fused_.memory_of.resize(graph.values.size());
    std::iota(fused_.memory_of.begin(), fused_.memory_of.end(), std::size_t{0});
    uses_.resize(graph.values.size());
    for (const Node& node : graph.nodes) {
      for (const std::size_t input : node.inputs) ++uses_[input];
    }
    ++uses_[graph.output];
    pack_input();
  }

  FusedGraph fuse() {
    for (const Node& node : graph_.nodes) {
      if (node.op->kind == OpKind::kConstant || alias(node) || join_activation(node) ||
          join_residual(node) || join_mean(node)) {
        continue;
      }
      append(node);
    }
    return std::move(fused_);
  }

 private:
  // The input in blocks, if anything needs it so.
  void pack_input() {
    bool needed = graph_.output == 0;
    for (const Node& node : graph_.nodes) {
      const bool reads = std::find(node.inputs.begin(), node.inputs.end(), 0U) != node.inputs.end();
      needed = needed || (reads && !reads_planar(node, graph_));
    }
    if (!needed) return;
    packed_ = graph_.values.size();
    graph_.values.push_back(graph_.values[0]);
    fused_.memory_of.push_back(packed_);
    uses_.push_back(uses_[0]);
    Operation operation;
    operation.inputs = {0};
    operation.output = packed_;
    fused_.operations.push_back(std::move(operation));
  }

  bool alias(const Node& node) {
    if (node.op->kind != OpKind::kReshape) return false;
    const std::size_t input = input_of(node, 0);
    if (!same_memory(graph_.values[input].shape, graph_.values[node.output].shape)) return false;
    fused_.memory_of[node.output] = fused_.memory_of[input];
    return true;
  }

  bool join_activation(const Node& node) {
    const std::optional<Activation> activation = activation_of(node);
    if (!activation) return false;
    Operation* operation = sole_producer(node.inputs[0]);
    if (operation == nullptr || !(is_convolution(*operation) || is_arithmetic(*operation)) ||
        operation->activation != Activation::kNone) {
      return false;
    }
    operation->activation = *activation;
    if (*activation == Activation::kLeakyRelu) operation->slope = number(node, "negative_slope");
    operation->output = node.output;
    return true;
  }

  // A sum with what a convolution alone feeds. It is then computed where the sum stands, so that
  // the other operand is there.
  bool join_residual(const Node& node) {
    if (node.op->kind != OpKind::kAdd) return false;
    if (graph_.values[node.inputs[0]].shape != graph_.values[node.inputs[1]].shape) return false;
    for (const std::size_t i : {std::size_t{1}, std::size_t{0}}) {
      const Operation* found = sole_producer(node.inputs[i]);
      if (found == nullptr || !is_convolution(*found) || is_depthwise_node(*found->node) ||
          found->has_residual || found->activation != Activation::kNone || found->means) {
        continue;
      }
      const std::size_t other = input_of(node, 1 - i);
      Operation operation = *found;
      fused_.operations.erase(fused_.operations.begin() + (found - fused_.operations.data()));
      operation.inputs.push_back(other);
      operation.has_residual = true;
      operation.output = node.output;
      fused_.operations.push_back(std::move(operation));
      return true;
    }
    return false;
  }

  bool join_mean(const Node& node) {
    if (node.op->kind != OpKind::kAdaptiveAveragePool2d ||
        integers(node, "size") != std::vector<std::int64_t>{1, 1}) {
      return false;
    }
    Operation* operation = producer(node.inputs[0]);
    if (operation == nullptr || !is_convolution(*operation) || operation->means) return false;
    operation->means = node.output;
    return true;
  }

  void append(const Node& node) {
    Operation operation;
    operation.node = &node;
    operation.output = node.output;
    for (std::size_t i = 0; i < node.inputs.size(); ++i) {
      operation.inputs.push_back(input_of(node, i));
    }
    // add and mul are the same in either order: the wider operand comes first.
    if (is_arithmetic(operation) && node.op->kind != OpKind::kSub &&
        graph_.values[operation.inputs[0]].shape != graph_.values[node.output].shape) {
      std::swap(operation.inputs[0], operation.inputs[1]);
    }
    if (const auto activation = activation_of(node)) {
      operation.activation = *activation;
      if (*activation == Activation::kLeakyRelu) operation.slope = number(node, "negative_slope");
    }
    fused_.operations.push_back(std::move(operation));
  }

  // The value that a node reads: the input in blocks, unless it takes it as it is.
  std::size_t input_of(const Node& node, std::size_t index) const {
    const std::size_t input = node.inputs[index];
    return input == 0 && !reads_planar(node, graph_) ? packed_ : input;
  }

  bool is_depthwise_node(const Node& node) const {
    return node.op->kind == OpKind::kConv2d && tensor(node, graph_, "weight").shape[1] == 1 &&
           integer(node, "groups") > 1;
  }

  Operation* producer(std::size_t value) {
    for (Operation& operation : fused_.operations) {
      if (operation.output == value) return &operation;
    }
    return nullptr;
  }

  // The operation that makes a value read once, by nothing but the node that asks.
  Operation* sole_producer(std::size_t value) {
    return uses_[value] == 1 ? producer(value) : nullptr;
  }

  Graph& graph_;
  FusedGraph fused_;
  std::vector<std::size_t> uses_;  // by value: how often nodes read it, and the graph's output
  std::size_t packed_ = 0;
};

}  // namespace

FusedGraph fuse(Graph& graph) { return Fusion(graph).fuse(); }

}  // namespace quern
