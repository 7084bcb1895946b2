// The passes with AVX2. pmaddwd multiplies 16-bit numbers and adds neighbouring products: two input
// pixels a lane, once with the weights' low halves and once with the high ones.
#include <immintrin.h>

#include "image/resize_kernels.h"

namespace quern {
namespace {

// Two neighbouring weights of a group in each lane.
__m256i pair(const std::int16_t* weights) {
  int both = 0;
  __builtin_memcpy(&both, weights, sizeof(both));
  return _mm256_set1_epi32(both);
}

// Sums of the products with the low halves (and of one half of the result's unit, which rounds) and
// with the high ones.
struct Sums {
  __m256i low = _mm256_set1_epi32(1 << (kPrecisionBits - 1));
  __m256i high = _mm256_setzero_si256();

  void add(__m256i pixels, __m256i low_weights, __m256i high_weights) {
    low = _mm256_add_epi32(low, _mm256_madd_epi16(pixels, low_weights));
    high = _mm256_add_epi32(high, _mm256_madd_epi16(pixels, high_weights));
  }

  __m256i result() const {
    const __m256i sum = _mm256_add_epi32(low, _mm256_slli_epi32(high, kLowBits));
    return _mm256_srai_epi32(sum, kPrecisionBits);
  }
};

// 16 bytes of each of two rows.
__m256i load_two(const std::uint8_t* one, const std::uint8_t* other) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(one));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(other));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

int load_four(const std::uint8_t* in) {
  int bytes = 0;
  __builtin_memcpy(&bytes, in, sizeof(bytes));
  return bytes;
}

void store_four(int bytes, std::uint8_t* out) { __builtin_memcpy(out, &bytes, sizeof(bytes)); }

// Four input pixels a step. A lane holds one channel of one row: red, green, blue, nothing.
void horizontal_rgb(const std::uint8_t* const* in, const Window* windows, int count,
                    const Weights* weights, std::uint8_t* const* out) {
  // From four pixels of 3 bytes: the first two, and the last two, by channel, as 16 bits.
  const __m256i first_two = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  const __m256i last_two = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
  const std::uint8_t *in0 = in[0], *in1 = in[1], *in2 = in[2], *in3 = in[3];
  std::uint8_t *out0 = out[0], *out1 = out[1], *out2 = out[2], *out3 = out[3];
  for (int x = 0; x < count; ++x) {
    const Weights* group = weights + windows[x].weights;
    const Weights* const end = group + (windows[x].count + 3) / 4;
    std::ptrdiff_t byte = static_cast<std::ptrdiff_t>(windows[x].first) * 3;
    Sums a, b;  // of rows 0 and 1, and of rows 2 and 3
    for (; group < end; ++group, byte += 12) {
      const __m256i low0 = pair(group->low), low1 = pair(group->low + 2);
      const __m256i high0 = pair(group->high), high1 = pair(group->high + 2);
      const __m256i pixels_a = load_two(in0 + byte, in1 + byte);
      const __m256i pixels_b = load_two(in2 + byte, in3 + byte);
      a.add(_mm256_shuffle_epi8(pixels_a, first_two), low0, high0);
      b.add(_mm256_shuffle_epi8(pixels_b, first_two), low0, high0);
      a.add(_mm256_shuffle_epi8(pixels_a, last_two), low1, high1);
      b.add(_mm256_shuffle_epi8(pixels_b, last_two), low1, high1);
    }
    const __m256i words = _mm256_packs_epi32(a.result(), b.result());
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const __m128i rows02 = _mm256_castsi256_si128(bytes);
    const __m128i rows13 = _mm256_extracti128_si256(bytes, 1);
    // The fourth byte of each is overwritten by the next pixel.
    store_four(_mm_cvtsi128_si32(rows02), out0 + 3 * x);
    store_four(_mm_cvtsi128_si32(rows13), out1 + 3 * x);
    store_four(_mm_extract_epi32(rows02, 1), out2 + 3 * x);
    store_four(_mm_extract_epi32(rows13, 1), out3 + 3 * x);
  }
}

// Four weights, once for each of four rows.
__m256i four(const std::int16_t* weights) {
  long long all = 0;
  __builtin_memcpy(&all, weights, sizeof(all));
  return _mm256_set1_epi64x(all);
}

// Four input pixels a step. Two neighbouring lanes hold one row: its even and its odd pairs.
void horizontal_gray(const std::uint8_t* const* in, const Window* windows, int count,
                     const Weights* weights, std::uint8_t* const* out) {
  const std::uint8_t *in0 = in[0], *in1 = in[1], *in2 = in[2], *in3 = in[3];
  std::uint8_t *out0 = out[0], *out1 = out[1], *out2 = out[2], *out3 = out[3];
  for (int x = 0; x < count; ++x) {
    const Weights* group = weights + windows[x].weights;
    const Weights* const end = group + (windows[x].count + 3) / 4;
    std::ptrdiff_t first = windows[x].first;
    Sums both;
    both.low = _mm256_srli_epi32(both.low, 1);  // for both lanes together
    for (; group < end; ++group, first += 4) {
      const __m128i pixels = _mm_setr_epi32(load_four(in0 + first), load_four(in1 + first),
                                            load_four(in2 + first), load_four(in3 + first));
      both.add(_mm256_cvtepu8_epi16(pixels), four(group->low), four(group->high));
    }
    const __m256i lanes = _mm256_add_epi32(both.low, _mm256_slli_epi32(both.high, kLowBits));
    const __m256i sums = _mm256_srai_epi32(_mm256_hadd_epi32(lanes, lanes), kPrecisionBits);
    const __m256i words = _mm256_packs_epi32(sums, sums);
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const int rows01 = _mm_cvtsi128_si32(_mm256_castsi256_si128(bytes));
    const int rows23 = _mm_cvtsi128_si32(_mm256_extracti128_si256(bytes, 1));
    out0[x] = static_cast<std::uint8_t>(rows01);
    out1[x] = static_cast<std::uint8_t>(rows01 >> 8);
    out2[x] = static_cast<std::uint8_t>(rows23);
    out3[x] = static_cast<std::uint8_t>(rows23 >> 8);
  }
}

void horizontal(const std::uint8_t* const* in, int channels, const Window* windows, int count,
                const Weights* weights, std::uint8_t* const* out) {
  if (channels == 3) {
    horizontal_rgb(in, windows, count, weights, out);
  } else {
    horizontal_gray(in, windows, count, weights, out);
  }
}

// 32 bytes of each row a step.
void vertical(const std::uint8_t* const* in, const Weights* weights, int groups, int bytes,
              std::uint8_t* out) {
  const __m256i zero = _mm256_setzero_si256();
  for (int x = 0; x < bytes; x += 32) {
    Sums a, b, c, d;  // of bytes 0-3, 4-7, 8-11 and 12-15 of either half
    for (int i = 0; i < 2 * groups; ++i) {
      const __m256i low = pair(weights[i / 2].low + i % 2 * 2);
      const __m256i high = pair(weights[i / 2].high + i % 2 * 2);
      const __m256i one = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in[2 * i] + x));
      const __m256i other = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in[2 * i + 1] + x));
      const __m256i first = _mm256_unpacklo_epi8(one, other);
      const __m256i last = _mm256_unpackhi_epi8(one, other);
      a.add(_mm256_unpacklo_epi8(first, zero), low, high);
      b.add(_mm256_unpackhi_epi8(first, zero), low, high);
      c.add(_mm256_unpacklo_epi8(last, zero), low, high);
      d.add(_mm256_unpackhi_epi8(last, zero), low, high);
    }
    const __m256i words0 = _mm256_packs_epi32(a.result(), b.result());
    const __m256i words1 = _mm256_packs_epi32(c.result(), d.result());
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + x), _mm256_packus_epi16(words0, words1));
  }
}

}  // namespace

const ResizeKernels kAvx2Resize = {horizontal, vertical};

}  // namespace quern
