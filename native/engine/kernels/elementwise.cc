// Functions of one number, sums and products of two, and the sums of a block's pixels.
#include "engine/kernels/kernel_functions.h"
#include "engine/kernels/vector.h"

namespace quern::QUERN_INSTRUCTIONS {
namespace {

inline Register negative(Register x) { return broadcast(0.0F) - x; }
inline Register absolute(Register x) { return x < broadcast(0.0F) ? negative(x) : x; }

// exp(x) to 2 units in the last place, in the way of Cephes' expf (Moshier): x = n ln 2 + r with
// |r| <= ln(2) / 2, a polynomial for exp(r), 2^n made of bits. Limits keep 2^n an ordinary number.
inline Register exponential(Register x) {
  // NaN passes through both limits, and through the polynomial.
  x = at_most(at_least(x, broadcast(-87.0F)), broadcast(88.0F));
  // Adding 1.5 * 2^23 leaves no bits for a fraction: it rounds to the nearest whole number.
  const Register magic = broadcast(12582912.0F);
  const Register shifted = x * 1.44269504088896341F + magic;
  const Register n = shifted - magic;
  // ln 2 in two parts, the first short enough that n times it is exact.
  Register r = x - n * 0.693359375F;
  r = r - n * -2.12194440e-4F;
  Register p = broadcast(1.9875691500e-4F);
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  Integers bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + (127 - 0x4B400000)) << 23;
  Register power;
  __builtin_memcpy(&power, &bits, sizeof(power));
  return p * power;
}

inline Register sigmoid(Register x) { return 1.0F / (1.0F + exponential(negative(x))); }

// For small x the difference below would cancel: there the series, up to x^7.
inline Register hyperbolic_tangent(Register x) {
  const Register square = x * x;
  const Register series =
      x * (1.0F + square * (-1.0F / 3 + square * (2.0F / 15 + square * (-17.0F / 315))));
  const Register whole = 1.0F - 2.0F / (exponential(x + x) + 1.0F);
  return absolute(x) < broadcast(0.1F) ? series : whole;
}

// erf(x) to 1.5e-7: Abramowitz and Stegun, formula 7.1.26.
inline Register error_function(Register x) {
  const Register size = absolute(x);
  const Register t = 1.0F / (1.0F + size * 0.3275911F);
  Register p = broadcast(1.061405429F);
  p = p * t + -1.453152027F;
  p = p * t + 1.421413741F;
  p = p * t + -0.284496736F;
  p = p * t + 0.254829592F;
  const Register value = 1.0F - p * t * exponential(negative(size * size));
  return x < broadcast(0.0F) ? negative(value) : value;
}

inline Register hardsigmoid(Register x) {
  return at_most(at_least(x + 3.0F, broadcast(0.0F)), broadcast(6.0F)) * (1.0F / 6.0F);
}

template <typename Function>
inline void each(const float* input, float* output, std::int64_t count, Function function) {
  for (std::int64_t i = 0; i < count; i += kLanes) store(output + i, function(load(input + i)));
}

template <typename Function>
inline void each_pair(const float* a, const float* b, std::int64_t b_step, float* output,
                      std::int64_t count, Function function) {
  if (b_step == 0) {  // one block of `b` for all
    Register right[kPerBlock];
#pragma GCC unroll kUnroll
    for (int r = 0; r < kPerBlock; ++r) right[r] = load(b + r * kLanes);
    for (std::int64_t i = 0; i < count; i += kBlock) {
#pragma GCC unroll kUnroll
      for (int r = 0; r < kPerBlock; ++r) {
        store(output + i + r * kLanes, function(load(a + i + r * kLanes), right[r]));
      }
    }
  } else {
    for (std::int64_t i = 0; i < count; i += kLanes) {
      store(output + i, function(load(a + i), load(b + i)));
    }
  }
}

}  // namespace

void activate(Activation activation, float slope, const float* input, float* output,
              std::int64_t count) {
  switch (activation) {
    case Activation::kNone:
      return each(input, output, count, [](Register x) { return x; });
    case Activation::kRelu:
      return each(input, output, count, [](Register x) { return at_least(x, broadcast(0.0F)); });
    case Activation::kRelu6:
      return each(input, output, count, [](Register x) {
        return at_most(at_least(x, broadcast(0.0F)), broadcast(6.0F));
      });
    case Activation::kLeakyRelu:
      return each(input, output, count,
                  [=](Register x) { return x < broadcast(0.0F) ? x * slope : x; });
    case Activation::kSilu:
      return each(input, output, count, [](Register x) { return x * sigmoid(x); });
    case Activation::kGelu:
      return each(input, output, count, [](Register x) {
        return 0.5F * x * (1.0F + error_function(x * 0.70710678118654752F));
      });
    case Activation::kGeluTanh:
      return each(input, output, count, [](Register x) {
        const Register inner = 0.79788456080286536F * (x + 0.044715F * x * x * x);
        return 0.5F * x * (1.0F + hyperbolic_tangent(inner));
      });
    case Activation::kHardswish:
      return each(input, output, count, [](Register x) { return x * hardsigmoid(x); });
    case Activation::kHardsigmoid:
      return each(input, output, count, [](Register x) { return hardsigmoid(x); });
    case Activation::kSigmoid:
      return each(input, output, count, [](Register x) { return sigmoid(x); });
    case Activation::kTanh:
      return each(input, output, count, [](Register x) { return hyperbolic_tangent(x); });
  }
}

void combine(Arithmetic arithmetic, const float* a, const float* b, std::int64_t b_step, float low,
             float high, float* output, std::int64_t count) {
  const auto limited = [&](Register x) {
    return at_most(at_least(x, broadcast(low)), broadcast(high));
  };
  switch (arithmetic) {
    case Arithmetic::kAdd:
      return each_pair(a, b, b_step, output, count,
                       [&](Register x, Register y) { return limited(x + y); });
    case Arithmetic::kSub:
      return each_pair(a, b, b_step, output, count,
                       [&](Register x, Register y) { return limited(x - y); });
    case Arithmetic::kMul:
      return each_pair(a, b, b_step, output, count,
                       [&](Register x, Register y) { return limited(x * y); });
  }
}

void accumulate(const float* input, std::int64_t pixels, float* sums) {
  // Four sums side by side: one would wait for each addition.
  for (int r = 0; r < kPerBlock; ++r) {
    const float* in = input + r * kLanes;
    Register sum[4] = {};
    std::int64_t pixel = 0;
    for (; pixel + 4 <= pixels; pixel += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[i] += load(in + (pixel + i) * kBlock);
    }
    for (; pixel < pixels; ++pixel) sum[0] += load(in + pixel * kBlock);
    store(sums + r * kLanes, load(sums + r * kLanes) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
  }
}

}  // namespace quern::QUERN_INSTRUCTIONS
