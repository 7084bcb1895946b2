// What follows the sums of a convolution, whichever way they are made: the activation and the
// means. Private to this folder.
#pragma once

#include "engine/computation.h"

namespace quern {

class Finish {
 public:
  Finish(const Operation& operation, const Graph& graph, const Kernels& kernels);

  // The limits that the kernels keep to, for ReLU and ReLU6.
  float low, high;

  // What they don't do, in these blocks and rows; those of one block come in order.
  void rest(const Arguments& arguments, std::int64_t first_block, std::int64_t blocks,
            Rows rows) const;

 private:
  const Kernels& kernels_;
  Extent out_;
  Activation activation_;
  float slope_;
};

}  // namespace quern
