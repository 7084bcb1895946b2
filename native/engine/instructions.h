// Which of the engine's instruction sets a CPU has: the kernels are compiled once for each, and
// chosen when a model is loaded.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/kernels/kernels.h"

namespace quern {

// kAvx512Pairs: AVX-512 with 1x1 convolutions by products of pairs (kernels/pairs.cc).
enum class InstructionSet { kScalar, kNeon, kAvx2, kAvx512, kAvx512Pairs };

// "scalar", "neon", "avx2", "avx512", "avx512-pairs"
std::string_view name_of(InstructionSet set);
// Those that this program has and this CPU runs, the fastest last.
std::vector<InstructionSet> instruction_sets();
inline InstructionSet best_instruction_set() { return instruction_sets().back(); }

const Kernels& kernels_of(InstructionSet set);  // one of instruction_sets()

}  // namespace quern
