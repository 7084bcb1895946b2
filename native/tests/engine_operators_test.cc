// Every operation's shape rule and attribute ranges, right values and hostile ones, through a whole
// file: what is accepted here is what the kernels may meet.
#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "engine/operators.h"
#include "engine/weights_file.h"
#include "engine_weights_builder.h"

using namespace quern;
using namespace quern::test;

namespace {

struct OpCase {
  std::string op;
  std::vector<Shape> inputs;  // constants, equal shapes one and the same
  Json attributes = Json::object();
  Shape output = {1};                         // as the file declares it
  std::map<std::string, Shape> tensors = {};  // role -> shape
};

std::vector<float> zeros(const Shape& shape) {
  return std::vector<float>(static_cast<std::size_t>(element_count(shape)));
}

// "accepted", or why a file is refused that holds nothing but this node and what it needs.
std::string outcome(const OpCase& test) {
  WeightsBuilder builder = small_network();
  builder.tensors = {};
  Json nodes = Json::array();
  std::vector<std::string> inputs;
  for (const Shape& shape : test.inputs) {
    const std::string name = to_string(shape);
    if (std::find(inputs.begin(), inputs.end(), name) == inputs.end()) {
      builder.tensors.push_back({name, shape, zeros(shape)});
      nodes.push_back(node("constant", {}, name, shape, {{"value", name}}));
    }
    inputs.push_back(name);
  }
  Json roles = Json::object();
  for (const auto& [role, shape] : test.tensors) {
    builder.tensors.push_back({role, shape, zeros(shape)});
    roles[role] = role;
  }
  nodes.push_back(node(test.op, inputs, "result", test.output, roles, test.attributes));
  nodes.push_back(node("reshape", {"input"}, "logits", {1, 16}));
  builder.header["nodes"] = nodes;
  builder.header["classes"] = std::vector<std::string>(16, "c");
  try {
    parse_weights(builder.build());
  } catch (const WeightsError& error) {
    return error.what();
  }
  return "accepted";
}

#define CHECK_ACCEPTED(...) CHECK(outcome(__VA_ARGS__) == "accepted")
#define CHECK_REFUSED(part, ...)                                             \
  do {                                                                       \
    const std::string text = outcome(__VA_ARGS__);                           \
    CHECK_MESSAGE(text.find(part) != std::string::npos, text);               \
    CHECK_MESSAGE(text.find("\"layer.result\"") != std::string::npos, text); \
  } while (false)

// `json` with one member changed.
Json with(Json json, const char* key, const Json& value) {
  json[key] = value;
  return json;
}

const std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();

// What no attribute may be, and what is right for numbers only.
const std::vector<Json> kNonsense = {nullptr,        true,           "1",
                                     Json::object(), Json::array(),  {1, 2, 3, 4, 5, 6, 7},
                                     {{1}, {1}},     {kHuge, kHuge}, -1e300};
const std::vector<Json> kNoIntegers = {1.5, 1e300, -kHuge - 1, 18446744073709551615ULL};

// Each attribute of a right case missing, and replaced by nonsense, one at a time.
void check_nonsense(const OpCase& right) {
  CHECK_ACCEPTED(right);
  for (const auto& item : right.attributes.items()) {
    OpCase wrong = right;
    wrong.attributes.erase(item.key());
    CHECK_REFUSED("has no \"" + item.key() + "\"", wrong);
    std::vector<Json> values = kNonsense;
    if (!item.value().is_number_float()) {
      values.insert(values.end(), kNoIntegers.begin(), kNoIntegers.end());
    }
    for (const Json& value : values) {
      wrong.attributes[item.key()] = value;
      CHECK_REFUSED("\"" + item.key() + "\" is not a", wrong);
    }
  }
  OpCase more = right;
  more.attributes["more"] = 1;
  CHECK_REFUSED("unknown key \"more\"", more);
  OpCase wrong_shape = right;
  wrong_shape.output.back() += 1;
  CHECK_REFUSED(right.op == "reshape" ? "number of elements" : "the file declares", wrong_shape);
  OpCase fewer = right;
  if (!fewer.inputs.empty()) {
    fewer.inputs.clear();
    CHECK_REFUSED("\"inputs\" is not a list", fewer);
  }
  for (const auto& [role, shape] : right.tensors) {
    OpCase lacking = right;
    lacking.tensors.erase(role);
    CHECK_REFUSED("has no \"" + role + "\"", lacking);
  }
}

}  // namespace

TEST_CASE("every operation of the format is known, under one kind") {
  std::set<OpKind> kinds;
  const std::vector<std::string> names = {"conv2d",
                                          "linear",
                                          "relu",
                                          "relu6",
                                          "silu",
                                          "hardswish",
                                          "hardsigmoid",
                                          "sigmoid",
                                          "tanh",
                                          "leaky_relu",
                                          "gelu",
                                          "softmax",
                                          "add",
                                          "sub",
                                          "mul",
                                          "constant",
                                          "max_pool2d",
                                          "average_pool2d",
                                          "adaptive_average_pool2d",
                                          "adaptive_max_pool2d",
                                          "mean",
                                          "concat",
                                          "slice",
                                          "reshape",
                                          "permute",
                                          "channel_shuffle",
                                          "pad",
                                          "layer_norm"};
  for (const std::string& name : names) {
    const Operator* op = find_operator(name);
    REQUIRE_MESSAGE(op != nullptr, name);
    CHECK(op->name == name);
    kinds.insert(op->kind);
  }
  CHECK(kinds.size() == names.size());
  CHECK(find_operator("flatten") == nullptr);
  CHECK(find_operator("") == nullptr);
}

TEST_CASE("conv2d") {
  const Json plain = {
      {"stride", {1, 1}}, {"padding", {0, 0, 0, 0}}, {"dilation", {1, 1}}, {"groups", 1}};
  const auto conv = [](const Shape& input, const Shape& weight, const Json& attributes,
                       const Shape& output) {
    return OpCase{
        "conv2d", {input}, attributes, output, {{"weight", weight}, {"bias", {weight[0]}}}};
  };
  check_nonsense(conv({1, 3, 8, 9}, {5, 3, 3, 3}, plain, {1, 5, 6, 7}));
  CHECK_ACCEPTED(
      conv({1, 4, 8, 9}, {6, 2, 3, 2},
           {{"stride", {2, 3}}, {"padding", {1, 0, 2, 4}}, {"dilation", {2, 1}}, {"groups", 2}},
           {1, 6, 4, 4}));
  CHECK_ACCEPTED(
      conv({1, 1, 1, 1}, {1, 1, 1, 1}, with(plain, "stride", {4096, 4096}), {1, 1, 1, 1}));
  CHECK_REFUSED("\"stride\"", conv({1, 1, 2, 2}, {1, 1, 1, 1}, with(plain, "stride", {0, 1}), {1}));
  CHECK_REFUSED("\"groups\"", conv({1, 1, 2, 2}, {1, 1, 1, 1}, with(plain, "groups", 0), {1}));
  CHECK_REFUSED("in 3 groups", conv({1, 4, 8, 9}, {6, 1, 3, 3}, with(plain, "groups", 3), {1}));
  CHECK_REFUSED("in 2 groups", conv({1, 4, 8, 9}, {5, 2, 3, 3}, with(plain, "groups", 2), {1}));
  CHECK_REFUSED("in 2 groups", conv({1, 4, 8, 9}, {6, 4, 3, 3}, with(plain, "groups", 2), {1}));
  CHECK_REFUSED("larger than the padded", conv({1, 1, 2, 2}, {1, 1, 3, 1}, plain, {1}));
  CHECK_REFUSED("larger than the padded",
                conv({1, 1, 2, 2}, {1, 1, 1, 2}, with(plain, "dilation", {1, 4096}), {1}));
  CHECK_REFUSED("not [1,C,H,W]", conv({2, 1, 2, 2}, {1, 1, 1, 1}, plain, {1}));
  CHECK_REFUSED("not [1,C,H,W]", conv({1, 4, 4}, {1, 1, 1, 1}, plain, {1}));
  CHECK_REFUSED("not [O,I,H,W]", conv({1, 1, 2, 2}, {1, 1, 1, 1, 1}, plain, {1}));
  CHECK_REFUSED(
      "the bias [1,2]",
      OpCase{"conv2d", {{1, 1, 2, 2}}, plain, {1}, {{"weight", {2, 1, 1, 1}}, {"bias", {1, 2}}}});
}

TEST_CASE("linear") {
  const auto linear = [](const Shape& input, const Shape& weight, const Shape& bias,
                         const Shape& output) {
    return OpCase{"linear", {input}, Json::object(), output, {{"weight", weight}, {"bias", bias}}};
  };
  check_nonsense(linear({1, 3}, {5, 3}, {5}, {1, 5}));
  CHECK_REFUSED("does not fit", linear({1, 3}, {5, 4}, {5}, {1, 5}));
  CHECK_REFUSED("does not fit", linear({1, 3}, {5, 3, 1}, {5}, {1, 5}));
  CHECK_REFUSED("the bias", linear({1, 3}, {5, 3}, {3}, {1, 5}));
  CHECK_REFUSED("not [1,n]", linear({2, 3}, {5, 3}, {5}, {2, 5}));
  CHECK_REFUSED("not [1,n]", linear({1, 3, 1}, {5, 3}, {5}, {1, 5}));
}

TEST_CASE("activations keep any shape") {
  for (const char* op : {"relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh"}) {
    check_nonsense({op, {{1, 2, 3}}, Json::object(), {1, 2, 3}});
    CHECK_ACCEPTED({op, {{1}}, Json::object(), {1}});
    CHECK_ACCEPTED({op, {{1, 2, 1, 2, 1, 2}}, Json::object(), {1, 2, 1, 2, 1, 2}});
    CHECK_REFUSED("\"inputs\"", {op, {{1}, {1}}, Json::object(), {1}});
    CHECK_REFUSED("not begin with dimension 1", {op, {{2, 3}}, Json::object(), {2, 3}});
  }
  check_nonsense({"leaky_relu", {{1, 2, 3}}, {{"negative_slope", 0.01}}, {1, 2, 3}});
  CHECK_ACCEPTED({"leaky_relu", {{1, 2}}, {{"negative_slope", -2}}, {1, 2}});  // an integer will do
  CHECK_ACCEPTED({"leaky_relu", {{1, 2}}, {{"negative_slope", 3e38}}, {1, 2}});
  CHECK_REFUSED("\"negative_slope\"",
                {"leaky_relu", {{1, 2}}, {{"negative_slope", 3.5e38}}, {1, 2}});
  CHECK_REFUSED("\"negative_slope\"",
                {"leaky_relu", {{1, 2}}, {{"negative_slope", {0.1}}}, {1, 2}});
  check_nonsense({"gelu", {{1, 2, 3}}, {{"tanh", 0}}, {1, 2, 3}});
  CHECK_ACCEPTED({"gelu", {{1, 2}}, {{"tanh", 1}}, {1, 2}});
  CHECK_REFUSED("from 0 to 1", {"gelu", {{1, 2}}, {{"tanh", 2}}, {1, 2}});
}

TEST_CASE("numbers are read as float32") {
  WeightsBuilder builder = small_network();
  builder.header["nodes"][1] =
      node("leaky_relu", {"v0"}, "v1", {1, 2, 2, 2}, Json::object(), {{"negative_slope", 0.1}});
  const WeightsFile file = parse_weights(builder.build());
  CHECK(number(file.graph.nodes[1], "negative_slope") == 0.1F);
  CHECK(integer(file.graph.nodes[0], "groups") == 1);
  CHECK(integers(file.graph.nodes[0], "stride") == Shape{2, 2});
}

TEST_CASE("add, sub and mul broadcast as numpy does, in one rank") {
  const Json none = Json::object();
  for (const char* op : {"add", "sub", "mul"}) {
    check_nonsense({op, {{1, 3, 4, 5}, {1, 3, 1, 1}}, none, {1, 3, 4, 5}});
    CHECK_ACCEPTED({op, {{1, 3, 1, 5}, {1, 1, 4, 1}}, none, {1, 3, 4, 5}});
    CHECK_ACCEPTED({op, {{1, 1, 1, 1}, {1, 3, 4, 5}}, none, {1, 3, 4, 5}});
    CHECK_ACCEPTED({op, {{1}, {1}}, none, {1}});
    CHECK_ACCEPTED({op, {{1, 1, 2, 1, 2, 1}, {1, 2, 1, 2, 1, 2}}, none, {1, 2, 2, 2, 2, 2}});
    CHECK_REFUSED("don't broadcast", {op, {{1, 3, 4, 5}, {1, 2, 1, 1}}, none, {1, 3, 4, 5}});
    CHECK_REFUSED("don't broadcast", {op, {{1, 3, 4, 5}, {4, 5}}, none, {1, 3, 4, 5}});
    CHECK_REFUSED("not begin with dimension 1", {op, {{1, 3}, {2, 3}}, none, {2, 3}});
    CHECK_REFUSED("\"inputs\"", {op, {{1}}, none, {1}});
    CHECK_REFUSED("\"inputs\"", {op, {{1}, {1}, {1}}, none, {1}});
    // An outer product of 2^14 by 2^13 elements.
    CHECK_REFUSED("67108864 elements", {op, {{1, 1 << 14, 1}, {1, 1, 1 << 13}}, none, {1}});
  }
}

TEST_CASE("max_pool2d") {
  const Json plain = {{"kernel", {3, 3}},
                      {"stride", {2, 2}},
                      {"padding", {0, 0}},
                      {"dilation", {1, 1}},
                      {"ceil_mode", 0}};
  const auto pool = [](const Shape& input, const Json& attributes, const Shape& output) {
    return OpCase{"max_pool2d", {input}, attributes, output};
  };
  // Every output shape here is torch.nn.functional.max_pool2d's.
  check_nonsense(pool({1, 2, 8, 9}, plain, {1, 2, 3, 4}));
  const Json ceil = with(plain, "ceil_mode", 1);
  CHECK_ACCEPTED(pool({1, 2, 8, 9}, ceil, {1, 2, 4, 4}));
  CHECK_ACCEPTED(pool({1, 2, 2, 7}, ceil, {1, 2, 1, 3}));  // a window larger than the input
  CHECK_REFUSED("larger than the padded", pool({1, 2, 2, 7}, plain, {1}));
  CHECK_REFUSED("larger than the padded", pool({1, 2, 1, 7}, ceil, {1}));
  // The last window would start beyond the input: left out.
  const Json far = with(with(ceil, "kernel", {2, 2}), "stride", {3, 4});
  CHECK_ACCEPTED(pool({1, 2, 6, 5}, far, {1, 2, 2, 2}));
  CHECK_ACCEPTED(pool({1, 2, 3, 4}, far, {1, 2, 1, 1}));
  CHECK_ACCEPTED(pool({1, 2, 6, 7}, with(far, "padding", {1, 1}), {1, 2, 3, 2}));
  CHECK_ACCEPTED(pool({1, 2, 8, 9}, with(plain, "dilation", {2, 4}), {1, 2, 2, 1}));
  CHECK_REFUSED("larger than the padded", pool({1, 2, 8, 8}, with(plain, "dilation", {2, 4}), {1}));
  CHECK_ACCEPTED(pool({1, 2, 8, 9}, with(plain, "padding", {1, 1}), {1, 2, 4, 5}));
  CHECK_REFUSED("more than half", pool({1, 2, 8, 9}, with(plain, "padding", {2, 1}), {1}));
  CHECK_REFUSED("more than half", pool({1, 2, 8, 9}, with(plain, "padding", {0, 16384}), {1}));
  CHECK_REFUSED("\"padding\"", pool({1, 2, 8, 9}, with(plain, "padding", {-1, 0}), {1}));
  CHECK_REFUSED("\"padding\"", pool({1, 2, 8, 9}, with(plain, "padding", {0, 0, 0, 0}), {1}));
  CHECK_REFUSED("\"kernel\"", pool({1, 2, 8, 9}, with(plain, "kernel", {0, 3}), {1}));
  CHECK_REFUSED("\"kernel\"", pool({1, 2, 8, 9}, with(plain, "kernel", {3, 16385}), {1}));
  CHECK_REFUSED("\"stride\"", pool({1, 2, 8, 9}, with(plain, "stride", {0, 1}), {1}));
  CHECK_REFUSED("\"dilation\"", pool({1, 2, 8, 9}, with(plain, "dilation", {0, 1}), {1}));
  CHECK_REFUSED(
      "larger than the padded",
      pool({1, 1, 3, 3}, with(with(plain, "kernel", {16384, 1}), "dilation", {4096, 1}), {1}));
  CHECK_REFUSED("\"ceil_mode\"", pool({1, 2, 8, 9}, with(plain, "ceil_mode", 2), {1}));
  CHECK_REFUSED("not [1,C,H,W]", pool({2, 8, 9}, plain, {1}));
  CHECK_REFUSED("not [1,C,H,W]", pool({2, 2, 8, 9}, plain, {1}));
}

TEST_CASE("average_pool2d") {
  const Json plain = {{"kernel", {2, 3}}, {"stride", {2, 2}},       {"padding", {0, 1}},
                      {"ceil_mode", 0},   {"count_include_pad", 1}, {"divisor", 0}};
  const auto pool = [](const Shape& input, const Json& attributes, const Shape& output) {
    return OpCase{"average_pool2d", {input}, attributes, output};
  };
  check_nonsense(pool({1, 2, 7, 8}, plain, {1, 2, 3, 4}));
  CHECK_ACCEPTED(pool({1, 2, 7, 8}, with(plain, "ceil_mode", 1), {1, 2, 4, 5}));
  CHECK_ACCEPTED(pool({1, 2, 7, 8}, with(plain, "divisor", 2147483647), {1, 2, 3, 4}));
  CHECK_REFUSED("more than half", pool({1, 2, 7, 8}, with(plain, "padding", {0, 2}), {1}));
  CHECK_REFUSED("more than half", pool({1, 2, 7, 8}, with(plain, "padding", {2, 0}), {1}));
  CHECK_REFUSED("\"divisor\"", pool({1, 2, 7, 8}, with(plain, "divisor", -1), {1}));
  CHECK_REFUSED("\"count_include_pad\"",
                pool({1, 2, 7, 8}, with(plain, "count_include_pad", 2), {1}));
  CHECK_REFUSED("larger than the padded", pool({1, 2, 1, 8}, plain, {1}));
  CHECK_REFUSED("not [1,C,H,W]", pool({1, 2, 7, 8, 1}, plain, {1}));
}

TEST_CASE("adaptive pooling") {
  for (const char* op : {"adaptive_average_pool2d", "adaptive_max_pool2d"}) {
    check_nonsense({op, {{1, 3, 7, 8}}, {{"size", {2, 3}}}, {1, 3, 2, 3}});
    CHECK_ACCEPTED({op, {{1, 3, 2, 2}}, {{"size", {5, 1}}}, {1, 3, 5, 1}});  // larger, as in torch
    CHECK_REFUSED("\"size\"", {op, {{1, 3, 7, 8}}, {{"size", {0, 1}}}, {1}});
    CHECK_REFUSED("\"size\"", {op, {{1, 3, 7, 8}}, {{"size", {1, 16385}}}, {1}});
    CHECK_REFUSED("67108864 elements", {op, {{1, 1, 1, 1}}, {{"size", {16384, 16384}}}, {1}});
    CHECK_REFUSED("not [1,C,H,W]", {op, {{3, 7, 8}}, {{"size", {1, 1}}}, {1}});
  }
}

TEST_CASE("mean") {
  const auto mean = [](const Shape& input, const Json& axes, const Shape& output) {
    return OpCase{"mean", {input}, {{"axes", axes}}, output};
  };
  check_nonsense(mean({1, 3, 4, 5}, {2, 3}, {1, 3, 1, 1}));
  CHECK_ACCEPTED(mean({1, 3, 4, 5}, {1}, {1, 1, 4, 5}));
  CHECK_ACCEPTED(mean({2, 3}, {0}, {1, 3}));
  CHECK_ACCEPTED(mean({1, 2, 3, 2, 3, 2}, {0, 1, 2, 3, 4, 5}, {1, 1, 1, 1, 1, 1}));
  CHECK_REFUSED("has no axis 4", mean({1, 3, 4, 5}, {2, 4}, {1}));
  CHECK_REFUSED("not ascending", mean({1, 3, 4, 5}, {3, 2}, {1}));
  CHECK_REFUSED("not ascending", mean({1, 3, 4, 5}, {2, 2}, {1}));
  CHECK_REFUSED("\"axes\"", mean({1, 3, 4, 5}, {-1}, {1}));
  CHECK_REFUSED("\"axes\"", mean({1, 3, 4, 5}, {6}, {1}));
  CHECK_REFUSED("\"axes\"", mean({1, 3, 4, 5}, 2, {1}));
}

TEST_CASE("softmax") {
  check_nonsense({"softmax", {{1, 3, 4}}, {{"axis", 1}}, {1, 3, 4}});
  CHECK_ACCEPTED({"softmax", {{1}}, {{"axis", 0}}, {1}});
  CHECK_REFUSED("has no axis 3", {"softmax", {{1, 3, 4}}, {{"axis", 3}}, {1, 3, 4}});
  CHECK_REFUSED("\"axis\"", {"softmax", {{1, 3, 4}}, {{"axis", -1}}, {1, 3, 4}});
}

TEST_CASE("layer_norm") {
  const auto norm = [](const Shape& input, const Json& axes, const Json& epsilon,
                       const Shape& weight, const Shape& bias) {
    return OpCase{"layer_norm",
                  {input},
                  {{"axes", axes}, {"epsilon", epsilon}},
                  input,
                  {{"weight", weight}, {"bias", bias}}};
  };
  check_nonsense(norm({1, 4, 5, 3}, {3}, 1e-6, {3}, {3}));
  CHECK_ACCEPTED(norm({1, 3, 4, 5}, {1}, 1e-6, {3}, {3}));
  CHECK_ACCEPTED(norm({1, 3, 4, 5}, {1, 3}, 0, {3, 5}, {3, 5}));
  CHECK_REFUSED("the weight [5,3]", norm({1, 3, 4, 5}, {1, 3}, 1e-6, {5, 3}, {3, 5}));
  CHECK_REFUSED("the bias [15]", norm({1, 3, 4, 5}, {1, 3}, 1e-6, {3, 5}, {15}));
  CHECK_REFUSED("not ascending", norm({1, 3, 4, 5}, {3, 1}, 1e-6, {5, 3}, {5, 3}));
  CHECK_REFUSED("has no axis 4", norm({1, 3, 4, 5}, {4}, 1e-6, {5}, {5}));
  CHECK_REFUSED("\"epsilon\"", norm({1, 3}, {1}, -1e-6, {3}, {3}));
}

TEST_CASE("constant") {
  const auto constant = [](const Shape& value, const Shape& output) {
    return OpCase{"constant", {}, Json::object(), output, {{"value", value}}};
  };
  check_nonsense(constant({2, 3}, {2, 3}));
  CHECK_ACCEPTED(constant({7}, {7}));
  CHECK_ACCEPTED(constant({2, 2, 2, 2, 2, 2}, {2, 2, 2, 2, 2, 2}));
  CHECK_REFUSED("the file declares [3,2]", constant({2, 3}, {3, 2}));
  CHECK_REFUSED("\"inputs\"", OpCase{"constant", {{1}}, Json::object(), {2}, {{"value", {2}}}});
  CHECK_REFUSED("\"shape\"", constant({2}, {2, 1, 1, 1, 1, 1, 1}));
}

TEST_CASE("reshape takes its target from the node's shape") {
  check_nonsense({"reshape", {{1, 6, 4}}, Json::object(), {1, 3, 2, 4}});
  CHECK_ACCEPTED({"reshape", {{6}}, Json::object(), {1, 1, 2, 1, 3, 1}});
  CHECK_REFUSED("number of elements", {"reshape", {{1, 6}}, Json::object(), {1, 5}});
  CHECK_REFUSED("not begin with dimension 1", {"reshape", {{1, 6}}, Json::object(), {6}});
  CHECK_REFUSED("\"shape\"", {"reshape", {{1, 6}}, Json::object(), {1, -6}});
  CHECK_REFUSED("\"shape\"", {"reshape", {{1, 6}}, Json::object(), {1, 0}});
  CHECK_REFUSED("\"shape\"", {"reshape", {{1, 6}}, Json::object(), {1, 1, 1, 1, 1, 1, 6}});
  CHECK_REFUSED("elements", {"reshape", {{1, 6}}, Json::object(), {1, 1 << 26, 1 << 26}});
}

TEST_CASE("permute") {
  const auto permute = [](const Shape& input, const Json& order, const Shape& output) {
    return OpCase{"permute", {input}, {{"order", order}}, output};
  };
  check_nonsense(permute({1, 3, 4, 5}, {0, 2, 3, 1}, {1, 4, 5, 3}));
  CHECK_ACCEPTED(permute({1, 2, 3, 4, 5, 1}, {5, 4, 3, 2, 1, 0}, {1, 5, 4, 3, 2, 1}));
  CHECK_ACCEPTED(permute({2, 1}, {1, 0}, {1, 2}));
  CHECK_REFUSED("no permutation", permute({1, 3, 4}, {0, 1, 1}, {1}));
  CHECK_REFUSED("no permutation", permute({1, 3, 4}, {0, 1, 3}, {1}));
  CHECK_REFUSED("no permutation", permute({1, 3, 4}, {0, 1}, {1}));
  CHECK_REFUSED("no permutation", permute({1, 3, 4}, {0, 1, 2, 3}, {1}));
  CHECK_REFUSED("not begin with dimension 1", permute({1, 3, 4}, {1, 0, 2}, {3, 1, 4}));
  CHECK_REFUSED("\"order\"", permute({1, 3, 4}, {0, 1, -1}, {1}));
}

TEST_CASE("slice") {
  const auto slice = [](const Shape& input, const Json& axis, const Json& start, const Json& end,
                        const Shape& output) {
    return OpCase{"slice", {input}, {{"axis", axis}, {"start", start}, {"end", end}}, output};
  };
  check_nonsense(slice({1, 6, 4}, 1, 2, 5, {1, 3, 4}));
  CHECK_ACCEPTED(slice({1, 6, 4}, 2, 0, 4, {1, 6, 4}));
  CHECK_ACCEPTED(slice({3, 6}, 0, 2, 3, {1, 6}));
  CHECK_REFUSED("no elements from 3 to 3", slice({1, 6, 4}, 1, 3, 3, {1}));
  CHECK_REFUSED("no elements from 4 to 3", slice({1, 6, 4}, 1, 4, 3, {1}));
  CHECK_REFUSED("no elements from 0 to 7", slice({1, 6, 4}, 1, 0, 7, {1}));
  CHECK_REFUSED("has no axis 3", slice({1, 6, 4}, 3, 0, 1, {1}));
  CHECK_REFUSED("\"start\"", slice({1, 6, 4}, 1, -1, 3, {1}));
  CHECK_REFUSED("\"end\"", slice({1, 6, 4}, 1, 0, 9223372036854775807, {1}));
}

TEST_CASE("concat") {
  const auto concat = [](const std::vector<Shape>& inputs, const Json& axis, const Shape& output) {
    return OpCase{"concat", inputs, {{"axis", axis}}, output};
  };
  check_nonsense(concat({{1, 2, 4}, {1, 3, 4}}, 1, {1, 5, 4}));
  CHECK_ACCEPTED(concat({{1, 2, 4}}, 2, {1, 2, 4}));
  CHECK_ACCEPTED(concat(std::vector<Shape>(4096, Shape{1, 1}), 1, {1, 4096}));
  CHECK_REFUSED("\"inputs\"", concat(std::vector<Shape>(4097, Shape{1, 1}), 1, {1, 4097}));
  CHECK_REFUSED("differ beside axis 1", concat({{1, 2, 4}, {1, 3, 5}}, 1, {1}));
  CHECK_REFUSED("differ beside axis 2", concat({{1, 2, 4}, {1, 3, 4}}, 2, {1}));
  CHECK_REFUSED("differ beside axis 1", concat({{1, 2, 4}, {1, 2}}, 1, {1}));
  CHECK_REFUSED("has no axis 3", concat({{1, 2, 4}, {1, 2, 4}}, 3, {1}));
  CHECK_REFUSED("not begin with dimension 1", concat({{1, 2}, {1, 2}}, 0, {2, 2}));
}

TEST_CASE("channel_shuffle") {
  check_nonsense({"channel_shuffle", {{1, 6, 2, 2}}, {{"groups", 3}}, {1, 6, 2, 2}});
  CHECK_REFUSED("into 4 groups",
                {"channel_shuffle", {{1, 6, 2, 2}}, {{"groups", 4}}, {1, 6, 2, 2}});
  CHECK_REFUSED("into 1048576 groups",
                {"channel_shuffle", {{1, 6, 2, 2}}, {{"groups", 1 << 20}}, {1, 6, 2, 2}});
  CHECK_REFUSED("\"groups\"", {"channel_shuffle", {{1, 6, 2, 2}}, {{"groups", 0}}, {1, 6, 2, 2}});
  CHECK_REFUSED("not [1,C,H,W]", {"channel_shuffle", {{1, 6, 2}}, {{"groups", 3}}, {1, 6, 2}});
}

TEST_CASE("pad") {
  const auto pad = [](const Shape& input, const Json& padding, const Json& value,
                      const Shape& output) {
    return OpCase{"pad", {input}, {{"padding", padding}, {"value", value}}, output};
  };
  check_nonsense(pad({1, 2, 3, 4}, {1, 2, 3, 4}, 0.5, {1, 2, 7, 10}));
  CHECK_ACCEPTED(pad({1, 2, 3, 4}, {0, 0, 0, 0}, -1, {1, 2, 3, 4}));
  CHECK_REFUSED("\"padding\"", pad({1, 2, 3, 4}, {0, 0, 0, -1}, 0.5, {1}));
  CHECK_REFUSED("\"padding\"", pad({1, 2, 3, 4}, {0, 0, 0, 4097}, 0.5, {1}));
  CHECK_REFUSED("\"value\"", pad({1, 2, 3, 4}, {0, 0, 0, 0}, -3.5e38, {1}));
  CHECK_REFUSED("67108864 elements", pad({1, 2, 3, 4}, {4096, 4096, 4096, 4096}, 0.5, {1}));
  CHECK_REFUSED("not [1,C,H,W]", pad({1, 3, 4}, {0, 0, 0, 0}, 0.5, {1}));
}
