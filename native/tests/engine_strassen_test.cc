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

// A 1x1 convolution with all that its Operation and Graph refer to.
struct Layer {
  Extent in, out;
  std::vector<float> weight, bias;
  Graph graph;
  Node node;
  Operation operation;

  Layer(Extent input, std::int64_t outputs) : in(input) {
    out = {outputs, in.height, in.width};
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    weight.resize(static_cast<std::size_t>(outputs * in.channels));
    bias.resize(static_cast<std::size_t>(outputs));
    const float scale = 1.0F / std::sqrt(static_cast<float>(in.channels));
    for (float& w : weight) w = normal(random) * scale;
    for (float& b : bias) b = normal(random);
    graph.values = {{"input", {1, 3, 8, 8}},
                    {"x", {1, in.channels, in.height, in.width}},
                    {"y", {1, out.channels, out.height, out.width}},
                    {"residual", {1, out.channels, out.height, out.width}},
                    {"scale", {1, out.channels, 1, 1}}};
    graph.tensors = {{"weight", {outputs, in.channels, 1, 1}, weight}, {"bias", {outputs}, bias}};
    node.op = find_operator("conv2d");
    node.inputs = {1};
    node.output = 2;
    node.tensors = {{"weight", 0}, {"bias", 1}};
    node.attributes = {
        {"stride", {1, 1}}, {"padding", {0, 0, 0, 0}}, {"dilation", {1, 1}}, {"groups", {1}}};
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
      const auto tap = static_cast<std::size_t>(o * in.channels + i);
      total += double{weight[tap]} * input[in.offset(i, y, x)];
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
  REQUIRE(strassen_pays(layer.operation, layer.graph));
  const auto computation = prepare_strassen(layer.operation, layer.graph, kernels);
  const AlignedFloats input = random_image(layer.in, 5);
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
        if (layer.operation.has_scale) expected *= scale[static_cast<std::size_t>(o)];
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

TEST_CASE("Strassen's products are the convolution, whatever the size") {
  for (const std::int64_t width : {5, 6, 7, 8, 23}) {
    CAPTURE(width);
    Layer layer({128, 8, width}, 160);
    check(layer, layer.out.height);
  }
  Layer odd({145, 7, 7},
            339);  // blocks that are not full, and a last part narrower than the others
  check(odd, odd.out.height);
  Layer deep({600, 9, 9}, 128);  // several batches of pixels
  check(deep, deep.out.height);
  Layer large({128, 31, 30}, 128);
  check(large, large.out.height);
}

TEST_CASE("Strassen's products by rows, one pixel included") {
  Layer layer({128, 40, 1}, 128);
  layer.operation.means = 3;
  for (const std::int64_t band : {1, 2, 3, 17}) {
    CAPTURE(band);
    check(layer, band);
  }
}

TEST_CASE("Strassen's products with the residual or the scale, then the activation, then means") {
  for (const Activation activation :
       {Activation::kNone, Activation::kRelu, Activation::kRelu6, Activation::kSilu}) {
    CAPTURE(static_cast<int>(activation));
    for (const bool scaled : {false, true}) {
      CAPTURE(scaled);
      Layer layer({145, 7, 9}, 190);
      layer.operation.activation = activation;
      layer.operation.means = 3;
      layer.operation.has_residual = !scaled;
      layer.operation.has_scale = scaled;
      layer.operation.inputs.push_back(scaled ? 4 : 3);
      check(layer, layer.out.height);
      check(layer, 3);
    }
  }
}

TEST_CASE("Strassen's algorithm is for dense 1x1 convolutions that are large enough") {
  Layer layer({128, 8, 8}, 128);
  REQUIRE(strassen_pays(layer.operation, layer.graph));
  SUBCASE("stride") { layer.node.attributes["stride"] = {2, 1}; }
  SUBCASE("padding") { layer.node.attributes["padding"] = {0, 0, 0, 1}; }
  SUBCASE("groups") { layer.node.attributes["groups"] = {2}; }
  SUBCASE("weight") { layer.graph.tensors[0].shape = {128, 128, 1, 3}; }
  SUBCASE("planar input") { layer.operation.inputs[0] = 0; }
  SUBCASE("few pixels") { layer.graph.values[2].shape = {1, 128, 6, 6}; }
  SUBCASE("few channels") { layer.graph.values[1].shape = {1, 112, 8, 8}; }
  SUBCASE("an odd number of blocks") { layer.graph.values[2].shape = {1, 144, 8, 8}; }
  SUBCASE("no node") { layer.operation.node = nullptr; }
  CHECK_FALSE(strassen_pays(layer.operation, layer.graph));
}
