// The two passes of resize.h, once for every CPU and once for those with AVX2. Both give the same
// bytes. The AVX2 file is compiled with its own flags, so this header has nothing to inline.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quern {

// 8 bits for the result, 2 for the filter's overshoot: what is left of 32 is the fraction.
inline constexpr int kPrecisionBits = 32 - 8 - 2;

// A weight's halves: weight = high * 2^15 + low, so that 16-bit multiplications are exact.
inline constexpr int kLowBits = 15;

// Four neighbouring weights.
struct Weights {
  std::int16_t low[4];
  std::int16_t high[4];
};

// The input pixels one output pixel is made of. Their weights are groups of four, filled up with 0.
struct Window {
  int first;    // pixel
  int count;    // pixels
  int weights;  // index of the first group
};

// What horizontal() may read behind the last pixel of a row, and write behind the last one it made;
// what vertical() may read and write behind the last byte, when its rows are this much longer.
inline constexpr int kSlack = 32;

inline constexpr int kRowsTogether = 4;

struct ResizeKernels {
  // kRowsTogether rows of uint8 [*, channels] to `count` pixels each, channels 1 or 3.
  void (*horizontal)(const std::uint8_t* const* in, int channels, const Window* windows, int count,
                     const Weights* weights, std::uint8_t* const* out);
  // The weighted sum of rows of `bytes` uint8; `in` has as many rows as there are weights in
  // `groups` groups.
  void (*vertical)(const std::uint8_t* const* in, const Weights* weights, int groups, int bytes,
                   std::uint8_t* out);
};

extern const ResizeKernels kScalarResize;
#if defined(__x86_64__)
extern const ResizeKernels kAvx2Resize;
#endif

// The fastest that this CPU can run.
const ResizeKernels& best_resize_kernels();

}  // namespace quern
