// Pooling, each channel by itself.
#include <algorithm>

#include "engine/computation.h"
#include "engine/computations/elements.h"

namespace quern {
namespace {

// max_pool2d and average_pool2d.
class Windows final : public Computation {
 public:
  Windows(const Operation& operation, const Graph& graph, const Kernels& kernels)
      : kernels_(kernels),
        in_(extent_of(graph, operation.inputs[0])),
        out_(extent_of(graph, operation.output)) {
    const Node& node = *operation.node;
    const auto& kernel = integers(node, "kernel");
    const auto& stride = integers(node, "stride");
    const auto& padding = integers(node, "padding");
    p_.in_height = in_.height;
    p_.in_width = in_.width;
    p_.out_width = out_.width;
    p_.kernel_height = kernel[0];
    p_.kernel_width = kernel[1];
    p_.stride_y = stride[0];
    p_.stride_x = stride[1];
    p_.dilation_y = p_.dilation_x = 1;
    p_.top = p_.bottom = padding[0];
    p_.left = p_.right = padding[1];
    p_.maximum = node.op->kind == OpKind::kMaxPool2d;
    if (p_.maximum) {
      const auto& dilation = integers(node, "dilation");
      p_.dilation_y = dilation[0];
      p_.dilation_x = dilation[1];
    } else {
      p_.count_padding = integer(node, "count_include_pad") != 0;
      p_.divisor = integer(node, "divisor");
    }
  }

  bool by_rows() const override { return true; }

  Rows needs(Rows rows) const override {
    const std::int64_t first = rows.first * p_.stride_y - p_.top;
    const std::int64_t last =
        (rows.last - 1) * p_.stride_y - p_.top + (p_.kernel_height - 1) * p_.dilation_y + 1;
    const std::int64_t begin = std::clamp<std::int64_t>(first, 0, in_.height);
    return {begin, std::clamp<std::int64_t>(last, begin, in_.height)};
  }

  void run(const Arguments& arguments) const override {
    const View& in = arguments.inputs[0];
    const View& out = arguments.output;
    Pool p = p_;
    p.first = arguments.rows.first;
    p.last = arguments.rows.last;
    for (std::int64_t block = 0; block < out_.blocks(); ++block) {
      p.input = in.data + block * in.plane;
      p.output = out.data + block * out.plane;
      kernels_.pool(p);
    }
    // A dilated window can have every tap in the padding: its maximum is -inf, also of lanes that
    // must stay finite.
    if (p.dilation_y > 1 || p.dilation_x > 1) clear_unused(out_, out, arguments.rows);
  }

 private:
  const Kernels& kernels_;
  Extent in_, out_;
  Pool p_ = {};  // what is the same for all blocks
};

// adaptive_average_pool2d and adaptive_max_pool2d: the windows of an axis tile it evenly, one pixel
// shared where they can't.
class AdaptiveWindows final : public Computation {
 public:
  AdaptiveWindows(bool maximum, const Extent& in, const Extent& out, const Kernels& kernels)
      : kernels_(kernels), maximum_(maximum), in_(in), out_(out) {}

  void run(const Arguments& arguments) const override {
    const View& in = arguments.inputs[0];
    const View& out = arguments.output;
    Pool p = {};  // one window, which is all of its image
    p.in_width = in_.width;
    p.out_width = 1;
    p.last = 1;
    p.stride_y = p.stride_x = p.dilation_y = p.dilation_x = 1;
    p.maximum = maximum_;
    for (std::int64_t block = 0; block < out_.blocks(); ++block) {
      p.output = out.data + block * out.plane;
      for (std::int64_t y = 0; y < out_.height; ++y) {
        const std::int64_t top = y * in_.height / out_.height;
        p.kernel_height = p.in_height = end(y, in_.height, out_.height) - top;
        for (std::int64_t x = 0; x < out_.width; ++x, p.output += kBlock) {
          const std::int64_t left = x * in_.width / out_.width;
          p.kernel_width = end(x, in_.width, out_.width) - left;
          p.input = in.data + block * in.plane + top * in_.row() + left * kBlock;
          kernels_.pool(p);
        }
      }
    }
  }

 private:
  static std::int64_t end(std::int64_t window, std::int64_t size, std::int64_t windows) {
    return ((window + 1) * size + windows - 1) / windows;
  }

  const Kernels& kernels_;
  bool maximum_;
  Extent in_, out_;
};

class GlobalAverage final : public Computation {
 public:
  GlobalAverage(const Extent& extent, const Kernels& kernels)
      : kernels_(kernels), extent_(extent) {}

  void run(const Arguments& arguments) const override {
    // Parts of that many pixels are summed by themselves: sums of like size lose fewer digits.
    constexpr std::int64_t kPart = 1024;
    const View& in = arguments.inputs[0];
    const std::int64_t pixels = extent_.height * extent_.width;
    const float count = static_cast<float>(pixels);
    for (std::int64_t block = 0; block < extent_.blocks(); ++block) {
      const float* input = in.data + block * in.plane;
      float* sums = arguments.output.data + block * arguments.output.plane;
      std::fill_n(sums, kBlock, 0.0F);
      for (std::int64_t first = 0; first < pixels; first += kPart) {
        kernels_.accumulate(input + first * kBlock, std::min(kPart, pixels - first), sums);
      }
      for (int i = 0; i < kBlock; ++i) sums[i] /= count;
    }
  }

 private:
  const Kernels& kernels_;
  Extent extent_;
};

}  // namespace

std::unique_ptr<Computation> prepare_global_average(const Extent& extent, const Kernels& kernels) {
  return std::make_unique<GlobalAverage>(extent, kernels);
}

std::unique_ptr<Computation> prepare_pooling(const Operation& operation, const Graph& graph,
                                             const Kernels& kernels) {
  const OpKind kind = operation.node->op->kind;
  if (kind == OpKind::kMaxPool2d || kind == OpKind::kAveragePool2d) {
    return std::make_unique<Windows>(operation, graph, kernels);
  }
  const bool maximum = kind == OpKind::kAdaptiveMaxPool2d;
  const Extent in = extent_of(graph, operation.inputs[0]);
  const Extent out = extent_of(graph, operation.output);
  if (!maximum && out.height == 1 && out.width == 1) return prepare_global_average(in, kernels);
  return std::make_unique<AdaptiveWindows>(maximum, in, out, kernels);
}

}  // namespace quern
