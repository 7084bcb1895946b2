// One register of the instruction set that this file is compiled for, as GCC and Clang's vector
// types have it: + - * / < ?: work lane by lane, and a * b + c becomes one fused instruction
// where the flag -ffp-contract=fast lets it.
//
// Only kernels/*.cc include this, each compiled once per instruction set in a namespace of its own.
// They use nothing of the C++ library: an inline function compiled here with AVX-512 could be the
// copy that the linker keeps for the whole program.
#pragma once

#include "engine/layout.h"

namespace quern::QUERN_INSTRUCTIONS {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRegisters = 16;
#elif defined(__ARM_NEON) && !defined(QUERN_SCALAR)
constexpr int kLanes = 4;
constexpr int kRegisters = 32;
#else
constexpr int kLanes = 1;
constexpr int kRegisters = 16;
#endif

constexpr int kPerBlock = kBlock / kLanes;  // registers to a block of channels
// How far loops over registers are unrolled: wholly, where they are registers at all.
constexpr int kUnroll = kLanes == 1 ? 1 : 32;

typedef float Register __attribute__((vector_size(kLanes * sizeof(float))));
typedef int Integers __attribute__((vector_size(kLanes * sizeof(int))));

inline Register load(const float* from) { return *reinterpret_cast<const Register*>(from); }
// Loads once what several sums are made from; compilers would rather read memory for each.
inline Register load_once(const float* from) {
  Register value = load(from);
#if defined(__AVX2__)
  asm("" : "+v"(value));
#elif defined(__ARM_NEON) && !defined(QUERN_SCALAR)
  asm("" : "+w"(value));
#endif
  return value;
}
inline void store(float* to, Register value) { *reinterpret_cast<Register*>(to) = value; }
inline Register broadcast(float value) { return value - Register{}; }

// NaN stays NaN in both: the comparison is false, and x is kept.
inline Register at_least(Register x, Register low) { return x < low ? low : x; }
inline Register at_most(Register x, Register high) { return x > high ? high : x; }

}  // namespace
}  // namespace quern::QUERN_INSTRUCTIONS
