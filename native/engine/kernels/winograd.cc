// Winograd's convolution of tiles with 3x3 weights, F(m x m, 3x3): Lavin and Gray, Fast Algorithms
// for Convolutional Neural Networks, arXiv:1509.09308. The m x m outputs of a tile are
//   Y = A^T [ sum over the input channels of (G g G^T) * (B^T d B) ] A
// with * element by element, d the (m + 2) x (m + 2) input pixels and g the weights. The sum is a
// matrix product for each element (convolve.cc), G is applied when the model is loaded
// (computations/winograd.cc); here are B and A.
//
// Each row of the matrices belongs to a point at which polynomials are evaluated, the last one to
// infinity (Cook and Toom). For a point p: in G the powers 1, p, p^2 divided by the product of
// p - q over all other points q; in A^T, a column, the powers of p from 1 to p^(m - 1); in B^T the
// coefficients of the product of x - q. For infinity: G 0 0 1, A^T 0 … 0 1, B^T the coefficients of
// the product of x - q over all points.
//
// m = 2: 0, 1, -1.   m = 4: 0, a, -a, b, -b with a = sqrt(1/2), b = sqrt(2); such points, whose
// powers stay near 1, have a third of the error of 0, 1, -1, 2, -2, and ab = 1 leaves few
// constants.
#include "engine/kernels/kernel_functions.h"
#include "engine/kernels/vector.h"

namespace quern::QUERN_INSTRUCTIONS {
namespace {

constexpr float kA = 0.70710678118654752F;
constexpr float kB = 1.41421356237309505F;

template <int kSize>
struct Transform;

template <>
struct Transform<2> {
  //       -1  0  1  0
  // B^T =  0  1  1  0
  //        0 -1  1  0
  //        0 -1  0  1
  static inline void input(const Register (&d)[4], Register (&t)[4]) {
    t[0] = d[2] - d[0];
    t[1] = d[2] + d[1];
    t[2] = d[2] - d[1];
    t[3] = d[3] - d[1];
  }
  // A^T =  1  1  1  0
  //        0  1 -1  1
  static inline void output(const Register (&m)[4], Register (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }
};

template <>
struct Transform<4> {
  //        1    0   -5/2   0    1   0
  //        0   -2a  -2     a    1   0
  // B^T =  0    2a  -2    -a    1   0
  //        0  -b/2  -1/2   b    1   0
  //        0   b/2  -1/2  -b    1   0
  //        0    1    0   -5/2   0   1
  static inline void input(const Register (&d)[6], Register (&t)[6]) {
    const Register even_a = d[4] - 2.0F * d[2];
    const Register odd_a = d[3] - 2.0F * d[1];
    const Register even_b = d[4] - 0.5F * d[2];
    const Register odd_b = d[3] - 0.5F * d[1];
    t[0] = d[0] + d[4] - 2.5F * d[2];
    t[1] = even_a + kA * odd_a;
    t[2] = even_a - kA * odd_a;
    t[3] = even_b + kB * odd_b;
    t[4] = even_b - kB * odd_b;
    t[5] = d[1] + d[5] - 2.5F * d[3];
  }
  //        1    1    1     1    1   0
  // A^T =  0    a   -a     b   -b   0
  //        0   1/2  1/2    2    2   0
  //        0   a/2 -a/2    2b -2b   1
  static inline void output(const Register (&m)[6], Register (&y)[4]) {
    const Register sum_a = m[1] + m[2];
    const Register sum_b = m[3] + m[4];
    const Register odd_a = kA * (m[1] - m[2]);
    const Register odd_b = kB * (m[3] - m[4]);
    y[0] = m[0] + sum_a + sum_b;
    y[1] = odd_a + odd_b;
    y[2] = 0.5F * sum_a + 2.0F * sum_b;
    y[3] = 0.5F * odd_a + 2.0F * odd_b + m[5];
  }
};

// The input pixels of one tile, of which some are outside the image: zeros there.
template <int kReach>
void copy_tile(const WinogradInput& w, std::int64_t y, std::int64_t x, float* to) {
  for (int i = 0; i < kReach; ++i) {
    for (int j = 0; j < kReach; ++j, to += kBlock) {
      const bool inside = y + i >= w.first && y + i < w.last && x + j >= 0 && x + j < w.width;
      const float* from = w.input + ((y + i) * w.width + x + j) * kBlock;
      for (int r = 0; r < kBlock; r += kLanes) {
        store(to + r, inside ? load(from + r) : broadcast(0.0F));
      }
    }
  }
}

template <int kSize>
void transform_input(const WinogradInput& w) {
  constexpr int kReach = kSize + 2;
  alignas(64) float copy[kReach * kReach * kBlock];
  std::int64_t row = w.begin / w.columns;
  std::int64_t column = w.begin % w.columns;
  for (std::int64_t tile = 0; tile < w.tiles; ++tile) {
    const std::int64_t y = w.top + row * kSize;
    const std::int64_t x = w.left + column * kSize;
    const float* pixels = w.input + (y * w.width + x) * kBlock;
    std::int64_t step = w.width * kBlock;
    if (y < w.first || y + kReach > w.last || x < 0 || x + kReach > w.width) {
      copy_tile<kReach>(w, y, x, copy);
      pixels = copy;
      step = kReach * kBlock;
    }
    float* to = w.transformed + tile * kBlock;
    for (int r = 0; r < kBlock; r += kLanes) {
      Register half[kReach][kReach];  // B^T d, transposed
#pragma GCC unroll 1
      for (int j = 0; j < kReach; ++j) {
        Register d[kReach];
#pragma GCC unroll 8
        for (int i = 0; i < kReach; ++i) d[i] = load(pixels + i * step + j * kBlock + r);
        Transform<kSize>::input(d, half[j]);
      }
#pragma GCC unroll 1
      for (int i = 0; i < kReach; ++i) {
        Register d[kReach];
        Register t[kReach];
#pragma GCC unroll 8
        for (int j = 0; j < kReach; ++j) d[j] = half[j][i];
        Transform<kSize>::input(d, t);
#pragma GCC unroll 8
        for (int j = 0; j < kReach; ++j) store(to + (i * kReach + j) * w.plane + r, t[j]);
      }
    }
    if (++column == w.columns) {
      column = 0;
      ++row;
    }
  }
}

template <int kSize>
void transform_output(const WinogradOutput& w) {
  constexpr int kReach = kSize + 2;
  const Register low = broadcast(w.low);
  const Register high = broadcast(w.high);
  std::int64_t row = w.begin / w.columns;
  std::int64_t column = w.begin % w.columns;
  for (std::int64_t tile = 0; tile < w.tiles; ++tile) {
    // The last tiles reach beyond the rows and columns that are there.
    const std::int64_t y = w.first + row * kSize;
    const std::int64_t x = column * kSize;
    const std::int64_t height = w.last - y < kSize ? w.last - y : kSize;
    const std::int64_t width = w.width - x < kSize ? w.width - x : kSize;
    const float* from = w.transformed + tile * kBlock;
    const std::int64_t at = (y * w.width + x) * kBlock;
    for (int r = 0; r < kBlock; r += kLanes) {
      const Register bias = load(w.bias + r);
      Register half[kReach][kSize];  // A^T M, transposed
#pragma GCC unroll 1
      for (int j = 0; j < kReach; ++j) {
        Register m[kReach];
#pragma GCC unroll 8
        for (int i = 0; i < kReach; ++i) m[i] = load(from + (i * kReach + j) * w.plane + r);
        Transform<kSize>::output(m, half[j]);
      }
#pragma GCC unroll 1
      for (int i = 0; i < height; ++i) {
        Register m[kReach];
        Register sums[kSize];
#pragma GCC unroll 8
        for (int j = 0; j < kReach; ++j) m[j] = half[j][i];
        Transform<kSize>::output(m, sums);
        const std::int64_t line = at + i * w.width * kBlock + r;
#pragma GCC unroll 8
        for (int j = 0; j < kSize; ++j) {
          if (j >= width) break;
          Register sum = sums[j] + bias;
          if (w.residual != nullptr) sum += load(w.residual + line + j * kBlock);
          store(w.output + line + j * kBlock, at_most(at_least(sum, low), high));
        }
      }
    }
    if (++column == w.columns) {
      column = 0;
      ++row;
    }
  }
}

}  // namespace

void winograd_input(const WinogradInput& w) {
  if (w.size == 4) {
    transform_input<4>(w);
  } else {
    transform_input<2>(w);
  }
}

void winograd_output(const WinogradOutput& w) {
  if (w.size == 4) {
    transform_output<4>(w);
  } else {
    transform_output<2>(w);
  }
}

}  // namespace quern::QUERN_INSTRUCTIONS
