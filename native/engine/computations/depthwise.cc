// conv2d with as many groups as channels, in and out.
#include <algorithm>
#include <limits>

#include "engine/aligned.h"
#include "engine/computation.h"
#include "engine/computations/finish.h"

namespace quern {
namespace {

class DepthwiseConvolution final : public Computation {
 public:
  DepthwiseConvolution(const Operation& operation, const Graph& graph, const Kernels& kernels)
      : kernels_(kernels),
        in_(extent_of(graph, operation.inputs[0])),
        out_(extent_of(graph, operation.output)),
        finish_(operation, graph, kernels) {
    const Node& node = *operation.node;
    const Tensor& weight = tensor(node, graph, "weight");
    const Tensor& bias = tensor(node, graph, "bias");
    const auto& stride = integers(node, "stride");
    const auto& dilation = integers(node, "dilation");
    const auto& padding = integers(node, "padding");
    d_.in_height = in_.height;
    d_.in_width = in_.width;
    d_.out_width = out_.width;
    d_.kernel_height = weight.shape[2];
    d_.kernel_width = weight.shape[3];
    d_.stride_y = stride[0];
    d_.stride_x = stride[1];
    d_.dilation_y = dilation[0];
    d_.dilation_x = dilation[1];
    d_.top = padding[0];
    d_.left = padding[1];
    d_.low = finish_.low;
    d_.high = finish_.high;

    taps_ = d_.kernel_height * d_.kernel_width;
    const std::int64_t channels = out_.blocks() * kBlock;
    weight_floats_ = static_cast<std::size_t>(taps_ * channels);
    weights_ = allocate_floats(weight_floats_);
    bias_ = allocate_floats(static_cast<std::size_t>(channels));
    for (std::int64_t channel = 0; channel < channels; ++channel) {
      const bool there = channel < out_.channels;
      bias_[static_cast<std::size_t>(channel)] =
          there ? bias.data[static_cast<std::size_t>(channel)] : 0.0F;
      float* to = weights_.get() + channel / kBlock * taps_ * kBlock + channel % kBlock;
      for (std::int64_t tap = 0; tap < taps_; ++tap) {
        to[tap * kBlock] =
            there ? weight.data[static_cast<std::size_t>(channel * taps_ + tap)] : 0.0F;
      }
    }
  }

  bool by_rows() const override { return true; }

  Rows needs(Rows rows) const override {
    const std::int64_t first = rows.first * d_.stride_y - d_.top;
    const std::int64_t last =
        (rows.last - 1) * d_.stride_y - d_.top + (d_.kernel_height - 1) * d_.dilation_y + 1;
    const std::int64_t begin = std::clamp<std::int64_t>(first, 0, in_.height);
    return {begin, std::clamp<std::int64_t>(last, begin, in_.height)};
  }

  std::size_t weight_floats() const override { return weight_floats_; }

  void run(const Arguments& arguments) const override {
    const View& in = arguments.inputs[0];
    const View& out = arguments.output;
    Depthwise d = d_;
    d.first = arguments.rows.first;
    d.last = arguments.rows.last;
    for (std::int64_t block = 0; block < out_.blocks(); ++block) {
      d.input = in.data + block * in.plane;
      d.weights = weights_.get() + block * taps_ * kBlock;
      d.bias = bias_.get() + block * kBlock;
      d.output = out.data + block * out.plane;
      kernels_.depthwise(d);
      finish_.rest(arguments, block, 1, arguments.rows);
    }
  }

 private:
  const Kernels& kernels_;
  Extent in_, out_;
  Finish finish_;
  Depthwise d_ = {};  // what is the same for all blocks
  std::int64_t taps_ = 0;
  std::size_t weight_floats_ = 0;
  AlignedFloats weights_, bias_;
};

}  // namespace

std::unique_ptr<Computation> prepare_depthwise(const Operation& operation, const Graph& graph,
                                               const Kernels& kernels) {
  return std::make_unique<DepthwiseConvolution>(operation, graph, kernels);
}

}  // namespace quern
