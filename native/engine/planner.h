// Everything that can be decided before the first run: where in one block of memory (the arena)
// each value lives. After that a run allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "engine/graph.h"

namespace quern {

inline constexpr std::size_t kMaxArenaBytes = std::size_t{1} << 30;  // 1 GiB

struct Plan {
  static constexpr std::size_t kIsInput = std::numeric_limits<std::size_t>::max();

  std::vector<std::size_t> offsets;  // by value: floats from the arena's start, or kIsInput
  std::size_t arena_floats = 0;
};

// Lays the values out so that two share memory only when no node needs both (greedy by size:
// Pisarchyk and Lee 2020, arXiv:2001.03288). Offsets are multiples of 64 bytes.
// Throws WeightsError when the arena would be larger than kMaxArenaBytes.
Plan plan_memory(const Graph& graph);

}  // namespace quern
