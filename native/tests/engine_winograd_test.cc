#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "engine/aligned.h"
#include "engine/computation.h"
#include "engine/instructions.h"

using namespace quern;

namespace {

// A 3x3 convolution with all that its Operation and Graph refer to.
struct Layer {
  Extent in, out;
  std::vector<std::int64_t> padding;  // top, left, bottom, right
  std::vector<float> weight, bias;
  Graph graph;
  Node node;
  Operation operation;

  Layer(Extent input, std::int64_t outputs, std::vector<std::int64_t> around)
      : in(input), padding(std::move(around)) {
    out = {outputs, in.height + padding[0] + padding[2] - 2,
           in.width + padding[1] + padding[3] - 2};
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    weight.resize(static_cast<std::size_t>(outputs * in.channels * 9));
    bias.resize(static_cast<std::size_t>(outputs));
    const float scale = 1.0F / std::sqrt(9.0F * static_cast<float>(in.channels));
    for (float& w : weight) w = normal(random) * scale;
    for (float& b : bias) b = normal(random);
    graph.values = {{"input", {1, 3, 8, 8}},
                    {"x", {1, in.channels, in.height, in.width}},
                    {"y", {1, out.channels, out.height, out.width}},
                    {"residual", {1, out.channels, out.height, out.width}}};
    graph.tensors = {{"weight", {outputs, in.channels, 3, 3}, weight}, {"bias", {outputs}, bias}};
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

  // One output, without bias and activation.
  double sum(const float* input, std::int64_t o, std::int64_t y, std::int64_t x) const {
    double total = 0;
    for (std::int64_t i = 0; i < in.channels; ++i) {
      for (std::int64_t ky = 0; ky < 3; ++ky) {
        for (std::int64_t kx = 0; kx < 3; ++kx) {
          const std::int64_t from_y = y + ky - padding[0];
          const std::int64_t from_x = x + kx - padding[1];
          if (from_y < 0 || from_y >= in.height || from_x < 0 || from_x >= in.width) continue;
          const auto tap = static_cast<std::size_t>(((o * in.channels + i) * 3 + ky) * 3 + kx);
          total += double{weight[tap]} * input[in.offset(i, from_y, from_x)];
        }
      }
    }
    return total;
  }
};

AlignedFloats random_image(const Extent& extent, unsigned seed) {
  AlignedFloats image = allocate_floats(static_cast<std::size_t>(extent.floats()));
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::generate_n(image.get(), extent.floats(), [&] { return normal(random); });
  return image;
}

// The memory of an image, to be filled with NaN: what should be written, and shouldn't be read.
AlignedFloats unwritten(std::size_t floats) {
  AlignedFloats memory = allocate_floats(floats);
  std::fill_n(memory.get(), floats, std::numeric_limits<float>::quiet_NaN());
  return memory;
}

double activated(Activation activation, double x) {
  if (activation == Activation::kRelu) return std::max(x, 0.0);
  if (activation == Activation::kRelu6) return std::clamp(x, 0.0, 6.0);
  if (activation == Activation::kSilu) return x / (1 + std::exp(-x));
  return x;
}

// Runs the layer, `band` rows at a time, each band with only the input rows that it says it needs,
// and compares with the sums in double; errors are relative to the largest output.
void check(Layer& layer, std::int64_t band, const Kernels& kernels) {
  REQUIRE(winograd_pays(layer.operation, layer.graph));
  const auto computation = prepare_winograd(layer.operation, layer.graph, kernels);
  const AlignedFloats input = random_image(layer.in, 5);
  const AlignedFloats residual = random_image(layer.out, 6);
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
    const View inputs[] = {{visible.get(), layer.in.plane()}, {residual.get(), layer.out.plane()}};
    Arguments arguments;
    arguments.inputs = {inputs, layer.operation.has_residual ? 2U : 1U};
    arguments.output = {output.get(), layer.out.plane()};
    arguments.means = layer.operation.means ? means.get() : nullptr;
    arguments.rows = rows;
    arguments.scratch = scratch.get();
    computation->run(arguments);
  }
  double largest = 0;
  double error = 0;
  double mean_error = 0;
  for (std::int64_t o = 0; o < layer.out.channels; ++o) {
    double mean = 0;
    for (std::int64_t y = 0; y < layer.out.height; ++y) {
      for (std::int64_t x = 0; x < layer.out.width; ++x) {
        const std::int64_t at = layer.out.offset(o, y, x);
        double expected = layer.sum(input.get(), o, y, x) + layer.bias[static_cast<std::size_t>(o)];
        if (layer.operation.has_residual) expected += residual[static_cast<std::size_t>(at)];
        expected = activated(layer.operation.activation, expected);
        mean += expected / static_cast<double>(layer.out.height * layer.out.width);
        largest = std::max(largest, std::fabs(expected));
        const double difference = std::fabs(output[static_cast<std::size_t>(at)] - expected);
        error = difference <= error ? error : difference;  // NaN is the largest
      }
    }
    if (!layer.operation.means) continue;
    const double difference = std::fabs(means[static_cast<std::size_t>(o)] - mean);
    mean_error = difference <= mean_error ? mean_error : difference;
  }
  CHECK(error / largest < 5e-6);
  CHECK(mean_error / largest < 5e-6);
  // The unused channels of the last block are finite.
  CHECK(std::all_of(output.get(), output.get() + layer.out.floats(),
                    [](float x) { return std::isfinite(x); }));
}

void check(Layer& layer, std::int64_t band) {
  for (const InstructionSet set : instruction_sets()) {
    CAPTURE(set);
    check(layer, band, kernels_of(set));
  }
}

}  // namespace

TEST_CASE("Winograd's convolution is the convolution, whatever the size and the padding") {
  for (const std::int64_t padding : {0, 1, 2}) {
    for (const std::int64_t size : {9, 10, 11, 12}) {
      CAPTURE(padding);
      CAPTURE(size);
      Layer layer({32, size, size + 3}, 32, {padding, padding, padding, padding});
      check(layer, layer.out.height);
    }
  }
  Layer asymmetric({20, 9, 14}, 37, {2, 0, 0, 3});
  check(asymmetric, asymmetric.out.height);
  Layer far({16, 6, 6}, 16, {7, 8, 9, 6});  // tiles that lie in the padding alone
  check(far, far.out.height);
}

TEST_CASE("Winograd's convolution with small tiles, where there are few") {
  Layer layer({160, 7, 7}, 144, {1, 1, 1, 1});
  check(layer, layer.out.height);
  Layer odd({161, 9, 8}, 130, {0, 2, 1, 1});
  check(odd, odd.out.height);
}

TEST_CASE("Winograd's convolution in several batches of tiles") {
  Layer layer({64, 31, 30}, 100, {1, 1, 1, 1});
  check(layer, layer.out.height);
}

TEST_CASE("Winograd's convolution by rows reads what it says it needs") {
  Layer layer({32, 13, 15}, 48, {1, 1, 1, 1});
  layer.operation.means = 3;
  for (const std::int64_t band : {1, 3, 4, 6}) {
    CAPTURE(band);
    check(layer, band);
  }
}

TEST_CASE("Winograd's convolution adds the residual, then activates, then takes the means") {
  for (const Activation activation :
       {Activation::kNone, Activation::kRelu, Activation::kRelu6, Activation::kSilu}) {
    CAPTURE(static_cast<int>(activation));
    Layer layer({32, 10, 10}, 33, {1, 1, 1, 1});
    layer.operation.activation = activation;
    layer.operation.has_residual = true;
    layer.operation.inputs.push_back(3);
    layer.operation.means = 3;
    check(layer, layer.out.height);
    check(layer, 5);
  }
}

TEST_CASE("Winograd's algorithm is for 3x3 weights with stride 1") {
  Layer layer({64, 20, 20}, 64, {1, 1, 1, 1});
  REQUIRE(winograd_pays(layer.operation, layer.graph));
  SUBCASE("stride") { layer.node.attributes["stride"] = {2, 1}; }
  SUBCASE("dilation") { layer.node.attributes["dilation"] = {1, 2}; }
  SUBCASE("groups") { layer.node.attributes["groups"] = {2}; }
  SUBCASE("weight") { layer.graph.tensors[0].shape = {64, 64, 1, 3}; }
  SUBCASE("planar input") { layer.operation.inputs[0] = 0; }
  SUBCASE("one tile") { layer.graph.values[2].shape = {1, 64, 2, 2}; }
  SUBCASE("few channels") { layer.graph.values[1].shape = {1, 8, 20, 20}; }
  SUBCASE("no node") { layer.operation.node = nullptr; }
  CHECK_FALSE(winograd_pays(layer.operation, layer.graph));
}
