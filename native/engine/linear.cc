// linear, as torch.nn.functional.linear: weight [out,in], bias [out], input [1,in].
#include "engine/kernels.h"

namespace quern {
namespace {

class Linear final : public Kernel {
 public:
  Linear(const Node& node, const Graph& graph)
      : weight_(tensor(node, graph, "weight").data.data()),
        bias_(tensor(node, graph, "bias").data.data()),
        inputs_(tensor(node, graph, "weight").shape[1]),
        outputs_(tensor(node, graph, "weight").shape[0]) {}

  void run(std::span<const float* const> inputs, float* output) const override {
    for (std::int64_t o = 0; o < outputs_; ++o) {
      output[o] = bias_[o] + dot(weight_ + o * inputs_, inputs[0]);
    }
  }

 private:
  // 16 partial sums: the compiler may vectorise them, and rounding errors grow 16 times slower.
  float dot(const float* a, const float* b) const {
    constexpr std::int64_t kLanes = 16;
    float sums[kLanes] = {};
    std::int64_t i = 0;
    for (; i + kLanes <= inputs_; i += kLanes) {
      for (std::int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
    }
    for (; i < inputs_; ++i) sums[i % kLanes] += a[i] * b[i];
    for (std::int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (std::int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    }
    return sums[0];
  }

  const float* weight_;
  const float* bias_;
  std::int64_t inputs_, outputs_;
};

}  // namespace

std::unique_ptr<Kernel> prepare_linear(const Node& node, const Graph& graph) {
  return std::make_unique<Linear>(node, graph);
}

}  // namespace quern
