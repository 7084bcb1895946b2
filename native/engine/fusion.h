// From the nodes of the file to what is computed: nodes that only rename memory are gone, and what
// can be done while a result is still in registers or in the cache is done along with it.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/computation.h"
#include "engine/graph.h"

namespace quern {

struct FusedGraph {
  std::vector<Operation> operations;  // in an order in which each can be computed
  // By value: the value whose memory it is, itself for most.
  std::vector<std::size_t> memory_of;
};

// Activations join the convolution or sum before them, a sum joins the convolution before it, and
// the mean of a whole image is taken along with the convolution that makes it. Adds a value to
// `graph` where its input is needed in blocks.
FusedGraph fuse(Graph& graph);

}  // namespace quern
