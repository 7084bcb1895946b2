// The inner loops, once per instruction set: plain functions on plain pointers. What is computed,
// and on which rows, is decided by the operations above them (convolution.cc and its neighbours).
#pragma once

#include <cstdint>

namespace quern {

enum class Activation : std::uint8_t {
  kNone,
  kRelu,
  kRelu6,
  kLeakyRelu,  // by `slope`
  kSilu,
  kGelu,
  kGeluTanh,
  kHardswish,
  kHardsigmoid,
  kSigmoid,
  kTanh,
};

enum class Arithmetic : std::uint8_t { kAdd, kSub, kMul };

// Sums of products of input and weights for `rows` x `pixels` outputs of `blocks` blocks of
// channels. One run is `run` (16, or 1 where the input is planar) input channels of one tap: the
// input of pixel x is at input + y * input_row + offsets[i] + x * step.
struct Convolve {
  const float* input;
  std::int64_t input_row;
  const std::int64_t* offsets;
  std::int64_t runs;
  int run;
  std::int64_t step;     // 16 where `run` is
  const float* weights;  // [blocks][runs][run][16]
  // Where `run` is 1, what is read soon: at ahead + y * ahead_row + ahead_offsets[i] + x * step.
  const float* ahead;
  std::int64_t ahead_row;
  const std::int64_t* ahead_offsets;
  const float* bias;      // [blocks][16]
  const float* residual;  // added before the limits; nullptr: none. Same rows and pixels as output
  std::int64_t residual_plane, residual_row;
  float* output;
  std::int64_t output_plane, output_row;
  std::int64_t blocks, rows, pixels;
  const float* scale;  // [blocks][16]: of the sums and the residual; nullptr: none
  float low, high;     // limits of the output: ReLU and ReLU6
  // Of products of pairs alone (kernels/pairs.cc): what the weights are multiplied by, the sums of
  // products of their pairs, both [blocks][16], and those of the input's pairs, [pixels].
  const float *balance, *weight_pairs, *input_pairs;
};

// Of a block's channels c and c + 8, those with c below this are a pair.
constexpr int kPairedChannels = 5;
constexpr int kPairedPixels = 7;  // that convolve_pairs() computes side by side

// One channel at a time, for one block of channels and the output rows [first, last).
struct Depthwise {
  const float* input;  // row 0 of the block
  std::int64_t in_height, in_width;
  const float* weights;  // [kernel_height][kernel_width][16]
  const float* bias;     // [16]
  float* output;         // row 0 of the block
  std::int64_t out_width, first, last;
  std::int64_t kernel_height, kernel_width;
  std::int64_t stride_y, stride_x, dilation_y, dilation_x, top, left;
  float low, high;
};

// The window of a pooling layer, for one block of channels and the output rows [first, last).
struct Pool {
  const float* input;
  std::int64_t in_height, in_width;
  float* output;
  std::int64_t out_width, first, last;
  std::int64_t kernel_height, kernel_width;
  std::int64_t stride_y, stride_x, dilation_y, dilation_x, top, left;
  bool maximum;                // else the average
  bool count_padding;          // whether an average counts the padding
  std::int64_t bottom, right;  // padding that is counted
  std::int64_t divisor;        // of an average; 0: the count
};

// The transforms of Winograd's convolution (kernels/winograd.cc), of one block of channels. Tiles
// of `size` x `size` outputs (2 or 4) are numbered along the rows, `columns` of them to a row;
// those of [begin, begin + tiles) are transformed. Each has (size + 2)^2 elements in the
// transformed domain: element e of tile begin + t is at transformed + e * plane + t * 16.
struct WinogradInput {
  const float* input;               // row 0
  std::int64_t width, first, last;  // columns and rows of the input that may be read
  std::int64_t top, left;           // the row and column at which tile 0 reads first; may be < 0
  int size;
  std::int64_t columns, begin, tiles;
  float* transformed;
  std::int64_t plane;
};

struct WinogradOutput {
  const float* transformed;
  std::int64_t plane;
  int size;
  std::int64_t columns, begin, tiles;
  const float* bias;                // [16]
  const float* residual;            // added before the limits; nullptr: none
  float* output;                    // both: row 0
  std::int64_t width, first, last;  // columns of the output and rows to be written
  float low, high;
};

// The sums of Strassen's algorithm (computations/strassen.cc) on `count` floats, a multiple of 16.
struct StrassenInput {
  const float *a11, *a12, *a21, *a22;
  float *s1, *s2, *s3, *s4;
  std::int64_t count;
};

// output = (v + w + residual) * scale within the limits, w += u; of one block of channels.
struct StrassenOutput {
  const float *v, *u;
  float* w;
  const float* residual;  // nullptr: none
  const float* scale;     // [16]; nullptr: 1
  float* output;
  std::int64_t count;
  float low, high;
};

struct Kernels {
  void (*convolve)(const Convolve&);
  void (*depthwise)(const Depthwise&);
  void (*pool)(const Pool&);
  // output = activation(input) on `count` floats, a multiple of 16; may be in place.
  void (*activate)(Activation, float slope, const float* input, float* output, std::int64_t count);
  // output = a (op) b, kept within [low, high], on `count` floats, a multiple of 16; b_step 16: as
  // many of b; 0: one block of b for all. May be in place on a.
  void (*combine)(Arithmetic, const float* a, const float* b, std::int64_t b_step, float low,
                  float high, float* output, std::int64_t count);
  // sums[16] += the sums over `pixels` pixels.
  void (*accumulate)(const float* input, std::int64_t pixels, float* sums);
  void (*winograd_input)(const WinogradInput&);
  void (*winograd_output)(const WinogradOutput&);
  void (*strassen_input)(const StrassenInput&);
  void (*strassen_output)(const StrassenOutput&);
  // By products of pairs, one row of at least kPairedPixels; nullptr: not here.
  void (*convolve_pairs)(const Convolve&);
  // The sums of products of the pairs of each pixel of an input as convolve() has it; returns the
  // largest absolute value in it, NaN where there is one.
  float (*sum_pairs)(const float* input, const std::int64_t* offsets, std::int64_t runs,
                     std::int64_t pixels, float* pairs);
};

namespace scalar {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
extern const Kernels kKernelsWithPairs;
}  // namespace avx512
namespace neon {
extern const Kernels kKernels;
}

}  // namespace quern
