// The seam between the graph and the arithmetic: one table of operators, one kernel family a file.
//
// To add an operator:
//   1. Write its section in the file of its family (conv2d.cc, elementwise.cc, pool.cc, linear.cc,
//      or a new file): the attributes with their ranges, the shape rule with its checks, and the
//      kernel, ending in `const Operator kName = {...}`.
//   2. Declare kName below and put it in the table in operators.cc.
//   3. Give it a test against torch in tests/test_engine.py.
// To add a faster kernel for an operator: a class derived from Kernel in a file of its own (its own
// compiler flags), chosen in that operator's `prepare`. The scalar kernel stays: it is the twin
// that tests compare with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "engine/graph.h"

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

struct AttributeRule {
  std::string_view name;
  std::size_t count;  // of integers in its list; 0: a plain integer
  std::int64_t minimum;
  std::int64_t maximum;
};

struct Operator {
  std::string_view name;
  std::size_t inputs;                         // how many
  std::span<const std::string_view> tensors;  // the roles it needs, all of them
  std::span<const AttributeRule> attributes;  // all of them
  // The output's shape. Counts, roles and ranges were checked; throws WeightsError by refuse()
  // where shapes don't fit.
  Shape (*infer_shape)(const Node& node, const Graph& graph);
  // nullptr: the output is the input's memory under another shape.
  std::unique_ptr<Kernel> (*prepare)(const Node& node, const Graph& graph);
};

// nullptr when there is no such operator.
const Operator* find_operator(std::string_view name);

extern const Operator kConv2d;
extern const Operator kLinear;
extern const Operator kRelu;
extern const Operator kRelu6;
extern const Operator kSigmoid;
extern const Operator kAdd;
extern const Operator kMul;
extern const Operator kGlobalAveragePool;
extern const Operator kFlatten;

// What shape rules and prepare functions ask of a node.
[[noreturn]] void refuse(const Node& node, const std::string& sentence);  // throws WeightsError
const Shape& input_shape(const Node& node, const Graph& graph, std::size_t index);
const Tensor& tensor(const Node& node, const Graph& graph, std::string_view role);
const std::vector<std::int64_t>& attribute(const Node& node, std::string_view name);

}  // namespace quern
