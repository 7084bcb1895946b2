#include "fuzz/allocations.h"

#include <sanitizer/allocator_interface.h>

#include <algorithm>
#include <cstdint>

namespace quern::fuzz {
namespace {

thread_local bool counting = false;
std::size_t count = 0;
std::int64_t held = 0;
std::int64_t peak = 0;

void on_malloc(const volatile void*, std::size_t size) {
  if (!counting) return;
  ++count;
  held += static_cast<std::int64_t>(size);
  peak = std::max(peak, held);
}

void on_free(const volatile void* memory) {
  if (!counting || memory == nullptr) return;
  held -=
      static_cast<std::int64_t>(__sanitizer_get_allocated_size(const_cast<const void*>(memory)));
}

}  // namespace

AllocationCounter::AllocationCounter() {
  [[maybe_unused]] static const int kInstalled =
      __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
  count = 0;
  held = 0;
  peak = 0;
  counting = true;
}

AllocationCounter::~AllocationCounter() { counting = false; }

Allocations AllocationCounter::so_far() const { return {count, static_cast<std::size_t>(peak)}; }

}  // namespace quern::fuzz
