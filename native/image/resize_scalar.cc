// The scalar twin, for every CPU.
#include <algorithm>

#include "image/resize_kernels.h"

namespace quern {
namespace {

constexpr std::int32_t kHalf = 1 << (kPrecisionBits - 1);

std::int32_t weight_at(const Weights* weights, int i) {
  const Weights& group = weights[i / 4];
  return group.high[i % 4] * (1 << kLowBits) + group.low[i % 4];
}

std::uint8_t clip(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
}

template <int kChannels>
void horizontal_row(const std::uint8_t* in, const Window* windows, int count,
                    const Weights* weights, std::uint8_t* out) {
  for (int x = 0; x < count; ++x) {
    const Window& window = windows[x];
    const std::uint8_t* pixels = in + static_cast<std::ptrdiff_t>(window.first) * kChannels;
    std::int32_t sums[kChannels];
    std::fill_n(sums, kChannels, kHalf);
    for (int i = 0; i < window.count; ++i) {
      const std::int32_t weight = weight_at(weights + window.weights, i);
      for (int k = 0; k < kChannels; ++k) sums[k] += *pixels++ * weight;
    }
    for (int k = 0; k < kChannels; ++k) *out++ = clip(sums[k]);
  }
}

void horizontal(const std::uint8_t* const* in, int channels, const Window* windows, int count,
                const Weights* weights, std::uint8_t* const* out) {
  for (int row = 0; row < kRowsTogether; ++row) {
    if (channels == 1) {
      horizontal_row<1>(in[row], windows, count, weights, out[row]);
    } else {
      horizontal_row<3>(in[row], windows, count, weights, out[row]);
    }
  }
}

void vertical(const std::uint8_t* const* in, const Weights* weights, int groups, int bytes,
              std::uint8_t* out) {
  constexpr int kBlock = 64;  // sums that stay in registers or the nearest cache
  for (int begin = 0; begin < bytes; begin += kBlock) {
    const int size = std::min(kBlock, bytes - begin);
    std::int32_t sums[kBlock];
    std::fill_n(sums, kBlock, kHalf);
    for (int i = 0; i < 4 * groups; ++i) {
      const std::int32_t weight = weight_at(weights, i);
      const std::uint8_t* row = in[i] + begin;
      for (int x = 0; x < size; ++x) sums[x] += row[x] * weight;
    }
    for (int x = 0; x < size; ++x) out[begin + x] = clip(sums[x]);
  }
}

}  // namespace

const ResizeKernels kScalarResize = {horizontal, vertical};

const ResizeKernels& best_resize_kernels() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return kAvx2Resize;
#endif
  return kScalarResize;
}

}  // namespace quern
