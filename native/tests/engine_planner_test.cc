#include <doctest/doctest.h>

#include <random>

#include "engine/planner.h"
#include "engine/weights_file.h"
#include "engine_weights_builder.h"

using namespace quern;
using namespace quern::test;

namespace {

// Values of [1,2,4,4] joined by add; `pairs` names the two inputs of each node (-1: the input).
Graph sums(const std::vector<std::pair<int, int>>& pairs, WeightsFile& keep) {
  WeightsBuilder builder = small_network();
  builder.tensors = {};
  builder.header["input"]["shape"] = {1, 1, 4, 4};
  builder.header["nodes"] = Json::array();
  const auto name = [](int i) { return i < 0 ? "input" : "v" + std::to_string(i); };
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    builder.header["nodes"].push_back(node("add", {name(pairs[i].first), name(pairs[i].second)},
                                           name(static_cast<int>(i)), {1, 1, 4, 4}));
  }
  builder.header["nodes"].push_back(
      node("reshape", {name(static_cast<int>(pairs.size()) - 1)}, "logits", {1, 16}));
  builder.header["output"] = "logits";
  builder.header["classes"] = std::vector<std::string>(16, "c");
  keep = parse_weights(builder.build());
  return keep.graph;
}

}  // namespace

TEST_CASE("a chain needs two buffers, whatever its length") {
  WeightsFile keep;
  const Graph graph = sums({{-1, -1}, {0, 0}, {1, 1}, {2, 2}, {3, 3}}, keep);
  CHECK(plan_memory(graph).arena_floats == 2 * 16);
}

TEST_CASE("a reshaped value shares the memory of its input") {
  WeightsFile keep;
  const Graph graph = sums({{-1, -1}}, keep);
  const Plan plan = plan_memory(graph);
  CHECK(plan.offsets[0] == Plan::kIsInput);
  CHECK(plan.offsets[1] == plan.offsets[2]);
}

TEST_CASE("values that are needed together never overlap") {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::pair<int, int>> pairs;
    const int count = 1 + static_cast<int>(random() % 20);
    for (int i = 0; i < count; ++i) {
      const auto any = [&] {
        return static_cast<int>(random() % (static_cast<unsigned>(i) + 1)) - 1;
      };
      pairs.emplace_back(any(), any());
    }
    WeightsFile keep;
    const Graph graph = sums(pairs, keep);
    const Plan plan = plan_memory(graph);
    // Runs the plan with value numbers for contents: each node must find its inputs unharmed.
    std::vector<std::size_t> owner(plan.arena_floats, 0);
    for (const Node& n : graph.nodes) {
      for (const std::size_t input : n.inputs) {
        if (input == 0) continue;
        for (std::size_t k = 0; k < 16; ++k) CHECK(owner[plan.offsets[input] + k] == input);
      }
      for (std::size_t k = 0; k < 16; ++k) owner[plan.offsets[n.output] + k] = n.output;
    }
  }
}
