// Everything that can be decided before the first run: in which steps operations are computed, and
// where in one block of memory (the arena) every value lives. After that a run allocates nothing.
//
// Neighbouring operations that work row by row are computed in turns, some rows of each, so that
// what one writes is still in the cache when the next reads it. A value that only the next
// operation reads is never whole in memory: a window of its rows is, which slides down the image.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "engine/computation.h"
#include "engine/fusion.h"

namespace quern {

// A larger network is refused, not tried.
inline constexpr std::int64_t kMaxArenaFloats = std::int64_t{1} << 28;  // 1 GiB

// Where a value begins. For a window the offset is that of row 0, as if it were there.
struct Place {
  enum class Memory : std::uint8_t { kNone, kArena, kInput, kConstants };
  Memory memory = Memory::kNone;
  std::int64_t offset = 0;  // floats
  std::int64_t plane = 0;   // see View
};

struct Step {
  // The rows of a window that are still needed move to its beginning first.
  struct Move {
    std::int64_t to = 0, from = 0, floats = 0;  // in each of
    std::int64_t blocks = 0, plane = 0;
  };
  std::size_t operation = 0;
  Rows rows;
  std::vector<Move> moves;
  std::vector<Place> inputs;
  Place output, means;
};

struct Schedule {
  std::vector<Step> steps;
  Place result;
  std::int64_t arena_floats = 0;
  std::int64_t scratch = 0;  // where in the arena
  std::int64_t input = 0;    // where in the arena there is room for it
};

// `computations` are those of fused.operations; `constants` says by value where in the constants'
// memory it is, or kNoConstant. Values share memory only when no step needs both (greedy by size:
// Pisarchyk and Lee 2020, arXiv:2001.03288). Offsets are multiples of 64 bytes.
// Throws WeightsError when the arena would be larger than kMaxArenaFloats.
inline constexpr std::size_t kNoConstant = std::numeric_limits<std::size_t>::max();
Schedule make_schedule(const Graph& graph, const FusedGraph& fused,
                       const std::vector<std::unique_ptr<Computation>>& computations,
                       const std::vector<std::size_t>& constants);

}  // namespace quern
