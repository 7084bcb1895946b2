// What a server holds: one Model, loaded once and shared by all threads, and one Session a thread,
// which is nothing but the memory for a forward pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/graph.h"
#include "engine/instructions.h"
#include "image/preprocess.h"

namespace quern {

// An immutable network with its class labels and preprocessing.
class Model {
 public:
  // Reads and checks a model_weights.bin. Throws WeightsError with one sentence that names `path`.
  static std::shared_ptr<const Model> load(const std::string& path,
                                           InstructionSet instructions = best_instruction_set());
  // The same from a file's bytes (copied). Throws WeightsError with one sentence.
  static std::shared_ptr<const Model> parse(std::span<const std::uint8_t> file,
                                            InstructionSet instructions = best_instruction_set());

  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const Shape& input_shape() const;  // [1, C, H, W]
  int channels() const;
  int height() const;
  int width() const;
  const std::vector<std::string>& classes() const;  // labels, in the order of the logits
  const Preprocess& preprocess() const;
  const std::string& weights_digest() const;  // of the whole file's bytes as read
  InstructionSet instructions() const;
  std::size_t session_bytes() const;  // what each Session allocates

 private:
  friend class Session;
  struct Parts;
  explicit Model(std::unique_ptr<Parts> parts);
  static std::shared_ptr<const Model> prepare(std::unique_ptr<Parts> parts);
  std::unique_ptr<const Parts> parts_;
};

// One forward pass at a time. Not for use by two threads at once; allocates only when constructed.
class Session {
 public:
  explicit Session(std::shared_ptr<const Model> model);
  ~Session();
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;

  const Model& model() const { return *model_; }

  // Room for an input, float32 [1, C, H, W], in the session's own memory; a call of logits() leaves
  // other numbers there.
  std::span<float> input();
  // input: float32 [1, C, H, W], already preprocessed, not copied: input(), or memory elsewhere.
  // Result: float32 [classes], valid until the next call or the end of the session (or of the
  // input).
  // Throws std::invalid_argument when the input has another number of elements.
  std::span<const float> logits(std::span<const float> input);

 private:
  struct Memory;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<Memory> memory_;
};

struct Prediction {
  std::size_t class_id = 0;
  float score = 0.0F;
};

// Softmax over all classes, float32 [n] -> float32 [n], computed in float64.
std::vector<float> softmax(std::span<const float> logits);

// The `k` highest scores (all, when there are fewer), highest first, equal scores by class id.
std::vector<Prediction> top_k(std::span<const float> scores, std::size_t k);

}  // namespace quern
