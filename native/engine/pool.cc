// global_average_pool ([1,C,H,W] -> [1,C,1,1], AdaptiveAvgPool2d(1)) and flatten ([1,C,H,W] ->
// [1,C*H*W], no work: the same memory).
#include "engine/kernels.h"

namespace quern {
namespace {

Shape pooled_shape(const Node& node, const Graph& graph) {
  const Shape& input = input_shape(node, graph, 0);
  if (input.size() != 4) refuse(node, "the input " + to_string(input) + " is not [1,C,H,W]");
  return {1, input[1], 1, 1};
}

class GlobalAveragePool final : public Kernel {
 public:
  explicit GlobalAveragePool(const Shape& input)
      : channels_(input[1]), plane_(input[2] * input[3]) {}

  void run(std::span<const float* const> inputs, float* output) const override {
    const float* input = inputs[0];
    for (std::int64_t channel = 0; channel < channels_; ++channel, input += plane_) {
      double sum = 0.0;  // a plane may have many thousand pixels
      for (std::int64_t i = 0; i < plane_; ++i) sum += static_cast<double>(input[i]);
      output[channel] = static_cast<float>(sum / static_cast<double>(plane_));
    }
  }

 private:
  std::int64_t channels_, plane_;
};

std::unique_ptr<Kernel> prepare_pool(const Node& node, const Graph& graph) {
  return std::make_unique<GlobalAveragePool>(input_shape(node, graph, 0));
}

Shape flat_shape(const Node& node, const Graph& graph) {
  const Shape& input = input_shape(node, graph, 0);
  if (input.size() != 4) refuse(node, "the input " + to_string(input) + " is not [1,C,H,W]");
  return {1, input[1] * input[2] * input[3]};
}

}  // namespace

const Operator kGlobalAveragePool = {"global_average_pool", 1, {}, {}, pooled_shape, prepare_pool};
const Operator kFlatten = {"flatten", 1, {}, {}, flat_shape, nullptr};

}  // namespace quern
