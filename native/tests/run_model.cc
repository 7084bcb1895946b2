// Runs a model_weights.bin on one instruction set, for the tests of those that this machine's own
// CPU lacks: the program runs in an emulator.
//   run_model WEIGHTS INSTRUCTIONS
// Standard input: float32 [1, C, H, W], any number of them one after the other; output: float32
// [classes] for each; both in the machine's byte order. Ends with 1 and a line on bad input.
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/model.h"

namespace {

quern::InstructionSet named(const std::string& name) {
  std::string all;
  for (const quern::InstructionSet set : quern::instruction_sets()) {
    if (quern::name_of(set) == name) return set;
    all.append(" ").append(quern::name_of(set));
  }
  throw std::invalid_argument("no instruction set " + name + " here; there are:" + all);
}

void run(const char* weights, const char* instructions) {
  const auto model = quern::Model::load(weights, named(instructions));
  quern::Session session(model);
  const quern::Shape& shape = model->input_shape();
  std::vector<float> input(static_cast<std::size_t>(quern::element_count(shape)));
  while (const std::size_t count = std::fread(input.data(), sizeof(float), input.size(), stdin)) {
    if (count < input.size()) throw std::invalid_argument("the last input is cut off");
    const auto logits = session.logits(input);
    if (std::fwrite(logits.data(), sizeof(float), logits.size(), stdout) != logits.size()) {
      throw std::runtime_error("cannot write the logits");
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: run_model WEIGHTS INSTRUCTIONS <inputs >logits\n");
    return 1;
  }
  try {
    run(arguments[1], arguments[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run_model: %s\n", error.what());
    return 1;
  }
  return 0;
}
