// The machine's own peak: the single-precision multiply-adds a core does when it does nothing else.
// A line in, a turn of some milliseconds, GFLOP/s of CPU time out; until the end of the input.
#include <ctime>
#include <iostream>
#include <string>

// The widest vectors the compiler knows here, and as many independent sums as fit in the registers
// beside the factors: more than latency times issue rate, so that no multiply-add waits for another.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kSums = 24;
#elif defined(__AVX__)
constexpr int kLanes = 8, kSums = 12;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kSums = 24;
#else
constexpr int kLanes = 4, kSums = 12;
#endif
using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));

static double cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

__attribute__((noinline)) static void multiply_add(Vector (&result)[kSums], int repeats) {
  Vector sums[kSums];
  for (int k = 0; k < kSums; ++k) sums[k] = result[k];
  const Vector factor = result[0] * 0.0F + 0.999F, term = factor * 0.5F;
  for (int repeat = 0; repeat < repeats; ++repeat) {
#pragma GCC unroll 24
    for (int k = 0; k < kSums; ++k) sums[k] = sums[k] * factor + term;
  }
  for (int k = 0; k < kSums; ++k) result[k] = sums[k];
}

int main() {
  constexpr int kRepeats = 1'000'000;
  Vector result[kSums] = {};
  std::string line;
  while (std::getline(std::cin, line)) {
    const double start = cpu_seconds();
    multiply_add(result, kRepeats);
    const double seconds = cpu_seconds() - start;
    // The sums are read, so that computing them cannot be left out.
    if (result[0][0] != result[kSums - 1][0]) return 1;
    std::cout << 2e-9 * kLanes * kSums * kRepeats / seconds << std::endl;
  }
}
