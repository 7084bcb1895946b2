#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <thread>

#include "engine/model.h"
#include "engine_weights_builder.h"

using namespace quern;
using namespace quern::test;

namespace {

// A file that is there while the test runs.
struct TemporaryFile {
  std::string path =
      (std::filesystem::temp_directory_path() / ("quern_engine_test_" + std::to_string(::getpid())))
          .string();
  explicit TemporaryFile(const Bytes& bytes) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }
  ~TemporaryFile() { std::remove(path.c_str()); }
};

std::shared_ptr<const Model> small_model() {
  return Model::load(TemporaryFile(small_network().build()).path);
}

}  // namespace

TEST_CASE("xxh3_128 in canonical form") {
  // The values Python's xxhash.xxh3_128_hexdigest gives.
  CHECK(digest_hex({}) == "99aa06d3014798d86001c324468d497f");
  const Bytes abc = {'a', 'b', 'c'};
  CHECK(digest_hex(abc) == "06b05ab6733a618578af5f94892f3950");
  Digester pieces;
  pieces.update(std::span(abc).first(1));
  pieces.update(std::span(abc).subspan(1));
  CHECK(pieces.hex() == digest_hex(abc));
  CHECK(file_digest_hex(TemporaryFile(abc).path) == digest_hex(abc));
  CHECK_THROWS_AS(file_digest_hex("no/such/file"), std::runtime_error);
}

TEST_CASE("the small network by hand") {
  const auto model = small_model();
  CHECK(model->input_shape() == Shape{1, 1, 4, 4});
  CHECK(model->weights_digest() == digest_hex(small_network().build()));
  Session session(model);
  const std::vector<float> ones(16, 1.0F);
  // 3x3 sums of ones at stride 2, padding 1: 4 6 6 9, + 0.5; the second channel is below zero.
  const float pooled = (4 + 6 + 6 + 9) / 4.0F + 0.5F;
  for (int repeat = 0; repeat < 2; ++repeat) {
    const auto logits = session.logits(ones);
    REQUIRE(logits.size() == 2);
    CHECK(logits[0] == doctest::Approx(pooled + 0.25F));
    CHECK(logits[1] == doctest::Approx(3 * pooled - 0.25F));
  }
  CHECK_THROWS_AS(session.logits(std::span(ones).first(15)), std::invalid_argument);
}

TEST_CASE("sessions of one model run at the same time") {
  const auto model = small_model();
  const auto logits_of = [&](float value) {
    Session session(model);
    const std::vector<float> input(16, value);
    std::vector<float> last;
    for (int i = 0; i < 1000; ++i) {
      const auto logits = session.logits(input);
      last.assign(logits.begin(), logits.end());
    }
    return last;
  };
  std::vector<float> one, two;
  std::thread first([&] { one = logits_of(1.0F); });
  std::thread second([&] { two = logits_of(2.0F); });
  first.join();
  second.join();
  CHECK(one == logits_of(1.0F));
  CHECK(two == logits_of(2.0F));
  CHECK(one != two);
}

TEST_CASE("a bad file names itself") {
  Bytes bytes = small_network().build();
  bytes.back() ^= 1;
  const TemporaryFile file(bytes);
  const std::string wanted = file.path + ": damaged: the content does not match its digest";
  CHECK_THROWS_WITH_AS(Model::load(file.path), wanted.c_str(), WeightsError);
}

TEST_CASE("softmax is over all classes and does not overflow") {
  const std::vector<float> scores = softmax(std::vector<float>{1000.0F, 1000.0F, -1000.0F});
  CHECK(scores[0] == doctest::Approx(0.5));
  CHECK(scores[1] == doctest::Approx(0.5));
  CHECK(scores[2] == 0.0F);
  CHECK(softmax({}).empty());
}

TEST_CASE("top k") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> scores = {0.1F, nan, 0.5F, 0.1F, 0.2F};
  const auto ids = [&](std::size_t k) {
    std::vector<std::size_t> result;
    for (const Prediction& p : top_k(scores, k)) result.push_back(p.class_id);
    return result;
  };
  CHECK(ids(3) == std::vector<std::size_t>{2, 4, 0});
  CHECK(ids(9) == std::vector<std::size_t>{2, 4, 0, 3, 1});
  CHECK(ids(0).empty());
}
