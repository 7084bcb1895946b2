#include "engine/model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "engine/aligned.h"
#include "engine/kernels.h"
#include "engine/planner.h"
#include "engine/weights_file.h"

namespace quern {

struct Model::Parts {
  WeightsFile file;
  Plan plan;
  std::vector<std::unique_ptr<Kernel>> kernels;  // by node; nullptr where there is nothing to do
};

Model::Model(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Model::~Model() = default;

std::shared_ptr<const Model> Model::prepare(std::unique_ptr<Parts> parts) {
  const Graph& graph = parts->file.graph;
  parts->plan = plan_memory(graph);
  for (const Node& node : graph.nodes) {
    parts->kernels.push_back(node.op->prepare == nullptr ? nullptr : node.op->prepare(node, graph));
  }
  return std::shared_ptr<const Model>(new Model(std::move(parts)));
}

std::shared_ptr<const Model> Model::load(const std::string& path) {
  auto parts = std::make_unique<Parts>();
  parts->file = read_weights_file(path);
  try {
    return prepare(std::move(parts));
  } catch (const WeightsError& error) {
    throw WeightsError(path + ": " + error.what());
  }
}

std::shared_ptr<const Model> Model::parse(std::span<const std::uint8_t> file) {
  auto parts = std::make_unique<Parts>();
  parts->file = parse_weights(file);
  return prepare(std::move(parts));
}

const Shape& Model::input_shape() const { return parts_->file.graph.values[0].shape; }
int Model::channels() const { return static_cast<int>(input_shape()[1]); }
int Model::height() const { return static_cast<int>(input_shape()[2]); }
int Model::width() const { return static_cast<int>(input_shape()[3]); }
const std::vector<std::string>& Model::classes() const { return parts_->file.classes; }
const Preprocess& Model::preprocess() const { return parts_->file.preprocess; }
const std::string& Model::weights_digest() const { return parts_->file.digest; }
std::size_t Model::session_bytes() const { return parts_->plan.arena_floats * sizeof(float); }

struct Session::Memory {
  AlignedFloats arena;
  std::vector<const float*> inputs;  // of the node that runs
};

Session::Session(std::shared_ptr<const Model> model)
    : model_(std::move(model)), memory_(std::make_unique<Memory>()) {
  const Model::Parts& parts = *model_->parts_;
  memory_->arena = allocate_floats(parts.plan.arena_floats);
  // Touches every page now rather than in the first request.
  std::fill_n(memory_->arena.get(), parts.plan.arena_floats, 0.0F);
  std::size_t most = 0;
  for (const Node& node : parts.file.graph.nodes) most = std::max(most, node.inputs.size());
  memory_->inputs.resize(most);
}

Session::~Session() = default;
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;

std::span<const float> Session::logits(std::span<const float> input) {
  const Model::Parts& parts = *model_->parts_;
  const Graph& graph = parts.file.graph;
  const auto wanted = static_cast<std::size_t>(element_count(model_->input_shape()));
  if (input.size() != wanted) {
    throw std::invalid_argument("the input has " + std::to_string(input.size()) +
                                " elements, the model takes " + to_string(model_->input_shape()));
  }
  const auto address = [&](std::size_t value) {
    const std::size_t offset = parts.plan.offsets[value];
    return offset == Plan::kIsInput ? input.data() : memory_->arena.get() + offset;
  };
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    if (parts.kernels[i] == nullptr) continue;
    const Node& node = graph.nodes[i];
    for (std::size_t k = 0; k < node.inputs.size(); ++k) {
      memory_->inputs[k] = address(node.inputs[k]);
    }
    parts.kernels[i]->run({memory_->inputs.data(), node.inputs.size()},
                          memory_->arena.get() + parts.plan.offsets[node.output]);
  }
  return {address(graph.output), model_->classes().size()};
}

std::vector<float> softmax(std::span<const float> logits) {
  std::vector<float> scores(logits.size());
  if (logits.empty()) return scores;
  // The largest logit is taken off first so that exp cannot overflow.
  const auto largest = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  std::transform(logits.begin(), logits.end(), scores.begin(), [&](float logit) {
    return static_cast<float>(std::exp(static_cast<double>(logit) - largest) / sum);
  });
  return scores;
}

std::vector<Prediction> top_k(std::span<const float> scores, std::size_t k) {
  std::vector<Prediction> all(scores.size());
  for (std::size_t i = 0; i < scores.size(); ++i) all[i] = {i, scores[i]};
  const auto middle = all.begin() + static_cast<std::ptrdiff_t>(std::min(k, all.size()));
  // NaN sorts last: without a rule for it the order would not be one.
  const auto rank = [](float score) {
    return std::isnan(score) ? -std::numeric_limits<float>::infinity() : score;
  };
  std::partial_sort(all.begin(), middle, all.end(), [&](const Prediction& a, const Prediction& b) {
    return rank(a.score) != rank(b.score) ? rank(a.score) > rank(b.score) : a.class_id < b.class_id;
  });
  all.erase(middle, all.end());
  return all;
}

}  // namespace quern
