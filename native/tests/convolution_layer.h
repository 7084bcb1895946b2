// A convolution, for the tests of the algorithms that compute one.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "engine/aligned.h"
#include "engine/computation.h"

namespace quern {

using Prepare =
    std::function<std::unique_ptr<Computation>(const Operation&, const Graph&, const Kernels&)>;

// A convolution by square weights with stride 1, with all that its Operation and Graph refer to.
struct Layer {
  Extent in, out;
  std::int64_t kernel;
  std::vector<std::int64_t> padding;  // top, left, bottom, right
  std::vector<float> weight, bias;
  Graph graph;
  Node node;
  Operation operation;
  float input_size = 1;  // of the numbers that check_against_sums() takes for the input

  Layer(Extent input, std::int64_t outputs, std::int64_t side = 1,
        std::vector<std::int64_t> around = {0, 0, 0, 0})
      : in(input), kernel(side), padding(std::move(around)) {
    out = {outputs, in.height + padding[0] + padding[2] - kernel + 1,
           in.width + padding[1] + padding[3] - kernel + 1};
    const std::int64_t taps = in.channels * kernel * kernel;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    weight.resize(static_cast<std::size_t>(outputs * taps));
    bias.resize(static_cast<std::size_t>(outputs));
    const float scale = 1.0F / std::sqrt(static_cast<float>(taps));
    for (float& w : weight) w = normal(random) * scale;
    for (float& b : bias) b = normal(random);
    graph.values = {{"input", {1, 3, 8, 8}},
                    {"x", {1, in.channels, in.height, in.width}},
                    {"y", {1, out.channels, out.height, out.width}},
                    {"residual", {1, out.channels, out.height, out.width}},
                    {"scale", {1, out.channels, 1, 1}}};
    graph.tensors = {{"weight", {outputs, in.channels, kernel, kernel}, weight},
                     {"bias", {outputs}, bias}};
    node.op = find_operator("conv2d");
    node.inputs = {1};
    node.output = 2;
    node.tensors = {{"weight", 0}, {"bias", 1}};
    node.attributes = {
        {"stride", {1, 1}}, {"padding", padding}, {"dilation", {1, 1}}, {"groups", {1}}};
    operation.node = &node;
    operation.inputs = {1};
    operation.output = 2;
  }
  Layer(const Layer&) = delete;  // operation.node points into it
  Layer& operator=(const Layer&) = delete;

  // The scale or the residual, then the activation, then means.
  void end_with(bool scaled, Activation activation) {
    operation.has_scale = scaled;
    operation.has_residual = !scaled;
    operation.inputs.push_back(scaled ? 4 : 3);
    operation.activation = activation;
    operation.means = 3;
  }

  // One output, without bias and activation.
  double sum(const float* input, std::int64_t o, std::int64_t y, std::int64_t x) const {
    double total = 0;
    for (std::int64_t i = 0; i < in.channels; ++i) {
      for (std::int64_t ky = 0; ky < kernel; ++ky) {
        for (std::int64_t kx = 0; kx < kernel; ++kx) {
          const std::int64_t from_y = y + ky - padding[0];
          const std::int64_t from_x = x + kx - padding[1];
          if (from_y < 0 || from_y >= in.height || from_x < 0 || from_x >= in.width) continue;
          const std::int64_t tap = ((o * in.channels + i) * kernel + ky) * kernel + kx;
          total +=
              double{weight[static_cast<std::size_t>(tap)]} * input[in.offset(i, from_y, from_x)];
        }
      }
    }
    return total;
  }
};

inline AlignedFloats random_image(const Extent& extent, unsigned seed) {
  AlignedFloats image = allocate_floats(static_cast<std::size_t>(extent.floats()));
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::generate_n(image.get(), extent.floats(), [&] { return normal(random); });
  return image;
}

// The memory of an image, to be filled with NaN: what should be written, and shouldn't be read.
inline AlignedFloats unwritten(std::size_t floats) {
  AlignedFloats memory = allocate_floats(floats);
  std::fill_n(memory.get(), floats, std::numeric_limits<float>::quiet_NaN());
  return memory;
}

inline double activated(Activation activation, double x) {
  if (activation == Activation::kRelu) return std::max(x, 0.0);
  if (activation == Activation::kRelu6) return std::clamp(x, 0.0, 6.0);
  if (activation == Activation::kSilu) return x / (1 + std::exp(-x));
  return x;
}

// Runs the layer, `band` rows at a time, each band with only the input rows that it says it needs,
// and compares with the sums in double: to 5e-6 of the largest output, and to `most` of each
// channel's own largest before the activation.
inline void check_against_sums(Layer& layer, std::int64_t band, const Prepare& prepare_computation,
                               const Kernels& kernels, double most) {
  const auto computation = prepare_computation(layer.operation, layer.graph, kernels);
  const AlignedFloats input = random_image(layer.in, 5);
  for (std::int64_t i = 0; i < layer.in.floats(); ++i) {
    input[static_cast<std::size_t>(i)] *= layer.input_size;
  }
  const AlignedFloats residual = random_image(layer.out, 6);
  const AlignedFloats scale = random_image({layer.out.channels, 1, 1}, 7);
  const AlignedFloats output = unwritten(static_cast<std::size_t>(layer.out.floats()));
  const AlignedFloats scratch = unwritten(computation->scratch_floats());
  const AlignedFloats means = unwritten(static_cast<std::size_t>(layer.out.blocks() * kBlock));
  for (std::int64_t first = 0; first < layer.out.height; first += band) {
    const Rows rows = {first, std::min(first + band, layer.out.height)};
    const Rows needed = computation->needs(rows);
    const AlignedFloats visible = unwritten(static_cast<std::size_t>(layer.in.floats()));
    for (std::int64_t block = 0; block < layer.in.blocks(); ++block) {
      const std::int64_t at = block * layer.in.plane() + needed.first * layer.in.row();
      std::copy_n(input.get() + at, (needed.last - needed.first) * layer.in.row(),
                  visible.get() + at);
    }
    const View residual_view = {residual.get(), layer.out.plane()};
    const View scale_view = {scale.get(), kBlock};
    const View inputs[] = {{visible.get(), layer.in.plane()},
                           layer.operation.has_scale ? scale_view : residual_view};
    Arguments arguments;
    arguments.inputs = {inputs, layer.operation.inputs.size()};
    arguments.output = {output.get(), layer.out.plane()};
    arguments.means = layer.operation.means ? means.get() : nullptr;
    arguments.rows = rows;
    arguments.scratch = scratch.get();
    computation->run(arguments);
  }
  double worst = 0;  // of a channel
  double all_largest = 0;
  double all_error = 0;
  for (std::int64_t o = 0; o < layer.out.channels; ++o) {
    double mean = 0;
    double largest = 0;
    double error = 0;
    for (std::int64_t y = 0; y < layer.out.height; ++y) {
      for (std::int64_t x = 0; x < layer.out.width; ++x) {
        const std::int64_t at = layer.out.offset(o, y, x);
        double expected = layer.sum(input.get(), o, y, x) + layer.bias[static_cast<std::size_t>(o)];
        if (layer.operation.has_residual) expected += residual[static_cast<std::size_t>(at)];
        if (layer.operation.has_scale) expected *= scale[static_cast<std::size_t>(o)];
        largest = std::max(largest, std::fabs(expected));
        expected = activated(layer.operation.activation, expected);
        all_largest = std::max(all_largest, std::fabs(expected));
        mean += expected / static_cast<double>(layer.out.height * layer.out.width);
        const double difference = std::fabs(output[static_cast<std::size_t>(at)] - expected);
        error = difference <= error ? error : difference;  // NaN is the largest
      }
    }
    if (layer.operation.means) {
      const double difference = std::fabs(means[static_cast<std::size_t>(o)] - mean);
      error = difference <= error ? error : difference;
    }
    worst = error / largest <= worst ? worst : error / largest;
    all_error = error <= all_error ? all_error : error;
  }
  CHECK(worst < most);
  CHECK(all_error / all_largest < 5e-6);
  // The unused channels of the last block are finite.
  CHECK(std::all_of(output.get(), output.get() + layer.out.floats(),
                    [](float x) { return std::isfinite(x); }));
}

}  // namespace quern
