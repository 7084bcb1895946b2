#include "engine/instructions.h"

namespace quern {

std::string_view name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::kNeon:
      return "neon";
    case InstructionSet::kAvx2:
      return "avx2";
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx512Pairs:
      return "avx512-pairs";
    default:
      return "scalar";
  }
}

std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets = {InstructionSet::kScalar};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back(InstructionSet::kAvx2);
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
    // Intel's units that multiply 512 bits are also those that add: nothing is gained by pairs.
    const bool pairs_pay = __builtin_cpu_is("amd");
    sets.push_back(pairs_pay ? InstructionSet::kAvx512 : InstructionSet::kAvx512Pairs);
    sets.push_back(pairs_pay ? InstructionSet::kAvx512Pairs : InstructionSet::kAvx512);
  }
#elif defined(__aarch64__)
  sets.push_back(InstructionSet::kNeon);
#endif
  return sets;
}

const Kernels& kernels_of(InstructionSet set) {
  switch (set) {
#if defined(__x86_64__)
    case InstructionSet::kAvx2:
      return avx2::kKernels;
    case InstructionSet::kAvx512:
      return avx512::kKernels;
    case InstructionSet::kAvx512Pairs:
      return avx512::kKernelsWithPairs;
#elif defined(__aarch64__)
    case InstructionSet::kNeon:
      return neon::kKernels;
#endif
    default:
      return scalar::kKernels;
  }
}

}  // namespace quern
