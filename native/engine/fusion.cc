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
          join_residual(node) || join_mean(node) || join_gate(node)) {
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
    packed_ = add_value(graph_.values[0].shape);
    uses_[packed_] = uses_[0];
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
      if (found == nullptr || !is_plain(*found) || is_depthwise(*found->node, graph_) ||
          found->means) {
        continue;
      }
      const std::size_t other = input_of(node, 1 - i);
      Operation& operation = move_to_end(found);
      operation.inputs.push_back(other);
      operation.has_residual = true;
      operation.output = node.output;
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

  // Squeeze-and-excitation after a 1x1 convolution: what it makes is multiplied by a gate computed
  // from its own means. These are the convolution of its input's means: the layer that reads them
  // is computed through it, so that the gate is there first, and the product joins the convolution.
  bool join_gate(const Node& node) {
    if (node.op->kind != OpKind::kMul) return false;
    for (const std::size_t i : {std::size_t{0}, std::size_t{1}}) {
      const std::size_t value = node.inputs[i];
      const std::size_t gate = input_of(node, 1 - i);
      const Operation* const found = producer(value);
      if (found == nullptr || !found->means || !is_plain(*found) || uses_[value] != 2 ||
          !is_pointwise(*found->node, graph_) || !is_of_channels(gate, value)) {
        continue;
      }
      Operation* const before = producer(found->inputs[0]);
      Operation* const reader = sole_reader(*found->means);
      // With more channels before it than after it the reader would have more to do than now.
      if (before == nullptr || !is_convolution(*before) || reader == nullptr ||
          !is_convolution(*reader) || !is_pointwise(*reader->node, graph_) ||
          reader->through != nullptr || channels_of(before->output) > channels_of(value)) {
        continue;
      }
      if (!before->means) {
        before->means = add_value({1, channels_of(before->output), 1, 1});
      }
      reader->through = found->node;
      reader->inputs[0] = *before->means;
      Operation& operation = move_to_end(found);
      operation.means.reset();
      operation.inputs.push_back(gate);
      operation.has_scale = true;
      operation.output = node.output;
      return true;
    }
    return false;
  }

  // A convolution that nothing was fused with but its means.
  static bool is_plain(const Operation& operation) {
    return is_convolution(operation) && !operation.has_residual && !operation.has_scale &&
           operation.activation == Activation::kNone;
  }

  Operation& move_to_end(const Operation* operation) {
    const auto at = fused_.operations.begin() + (operation - fused_.operations.data());
    std::rotate(at, at + 1, fused_.operations.end());
    return fused_.operations.back();
  }

  std::int64_t channels_of(std::size_t value) const { return extent_of(graph_, value).channels; }

  // Whether the first has one number for each channel of the second.
  bool is_of_channels(std::size_t value, std::size_t image) const {
    const Shape& shape = graph_.values[value].shape;
    return shape.size() == 4 && shape[1] == channels_of(image) && element_count(shape) == shape[1];
  }

  // The operation that alone reads a value, under whatever name.
  Operation* sole_reader(std::size_t value) {
    std::size_t reads = 1;
    for (std::size_t name = 0; name < uses_.size(); ++name) {
      if (fused_.memory_of[name] == value) reads += uses_[name] - 1;  // by its other names
    }
    for (Operation& operation : fused_.operations) {
      if (reads == 1 && fused_.memory_of[operation.inputs[0]] == value) return &operation;
    }
    return nullptr;
  }

  std::size_t add_value(Shape shape) {
    graph_.values.push_back({"", std::move(shape)});
    fused_.memory_of.push_back(uses_.size());
    uses_.push_back(1);
    return uses_.size() - 1;
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
