// relu, relu6, sigmoid; add and mul with broadcasting of [1,C,1,1] over [1,C,H,W]. NaN stays NaN,
// as in torch.
#include <cmath>

#include "engine/kernels.h"

namespace quern {
namespace {

float relu(float x) { return x < 0.0F ? 0.0F : x; }
float relu6(float x) { return x < 0.0F ? 0.0F : (x > 6.0F ? 6.0F : x); }
float sigmoid(float x) { return 1.0F / (1.0F + std::exp(-x)); }

template <float (*kFunction)(float)>
class Unary final : public Kernel {
 public:
  explicit Unary(std::int64_t count) : count_(count) {}

  void run(std::span<const float* const> inputs, float* output) const override {
    const float* input = inputs[0];
    for (std::int64_t i = 0; i < count_; ++i) output[i] = kFunction(input[i]);
  }

 private:
  std::int64_t count_;
};

template <float (*kFunction)(float)>
std::unique_ptr<Kernel> prepare_unary(const Node& node, const Graph& graph) {
  return std::make_unique<Unary<kFunction>>(element_count(input_shape(node, graph, 0)));
}

// Whether `one` has a single element for each channel of `many`.
bool is_per_channel(const Shape& one, const Shape& many) {
  return one.size() == 4 && many.size() == 4 && one[1] == many[1] && one[2] == 1 && one[3] == 1;
}

float add(float a, float b) { return a + b; }
float mul(float a, float b) { return a * b; }

// add and mul give the same for either order, so the per-channel input is always the second.
template <float (*kFunction)(float, float)>
class Binary final : public Kernel {
 public:
  Binary(const Shape& a, const Shape& b)
      : swapped_(a != b && is_per_channel(a, b)),
        per_channel_(a != b),
        channels_((swapped_ ? b : a)[1]),
        count_(element_count(swapped_ ? b : a)) {}

  void run(std::span<const float* const> inputs, float* output) const override {
    const float* many = inputs[swapped_ ? 1 : 0];
    const float* other = inputs[swapped_ ? 0 : 1];
    if (!per_channel_) {
      for (std::int64_t i = 0; i < count_; ++i) output[i] = kFunction(many[i], other[i]);
      return;
    }
    const std::int64_t plane = count_ / channels_;
    for (std::int64_t channel = 0; channel < channels_; ++channel) {
      const float value = other[channel];
      for (std::int64_t i = channel * plane; i < (channel + 1) * plane; ++i) {
        output[i] = kFunction(many[i], value);
      }
    }
  }

 private:
  bool swapped_, per_channel_;
  std::int64_t channels_, count_;
};

template <float (*kFunction)(float, float)>
std::unique_ptr<Kernel> prepare_binary(const Node& node, const Graph& graph) {
  const Shape& a = input_shape(node, graph, 0);
  const Shape& b = input_shape(node, graph, 1);
  if (a != b && !is_per_channel(a, b) && !is_per_channel(b, a)) return nullptr;
  return std::make_unique<Binary<kFunction>>(a, b);
}

}  // namespace

std::unique_ptr<Kernel> prepare_elementwise(const Node& node, const Graph& graph) {
  switch (node.op->kind) {
    case OpKind::kRelu:
      return prepare_unary<relu>(node, graph);
    case OpKind::kRelu6:
      return prepare_unary<relu6>(node, graph);
    case OpKind::kSigmoid:
      return prepare_unary<sigmoid>(node, graph);
    case OpKind::kAdd:
      return prepare_binary<add>(node, graph);
    case OpKind::kMul:
      return prepare_binary<mul>(node, graph);
    default:
      return nullptr;
  }
}

}  // namespace quern
