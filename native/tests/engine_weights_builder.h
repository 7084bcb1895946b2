// Writes model_weights.bin for tests, right or wrong on purpose: a test changes one thing and the
// digest is computed afterwards, so that it is the parser that refuses and not the digest.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "engine/digest.h"

namespace quern::test {

using Bytes = std::vector<std::uint8_t>;
using Json = nlohmann::json;

inline void put_big_endian(Bytes& bytes, std::size_t offset, std::uint64_t value, int count) {
  for (int i = 0; i < count; ++i) {
    bytes[offset + static_cast<std::size_t>(i)] =
        static_cast<std::uint8_t>(value >> (8 * (count - 1 - i)));
  }
}

inline void put_digest(Bytes& bytes) {
  Digester digester;
  digester.update(std::span(bytes).first(32));
  digester.update(std::span(bytes).subspan(48));
  const Bytes digest = digester.bytes();
  std::copy(digest.begin(), digest.end(), bytes.begin() + 32);
}

struct TensorContent {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

// A file's parts. `header` lacks the tensors' offsets until build() puts them in.
struct WeightsBuilder {
  Json header;
  std::vector<TensorContent> tensors;

  static std::size_t aligned(std::size_t n) { return (n + 63) / 64 * 64; }

  // The header with every tensor where it belongs. A longer header moves the tensors, which may
  // make it longer again: repeated until it stays.
  Json complete_header() const {
    Json result = header;
    std::size_t header_bytes = 0;
    for (int round = 0; round < 8; ++round) {
      result["tensors"] = Json::array();
      std::size_t end = 48 + header_bytes;
      for (const TensorContent& tensor : tensors) {
        const std::size_t offset = aligned(end);
        const std::size_t length = tensor.values.size() * 4;
        result["tensors"].push_back({{"name", tensor.name},
                                     {"shape", tensor.shape},
                                     {"dtype", "float32"},
                                     {"offset", offset},
                                     {"length", length}});
        end = offset + length;
      }
      header_bytes = result.dump().size();
    }
    return result;
  }

  Bytes build() const { return build_with(complete_header().dump()); }

  // The same bytes after another header text, which must be as long as the right one.
  Bytes build_with(const std::string& text) const {
    Bytes bytes(48 + text.size());
    const std::string magic = "QUERNWTS";
    std::copy(magic.begin(), magic.end(), bytes.begin());
    std::copy(text.begin(), text.end(), bytes.begin() + 48);
    bytes.resize(aligned(bytes.size()));
    for (const TensorContent& tensor : tensors) {
      std::size_t offset = aligned(bytes.size());
      bytes.resize(offset + tensor.values.size() * 4);
      for (const float value : tensor.values) {
        put_big_endian(bytes, offset, std::bit_cast<std::uint32_t>(value), 4);
        offset += 4;
      }
    }
    put_big_endian(bytes, 8, 1, 4);
    put_big_endian(bytes, 12, 0x01020304, 4);
    put_big_endian(bytes, 16, bytes.size(), 8);
    put_big_endian(bytes, 24, text.size(), 8);
    put_digest(bytes);
    return bytes;
  }
};

inline Json node(const std::string& op, std::vector<std::string> inputs, const std::string& output,
                 std::vector<std::int64_t> shape, Json tensors = Json::object(),
                 Json attributes = Json::object()) {
  return {{"op", op},
          {"name", "layer." + output},
          {"inputs", std::move(inputs)},
          {"output", output},
          {"shape", std::move(shape)},
          {"tensors", std::move(tensors)},
          {"attributes", std::move(attributes)}};
}

// [1,1,4,4] -> conv2d 3x3 of ones, stride 2, padding 1 -> relu -> pool -> reshape -> linear -> 2.
inline WeightsBuilder small_network() {
  WeightsBuilder builder;
  builder.tensors = {{"conv.weight", {2, 1, 3, 3}, std::vector<float>(18, 1.0F)},
                     {"conv.bias", {2}, {0.5F, -100.0F}},
                     {"head.weight", {2, 2}, {1.0F, 2.0F, 3.0F, 4.0F}},
                     {"head.bias", {2}, {0.25F, -0.25F}}};
  builder.header = {
      {"format", 1},
      {"input", {{"name", "input"}, {"shape", {1, 1, 4, 4}}}},
      {"output", "logits"},
      {"nodes",
       {node("conv2d", {"input"}, "v0", {1, 2, 2, 2},
             {{"weight", "conv.weight"}, {"bias", "conv.bias"}},
             {{"stride", {2, 2}}, {"padding", {1, 1, 1, 1}}, {"dilation", {1, 1}}, {"groups", 1}}),
        node("relu", {"v0"}, "v1", {1, 2, 2, 2}),
        node("adaptive_average_pool2d", {"v1"}, "v2", {1, 2, 1, 1}, Json::object(),
             {{"size", {1, 1}}}),
        node("reshape", {"v2"}, "v3", {1, 2}),
        node("linear", {"v3"}, "logits", {1, 2},
             {{"weight", "head.weight"}, {"bias", "head.bias"}})}},
      {"preprocess",
       {{"mode", "L"},
        {"resize", {4, 4}},
        {"crop", nullptr},
        {"interpolation", "bilinear"},
        {"mean", {0.5}},
        {"std", {0.5}}}},
      {"classes", {"cat", "dog"}}};
  return builder;
}

}  // namespace quern::test
