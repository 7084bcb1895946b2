// The greatest or the average number of a window, for each channel by itself.
#include "engine/kernels/kernel_functions.h"
#include "engine/kernels/vector.h"

namespace quern::QUERN_INSTRUCTIONS {
namespace {

struct Span {
  std::int64_t first, last;
};

// The taps of one axis that fall inside [0, size) from `start` on.
Span inside(std::int64_t start, std::int64_t dilation, std::int64_t kernel, std::int64_t size) {
  Span taps = {0, kernel};
  while (taps.first < kernel && start + taps.first * dilation < 0) ++taps.first;
  while (taps.last > taps.first && start + (taps.last - 1) * dilation >= size) --taps.last;
  return taps;
}

// How many taps an average counts on one axis: torch's window ends with the padding.
std::int64_t counted(const Span& taps, bool padding, std::int64_t start, std::int64_t kernel,
                     std::int64_t end) {
  if (!padding) return taps.last - taps.first;
  return start + kernel < end ? kernel : end - start;
}

template <bool kMaximum>
void window(const Pool& p, const float* rows, const Span& down, const Span& across, float divisor,
            float* output) {
  for (int r = 0; r < kPerBlock; ++r) {
    Register value = broadcast(kMaximum ? -__builtin_inff() : 0.0F);
    for (std::int64_t y = down.first; y < down.last; ++y) {
      const float* in = rows + y * p.dilation_y * p.in_width * kBlock + r * kLanes;
      for (std::int64_t x = across.first; x < across.last; ++x) {
        const Register next = load(in + x * p.dilation_x * kBlock);
        if constexpr (kMaximum) {
          value = (next > value) | (next != next) ? next : value;  // NaN wins, as in torch
        } else {
          value += next;
        }
      }
    }
    store(output + r * kLanes, kMaximum ? value : value / divisor);
  }
}

}  // namespace

void pool(const Pool& p) {
  for (std::int64_t y = p.first; y < p.last; ++y) {
    const std::int64_t top = y * p.stride_y - p.top;
    const Span down = inside(top, p.dilation_y, p.kernel_height, p.in_height);
    const std::int64_t high =
        counted(down, p.count_padding, top, p.kernel_height, p.in_height + p.bottom);
    for (std::int64_t x = 0; x < p.out_width; ++x) {
      const std::int64_t left = x * p.stride_x - p.left;
      const Span across = inside(left, p.dilation_x, p.kernel_width, p.in_width);
      const std::int64_t wide =
          counted(across, p.count_padding, left, p.kernel_width, p.in_width + p.right);
      const float* rows = p.input + (top * p.in_width + left) * kBlock;
      float* output = p.output + (y * p.out_width + x) * kBlock;
      if (p.maximum) {
        window<true>(p, rows, down, across, 1.0F, output);
      } else {
        const std::int64_t divisor = p.divisor > 0 ? p.divisor : high * wide;
        window<false>(p, rows, down, across, static_cast<float>(divisor), output);
      }
    }
  }
}

}  // namespace quern::QUERN_INSTRUCTIONS
