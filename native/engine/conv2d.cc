// conv2d, as torch.nn.functional.conv2d: weight OIHW, groups, stride, dilation, and a padding for
// each side. Two scalar kernels: pointwise (1x1, a matrix product) and direct (everything else;
// depthwise is the direct kernel with one input channel to a group).
#include <algorithm>

#include "engine/kernels.h"

namespace quern {
namespace {

// Everything both kernels need, in the units of their loops.
struct Geometry {
  std::int64_t groups, inputs, outputs;  // channels to a group
  std::int64_t in_height, in_width, out_height, out_width;
  std::int64_t kernel_height, kernel_width;
  std::int64_t stride_y, stride_x, dilation_y, dilation_x, top, left;
  const float* weight;
  const float* bias;
};

Geometry geometry_of(const Node& node, const Graph& graph) {
  const Shape& input = input_shape(node, graph, 0);
  const Shape& output = graph.values[node.output].shape;
  const Tensor& weight = tensor(node, graph, "weight");
  const auto& stride = integers(node, "stride");
  const auto& padding = integers(node, "padding");
  const auto& dilation = integers(node, "dilation");
  const std::int64_t groups = integer(node, "groups");
  return {.groups = groups,
          .inputs = input[1] / groups,
          .outputs = output[1] / groups,
          .in_height = input[2],
          .in_width = input[3],
          .out_height = output[2],
          .out_width = output[3],
          .kernel_height = weight.shape[2],
          .kernel_width = weight.shape[3],
          .stride_y = stride[0],
          .stride_x = stride[1],
          .dilation_y = dilation[0],
          .dilation_x = dilation[1],
          .top = padding[0],
          .left = padding[1],
          .weight = weight.data.data(),
          .bias = tensor(node, graph, "bias").data.data()};
}

// The outputs [first, last) of one axis whose input, at `offset` from the output's first tap, lies
// inside the image.
struct Range {
  std::int64_t first, last;
};

Range inside(std::int64_t offset, std::int64_t stride, std::int64_t in, std::int64_t out) {
  const std::int64_t first = offset < 0 ? (-offset + stride - 1) / stride : 0;
  const std::int64_t last = offset < in ? (in - 1 - offset) / stride + 1 : 0;
  return {std::min(first, out), std::min(last, out)};
}

class DirectConv2d final : public Kernel {
 public:
  explicit DirectConv2d(const Geometry& geometry) : g_(geometry) {}

  void run(std::span<const float* const> inputs, float* output) const override {
    const std::int64_t in_plane = g_.in_height * g_.in_width;
    const float* weight = g_.weight;
    for (std::int64_t group = 0; group < g_.groups; ++group) {
      const float* group_input = inputs[0] + group * g_.inputs * in_plane;
      for (std::int64_t o = 0; o < g_.outputs; ++o) {
        const std::int64_t channel = group * g_.outputs + o;
        float* plane = output + channel * g_.out_height * g_.out_width;
        for (std::int64_t y = 0; y < g_.out_height; ++y) {
          float* row = plane + y * g_.out_width;
          std::fill_n(row, g_.out_width, g_.bias[channel]);
          add_row(group_input, weight, y, row);
        }
        weight += g_.inputs * g_.kernel_height * g_.kernel_width;
      }
    }
  }

 private:
  // Adds all taps of one output channel to one output row.
  void add_row(const float* group_input, const float* weight, std::int64_t y, float* row) const {
    for (std::int64_t i = 0; i < g_.inputs; ++i) {
      for (std::int64_t ky = 0; ky < g_.kernel_height; ++ky) {
        const std::int64_t in_y = y * g_.stride_y - g_.top + ky * g_.dilation_y;
        if (in_y < 0 || in_y >= g_.in_height) continue;
        const float* in_row = group_input + (i * g_.in_height + in_y) * g_.in_width;
        const float* taps = weight + (i * g_.kernel_height + ky) * g_.kernel_width;
        for (std::int64_t kx = 0; kx < g_.kernel_width; ++kx) {
          add_tap(in_row, taps[kx], kx * g_.dilation_x - g_.left, row);
        }
      }
    }
  }

  void add_tap(const float* in_row, float tap, std::int64_t offset, float* row) const {
    const auto [first, last] = inside(offset, g_.stride_x, g_.in_width, g_.out_width);
    if (g_.stride_x == 1) {  // the loop the compiler vectorises
      for (std::int64_t x = first; x < last; ++x) row[x] += tap * in_row[x + offset];
    } else {
      for (std::int64_t x = first; x < last; ++x) row[x] += tap * in_row[x * g_.stride_x + offset];
    }
  }

  Geometry g_;
};

// A matrix product [O,I] x [I,H*W], in blocks of 4 output channels by 8 pixels held in registers.
class PointwiseConv2d final : public Kernel {
 public:
  explicit PointwiseConv2d(const Geometry& geometry) : g_(geometry) {}

  void run(std::span<const float* const> inputs, float* output) const override {
    const std::int64_t pixels = g_.in_height * g_.in_width;
    for (std::int64_t group = 0; group < g_.groups; ++group) {
      const float* input = inputs[0] + group * g_.inputs * pixels;
      const std::int64_t end = (group + 1) * g_.outputs;
      std::int64_t o = group * g_.outputs;
      for (; o + 4 <= end; o += 4) channels<4>(input, o, pixels, output);
      for (; o < end; ++o) channels<1>(input, o, pixels, output);
    }
  }

 private:
  template <int kChannels>
  void channels(const float* input, std::int64_t first, std::int64_t pixels, float* output) const {
    std::int64_t pixel = 0;
    for (; pixel + 8 <= pixels; pixel += 8) {
      block<kChannels, 8>(input, first, pixel, pixels, output);
    }
    for (; pixel < pixels; ++pixel) block<kChannels, 1>(input, first, pixel, pixels, output);
  }

  template <int kChannels, int kPixels>
  void block(const float* input, std::int64_t first, std::int64_t pixel, std::int64_t pixels,
             float* output) const {
    float sums[kChannels][kPixels];
    for (int c = 0; c < kChannels; ++c) {
      for (int p = 0; p < kPixels; ++p) sums[c][p] = g_.bias[first + c];
    }
    const float* weight = g_.weight + first * g_.inputs;
    for (std::int64_t i = 0; i < g_.inputs; ++i) {
      const float* in = input + i * pixels + pixel;
      for (int c = 0; c < kChannels; ++c) {
        for (int p = 0; p < kPixels; ++p) sums[c][p] += weight[c * g_.inputs + i] * in[p];
      }
    }
    for (int c = 0; c < kChannels; ++c) {
      for (int p = 0; p < kPixels; ++p) output[(first + c) * pixels + pixel + p] = sums[c][p];
    }
  }

  Geometry g_;
};

}  // namespace

std::unique_ptr<Kernel> prepare_conv2d(const Node& node, const Graph& graph) {
  const Geometry g = geometry_of(node, graph);
  const bool pointwise = g.kernel_height == 1 && g.kernel_width == 1 && g.stride_y == 1 &&
                         g.stride_x == 1 && g.out_height == g.in_height &&
                         g.out_width == g.in_width && g.top == 0 && g.left == 0;
  if (pointwise) return std::make_unique<PointwiseConv2d>(g);
  return std::make_unique<DirectConv2d>(g);
}

}  // namespace quern
