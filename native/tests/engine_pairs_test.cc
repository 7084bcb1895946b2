// The direct 1x1 convolution, which kernels with products of pairs (kernels/pairs.cc) compute by
// them: sums of an input and a weight, from which what is not wanted is taken away again.
#include <doctest/doctest.h>

#include "convolution_layer.h"
#include "engine/computation.h"
#include "engine/instructions.h"

using namespace quern;

namespace {

void check(Layer& layer, std::int64_t band) {
  for (const InstructionSet set : instruction_sets()) {
    CAPTURE(set);
    check_against_sums(layer, band, prepare_convolution, kernels_of(set), 2e-5);
  }
}

// Multiplies the weights of each channel, not its bias, by what `factor` says of its number.
template <typename Function>
void multiply_weights(Layer& layer, Function factor) {
  for (std::size_t i = 0; i < layer.weight.size(); ++i) {
    layer.weight[i] *= factor(i / static_cast<std::size_t>(layer.in.channels));
  }
}

}  // namespace

TEST_CASE("1x1 convolutions, whatever the number of pixels and channels") {
  for (const std::int64_t width : {1, 2, 6, 7, 8, 13, 14, 15, 29}) {
    CAPTURE(width);
    Layer layer({64, 1, width}, 96);
    check(layer, 1);
  }
  for (const std::int64_t channels : {1, 6, 16, 17, 45}) {
    CAPTURE(channels);
    Layer few_inputs({channels, 5, 5}, 32);
    check(few_inputs, 5);
    Layer few_outputs({32, 5, 5}, channels);
    check(few_outputs, 5);
  }
  Layer deep({700, 7, 7}, 130);
  check(deep, 7);
}

TEST_CASE("1x1 convolutions by rows, with the residual or the scale, the activation and means") {
  for (const Activation activation :
       {Activation::kNone, Activation::kRelu, Activation::kRelu6, Activation::kSilu}) {
    CAPTURE(static_cast<int>(activation));
    for (const bool scaled : {false, true}) {
      CAPTURE(scaled);
      Layer layer({48, 9, 9}, 72);
      layer.end_with(scaled, activation);
      check(layer, 9);
      check(layer, 2);
    }
  }
}

TEST_CASE("channels whose weights are of very different sizes, or zero, are as exact as others") {
  Layer layer({64, 9, 9}, 64);
  multiply_weights(layer, [](std::size_t channel) {
    return channel % 16 == 5 ? 0.0F : std::ldexp(1.0F, static_cast<int>(channel) - 32);
  });
  std::fill(layer.bias.begin(), layer.bias.end(), 0.0F);
  for (const std::size_t zero : {5U, 21U, 37U, 53U}) layer.bias[zero] = zero == 5 ? 1e-9F : 1;
  check(layer, 9);
}

TEST_CASE("inputs that are far larger or smaller than weights are multiplied as exactly") {
  for (const float size : {1e-30F, 1e-6F, 0.01F, 0.05F, 0.3F, 3.0F, 15.0F, 100.0F, 1e6F, 1e30F}) {
    CAPTURE(size);
    Layer layer({64, 9, 9}, 64);
    layer.input_size = size;
    for (float& bias : layer.bias) bias *= size;
    layer.operation.activation = Activation::kRelu;
    for (const bool scaled : {false, true}) {
      layer.operation.has_scale = scaled;
      layer.operation.inputs.resize(1);
      if (scaled) layer.operation.inputs.push_back(4);
      check(layer, 9);
      check(layer, 4);
    }
  }
}

TEST_CASE("what is not a number stays so, and with its pixel") {
  Layer layer({32, 4, 4}, 32);
  for (const InstructionSet set : instruction_sets()) {
    CAPTURE(set);
    const auto computation = prepare_convolution(layer.operation, layer.graph, kernels_of(set));
    const AlignedFloats input = random_image(layer.in, 5);
    for (const float value :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      input[static_cast<std::size_t>(layer.in.offset(20, 1, 2))] = value;
      const AlignedFloats output = unwritten(static_cast<std::size_t>(layer.out.floats()));
      const AlignedFloats scratch = unwritten(computation->scratch_floats());
      const View view = {input.get(), layer.in.plane()};
      Arguments arguments;
      arguments.inputs = {&view, 1};
      arguments.output = {output.get(), layer.out.plane()};
      arguments.rows = {0, 4};
      arguments.scratch = scratch.get();
      computation->run(arguments);
      for (std::int64_t y = 0; y < 4; ++y) {
        for (std::int64_t x = 0; x < 4; ++x) {
          const float there = output[static_cast<std::size_t>(layer.out.offset(3, y, x))];
          CHECK(std::isfinite(there) == !(y == 1 && x == 2));
        }
      }
    }
  }
}
