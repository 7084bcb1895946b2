#include <doctest/doctest.h>

#include "convolution_layer.h"
#include "engine/computation.h"
#include "engine/instructions.h"

using namespace quern;

namespace {

void check(Layer& layer, std::int64_t band) {
  REQUIRE(strassen_pays(layer.operation, layer.graph, kernels_of(InstructionSet::kScalar)));
  for (const InstructionSet set : instruction_sets()) {
    CAPTURE(set);
    check_against_sums(layer, band, prepare_strassen, kernels_of(set), 5e-6);
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
      layer.end_with(scaled, activation);
      check(layer, layer.out.height);
      check(layer, 3);
    }
  }
}

TEST_CASE("Strassen's algorithm is for dense 1x1 convolutions that are large enough") {
  Layer layer({128, 8, 8}, 128);
  const Kernels& kernels = kernels_of(InstructionSet::kScalar);
  REQUIRE(strassen_pays(layer.operation, layer.graph, kernels));
  SUBCASE("stride") { layer.node.attributes["stride"] = {2, 1}; }
  SUBCASE("padding") { layer.node.attributes["padding"] = {0, 0, 0, 1}; }
  SUBCASE("groups") { layer.node.attributes["groups"] = {2}; }
  SUBCASE("weight") { layer.graph.tensors[0].shape = {128, 128, 1, 3}; }
  SUBCASE("planar input") { layer.operation.inputs[0] = 0; }
  SUBCASE("few pixels") { layer.graph.values[2].shape = {1, 128, 6, 6}; }
  SUBCASE("few channels") { layer.graph.values[1].shape = {1, 112, 8, 8}; }
  SUBCASE("an odd number of blocks") { layer.graph.values[2].shape = {1, 144, 8, 8}; }
  SUBCASE("no node") { layer.operation.node = nullptr; }
  CHECK_FALSE(strassen_pays(layer.operation, layer.graph, kernels));
}
