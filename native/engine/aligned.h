// Memory for floats aligned to 64 bytes (a cache line, and the widest vector register).
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace quern {

struct FreeAligned {
  void operator()(float* memory) const { ::operator delete (memory, std::align_val_t{64}); }
};

using AlignedFloats = std::unique_ptr<float[], FreeAligned>;

// `count` floats, not initialised.
inline AlignedFloats allocate_floats(std::size_t count) {
  return AlignedFloats(
      static_cast<float*>(::operator new (count * sizeof(float), std::align_val_t{64})));
}

}  // namespace quern
