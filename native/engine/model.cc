#include "engine/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "engine/aligned.h"
#include "engine/computation.h"
#include "engine/fusion.h"
#include "engine/schedule.h"
#include "engine/weights_file.h"

namespace quern {

namespace {

// What the computations hold of weights, all together: the layout pads, and a file may name one
// tensor many times.
constexpr std::size_t kMaxWeightFloats = std::size_t{1} << 29;  // 2 GiB

// The constants of the graph, laid out as values are.
struct Constants {
  AlignedFloats memory;
  std::vector<std::size_t> offsets;  // by value, kNoConstant where it is none
};

Constants lay_out_constants(const Graph& graph) {
  Constants constants;
  constants.offsets.assign(graph.values.size(), kNoConstant);
  std::size_t floats = 0;
  for (const Node& node : graph.nodes) {
    if (node.op->kind != OpKind::kConstant) continue;
    constants.offsets[node.output] = floats;
    floats += static_cast<std::size_t>(extent_of(graph, node.output).floats());
    if (floats > kMaxWeightFloats) refuse(node, "the constants take more than 2 GiB");
  }
  constants.memory = allocate_floats(floats);
  std::fill_n(constants.memory.get(), floats, 0.0F);
  for (const Node& node : graph.nodes) {
    if (node.op->kind != OpKind::kConstant) continue;
    const Extent extent = extent_of(graph, node.output);
    const float* from = tensor(node, graph, "value").data.data();
    float* to = constants.memory.get() + constants.offsets[node.output];
    for (std::int64_t c = 0; c < extent.channels; ++c) {
      for (std::int64_t y = 0; y < extent.height; ++y) {
        for (std::int64_t x = 0; x < extent.width; ++x) to[extent.offset(c, y, x)] = *from++;
      }
    }
  }
  return constants;
}

}  // namespace

struct Model::Parts {
  WeightsFile file;  // without its tensors, once they are packed
  InstructionSet instructions = InstructionSet::kScalar;
  Constants constants;
  std::vector<std::unique_ptr<Computation>> computations;  // by operation
  Schedule schedule;
};

Model::Model(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Model::~Model() = default;

std::shared_ptr<const Model> Model::prepare(std::unique_ptr<Parts> parts) {
  Graph& graph = parts->file.graph;
  const FusedGraph fused = fuse(graph);
  parts->constants = lay_out_constants(graph);
  const Kernels& kernels = kernels_of(parts->instructions);
  std::size_t floats = 0;
  for (const Operation& operation : fused.operations) {
    parts->computations.push_back(quern::prepare(operation, graph, kernels));
    floats += parts->computations.back()->weight_floats();
    if (floats > kMaxWeightFloats) {
      throw WeightsError("the weights take more than 2 GiB in the engine's layout");
    }
  }
  parts->schedule = make_schedule(graph, fused, parts->computations, parts->constants.offsets);
  parts->file.release_tensors();
  return std::shared_ptr<const Model>(new Model(std::move(parts)));
}

std::shared_ptr<const Model> Model::load(const std::string& path, InstructionSet instructions) {
  auto parts = std::make_unique<Parts>();
  parts->instructions = instructions;
  parts->file = read_weights_file(path);
  try {
    return prepare(std::move(parts));
  } catch (const WeightsError& error) {
    throw WeightsError(path + ": " + error.what());
  } catch (const std::bad_alloc&) {
    throw WeightsError(path + ": not enough memory to load it");
  }
}

std::shared_ptr<const Model> Model::parse(std::span<const std::uint8_t> file,
                                          InstructionSet instructions) {
  auto parts = std::make_unique<Parts>();
  parts->instructions = instructions;
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
InstructionSet Model::instructions() const { return parts_->instructions; }
std::size_t Model::session_bytes() const {
  return static_cast<std::size_t>(parts_->schedule.arena_floats) * sizeof(float);
}

struct Session::Memory {
  AlignedFloats arena;
  std::vector<View> inputs;  // of the step that runs
};

Session::Session(std::shared_ptr<const Model> model)
    : model_(std::move(model)), memory_(std::make_unique<Memory>()) {
  const Schedule& schedule = model_->parts_->schedule;
  const auto floats = static_cast<std::size_t>(schedule.arena_floats);
  memory_->arena = allocate_floats(floats);
  // Touches every page now rather than in the first request; and what is never written is finite.
  std::fill_n(memory_->arena.get(), floats, 0.0F);
  std::size_t most = 0;
  for (const Step& step : schedule.steps) most = std::max(most, step.inputs.size());
  memory_->inputs.resize(most);
}

Session::~Session() = default;
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;

std::span<float> Session::input() {
  return {memory_->arena.get() + model_->parts_->schedule.input,
          static_cast<std::size_t>(element_count(model_->input_shape()))};
}

std::span<const float> Session::logits(std::span<const float> input) {
  const Model::Parts& parts = *model_->parts_;
  const auto wanted = static_cast<std::size_t>(element_count(model_->input_shape()));
  if (input.size() != wanted) {
    throw std::invalid_argument("the input has " + std::to_string(input.size()) +
                                " elements, the model takes " + to_string(model_->input_shape()));
  }
  float* const arena = memory_->arena.get();
  const auto view = [&](const Place& place) -> View {
    switch (place.memory) {
      case Place::Memory::kArena:
        return {arena + place.offset, place.plane};
      case Place::Memory::kInput:  // only ever read
        return {const_cast<float*>(input.data()), place.plane};
      case Place::Memory::kConstants:
        return {parts.constants.memory.get() + place.offset, place.plane};
      default:
        return {};
    }
  };
  for (const Step& step : parts.schedule.steps) {
    for (const Step::Move& move : step.moves) {
      for (std::int64_t block = 0; block < move.blocks; ++block) {
        float* const plane = arena + block * move.plane;
        std::memmove(plane + move.to, plane + move.from,
                     static_cast<std::size_t>(move.floats) * sizeof(float));
      }
    }
    for (std::size_t i = 0; i < step.inputs.size(); ++i) memory_->inputs[i] = view(step.inputs[i]);
    parts.computations[step.operation]->run({{memory_->inputs.data(), step.inputs.size()},
                                             view(step.output),
                                             view(step.means).data,
                                             step.rows,
                                             arena + parts.schedule.scratch});
  }
  return {view(parts.schedule.result).data, model_->classes().size()};
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
