#include "fuzz/run_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <vector>

#include "engine/model.h"
#include "fuzz/allocations.h"
#include "fuzz/finding.h"
#include "fuzz/weights_mutator.h"

namespace quern::fuzz {
namespace {

constexpr std::size_t kSessionSlack = std::size_t{1} << 20U;  // its lists of addresses

double product(const Json& list) {
  double result = 1;
  for (const Json& item : list) result *= item.get<double>();
  return result;
}

// From above, for any operation: each output and each input element, as often as the kernel or the
// weights of one output channel have elements. `header` is of a file that was accepted.
double multiply_adds(const Json& header) {
  std::map<std::string, Json> tensors;
  for (const Json& tensor : header["tensors"]) tensors[tensor["name"]] = tensor["shape"];
  std::map<std::string, double> elements = {
      {header["input"]["name"], product(header["input"]["shape"])}};
  double sum = 0;
  for (const Json& node : header["nodes"]) {
    double touched = elements[node["output"]] = product(node["shape"]);
    for (const Json& input : node["inputs"]) touched += elements[input];
    double taps = 1;
    for (const Json& name : node["tensors"]) {
      const Json& shape = tensors[name];
      taps = std::max(taps, product(shape) / shape[0].get<double>());
    }
    if (node["attributes"].contains("kernel")) {
      taps = std::max(taps, product(node["attributes"]["kernel"]));
    }
    sum += touched * taps;
  }
  return sum;
}

// One of those that this machine has, by a byte of the file's digest: each gets its share.
InstructionSet some_instruction_set(std::span<const std::uint8_t> file) {
  constexpr std::size_t kInDigest = 40;
  const std::vector<InstructionSet> sets = instruction_sets();
  return sets[file.size() > kInDigest ? file[kInDigest] % sets.size() : 0];
}

std::shared_ptr<const Model> load(std::span<const std::uint8_t> file, WeightsRun& run) {
  const AllocationCounter counter;
  std::shared_ptr<const Model> model;
  try {
    model = Model::parse(file, some_instruction_set(file));
  } catch (const WeightsError& error) {
    run.refusal = error.what();
  } catch (const std::exception& error) {
    finding(std::string("the loader failed with something else than a refusal: ") + error.what());
  }
  run.load_bytes = counter.so_far().peak_bytes;
  if (run.load_bytes > load_bound(file.size())) {
    finding("loading a file of " + std::to_string(file.size()) + " bytes took " +
            std::to_string(run.load_bytes));
  }
  return model;
}

std::vector<float> logits(Session& session, const std::vector<float>& input) {
  const AllocationCounter counter;
  const std::span<const float> result = session.logits(input);
  const std::size_t count = counter.so_far().count;
  if (count != 0) finding("a forward pass took memory " + std::to_string(count) + " times");
  return {result.begin(), result.end()};
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

WeightsRun run_weights(std::span<const std::uint8_t> file, const Limits& limits) {
  WeightsRun run;
  const std::shared_ptr<const Model> model = load(file, run);
  if (model == nullptr) {
    check_sentence(run.refusal);
    return run;
  }
  const std::optional<WeightsParts> parts = take_apart(file);
  if (!parts) finding("a file was accepted that has no header");
  if (multiply_adds(parts->header) > limits.multiply_adds ||
      model->session_bytes() > limits.session_bytes) {
    run.outcome = Outcome::kTooLarge;
    return run;
  }
  run.outcome = Outcome::kRan;

  std::vector<float> plain(static_cast<std::size_t>(element_count(model->input_shape())));
  for (std::size_t i = 0; i < plain.size(); ++i) {
    plain[i] = static_cast<float>(i % 17) * 0.25F - 2.0F;
  }
  std::vector<float> extreme(plain.size());
  for (std::size_t i = 0; i < extreme.size(); ++i) extreme[i] = i % 2 == 0 ? 3e38F : -1e-40F;

  std::unique_ptr<Session> session;
  {
    const AllocationCounter counter;
    session = std::make_unique<Session>(model);
    run.run_bytes = counter.so_far().peak_bytes;
  }
  if (run.run_bytes > model->session_bytes() + kSessionSlack) {
    finding("a session took " + std::to_string(run.run_bytes) + " bytes, the model says " +
            std::to_string(model->session_bytes()));
  }
  const std::vector<float> first = logits(*session, plain);
  logits(*session, extreme);
  if (!same_bits(first, logits(*session, plain))) {
    finding("the logits depend on what ran before");
  }
  if (first.size() != model->classes().size()) finding("the logits are not as many as the classes");
  const std::vector<Prediction> best = top_k(softmax(first), 5);
  if (best.size() != std::min<std::size_t>(5, first.size())) finding("top_k gave another number");
  return run;
}

}  // namespace quern::fuzz
