// mean, softmax and layer_norm. Over channels, as in ConvNeXt, 16 of them at a time; any other axes
// one element at a time, with sums in float64.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "engine/aligned.h"
#include "engine/computation.h"
#include "engine/computations/elements.h"

namespace quern {
namespace {

// ---- over channels: each pixel by itself ----

// sum over the channels of one pixel of function(channel), `pixel` being that of block 0.
template <typename Function>
float channel_sum(const float* pixel, std::int64_t plane, std::int64_t channels,
                  const Function& function) {
  float lanes[kBlock] = {};
  const std::int64_t whole = channels / kBlock;
  for (std::int64_t block = 0; block < whole; ++block, pixel += plane) {
    for (int i = 0; i < kBlock; ++i) lanes[i] += function(pixel[i]);
  }
  for (int i = 0; i < channels % kBlock; ++i) lanes[i] += function(pixel[i]);
  double sum = 0;
  for (const float lane : lanes) sum += lane;
  return static_cast<float>(sum);
}

class ChannelMean final : public Computation {
 public:
  explicit ChannelMean(const Extent& in) : in_(in) {}

  bool by_rows() const override { return true; }

  void run(const Arguments& arguments) const override {
    const View& in = arguments.inputs[0];
    const float count = static_cast<float>(in_.channels);
    for (std::int64_t at = arguments.rows.first * in_.row(); at < arguments.rows.last * in_.row();
         at += kBlock) {
      float* to = arguments.output.data + at;
      std::fill_n(to, kBlock, 0.0F);
      to[0] = channel_sum(in.data + at, in.plane, in_.channels, [](float x) { return x; }) / count;
    }
  }

 private:
  Extent in_;
};

class ChannelNorm final : public Computation {
 public:
  ChannelNorm(const Extent& extent, std::span<const float> weight, std::span<const float> bias,
              float epsilon)
      : extent_(extent),
        epsilon_(epsilon),
        floats_(static_cast<std::size_t>(extent.blocks() * kBlock)),
        weight_(allocate_floats(floats_)),
        bias_(allocate_floats(floats_)) {
    // Zeros for the unused channels, which so become zeros.
    std::fill(std::copy(weight.begin(), weight.end(), weight_.get()), weight_.get() + floats_,
              0.0F);
    std::fill(std::copy(bias.begin(), bias.end(), bias_.get()), bias_.get() + floats_, 0.0F);
  }

  bool by_rows() const override { return true; }
  bool in_place() const override { return true; }
  std::size_t weight_floats() const override { return 2 * floats_; }

  void run(const Arguments& arguments) const override {
    const View& in = arguments.inputs[0];
    const View& out = arguments.output;
    const float count = static_cast<float>(extent_.channels);
    for (std::int64_t at = arguments.rows.first * extent_.row();
         at < arguments.rows.last * extent_.row(); at += kBlock) {
      const float* from = in.data + at;
      const float mean =
          channel_sum(from, in.plane, extent_.channels, [](float x) { return x; }) / count;
      const float variance = channel_sum(from, in.plane, extent_.channels,
                                         [=](float x) { return (x - mean) * (x - mean); }) /
                             count;
      const float scale = 1.0F / std::sqrt(variance + epsilon_);
      float* to = out.data + at;
      for (std::int64_t block = 0; block < extent_.blocks(); ++block) {
        float normal[kBlock];  // apart from `to`, which the compiler must take for any memory
        const float* weight = weight_.get() + block * kBlock;
        const float* bias = bias_.get() + block * kBlock;
        for (int i = 0; i < kBlock; ++i) {
          normal[i] = (from[i] - mean) * scale * weight[i] + bias[i];
        }
        std::copy_n(normal, kBlock, to);
        from += in.plane;
        to += out.plane;
      }
    }
  }

 private:
  Extent extent_;
  float epsilon_;
  std::size_t floats_;
  AlignedFloats weight_, bias_;
};

// ---- over any axes ----

// The shape with one element along the axes, and the shape of one group along them.
struct Groups {
  Shape outer, inner;

  Groups(const Shape& shape, const std::vector<std::int64_t>& axes)
      : outer(shape), inner(shape.size(), 1) {
    for (const std::int64_t axis : axes) {
      std::swap(outer[static_cast<std::size_t>(axis)], inner[static_cast<std::size_t>(axis)]);
    }
  }
  double count() const { return static_cast<double>(element_count(inner)); }
};

using At = std::array<std::int64_t, 1>;
using At2 = std::array<std::int64_t, 2>;
using At3 = std::array<std::int64_t, 3>;

class Mean final : public Computation {
 public:
  Mean(Shape shape, const std::vector<std::int64_t>& axes)
      : shape_(std::move(shape)), groups_(shape_, axes) {}

  void run(const Arguments& arguments) const override {
    const View& in = arguments.inputs[0];
    const View& out = arguments.output;
    const Axes axes = memory_axes(shape_, in);
    const double count = groups_.count();
    walk<2>(groups_.outer, {axes, memory_axes(groups_.outer, out)}, [&](const At2& group) {
      double sum = 0;
      walk<1>(groups_.inner, {axes}, [&](const At& at) { sum += in.data[at[0]]; }, {group[0]});
      out.data[group[1]] = static_cast<float>(sum / count);
    });
    const Extent extent = extent_of(groups_.outer);
    clear_unused(extent, out, {0, extent.height});
  }

 private:
  Shape shape_;
  Groups groups_;
};

class Softmax final : public Computation {
 public:
  Softmax(Shape shape, std::int64_t axis) : shape_(std::move(shape)), groups_(shape_, {axis}) {}

  void run(const Arguments& arguments) const override {
    const View& in = arguments.inputs[0];
    const View& out = arguments.output;
    const std::array<Axes, 2> both = {memory_axes(shape_, in), memory_axes(shape_, out)};
    walk<2>(groups_.outer, both, [&](const At2& group) {
      float greatest = -std::numeric_limits<float>::infinity();
      walk<1>(groups_.inner, {both[0]},
              [&](const At& at) { greatest = std::max(greatest, in.data[at[0]]); }, {group[0]});
      double sum = 0;
      walk<2>(
          groups_.inner, both,
          [&](const At2& at) {
            const float power = std::exp(in.data[at[0]] - greatest);
            out.data[at[1]] = power;
            sum += power;
          },
          group);
      const float scale = static_cast<float>(1 / sum);
      walk<1>(groups_.inner, {both[1]}, [&](const At& at) { out.data[at[0]] *= scale; },
              {group[1]});
    });
    const Extent extent = extent_of(shape_);
    clear_unused(extent, out, {0, extent.height});
  }

 private:
  Shape shape_;
  Groups groups_;
};

class LayerNorm final : public Computation {
 public:
  LayerNorm(Shape shape, const std::vector<std::int64_t>& axes, std::span<const float> weight,
            std::span<const float> bias, float epsilon)
      : shape_(std::move(shape)),
        groups_(shape_, axes),
        epsilon_(epsilon),
        weight_(weight.begin(), weight.end()),
        bias_(bias.begin(), bias.end()) {}

  std::size_t weight_floats() const override { return weight_.size() + bias_.size(); }

  void run(const Arguments& arguments) const override {
    const View& in = arguments.inputs[0];
    const View& out = arguments.output;
    const Axes from = memory_axes(shape_, in);
    const Axes to = memory_axes(shape_, out);
    const Axes parameters = dense_axes(groups_.inner);
    const double count = groups_.count();
    walk<2>(groups_.outer, {from, to}, [&](const At2& group) {
      double sum = 0;
      walk<1>(groups_.inner, {from}, [&](const At& at) { sum += in.data[at[0]]; }, {group[0]});
      const double mean = sum / count;
      double squares = 0;
      walk<1>(groups_.inner, {from},
              [&](const At& at) {
                const double difference = in.data[at[0]] - mean;
                squares += difference * difference;
              },
              {group[0]});
      const double scale = 1 / std::sqrt(squares / count + epsilon_);
      walk<3>(groups_.inner, {from, to, parameters},
              [&](const At3& at) {
                const auto parameter = static_cast<std::size_t>(at[2]);
                const float normal = static_cast<float>((in.data[at[0]] - mean) * scale);
                out.data[at[1]] = normal * weight_[parameter] + bias_[parameter];
              },
              {group[0], group[1], 0});
    });
    const Extent extent = extent_of(shape_);
    clear_unused(extent, out, {0, extent.height});
  }

 private:
  Shape shape_;
  Groups groups_;
  float epsilon_;
  std::vector<float> weight_, bias_;
};

}  // namespace

std::unique_ptr<Computation> prepare_reduction(const Operation& operation, const Graph& graph,
                                               const Kernels& kernels) {
  const Node& node = *operation.node;
  const Shape& shape = graph.values[operation.inputs[0]].shape;
  if (node.op->kind == OpKind::kSoftmax) {
    return std::make_unique<Softmax>(shape, integer(node, "axis"));
  }
  const auto& axes = integers(node, "axes");
  // [1, n] lies in memory as [1, n, 1, 1] does.
  const bool over_channels =
      axes == std::vector<std::int64_t>{1} && (in_blocks(shape) || shape == Shape{1, shape.back()});
  if (node.op->kind == OpKind::kMean) {
    if (over_channels) return std::make_unique<ChannelMean>(extent_of(shape));
    if (in_blocks(shape) && axes == std::vector<std::int64_t>{2, 3}) {
      return prepare_global_average(extent_of(shape), kernels);
    }
    return std::make_unique<Mean>(shape, axes);
  }
  const std::span<const float> weight = tensor(node, graph, "weight").data;
  const std::span<const float> bias = tensor(node, graph, "bias").data;
  const float epsilon = number(node, "epsilon");
  if (over_channels) {
    return std::make_unique<ChannelNorm>(extent_of(shape), weight, bias, epsilon);
  }
  return std::make_unique<LayerNorm>(shape, axes, weight, bias, epsilon);
}

}  // namespace quern
