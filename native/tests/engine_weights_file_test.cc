// One test a kind of corruption: each must be refused with a sentence that names it.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "engine/weights_file.h"
#include "engine_weights_builder.h"

using namespace quern;
using namespace quern::test;

namespace {

std::string refusal(const Bytes& bytes) {
  try {
    parse_weights(bytes);
  } catch (const WeightsError& error) {
    return error.what();
  }
  return "accepted";
}

// The refusal of the small network after `change` to its parts (tensors' places stay right).
template <typename Change>
std::string refusal_after(const Change& change) {
  WeightsBuilder builder = small_network();
  change(builder);
  return refusal(builder.build());
}

// The same after a change of the bytes, with the digest made right again.
template <typename Change>
std::string refusal_after_bytes(const Change& change) {
  Bytes bytes = small_network().build();
  change(bytes);
  put_digest(bytes);
  return refusal(bytes);
}

// The same after a change of the tensors' entries, offsets included. What the change adds in
// length is taken from a label, so that nothing moves.
template <typename Change>
std::string refusal_after_entries(const Change& change) {
  WeightsBuilder builder = small_network();
  builder.header["classes"][0] = std::string(64, 'x');
  Json header = builder.complete_header();
  const std::size_t length = header.dump().size();
  change(header["tensors"]);
  const std::size_t changed = header.dump().size();
  header["classes"][0] = std::string(64 + length - changed, 'x');
  REQUIRE(header.dump().size() == length);
  return refusal(builder.build_with(header.dump()));
}

#define CHECK_CONTAINS(text, part) \
  CHECK_MESSAGE(std::string(text).find(part) != std::string::npos, text)

}  // namespace

TEST_CASE("a right file is read") {
  const Bytes bytes = small_network().build();
  const WeightsFile file = parse_weights(bytes);
  CHECK(file.graph.nodes.size() == 5);
  CHECK(file.graph.tensors[2].data[3] == 4.0F);
  CHECK(reinterpret_cast<std::uintptr_t>(file.graph.tensors[2].data.data()) % 64 == 0);
  CHECK(file.classes == std::vector<std::string>{"cat", "dog"});
  CHECK(file.preprocess.resize->height == 4);
  CHECK(file.digest == digest_hex(bytes));
}

TEST_CASE("the fixed fields") {
  Bytes bytes = small_network().build();
  CHECK_CONTAINS(refusal({}), "QUERNWTS");
  CHECK_CONTAINS(refusal(Bytes(bytes.begin(), bytes.begin() + 40)), "truncated");
  CHECK_CONTAINS(refusal_after_bytes([](Bytes& b) { b[0] = 'q'; }), "QUERNWTS");
  CHECK_CONTAINS(refusal_after_bytes([](Bytes& b) { b[11] = 2; }), "version 2");
  CHECK_CONTAINS(refusal_after_bytes([](Bytes& b) { std::reverse(&b[12], &b[16]); }), "byte-order");
  CHECK_CONTAINS(refusal_after_bytes([](Bytes& b) { b.push_back(0); }), "its header says");
  CHECK_CONTAINS(refusal_after_bytes([](Bytes& b) { b.pop_back(); }), "its header says");
  CHECK_CONTAINS(refusal_after_bytes([](Bytes& b) { put_big_endian(b, 24, 1U << 20U, 8); }),
                 "does not fit the file");
  CHECK_CONTAINS(refusal_after_bytes([](Bytes& b) { put_big_endian(b, 24, ~0ULL, 8); }),
                 "does not fit the file");
}

TEST_CASE("any changed byte is noticed by the digest") {
  const Bytes right = small_network().build();
  for (std::size_t i = 0; i < right.size(); ++i) {
    Bytes bytes = right;
    bytes[i] ^= 1;
    CHECK(refusal(bytes) != "accepted");
  }
  Bytes bytes = right;
  bytes.back() ^= 1;
  CHECK_CONTAINS(refusal(bytes), "digest");
}

TEST_CASE("every truncation is refused") {
  const Bytes right = small_network().build();
  for (std::size_t n = 0; n < right.size(); ++n) {
    CHECK(refusal(Bytes(right.begin(), right.begin() + static_cast<std::ptrdiff_t>(n))) !=
          "accepted");
  }
}

TEST_CASE("JSON that is none, or of another form") {
  const WeightsBuilder builder = small_network();
  const auto with = [&](const std::string& text) { return refusal(builder.build_with(text)); };
  CHECK_CONTAINS(with(""), "not valid JSON");
  CHECK_CONTAINS(with("{\"format\":"), "not valid JSON");
  CHECK_CONTAINS(with("\"\xff\xfe\""), "not valid JSON");
  CHECK_CONTAINS(with("[1e999]"), "not valid JSON");
  CHECK_CONTAINS(with("[]"), "not an object");
  CHECK_CONTAINS(with("{}"), "has no");
  CHECK_CONTAINS(with(std::string(100'000, '[')), "nested too deeply");
  CHECK_CONTAINS(with(R"({"\"[[[[[[[[[[[[":"]"})"), "unknown key");
}

TEST_CASE("a long header takes no longer than it is") {
  std::string list = "[";  // with a time that grows by its square this test does not end
  for (int i = 0; i < 1'000'000; ++i) list += "{},";
  CHECK_CONTAINS(refusal(small_network().build_with(list + "1]")), "not an object");
}

TEST_CASE("keys that are missing, unknown or of another type") {
  const Json header = small_network().header;
  for (const auto& item : header.items()) {
    CHECK_CONTAINS(refusal_after([&](WeightsBuilder& b) { b.header.erase(item.key()); }), "has no");
    CHECK(refusal_after([&](WeightsBuilder& b) { b.header[item.key()] = true; }) != "accepted");
    CHECK(refusal_after([&](WeightsBuilder& b) { b.header[item.key()] = -1; }) != "accepted");
    CHECK(refusal_after([&](WeightsBuilder& b) { b.header[item.key()] = nullptr; }) != "accepted");
  }
  CHECK_CONTAINS(refusal_after([](WeightsBuilder& b) { b.header["more"] = 1; }), "unknown key");
  CHECK_CONTAINS(refusal_after([](WeightsBuilder& b) { b.header["format"] = 2; }), "\"format\"");
  CHECK_CONTAINS(refusal_after([](WeightsBuilder& b) { b.header["nodes"][0]["extra"] = 1; }),
                 "unknown key");
  CHECK_CONTAINS(refusal_after([](WeightsBuilder& b) { b.header["nodes"] = Json::array(); }),
                 "\"nodes\"");
}

TEST_CASE("control characters of a name don't reach the message") {
  const std::string text = refusal_after([](WeightsBuilder& b) {
    b.header["nodes"][0]["name"] = "a\nb";
    b.header["nodes"][0]["op"] = "warp";
  });
  CHECK_CONTAINS(text, "\"a?b\"");
  CHECK_CONTAINS(text, "\"warp\" is not known");
  CHECK(in_quotes("a\x1b[1m\x7f") == "\"a?[1m?\"");
  CHECK(in_quotes("a\u009b1m\u00e9\u0085") == "\"a?1m\u00e9?\"");
}

TEST_CASE("a long name is cut between characters") {
  CHECK(in_quotes(std::string(119, 'x') + "\u00e9") == "\"" + std::string(119, 'x') + "…\"");
  CHECK(in_quotes(std::string(118, 'x') + "\u00e9y") == "\"" + std::string(118, 'x') + "\u00e9…\"");
}

TEST_CASE("tensors that lie elsewhere") {
  CHECK_CONTAINS(refusal_after_entries([](Json& t) { t[1]["offset"] = t[0]["offset"]; }),
                 "it must be");
  CHECK_CONTAINS(refusal_after_entries(
                     [](Json& t) { t[1]["offset"] = t[1]["offset"].get<std::size_t>() + 64; }),
                 "it must be");
  CHECK_CONTAINS(refusal_after_entries(
                     [](Json& t) { t[0]["offset"] = t[0]["offset"].get<std::size_t>() + 4; }),
                 "it must be");
  CHECK_CONTAINS(refusal_after_entries([](Json& t) { t[0]["offset"] = -64; }), "\"offset\"");
  CHECK_CONTAINS(refusal_after_entries([](Json& t) { t[0]["offset"] = 18446744073709551615ULL; }),
                 "\"offset\"");
  CHECK_CONTAINS(refusal_after_entries([](Json& t) { t[0]["length"] = 68; }), "\"length\"");
  CHECK_CONTAINS(refusal_after_entries([](Json& t) {
                   t[3]["shape"] = {4};
                   t[3]["length"] = 16;
                 }),
                 "beyond the end");
  CHECK_CONTAINS(refusal_after_entries([](Json& t) { t.erase(3); }), "the file at byte");
  CHECK_CONTAINS(refusal_after_bytes([](Bytes& b) { b[b.size() - 8 - 1] = 1; }), "is not zero");
}

TEST_CASE("tensors that are not what they say") {
  const auto shape = [](const Json& value) {
    return refusal_after_entries([&](Json& t) { t[0]["shape"] = value; });
  };
  CHECK_CONTAINS(shape({2, 1, 3}), "\"length\"");
  CHECK_CONTAINS(shape({2, -1, 3, 3}), "\"shape\"");
  CHECK_CONTAINS(shape({0}), "\"shape\"");
  CHECK_CONTAINS(shape(Json::array()), "\"shape\"");
  CHECK_CONTAINS(shape({1, 1, 1, 1, 1, 1, 18}), "\"shape\"");
  CHECK_CONTAINS(shape({1.5}), "\"shape\"");
  // 2^32 * 2^32 * 2 elements would be 2 modulo 2^64, and 65536^4 would be 0.
  CHECK_CONTAINS(shape({4294967296, 4294967296, 2}), "\"shape\"");
  CHECK_CONTAINS(shape({65536, 65536, 65536, 65536}), "elements");
  CHECK_CONTAINS(refusal_after_entries([](Json& t) { t[0]["dtype"] = "float16"; }), "dtype");
  CHECK_CONTAINS(refusal_after_entries([](Json& t) { t[1]["name"] = "conv.weight"; }), "twice");
  CHECK_CONTAINS(refusal_after([](WeightsBuilder& b) { b.tensors[3].values[1] = NAN; }),
                 "\"head.bias\": element 1 is not finite");
}

TEST_CASE("nodes that don't fit together") {
  const auto change = [](std::size_t index, const char* key, const Json& value) {
    return refusal_after([&](WeightsBuilder& b) { b.header["nodes"][index][key] = value; });
  };
  CHECK_CONTAINS(change(1, "inputs", {"v2"}), "not computed before it");
  CHECK_CONTAINS(change(1, "inputs", {"v1"}), "not computed before it");
  CHECK_CONTAINS(change(1, "inputs", {"v0", "v0"}), "\"inputs\"");
  CHECK_CONTAINS(change(1, "inputs", Json::array()), "\"inputs\"");
  CHECK_CONTAINS(change(1, "output", "v0"), "used twice");
  CHECK_CONTAINS(change(1, "shape", {1, 2, 2, 3}), "the file declares [1,2,2,3]");
  CHECK_CONTAINS(change(1, "shape", {1, 1 << 20, 1 << 20, 1}), "elements");
  CHECK_CONTAINS(change(1, "tensors", {{"weight", "conv.weight"}}), "unknown key");
  CHECK_CONTAINS(change(1, "attributes", {{"slope", 1}}), "unknown key");
  CHECK_CONTAINS(change(0, "tensors", {{"weight", "conv.weight"}}), "has no \"bias\"");
  CHECK_CONTAINS(change(0, "tensors", {{"weight", "conv.weight"}, {"bias", "nothing"}}),
                 "no tensor \"nothing\"");
  CHECK_CONTAINS(change(0, "tensors", {{"weight", "conv.weight"}, {"bias", "conv.weight"}}),
                 "the bias");
  CHECK_CONTAINS(change(0, "tensors", {{"weight", "conv.bias"}, {"bias", "conv.bias"}}),
                 "[O,I,H,W]");
  CHECK_CONTAINS(change(4, "inputs", {"v1"}), "not [1,n]");
  CHECK_CONTAINS(change(4, "tensors", {{"weight", "conv.weight"}, {"bias", "head.bias"}}),
                 "does not fit");
  CHECK_CONTAINS(change(2, "inputs", {"v1", "input"}), "\"inputs\"");
}

TEST_CASE("attributes out of range") {
  const auto attribute = [](const char* key, const Json& value) {
    return refusal_after(
        [&](WeightsBuilder& b) { b.header["nodes"][0]["attributes"][key] = value; });
  };
  CHECK_CONTAINS(attribute("stride", {0, 1}), "\"stride\"");
  CHECK_CONTAINS(attribute("stride", {2}), "\"stride\"");
  CHECK_CONTAINS(attribute("stride", 2), "\"stride\"");
  CHECK_CONTAINS(attribute("padding", {1, 1, 1, -1}), "\"padding\"");
  CHECK_CONTAINS(attribute("padding", {1, 1, 1, 1e9}), "\"padding\"");
  CHECK_CONTAINS(attribute("dilation", {1, 9223372036854775807}), "\"dilation\"");
  CHECK_CONTAINS(attribute("dilation", {4, 4}), "larger than the padded input");
  CHECK_CONTAINS(attribute("groups", 0), "\"groups\"");
  CHECK_CONTAINS(attribute("groups", {1}), "\"groups\"");
  CHECK_CONTAINS(attribute("groups", 2), "does not fit the input");
}

TEST_CASE("add and mul of shapes that don't broadcast") {
  const std::string text = refusal_after([](WeightsBuilder& b) {
    b.header["nodes"].insert(b.header["nodes"].begin() + 1,
                             node("add", {"input", "v0"}, "sum", {1, 2, 4, 4}));
  });
  CHECK_CONTAINS(text, "don't broadcast");
}

TEST_CASE("more memory than the bound") {
  // Declared and inferred agree, but the padded output would have 2^26 elements and more.
  const std::string large = refusal_after([](WeightsBuilder& b) {
    b.header["nodes"][0]["attributes"]["padding"] = {4096, 4096, 4096, 4096};
    b.header["nodes"][0]["attributes"]["stride"] = {1, 1};
    b.header["nodes"][0]["shape"] = {1, 2, 8194, 8194};
  });
  CHECK_CONTAINS(large, "elements");
  CHECK_CONTAINS(refusal_after([](WeightsBuilder& b) {
                   b.header["input"]["shape"] = {1, 1, 16384, 16384};
                 }),
                 "elements");
}

TEST_CASE("preprocessing that cannot be right") {
  const auto change = [](const char* key, const Json& value) {
    return refusal_after([&](WeightsBuilder& b) { b.header["preprocess"][key] = value; });
  };
  CHECK_CONTAINS(change("mode", "RGB"), "\"mean\"");
  CHECK_CONTAINS(change("mode", "CMYK"), "\"mode\"");
  CHECK_CONTAINS(change("resize", {4, 5}), "does not give the input's shape");
  CHECK_CONTAINS(change("resize", 5), "does not give the input's shape");
  CHECK_CONTAINS(change("resize", 0), "\"resize\"");
  CHECK_CONTAINS(change("resize", {4, 4, 4}), "\"resize\"");
  CHECK_CONTAINS(change("resize", {1 << 30, 4}), "\"resize\"");
  CHECK_CONTAINS(change("crop", 3), "does not give the input's shape");
  CHECK_CONTAINS(change("interpolation", "lanczos"), "\"interpolation\"");
  CHECK_CONTAINS(change("mean", {0.5, 0.5}), "\"mean\"");
  CHECK_CONTAINS(change("mean", {"0.5"}), "\"mean\"");
  CHECK_CONTAINS(change("mean", {1e300}), "\"mean\"");
  CHECK_CONTAINS(change("mean", nullptr), "go together");
  CHECK_CONTAINS(change("std", {0.0}), "\"std\"");
  CHECK_CONTAINS(change("std", {-1.0}), "\"std\"");
}

TEST_CASE("classes and output that don't agree") {
  CHECK_CONTAINS(refusal_after([](WeightsBuilder& b) { b.header["classes"].push_back("bird"); }),
                 "3 labels");
  CHECK_CONTAINS(refusal_after([](WeightsBuilder& b) { b.header["classes"][1] = 7; }),
                 "\"classes\"");
  CHECK_CONTAINS(refusal_after([](WeightsBuilder& b) { b.header["output"] = "v9"; }), "no value");
  CHECK_CONTAINS(refusal_after([](WeightsBuilder& b) { b.header["output"] = "v1"; }), "[1,2,2,2]");
}

TEST_CASE("random damage with a right digest is refused or read, never worse") {
  std::mt19937 random(20);  // fixed: a failure can be repeated
  const Bytes right = small_network().build();
  int accepted = 0;
  for (int round = 0; round < 5'000; ++round) {
    Bytes bytes = right;
    for (unsigned count = 1 + random() % 3; count > 0; --count) {
      const std::size_t at = random() % 4 == 0 ? random() % bytes.size() : 48 + random() % 1200;
      bytes[at % bytes.size()] = static_cast<std::uint8_t>(random());
    }
    put_digest(bytes);
    accepted += refusal(bytes) == "accepted" ? 1 : 0;
  }
  CHECK(accepted > 0);  // damage in names and weights is no damage to the parser
  CHECK(accepted < 5'000);
}

TEST_CASE("paths that are no files") {
  const auto refusal_of = [](const std::string& path) -> std::string {
    try {
      read_weights_file(path);
    } catch (const WeightsError& error) {
      return error.what();
    }
    return "accepted";
  };
  CHECK_CONTAINS(refusal_of("no/such/file"), "no/such/file: cannot be opened");
  CHECK_CONTAINS(refusal_of("/"), "/: not a regular file");
  CHECK_CONTAINS(refusal_of("/dev/null"), "not a regular file");
}
