// The kernels of one instruction set, for the table in kernel_table.cc.
#pragma once

#include "engine/kernels/kernels.h"

namespace quern::QUERN_INSTRUCTIONS {

void convolve(const Convolve& c);
void depthwise(const Depthwise& d);
void pool(const Pool& p);
void activate(Activation activation, float slope, const float* input, float* output,
              std::int64_t count);
void combine(Arithmetic arithmetic, const float* a, const float* b, std::int64_t b_step, float low,
             float high, float* output, std::int64_t count);
void accumulate(const float* input, std::int64_t pixels, float* sums);
void winograd_input(const WinogradInput& w);
void winograd_output(const WinogradOutput& w);
void strassen_input(const StrassenInput& s);
void strassen_output(const StrassenOutput& s);
void convolve_pairs(const Convolve& c);
float sum_pairs(const float* input, const std::int64_t* offsets, std::int64_t runs,
                std::int64_t pixels, float* pairs);

// 0, 1, … as template arguments; std::integer_sequence, without the library.
template <int... kNumbers>
struct Sequence {};
template <int kCount, int... kNumbers>
struct Counter : Counter<kCount - 1, kCount - 1, kNumbers...> {};
template <int... kNumbers>
struct Counter<0, kNumbers...> {
  using Type = Sequence<kNumbers...>;
};
template <int kCount>
using Counting = typename Counter<kCount>::Type;

}  // namespace quern::QUERN_INSTRUCTIONS
