#include "engine/planner.h"

#include <algorithm>
#include <numeric>

#include "engine/kernels.h"

namespace quern {
namespace {

// A run of memory and the nodes [first, last] during which it must keep its content.
struct Buffer {
  std::size_t floats = 0, first = 0, last = 0, offset = 0;
  bool external = false;  // the caller's input, not in the arena
};

bool alive_together(const Buffer& a, const Buffer& b) {
  return a.first <= b.last && b.first <= a.last;
}

// The lowest offset at which `wanted` overlaps no buffer of `placed` (sorted by offset) that is
// alive with it.
std::size_t lowest_gap(const Buffer& wanted, const std::vector<const Buffer*>& placed) {
  std::size_t offset = 0;
  for (const Buffer* other : placed) {
    if (!alive_together(wanted, *other)) continue;
    if (offset + wanted.floats <= other->offset) break;
    offset = std::max(offset, other->offset + other->floats);
  }
  return offset;
}

}  // namespace

Plan plan_memory(const Graph& graph) {
  std::vector<Buffer> buffers;
  std::vector<std::size_t> buffer_of(graph.values.size());
  buffers.push_back({.external = true});  // values[0]
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& node = graph.nodes[i];
    for (const std::size_t input : node.inputs) buffers[buffer_of[input]].last = i;
    if (is_view(node)) {
      buffer_of[node.output] = buffer_of[node.inputs[0]];
      continue;
    }
    const auto elements = static_cast<std::size_t>(element_count(graph.values[node.output].shape));
    buffer_of[node.output] = buffers.size();
    buffers.push_back({.floats = (elements + 15) / 16 * 16, .first = i, .last = i});
  }
  buffers[buffer_of[graph.output]].last = graph.nodes.size();

  std::vector<std::size_t> by_size(buffers.size());
  std::iota(by_size.begin(), by_size.end(), std::size_t{0});
  std::stable_sort(by_size.begin(), by_size.end(), [&](std::size_t a, std::size_t b) {
    return buffers[a].floats > buffers[b].floats;
  });

  Plan plan;
  std::vector<const Buffer*> placed;
  for (const std::size_t index : by_size) {
    Buffer& buffer = buffers[index];
    if (buffer.external) continue;
    buffer.offset = lowest_gap(buffer, placed);
    plan.arena_floats = std::max(plan.arena_floats, buffer.offset + buffer.floats);
    if (plan.arena_floats > kMaxArenaBytes / sizeof(float)) {
      throw WeightsError("the network needs more than " + std::to_string(kMaxArenaBytes >> 20U) +
                         " MiB of memory for a run");
    }
    const auto position = std::upper_bound(
        placed.begin(), placed.end(), buffer.offset,
        [](std::size_t offset, const Buffer* other) { return offset < other->offset; });
    placed.insert(position, &buffer);
  }

  plan.offsets.reserve(graph.values.size());
  for (const std::size_t index : buffer_of) {
    plan.offsets.push_back(buffers[index].external ? Plan::kIsInput : buffers[index].offset);
  }
  return plan;
}

}  // namespace quern
