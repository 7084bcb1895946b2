// adaptive_average_pool2d to [1,C,1,1].
#include "engine/kernels.h"

namespace quern {
namespace {

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

}  // namespace

std::unique_ptr<Kernel> prepare_pool(const Node& node, const Graph& graph) {
  if (integers(node, "size") != Shape{1, 1}) return nullptr;
  return std::make_unique<GlobalAveragePool>(input_shape(node, graph, 0));
}

}  // namespace quern
