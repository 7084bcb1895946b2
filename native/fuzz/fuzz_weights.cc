// libFuzzer target: a model_weights.bin with a right digest, through the loader, the planner and a
// forward pass of what loads.
#include <algorithm>
#include <cstring>

#include "fuzz/run_weights.h"
#include "fuzz/weights_mutator.h"

using namespace quern::fuzz;

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

constexpr Limits kLimits = {.multiply_adds = 2e6, .session_bytes = std::size_t{16} << 20U};

std::size_t mutated(std::span<const std::uint8_t> file, std::span<const std::uint8_t> donor,
                    std::uint8_t* out, std::size_t most, unsigned seed) {
  WeightsMutator::Random random(seed);
  WeightsMutator mutator(random, [](Bytes& bytes) {
    const std::size_t size = bytes.size();
    bytes.resize(size + 64);
    bytes.resize(LLVMFuzzerMutate(bytes.data(), size, bytes.size()));
  });
  const Bytes result = mutator.mutate(file, donor);
  const std::size_t size = std::min(most, result.size());
  std::memcpy(out, result.data(), size);
  return size;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes file(data, data + size);
  put_right_digest(file);
  run_weights(file, kLimits);
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  return mutated({data, size}, {data, size}, data, most, seed);
}

extern "C" std::size_t LLVMFuzzerCustomCrossOver(const std::uint8_t* data, std::size_t size,
                                                 const std::uint8_t* other, std::size_t other_size,
                                                 std::uint8_t* out, std::size_t most,
                                                 unsigned seed) {
  return mutated({data, size}, {other, other_size}, out, most, seed);
}
