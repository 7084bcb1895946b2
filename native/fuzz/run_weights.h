// One weights file that may be anything, all the way: load, plan, forward pass. What the fuzz
// target and mutate_weights have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace quern::fuzz {

// What loading a file of a few kB may take from the heap at most: its own bytes, its header as JSON
// values, and its weights in the engine's layout, which pads each node's to blocks of channels.
// (The engine's own bound, for files of any size, is 2 GiB of weights in that layout.)
constexpr std::size_t load_bound(std::size_t file_bytes) {
  return (std::size_t{512} << 20U) + 64 * file_bytes;
}

struct Limits {
  double multiply_adds = 0;       // of one forward pass, estimated from above
  std::size_t session_bytes = 0;  // what the forward pass may need
};

enum class Outcome { kRefused, kTooLarge, kRan };

struct WeightsRun {
  Outcome outcome = Outcome::kRefused;
  std::string refusal;         // kRefused
  std::size_t load_bytes = 0;  // the most that the loader held
  std::size_t run_bytes = 0;   // kRan: the most that the session held
};

// Loads `file`; unless it is refused or beyond `limits` (kTooLarge), runs it on three inputs.
// A finding (finding.h) are: an exception that is no WeightsError, a refusal that is no sentence,
// memory beyond load_bound() or beyond what the model says of itself, an allocation during the
// forward pass, logits that depend on an earlier input.
WeightsRun run_weights(std::span<const std::uint8_t> file, const Limits& limits);

}  // namespace quern::fuzz
