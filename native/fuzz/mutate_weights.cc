// Damages weights files by the thousand, the same way for the same seed, and counts what becomes of
// them:
//   mutate_weights COUNT SEED FILE...
// Each damaged file is tried twice: with its digest made right, so that the parser is reached, and
// with the digest of the file it was made from, which must be refused as damaged. Prints one JSON
// object; dies on a finding (run_weights.h) or of a sanitizer.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <set>
#include <string>

#include "engine/weights_file.h"
#include "fuzz/finding.h"
#include "fuzz/run_weights.h"
#include "fuzz/weights_mutator.h"

namespace {

using namespace quern;
using namespace quern::fuzz;

constexpr Limits kLimits = {.multiply_adds = 2e8, .session_bytes = std::size_t{1} << 30U};

Bytes read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// A few bytes changed, seldom inserted or taken out.
void mutate_bytes(Bytes& bytes, WeightsMutator::Random& random) {
  for (std::size_t changes = 1 + random() % 3; changes > 0; --changes) {
    const std::size_t at = random() % (bytes.size() + 1);
    const auto byte = static_cast<std::uint8_t>(random());
    const std::size_t kind = random() % 16;
    if (kind == 0 || at == bytes.size()) {
      bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), byte);
    } else if (kind == 1) {
      bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(at));
    } else {
      bytes[at] = kind % 2 == 0 ? byte : bytes[at] ^ 1U;
    }
  }
}

// The refusal with its names and numbers taken out: which check it was that refused.
std::string kind_of(const std::string& refusal) {
  std::string kind;
  bool quoted = false;
  for (const char c : refusal) {
    if (c == '"') quoted = !quoted;
    if (!quoted && (c < '0' || c > '9')) kind += c;
  }
  return kind;
}

void refused_by_digest(Bytes file, const Bytes& original) {
  constexpr std::ptrdiff_t kDigest = 32;
  constexpr std::ptrdiff_t kDigestEnd = 48;
  if (file.size() >= kDigestEnd) {
    std::copy(original.begin() + kDigest, original.begin() + kDigestEnd, file.begin() + kDigest);
  }
  try {
    parse_weights(file);
  } catch (const WeightsError& error) {
    check_sentence(error.what());
    return;
  }
  finding("a damaged file with the digest left alone was accepted");
}

void run(std::size_t count, std::size_t seed, const std::vector<Bytes>& originals) {
  std::size_t refused = 0, ran = 0, too_large = 0, load_bytes = 0, run_bytes = 0;
  std::set<std::string> kinds;
  WeightsMutator::Random random(seed);
  WeightsMutator mutator(random, [&](Bytes& bytes) { mutate_bytes(bytes, random); });
  const Bytes* original = nullptr;
  Bytes file;
  for (std::size_t i = 0; i < count; ++i) {
    if (i % 2 == 0) original = &originals[random() % originals.size()];
    const Bytes before = file;
    while (file == before || file == *original) {
      if (i % 2 == 0) {
        file = mutator.mutate(*original, originals[random() % originals.size()]);
      } else {  // the same once more, with bytes changed
        mutate_bytes(file, random);
        put_right_digest(file);
      }
    }
    refused_by_digest(file, *original);
    const WeightsRun result = run_weights(file, kLimits);
    refused += result.outcome == Outcome::kRefused ? 1 : 0;
    too_large += result.outcome == Outcome::kTooLarge ? 1 : 0;
    ran += result.outcome == Outcome::kRan ? 1 : 0;
    load_bytes = std::max(load_bytes, result.load_bytes);
    run_bytes = std::max(run_bytes, result.run_bytes);
    if (result.outcome == Outcome::kRefused) kinds.insert(kind_of(result.refusal));
  }
  std::printf(
      "{\"files\": %zu, \"refused\": %zu, \"ran\": %zu, \"too_large\": %zu, \"refusals\": %zu, "
      "\"load_bytes\": %zu, \"run_bytes\": %zu}\n",
      count, refused, ran, too_large, kinds.size(), load_bytes, run_bytes);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 4) throw std::runtime_error("usage: mutate_weights COUNT SEED FILE...");
    std::vector<Bytes> originals;
    for (int i = 3; i < argc; ++i) {
      originals.push_back(read_file(argv[i]));
      if (run_weights(originals.back(), kLimits).outcome != Outcome::kRan) {
        throw std::runtime_error(std::string(argv[i]) + " is not a weights file that runs");
      }
    }
    run(std::strtoul(argv[1], nullptr, 10), std::strtoul(argv[2], nullptr, 10), originals);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mutate_weights: %s\n", error.what());
    return 1;
  }
}
