// Pooling of images, [1,C,H,W] -> [1,C,H',W'], as in torch.nn.functional.
#include <array>

#include "engine/operators/rules.h"

namespace quern {
namespace {

// ---- max_pool2d and average_pool2d: windows of one size at a stride ----

constexpr std::array kMaxPoolAttributes = {
    integers_rule("kernel", 2, 1, kMaxWindow),  integers_rule("stride", 2, 1, kMaxWindow),
    integers_rule("padding", 2, 0, kMaxWindow),  // above and below, left and right
    integers_rule("dilation", 2, 1, kMaxStep),  integer_rule("ceil_mode", 0, 1),
};

constexpr std::array kAveragePoolAttributes = {
    integers_rule("kernel", 2, 1, kMaxWindow),
    integers_rule("stride", 2, 1, kMaxWindow),
    integers_rule("padding", 2, 0, kMaxWindow),
    integer_rule("ceil_mode", 0, 1),
    integer_rule("count_include_pad", 0, 1),
    // What the sum is divided by; 0: the window's number of elements.
    integer_rule("divisor", 0, std::numeric_limits<std::int32_t>::max()),
};

// torch's pooling_output_shape (aten/src/ATen/native/Pool.h), with its checks.
Shape windows_shape(const Node& node, const Graph& graph, const Shape& dilation) {
  const Shape& input = image_shape(node, graph);
  const auto& kernel = integers(node, "kernel");
  const auto& stride = integers(node, "stride");
  const auto& padding = integers(node, "padding");
  const bool ceil_mode = integer(node, "ceil_mode") != 0;
  Shape output = {1, input[1], 0, 0};
  for (std::size_t axis = 0; axis < 2; ++axis) {
    // More would make windows that hold nothing but padding.
    if (padding[axis] > kernel[axis] / 2) {
      refuse(node, "the padding " + to_string(padding) + " is more than half of the kernel " +
                       to_string(kernel));
    }
    const std::int64_t size = input[2 + axis];
    const std::int64_t reach = dilation[axis] * (kernel[axis] - 1) + 1;
    std::int64_t room = size + 2 * padding[axis] - reach;
    if (ceil_mode) room += stride[axis] - 1;
    if (room < 0) {
      refuse(node, "the kernel " + to_string(kernel) + " is larger than the padded input");
    }
    std::int64_t count = room / stride[axis] + 1;
    // The last window must start inside the input or the padding before it.
    if (ceil_mode && (count - 1) * stride[axis] >= size + padding[axis]) --count;
    output[2 + axis] = count;
  }
  return output;
}

Shape max_pool_shape(const Node& node, const Graph& graph) {
  return windows_shape(node, graph, integers(node, "dilation"));
}

Shape average_pool_shape(const Node& node, const Graph& graph) {
  return windows_shape(node, graph, {1, 1});
}

// ---- adaptive_*_pool2d: window i of n is from floor(i * size / n) to ceil((i + 1) * size / n),
// so that none is empty, whichever of n and size is larger ----

constexpr std::array kAdaptiveAttributes = {integers_rule("size", 2, 1, kMaxWindow)};

Shape adaptive_shape(const Node& node, const Graph& graph) {
  const auto& size = integers(node, "size");
  return {1, image_shape(node, graph)[1], size[0], size[1]};
}

constexpr std::array kOperators = {
    Operator{.kind = OpKind::kMaxPool2d,
             .name = "max_pool2d",
             .attributes = kMaxPoolAttributes,
             .infer_shape = max_pool_shape},
    Operator{.kind = OpKind::kAveragePool2d,
             .name = "average_pool2d",
             .attributes = kAveragePoolAttributes,
             .infer_shape = average_pool_shape},
    Operator{.kind = OpKind::kAdaptiveAveragePool2d,
             .name = "adaptive_average_pool2d",
             .attributes = kAdaptiveAttributes,
             .infer_shape = adaptive_shape},
    Operator{.kind = OpKind::kAdaptiveMaxPool2d,
             .name = "adaptive_max_pool2d",
             .attributes = kAdaptiveAttributes,
             .infer_shape = adaptive_shape},
};

}  // namespace

std::span<const Operator> pooling_operators() { return kOperators; }

}  // namespace quern
