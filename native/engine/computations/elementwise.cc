// Activations, and add, sub and mul of two values.
#include <limits>
#include <utility>

#include "engine/computation.h"
#include "engine/computations/elements.h"

namespace quern {
namespace {

struct Function {
  Activation activation = Activation::kNone;
  float slope = 0.0F;
};

// Calls visit(block, offset, count) for the floats of these rows of each block, or once for those
// of all blocks where these follow each other in both values.
template <typename Visit>
void each_part(const Extent& extent, Rows rows, std::int64_t in_plane, std::int64_t out_plane,
               const Visit& visit) {
  const std::int64_t count = (rows.last - rows.first) * extent.row();
  if (count == in_plane && count == out_plane) {
    visit(0, rows.first * extent.row(), extent.blocks() * count);
    return;
  }
  for (std::int64_t block = 0; block < extent.blocks(); ++block) {
    visit(block, rows.first * extent.row(), count);
  }
}

class Activated final : public Computation {
 public:
  Activated(Function function, const Extent& extent, const Kernels& kernels)
      : kernels_(kernels), function_(function), extent_(extent) {}

  bool by_rows() const override { return true; }
  bool in_place() const override { return true; }

  void run(const Arguments& arguments) const override {
    const View& in = arguments.inputs[0];
    const View& out = arguments.output;
    each_part(extent_, arguments.rows, in.plane, out.plane,
              [&](std::int64_t block, std::int64_t offset, std::int64_t count) {
                kernels_.activate(function_.activation, function_.slope,
                                  in.data + block * in.plane + offset,
                                  out.data + block * out.plane + offset, count);
              });
  }

 private:
  const Kernels& kernels_;
  Function function_;
  Extent extent_;
};

// What is done with two numbers: the arithmetic and what is fused to it.
struct Pairing {
  Arithmetic arithmetic = Arithmetic::kAdd;
  float low = -std::numeric_limits<float>::infinity();
  float high = std::numeric_limits<float>::infinity();
  Function function;  // after the limits; kNone where they are all there is
};

Pairing pairing_of(const Operation& operation) {
  Pairing pairing;
  const OpKind kind = operation.node->op->kind;
  if (kind == OpKind::kSub) pairing.arithmetic = Arithmetic::kSub;
  if (kind == OpKind::kMul) pairing.arithmetic = Arithmetic::kMul;
  if (operation.activation == Activation::kRelu || operation.activation == Activation::kRelu6) {
    pairing.low = 0.0F;
    if (operation.activation == Activation::kRelu6) pairing.high = 6.0F;
  } else {
    pairing.function = {operation.activation, operation.slope};
  }
  return pairing;
}

// A value with another of the same shape, or that has one number for each channel, or one in all.
class Paired final : public Computation {
 public:
  enum class Other : std::uint8_t { kWhole, kChannels, kNumber };

  // `main`: which input has the shape of the output.
  Paired(const Pairing& pairing, const Extent& extent, std::size_t main, Other other,
         const Kernels& kernels)
      : kernels_(kernels), pairing_(pairing), extent_(extent), main_(main), other_(other) {}

  bool by_rows() const override { return main_ == 0; }
  bool in_place() const override { return main_ == 0; }

  void run(const Arguments& arguments) const override {
    const View& a = arguments.inputs[main_];
    const View& b = arguments.inputs[1 - main_];
    const View& out = arguments.output;
    const std::int64_t count = (arguments.rows.last - arguments.rows.first) * extent_.row();
    const std::int64_t offset = arguments.rows.first * extent_.row();
    alignas(64) float repeated[kBlock];
    if (other_ == Other::kNumber) std::fill_n(repeated, kBlock, b.data[0]);
    for (std::int64_t block = 0; block < extent_.blocks(); ++block) {
      const float* other = other_ == Other::kNumber     ? repeated
                           : other_ == Other::kChannels ? b.data + block * b.plane
                                                        : b.data + block * b.plane + offset;
      float* output = out.data + block * out.plane + offset;
      kernels_.combine(pairing_.arithmetic, a.data + block * a.plane + offset, other,
                       other_ == Other::kWhole ? kBlock : 0, pairing_.low, pairing_.high, output,
                       count);
      if (pairing_.function.activation != Activation::kNone) {
        kernels_.activate(pairing_.function.activation, pairing_.function.slope, output, output,
                          count);
      }
    }
  }

 private:
  const Kernels& kernels_;
  Pairing pairing_;
  Extent extent_;
  std::size_t main_;
  Other other_;
};

// Any two shapes that broadcast.
class Broadcast final : public Computation {
 public:
  Broadcast(const Pairing& pairing, Shape a, Shape b, Shape output, const Kernels& kernels)
      : kernels_(kernels),
        pairing_(pairing),
        a_(std::move(a)),
        b_(std::move(b)),
        output_(std::move(output)),
        extent_(extent_of(output_)) {}

  void run(const Arguments& arguments) const override {
    switch (pairing_.arithmetic) {
      case Arithmetic::kAdd:
        return each(arguments, [](float a, float b) { return a + b; });
      case Arithmetic::kSub:
        return each(arguments, [](float a, float b) { return a - b; });
      case Arithmetic::kMul:
        return each(arguments, [](float a, float b) { return a * b; });
    }
  }

 private:
  template <typename Combine>
  void each(const Arguments& arguments, Combine combine) const {
    const View& a = arguments.inputs[0];
    const View& b = arguments.inputs[1];
    const View& out = arguments.output;
    walk<3>(output_,
            {repeated(a_, memory_axes(a_, a)), repeated(b_, memory_axes(b_, b)),
             memory_axes(output_, out)},
            [&](const std::array<std::int64_t, 3>& at) {
              float result = combine(a.data[at[0]], b.data[at[1]]);
              // NaN stays NaN in both.
              if (result < pairing_.low) result = pairing_.low;
              if (result > pairing_.high) result = pairing_.high;
              out.data[at[2]] = result;
            });
    clear_unused(extent_, out, {0, extent_.height});
    if (pairing_.function.activation == Activation::kNone) return;
    for (std::int64_t block = 0; block < extent_.blocks(); ++block) {
      float* written = out.data + block * out.plane;
      kernels_.activate(pairing_.function.activation, pairing_.function.slope, written, written,
                        extent_.plane());
    }
  }

  const Kernels& kernels_;
  Pairing pairing_;
  Shape a_, b_, output_;
  Extent extent_;
};

std::unique_ptr<Computation> prepare_pair(const Operation& operation, const Graph& graph,
                                          const Kernels& kernels) {
  const Pairing pairing = pairing_of(operation);
  const Shape& output = graph.values[operation.output].shape;
  const Extent extent = extent_of(output);
  const std::array<const Shape*, 2> shapes = {&graph.values[operation.inputs[0]].shape,
                                              &graph.values[operation.inputs[1]].shape};
  for (std::size_t main = 0; main < 2; ++main) {
    if (*shapes[main] != output) continue;
    if (main == 1 && pairing.arithmetic == Arithmetic::kSub) continue;
    const Shape& other = *shapes[1 - main];
    if (other == output) {
      return std::make_unique<Paired>(pairing, extent, main, Paired::Other::kWhole, kernels);
    }
    if (element_count(other) == 1) {
      return std::make_unique<Paired>(pairing, extent, main, Paired::Other::kNumber, kernels);
    }
    if (in_blocks(output) && other == Shape{1, output[1], 1, 1}) {
      return std::make_unique<Paired>(pairing, extent, main, Paired::Other::kChannels, kernels);
    }
  }
  return std::make_unique<Broadcast>(pairing, *shapes[0], *shapes[1], output, kernels);
}

}  // namespace

std::unique_ptr<Computation> prepare_elementwise(const Operation& operation, const Graph& graph,
                                                 const Kernels& kernels) {
  if (operation.inputs.size() == 2) return prepare_pair(operation, graph, kernels);
  return std::make_unique<Activated>(Function{operation.activation, operation.slope},
                                     extent_of(graph, operation.output), kernels);
}

}  // namespace quern
