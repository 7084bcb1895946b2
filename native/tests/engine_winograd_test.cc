#include <doctest/doctest.h>

#include "convolution_layer.h"
#include "engine/computation.h"
#include "engine/instructions.h"

using namespace quern;

namespace {

void check(Layer& layer, std::int64_t band) {
  REQUIRE(winograd_pays(layer.operation, layer.graph));
  for (const InstructionSet set : instruction_sets()) {
    CAPTURE(set);
    check_against_sums(layer, band, prepare_winograd, kernels_of(set), 1e-5);
  }
}

}  // namespace

TEST_CASE("Winograd's convolution is the convolution, whatever the size and the padding") {
  for (const std::int64_t padding : {0, 1, 2}) {
    for (const std::int64_t size : {9, 10, 11, 12}) {
      CAPTURE(padding);
      CAPTURE(size);
      Layer layer({32, size, size + 3}, 32, 3, {padding, padding, padding, padding});
      check(layer, layer.out.height);
    }
  }
  Layer asymmetric({20, 9, 14}, 37, 3, {2, 0, 0, 3});
  check(asymmetric, asymmetric.out.height);
  Layer far({16, 6, 6}, 16, 3, {7, 8, 9, 6});  // tiles that lie in the padding alone
  check(far, far.out.height);
}

TEST_CASE("Winograd's convolution with small tiles, where there are few") {
  Layer layer({160, 7, 7}, 144, 3, {1, 1, 1, 1});
  check(layer, layer.out.height);
  Layer odd({161, 9, 8}, 130, 3, {0, 2, 1, 1});
  check(odd, odd.out.height);
}

TEST_CASE("Winograd's convolution in several batches of tiles") {
  Layer layer({64, 31, 30}, 100, 3, {1, 1, 1, 1});
  check(layer, layer.out.height);
}

TEST_CASE("Winograd's convolution by rows reads what it says it needs") {
  Layer layer({32, 13, 15}, 48, 3, {1, 1, 1, 1});
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
    Layer layer({32, 10, 10}, 33, 3, {1, 1, 1, 1});
    layer.end_with(false, activation);
    check(layer, layer.out.height);
    check(layer, 5);
  }
}

TEST_CASE("Winograd's algorithm is for 3x3 weights with stride 1") {
  Layer layer({64, 20, 20}, 64, 3, {1, 1, 1, 1});
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
