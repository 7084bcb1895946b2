// What a piece of code takes from the heap: the sanitizer's word, so that a bound on memory can be
// checked to the byte.
#pragma once

#include <cstddef>

namespace quern::fuzz {

struct Allocations {
  std::size_t count = 0;       // calls that took memory
  std::size_t peak_bytes = 0;  // the most that was held at once, beyond what was held before
};

// Counts this thread's allocations from construction to destruction. One at a time.
class AllocationCounter {
 public:
  AllocationCounter();
  ~AllocationCounter();
  AllocationCounter(const AllocationCounter&) = delete;
  AllocationCounter& operator=(const AllocationCounter&) = delete;

  Allocations so_far() const;
};

}  // namespace quern::fuzz
