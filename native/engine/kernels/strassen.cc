// The sums of Strassen's algorithm; what they are is told in computations/strassen.cc.
#include "engine/kernels/kernel_functions.h"
#include "engine/kernels/vector.h"

namespace quern::QUERN_INSTRUCTIONS {

void strassen_input(const StrassenInput& s) {
  for (std::int64_t i = 0; i < s.count; i += kLanes) {
    const Register a11 = load(s.a11 + i);
    const Register a21 = load(s.a21 + i);
    const Register s1 = a21 + load(s.a22 + i);
    const Register s2 = s1 - a11;
    store(s.s1 + i, s1);
    store(s.s2 + i, s2);
    store(s.s3 + i, a11 - a21);
    store(s.s4 + i, load(s.a12 + i) - s2);
  }
}

void strassen_output(const StrassenOutput& s) {
  const Register low = broadcast(s.low);
  const Register high = broadcast(s.high);
  Register scale[kPerBlock];
#pragma GCC unroll kUnroll
  for (int r = 0; r < kPerBlock; ++r) {
    scale[r] = s.scale == nullptr ? broadcast(1.0F) : load(s.scale + r * kLanes);
  }
  for (std::int64_t i = 0; i < s.count; i += kBlock) {
#pragma GCC unroll kUnroll
    for (int r = 0; r < kPerBlock; ++r) {
      const std::int64_t at = i + r * kLanes;
      const Register w = load(s.w + at);
      Register sum = load(s.v + at) + w;
      if (s.residual != nullptr) sum += load(s.residual + at);
      store(s.output + at, at_most(at_least(sum * scale[r], low), high));
      store(s.w + at, w + load(s.u + at));
    }
  }
}

}  // namespace quern::QUERN_INSTRUCTIONS
