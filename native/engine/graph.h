// The network as plain data: what model_weights.bin says, and what the engine
// is made from. Nothing here computes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace quern {

// A weights file (or a graph in it) that is not what the format says. what() is one sentence.
class WeightsError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using Shape = std::vector<std::int64_t>;

// Bounds on what a weights file may ask for. A larger network is refused, not tried.
inline constexpr std::size_t kMaxRank = 6;                                // of values and tensors
inline constexpr std::int64_t kMaxValueElements = std::int64_t{1} << 26;  // 256 MiB as float32

std::int64_t element_count(const Shape& shape);  // of a shape that was checked: cannot overflow
std::string to_string(const Shape& shape);       // "[1,3,32,32]", for messages
std::string in_quotes(const std::string& name);  // a name from a file, safe to print on one line

// What flows between nodes: float32, of rank 1 to kMaxRank and at most kMaxValueElements elements.
// The first dimension is 1 except in what a `constant` holds. Images are [1, C, H, W], vectors
// [1, n], whatever the layout in memory.
struct Value {
  std::string name;
  Shape shape;
};

// A constant of the network: float32, native byte order, memory aligned to 64 bytes.
struct Tensor {
  std::string name;
  Shape shape;
  std::span<const float> data;
};

struct Operator;  // operators.h

struct Node {
  const Operator* op = nullptr;
  std::string name;                 // the module's path in the user's model, for messages
  std::vector<std::size_t> inputs;  // indices into Graph::values
  std::size_t output = 0;           // index into Graph::values
  std::map<std::string, std::size_t, std::less<>> tensors;  // role -> index into Graph::tensors
  // A plain integer is a list of one.
  std::map<std::string, std::vector<std::int64_t>, std::less<>> attributes;
  std::map<std::string, float, std::less<>> numbers;  // attributes that are numbers, all finite
};

struct Graph {
  std::vector<Value> values;  // values[0] is the input, [1, C, H, W]
  std::vector<Node> nodes;    // in topological order
  std::vector<Tensor> tensors;
  std::size_t output = 0;  // index into values, [1, classes]
};

}  // namespace quern
