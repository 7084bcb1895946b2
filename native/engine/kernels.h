// How nodes are computed: one kernel family a file, chosen by OpKind in kernels.cc.
#pragma once

#include <memory>
#include <span>

#include "engine/operators.h"

namespace quern {

// One node made ready to run: shapes, attributes and weights bound (and, where that pays, packed)
// once when the model is loaded. Immutable, shared by all sessions.
class Kernel {
 public:
  virtual ~Kernel() = default;
  // Reads the node's inputs, writes every element of its output. float32, NCHW, dense. Inputs and
  // output never overlap. Allocates nothing.
  virtual void run(std::span<const float* const> inputs, float* output) const = 0;
};

// Whether the output is the input's memory under another shape, so that there is nothing to run.
bool is_view(const Node& node);

// The kernel of a node that is no view. Throws WeightsError where there is none.
std::unique_ptr<Kernel> prepare(const Node& node, const Graph& graph);

std::unique_ptr<Kernel> prepare_conv2d(const Node& node, const Graph& graph);
std::unique_ptr<Kernel> prepare_linear(const Node& node, const Graph& graph);
std::unique_ptr<Kernel> prepare_elementwise(const Node& node, const Graph& graph);
std::unique_ptr<Kernel> prepare_pool(const Node& node, const Graph& graph);

}  // namespace quern
