#include "engine/computations/matrix.h"

#include <limits>

namespace quern {

// The product of both matrices is a 1x1 convolution: `second` is its input, an output a pixel.
Matrix compose(const Matrix& second, const Matrix& first, const Kernels& kernels,
               std::vector<float>& weight, std::vector<float>& bias) {
  const auto outputs = static_cast<std::int64_t>(second.bias.size());
  const auto between = static_cast<std::int64_t>(first.bias.size());
  const auto inputs = static_cast<std::int64_t>(first.weight.size()) / between;
  const Extent from = {between, 1, outputs};
  const Extent to = {inputs, 1, outputs};
  const AlignedFloats input = zeros(from.floats());
  const AlignedFloats output = zeros(to.floats());
  const AlignedFloats weights = zeros(from.blocks() * to.blocks() * kBlock * kBlock);
  const AlignedFloats no_bias = zeros(to.blocks() * kBlock);
  std::vector<std::int64_t> offsets;
  for (std::int64_t b = 0; b < from.blocks(); ++b) offsets.push_back(b * from.plane());
  const float* row = first.weight.data();
  for (std::int64_t b = 0; b < between; ++b, row += inputs) {
    float* const column = weights.get() + b * kBlock;
    for (std::int64_t i = 0; i < inputs; ++i) {
      column[i / kBlock * from.blocks() * kBlock * kBlock + i % kBlock] = row[i];
    }
  }
  row = second.weight.data();
  for (std::int64_t o = 0; o < outputs; ++o, row += between) {
    double sum = second.bias[static_cast<std::size_t>(o)];
    for (std::int64_t b = 0; b < between; ++b) {
      input.get()[from.offset(b, 0, o)] = row[b];
      sum += double{row[b]} * first.bias[static_cast<std::size_t>(b)];
    }
    bias.push_back(static_cast<float>(sum));
  }
  Convolve c = {};
  c.input = input.get();
  c.offsets = offsets.data();
  c.runs = from.blocks();
  c.run = kBlock;
  c.step = kBlock;
  c.weights = weights.get();
  c.bias = no_bias.get();
  c.output = output.get();
  c.output_plane = to.plane();
  c.blocks = to.blocks();
  c.rows = 1;
  c.pixels = outputs;
  c.low = -std::numeric_limits<float>::infinity();
  c.high = std::numeric_limits<float>::infinity();
  kernels.convolve(c);
  weight.resize(static_cast<std::size_t>(outputs * inputs));
  for (std::int64_t o = 0; o < outputs; ++o) {
    for (std::int64_t i = 0; i < inputs; ++i) {
      weight[static_cast<std::size_t>(o * inputs + i)] = output.get()[to.offset(i, 0, o)];
    }
  }
  return {weight, bias};
}

}  // namespace quern
