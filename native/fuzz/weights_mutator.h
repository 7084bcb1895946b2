// Damages a weights file where its format has joints: the JSON header's values, the network's
// nodes, the tensors' shapes and contents; and puts sizes, offsets and digest right again most of
// the time, so that the damage reaches the code behind the first checks. It knows the container
// (docs/weight-format.md) and next to nothing of the operations: new ones come from other files.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <span>
#include <vector>

namespace quern::fuzz {

using Bytes = std::vector<std::uint8_t>;
using Json = nlohmann::json;

// A file in parts that can be changed one by one.
struct WeightsParts {
  Json header;
  std::vector<Bytes> contents;  // by entry of the header's "tensors": its bytes in the file
};

// std::nullopt when there is no header that is JSON.
std::optional<WeightsParts> take_apart(std::span<const std::uint8_t> file);

// The file of these parts, with sizes, offsets, lengths and digest as the format wants them: those
// in the header of `parts` are overwritten.
Bytes put_together(WeightsParts& parts);

// Writes the right digest over the 16 bytes at 32, where the file is long enough to have one.
void put_right_digest(Bytes& file);

class WeightsMutator {
 public:
  using Random = std::mt19937_64;
  // Damages some bytes; libFuzzer has its own way of it.
  using MutateBytes = std::function<void(Bytes&)>;

  WeightsMutator(Random& random, MutateBytes mutate_bytes)
      : random_(random), mutate_bytes_(std::move(mutate_bytes)) {}

  // A damaged copy of `file`; nodes and their tensors may be taken from `donor` too (which may be
  // the same file). The digest is right; the rest mostly.
  Bytes mutate(std::span<const std::uint8_t> file, std::span<const std::uint8_t> donor);

 private:
  std::size_t below(std::size_t n) { return random_() % n; }  // n > 0
  bool one_in(std::size_t n) { return below(n) == 0; }

  void mutate_parts(WeightsParts& parts, std::span<const std::uint8_t> donor);
  void break_layout(Bytes& file);
  void change_value(Json& header);
  void change_attribute(Json& header);
  void change_content(WeightsParts& parts);
  void change_tensor_shape(WeightsParts& parts);
  void change_input(Json& header);
  void add_node(WeightsParts& parts, std::span<const std::uint8_t> donor);
  void remove_node(Json& header);
  void rewire(Json& header);

  Json another(const Json& value, const Json& header);
  Json any_value();
  std::int64_t any_integer();
  Json small_shape(std::size_t rank);

  // Makes the declared shapes those that the engine infers, which its refusals tell; weights are
  // resized to what flows into them.
  void make_consistent(WeightsParts& parts);
  void resize(WeightsParts& parts, std::size_t tensor, const Json& shape);

  Random& random_;
  MutateBytes mutate_bytes_;
};

}  // namespace quern::fuzz
