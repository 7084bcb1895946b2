// How operations are computed: after fusion (fusion.h) each becomes one Computation, made once when
// the model is loaded, with shapes, attributes and weights bound and packed. Computations decide
// what is computed on which rows; the loops inside are those of kernels/.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/graph.h"
#include "engine/kernels/kernels.h"
#include "engine/layout.h"
#include "engine/operators.h"

namespace quern {

// A node, with the nodes after it that are computed along with it.
struct Operation {
  const Node* node = nullptr;       // nullptr: the graph's planar input is turned into blocks
  std::vector<std::size_t> inputs;  // values; those of the node, then the residual or the scale
  std::size_t output = 0;           // value: that of the last node fused
  bool has_residual = false;        // inputs.back() is added to the result, before the activation
  bool has_scale = false;           // or the result is multiplied by it, channel by channel
  const Node* through = nullptr;    // a 1x1 convolution before the node, computed along with it
  Activation activation = Activation::kNone;
  float slope = 0.0F;                // of kLeakyRelu
  std::optional<std::size_t> means;  // value that gets each channel's mean over the output
};

struct Arguments {
  std::span<const View> inputs;
  View output;
  float* means = nullptr;    // [blocks][16], where the operation has them
  Rows rows;                 // of the output, to be written; all of them where by_rows() is false
  float* scratch = nullptr;  // scratch_floats() of them, aligned to 64 bytes
};

// Immutable, shared by all sessions. run() allocates nothing. For values and their memory see
// layout.h. The graph's input alone is planar, [C][H][W], and only given to nodes that
// reads_planar() names.
class Computation {
 public:
  virtual ~Computation() = default;

  // Whether run() may be asked for a part of the rows, parts coming in order from row 0 on.
  virtual bool by_rows() const { return false; }
  // The rows of input 0 that these rows of the output are made from. Asked only of by_rows(); every
  // other input is complete when the first rows are computed.
  virtual Rows needs(Rows rows) const { return rows; }
  // Whether the output may be the very memory of input 0 (then of the same extent).
  virtual bool in_place() const { return false; }
  virtual std::size_t scratch_floats() const { return 0; }
  virtual std::size_t weight_floats() const { return 0; }  // held by the computation
  virtual void run(const Arguments& arguments) const = 0;
};

// The extent in memory of a value of that shape: [1, C, H, W] as it is, any other shape as so many
// channels of one pixel.
Extent extent_of(const Shape& shape);
// The extent of a value of the graph.
Extent extent_of(const Graph& graph, std::size_t value);

// Whether a node is a convolution of each channel by itself; a linear layer or dense 1x1
// convolution.
bool is_depthwise(const Node& node, const Graph& graph);
bool is_pointwise(const Node& node, const Graph& graph);

// Whether a node may be given the graph's planar input.
bool reads_planar(const Node& node, const Graph& graph);

// The computation of `operation` with the kernels of one instruction set; nothing in it refers to
// the graph's tensors afterwards. Throws WeightsError where memory of the blocked layout would
// exceed the bounds.
std::unique_ptr<Computation> prepare(const Operation& operation, const Graph& graph,
                                     const Kernels& kernels);

// A step that no node asks for: the graph's planar input [1, C, H, W] turned into blocks.
std::unique_ptr<Computation> prepare_packing(const Shape& shape);

// The families; each in a file of computations/.
std::unique_ptr<Computation> prepare_convolution(const Operation& operation, const Graph& graph,
                                                 const Kernels& kernels);
// A convolution that Winograd's algorithm computes in less time, in the memory that it takes; only
// where winograd_pays() may prepare_winograd() be called.
bool winograd_pays(const Operation& operation, const Graph& graph);
std::unique_ptr<Computation> prepare_winograd(const Operation& operation, const Graph& graph,
                                              const Kernels& kernels);
// A 1x1 convolution by Strassen's algorithm: likewise.
bool strassen_pays(const Operation& operation, const Graph& graph, const Kernels& kernels);
std::unique_ptr<Computation> prepare_strassen(const Operation& operation, const Graph& graph,
                                              const Kernels& kernels);
std::unique_ptr<Computation> prepare_depthwise(const Operation& operation, const Graph& graph,
                                               const Kernels& kernels);
std::unique_ptr<Computation> prepare_elementwise(const Operation& operation, const Graph& graph,
                                                 const Kernels& kernels);
std::unique_ptr<Computation> prepare_pooling(const Operation& operation, const Graph& graph,
                                             const Kernels& kernels);
std::unique_ptr<Computation> prepare_reduction(const Operation& operation, const Graph& graph,
                                               const Kernels& kernels);
std::unique_ptr<Computation> prepare_data_movement(const Operation& operation, const Graph& graph,
                                                   const Kernels& kernels);

}  // namespace quern
