// Reads model_weights.bin, format version 1 (docs/weight-format.md). The file may come from
// anywhere, so nothing in it is believed: every length, offset, shape, name and number is checked
// before use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/aligned.h"
#include "engine/graph.h"
#include "image/preprocess.h"

namespace quern {

// Bounds on what is accepted; a larger file is refused before memory for it is asked for.
// For values see graph.h, for the memory of a run schedule.h.
inline constexpr std::size_t kMaxFileBytes = std::size_t{1} << 31;    // 2 GiB
inline constexpr std::size_t kMaxHeaderBytes = std::size_t{1} << 24;  // 16 MiB
inline constexpr std::size_t kMaxNodes = 10'000;
inline constexpr std::size_t kMaxClasses = 1'000'000;
inline constexpr std::int64_t kMaxInputSide = 16'384;

struct WeightsFile {
  Graph graph;
  Preprocess preprocess;
  std::vector<std::string> classes;
  std::string digest;  // xxh3_128 of the whole file's bytes as read

  AlignedFloats bytes;  // the file, tensors turned to native byte order in place: graph points here

  // Frees what only the preparation of a model needs: all but the input's shape, the preprocessing
  // and the classes.
  void release_tensors();
};

// Reads the regular file `path` once. Throws WeightsError: "<path>: <sentence>".
WeightsFile read_weights_file(const std::string& path);

// The same from memory (copied). Throws WeightsError.
WeightsFile parse_weights(std::span<const std::uint8_t> file);

}  // namespace quern
