// Where each element of a value lies in memory, whatever its shape: for computations that have no
// faster way through it than one element at a time. Private to this folder.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/computation.h"

namespace quern {

// Whether values of that shape are kept in blocks of channels; all others are dense.
inline bool in_blocks(const Shape& shape) { return shape.size() == 4 && shape[0] == 1; }

// How far an index along one axis leads; an element's offset is the sum over its axes.
struct AxisOffset {
  std::int64_t stride = 0;
  std::int64_t plane = 0;  // floats between blocks, where the axis is that of channels in blocks

  std::int64_t at(std::int64_t index) const {
    return plane == 0 ? index * stride : index / kBlock * plane + index % kBlock;
  }
};
using Axes = std::array<AxisOffset, kMaxRank>;

inline Axes dense_axes(const Shape& shape) {
  Axes axes = {};
  std::int64_t stride = 1;
  for (std::size_t axis = shape.size(); axis-- > 0; stride *= shape[axis]) {
    axes[axis].stride = stride;
  }
  return axes;
}

inline Axes memory_axes(const Shape& shape, const View& view) {
  if (!in_blocks(shape)) return dense_axes(shape);
  return {AxisOffset{}, AxisOffset{.plane = view.plane}, AxisOffset{.stride = shape[3] * kBlock},
          AxisOffset{.stride = kBlock}};
}

// Axes that stay at their first element wherever the value has only one.
inline Axes repeated(const Shape& shape, Axes axes) {
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] == 1) axes[axis] = {};
  }
  return axes;
}

// Calls visit(offsets), one offset for each of `values`, for all indices of `shape` in row-major
// order. `start` holds the offsets of the first element. Not inlined: the compiler would unroll the
// recursion to no gain.
template <std::size_t kCount, typename Visit>
[[gnu::noinline]] void walk(const Shape& shape, const std::array<Axes, kCount>& values,
                            const Visit& visit, const std::array<std::int64_t, kCount>& start = {},
                            std::size_t axis = 0) {
  std::array<AxisOffset, kCount> steps;
  for (std::size_t k = 0; k < kCount; ++k) steps[k] = values[k][axis];
  const bool last = axis + 1 == shape.size();
  for (std::int64_t index = 0; index < shape[axis]; ++index) {
    std::array<std::int64_t, kCount> offsets;
    for (std::size_t k = 0; k < kCount; ++k) offsets[k] = start[k] + steps[k].at(index);
    if (last) {
      visit(offsets);
    } else {
      walk(shape, values, visit, offsets, axis + 1);
    }
  }
}

// Zeros in the unused channels of the last block, in these rows.
inline void clear_unused(const Extent& extent, const View& view, Rows rows) {
  const std::int64_t used = extent.channels % kBlock;
  if (used == 0) return;
  float* block = view.data + extent.channels / kBlock * view.plane;
  float* last = block + rows.last * extent.row();
  for (float* pixel = block + rows.first * extent.row(); pixel < last; pixel += kBlock) {
    std::fill(pixel + used, pixel + kBlock, 0.0F);
  }
}

// The mean of each channel over all pixels: `mean` over [2, 3] and adaptive_average_pool2d to
// [1, 1] are the same. In pooling.cc.
std::unique_ptr<Computation> prepare_global_average(const Extent& extent, const Kernels& kernels);

}  // namespace quern
