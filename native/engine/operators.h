// What each operation of the weights format (docs/weight-format.md) means, apart from how it is
// computed: its inputs, tensors and attributes, and the shape of its output. A file may come from
// anywhere, so an operation is also all that stands between a hostile node and the kernels: what
// passes check_shapes() is safe to compute.
//
// To add an operation (`slice` in operators/data_movement.cc is an example to copy):
//   1. Give it a kind in OpKind.
//   2. In its family's file in operators/, write its attributes with their ranges, its shape rule
//      with all checks, and its entry in the table at the end of the file. A new family also
//      declares its table in operators/rules.h and joins it in operators.cc.
//   3. Make the engine compute it: a class in its family's file in computations/ (computation.h).
//   4. Test the shape rule in native/tests/engine_operators_test.cc, right and hostile values, and
//      the results against torch in tests/test_engine_operations.py.
//   5. Give it a row in docs/weight-format.md, and a lowering in tasks/models/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "engine/graph.h"

namespace quern {

enum class OpKind : std::uint8_t {
  // operators/convolution.cc
  kConv2d,
  kLinear,
  // operators/elementwise.cc
  kRelu,
  kRelu6,
  kLeakyRelu,
  kSilu,
  kGelu,
  kHardswish,
  kHardsigmoid,
  kSigmoid,
  kTanh,
  kAdd,
  kSub,
  kMul,
  // operators/pooling.cc
  kMaxPool2d,
  kAveragePool2d,
  kAdaptiveAveragePool2d,
  kAdaptiveMaxPool2d,
  // operators/reduction.cc
  kMean,
  kSoftmax,
  kLayerNorm,
  // operators/data_movement.cc
  kConstant,
  kReshape,
  kPermute,
  kSlice,
  kConcat,
  kChannelShuffle,
  kPad,
};

struct AttributeRule {
  enum class Type : std::uint8_t { kInteger, kIntegers, kNumber };
  std::string_view name;
  Type type = Type::kInteger;
  double minimum = 0;  // of the number, or of each integer (these are exact)
  double maximum = 0;
  std::size_t shortest = 1;  // of a list of integers
  std::size_t longest = 1;
};

struct InputCount {
  std::size_t fewest = 1;
  std::size_t most = 1;
};

struct Operator {
  OpKind kind;
  std::string_view name;                           // "op" in the file
  InputCount inputs = {};                          // one
  std::span<const std::string_view> tensors = {};  // the roles it needs, all of them
  std::span<const AttributeRule> attributes = {};  // all of them
  // The output's shape, for a node whose counts, roles and attribute ranges were checked and whose
  // inputs' shapes are known to be right; the output's declared shape (declared_shape() below) has
  // at least been held to the bounds of graph.h. Dimensions may come out larger than those bounds,
  // never overflown. Throws WeightsError by refuse() where shapes and attributes don't fit.
  Shape (*infer_shape)(const Node& node, const Graph& graph) = nullptr;
};

// nullptr when there is no such operation.
const Operator* find_operator(std::string_view name);

// Runs every node's shape rule in order, and compares with the shapes the file declares.
// Throws WeightsError.
void check_shapes(const Graph& graph);

// What shape rules and computations ask of a node. Names are those of its rules.
[[noreturn]] void refuse(const Node& node, const std::string& sentence);  // throws WeightsError
const Shape& input_shape(const Node& node, const Graph& graph, std::size_t index);
const Shape& declared_shape(const Node& node, const Graph& graph);  // of the output
const Tensor& tensor(const Node& node, const Graph& graph, std::string_view role);
const std::vector<std::int64_t>& integers(const Node& node, std::string_view attribute);
std::int64_t integer(const Node& node, std::string_view attribute);
float number(const Node& node, std::string_view attribute);

}  // namespace quern
