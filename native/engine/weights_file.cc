#include "engine/weights_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/digest.h"
#include "engine/operators.h"

namespace quern {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kMagic = "QUERNWTS";
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kByteOrderMark = 0x01020304;
constexpr std::size_t kDigestOffset = 32;
constexpr std::size_t kDigestBytes = 16;
constexpr std::size_t kPrefixBytes = kDigestOffset + kDigestBytes;
constexpr std::size_t kAlignment = 64;
constexpr int kMaxDepth = 8;

[[noreturn]] void fail(const std::string& sentence) { throw WeightsError(sentence); }

std::size_t aligned(std::size_t offset) {
  return (offset + kAlignment - 1) / kAlignment * kAlignment;
}

std::uint64_t big_endian(std::span<const std::uint8_t> bytes) {
  std::uint64_t value = 0;
  for (const std::uint8_t byte : bytes) value = value << 8U | byte;
  return value;
}

// Turns big-endian float32 into the machine's, in place, up to the first that is not finite: its
// index, or `count`.
std::size_t to_native_floats(std::uint8_t* data, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i, data += sizeof(std::uint32_t)) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, data, sizeof(bits));
    if constexpr (std::endian::native == std::endian::little) bits = __builtin_bswap32(bits);
    if (!std::isfinite(std::bit_cast<float>(bits))) return i;
    std::memcpy(data, &bits, sizeof(bits));
  }
  return count;
}

// ---- JSON: every access says where it looked and what it wanted ----

// Before parsing: the parser's own hook for this takes a time that grows with the square of a
// list's length.
void check_depth(std::span<const std::uint8_t> text) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::uint8_t c = text[i];
    if (c == '"') in_string = !in_string;
    if (in_string) {
      if (c == '\\') ++i;  // and what it escapes
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) fail("the header is nested too deeply");
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
}

Json parse_json(std::span<const std::uint8_t> text) {
  check_depth(text);
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception&) {
    fail("the header is not valid JSON");
  }
}

// The member `key`, for objects whose keys check_keys() has seen.
const Json& member(const Json& object, const char* key) { return *object.find(key); }

void check_keys(const Json& object, const std::set<std::string, std::less<>>& keys,
                const std::string& where) {
  if (!object.is_object()) fail(where + " is not an object");
  for (const auto& item : object.items()) {
    if (!keys.contains(item.key())) fail(where + " has an unknown key " + in_quotes(item.key()));
  }
  for (const std::string& key : keys) {
    if (!object.contains(key)) fail(where + " has no " + in_quotes(key));
  }
}

std::string string_of(const Json& json, const std::string& where) {
  if (!json.is_string()) fail(where + " is not a string");
  return json.get<std::string>();
}

std::int64_t integer_of(const Json& json, std::int64_t minimum, std::int64_t maximum,
                        const std::string& where) {
  const bool fits = json.is_number_unsigned()
                        ? json.get<std::uint64_t>() <= std::numeric_limits<std::int64_t>::max()
                        : json.is_number_integer();
  if (!fits || json.get<std::int64_t>() < minimum || json.get<std::int64_t>() > maximum) {
    fail(where + " is not an integer from " + std::to_string(minimum) + " to " +
         std::to_string(maximum));
  }
  return json.get<std::int64_t>();
}

float number_of(const Json& json, double minimum, double maximum, const std::string& where) {
  const double number = json.is_number() ? json.get<double>() : std::nan("");
  if (!(number >= minimum && number <= maximum)) {
    fail(where + " is not a number from " + Json(minimum).dump() + " to " + Json(maximum).dump());
  }
  return static_cast<float>(number);
}

const Json& array_of(const Json& json, std::size_t minimum, std::size_t maximum,
                     const std::string& where) {
  if (!json.is_array() || json.size() < minimum || json.size() > maximum) {
    fail(where + " is not a list of " + std::to_string(minimum) +
         (minimum == maximum ? "" : " to " + std::to_string(maximum)) + " items");
  }
  return json;
}

// A shape whose number of elements is at most `max_elements`.
Shape shape_of(const Json& json, std::int64_t max_elements, const std::string& where) {
  Shape shape;
  std::int64_t count = 1;
  for (const Json& item : array_of(json, 1, kMaxRank, where)) {
    shape.push_back(integer_of(item, 1, max_elements, where));
    if (shape.back() > max_elements / count) {
      fail(where + " has more than " + std::to_string(max_elements) + " elements");
    }
    count *= shape.back();
  }
  return shape;
}

// ---- The sections of the header ----

// Tensors lie where the format says and nowhere else: in order, each at the next multiple of 64,
// zeros between, nothing after the last.
void read_tensors(const Json& json, std::size_t header_end, std::span<std::uint8_t> file,
                  Graph& graph, std::map<std::string, std::size_t, std::less<>>& by_name) {
  std::size_t end = header_end;
  const auto skip_zeros_to = [&](std::size_t offset) {
    for (; end < offset && end < file.size(); ++end) {
      if (file[end] != 0) fail("the padding at byte " + std::to_string(end) + " is not zero");
    }
  };
  for (const Json& item : array_of(json, 0, 4 * kMaxNodes, "\"tensors\"")) {
    const std::string number = "tensor " + std::to_string(graph.tensors.size());
    check_keys(item, {"name", "shape", "dtype", "offset", "length"}, number);
    Tensor tensor;
    tensor.name = string_of(member(item, "name"), number + ": \"name\"");
    const std::string where = "tensor " + in_quotes(tensor.name) + ": ";
    tensor.shape =
        shape_of(member(item, "shape"), kMaxFileBytes / sizeof(float), where + "\"shape\"");
    if (string_of(member(item, "dtype"), where + "\"dtype\"") != "float32") {
      fail(where + "\"dtype\" is not \"float32\"");
    }
    const auto most = static_cast<std::int64_t>(file.size());
    const auto offset =
        static_cast<std::size_t>(integer_of(member(item, "offset"), 0, most, where + "\"offset\""));
    const auto length =
        static_cast<std::size_t>(integer_of(member(item, "length"), 0, most, where + "\"length\""));
    const auto elements = static_cast<std::size_t>(element_count(tensor.shape));
    if (length != elements * sizeof(float)) {
      fail(where + "\"length\" is " + std::to_string(length) + ", its shape " +
           to_string(tensor.shape) + " takes " + std::to_string(elements * sizeof(float)));
    }
    if (offset != aligned(end)) {
      fail(where + "\"offset\" is " + std::to_string(offset) + ", it must be " +
           std::to_string(aligned(end)));
    }
    if (length > file.size() - offset) fail(where + "it reaches beyond the end of the file");
    skip_zeros_to(offset);
    end = offset + length;

    std::uint8_t* const data = file.data() + offset;
    if (const std::size_t bad = to_native_floats(data, elements); bad < elements) {
      fail(where + "element " + std::to_string(bad) + " is not finite");
    }
    tensor.data = {reinterpret_cast<const float*>(data), elements};
    if (!by_name.emplace(tensor.name, graph.tensors.size()).second) {
      fail(where + "the name is used twice");
    }
    graph.tensors.push_back(std::move(tensor));
  }
  if (graph.tensors.empty()) skip_zeros_to(aligned(end));
  if (end != file.size()) {
    fail("the last tensor ends at byte " + std::to_string(end) + ", the file at byte " +
         std::to_string(file.size()));
  }
}

void read_attributes(const Json& json, const std::string& where, Node& node) {
  std::set<std::string, std::less<>> names;
  for (const AttributeRule& rule : node.op->attributes) names.emplace(rule.name);
  check_keys(json, names, where + "\"attributes\"");
  for (const AttributeRule& rule : node.op->attributes) {
    const std::string name(rule.name);
    const std::string place = where + in_quotes(name);
    const Json& value = member(json, name.c_str());
    if (rule.type == AttributeRule::Type::kNumber) {
      node.numbers.emplace(name, number_of(value, rule.minimum, rule.maximum, place));
      continue;
    }
    const auto minimum = static_cast<std::int64_t>(rule.minimum);
    const auto maximum = static_cast<std::int64_t>(rule.maximum);
    std::vector<std::int64_t> integers;
    if (rule.type == AttributeRule::Type::kInteger) {
      integers.push_back(integer_of(value, minimum, maximum, place));
    } else {
      for (const Json& item : array_of(value, rule.shortest, rule.longest, place)) {
        integers.push_back(integer_of(item, minimum, maximum, place));
      }
    }
    node.attributes.emplace(name, std::move(integers));
  }
}

void read_nodes(const Json& json, const std::map<std::string, std::size_t, std::less<>>& tensors,
                std::map<std::string, std::size_t, std::less<>>& values, Graph& graph) {
  for (const Json& item : array_of(json, 1, kMaxNodes, "\"nodes\"")) {
    const std::string number = "node " + std::to_string(graph.nodes.size());
    check_keys(item, {"op", "name", "inputs", "output", "shape", "tensors", "attributes"}, number);
    Node node;
    node.name = string_of(member(item, "name"), number + ": \"name\"");
    const std::string where = "node " + in_quotes(node.name) + ": ";

    const std::string op = string_of(member(item, "op"), where + "\"op\"");
    node.op = find_operator(op);
    if (node.op == nullptr)
      fail(where + "the op " + in_quotes(op) + " is not known to this server");

    const auto [fewest, most] = node.op->inputs;
    for (const Json& input : array_of(member(item, "inputs"), fewest, most, where + "\"inputs\"")) {
      const auto found = values.find(string_of(input, where + "\"inputs\""));
      if (found == values.end()) {
        fail(where + "the input " + in_quotes(input.get<std::string>()) +
             " is not computed before it");
      }
      node.inputs.push_back(found->second);
    }

    std::set<std::string, std::less<>> roles;
    for (const std::string_view role : node.op->tensors) roles.emplace(role);
    check_keys(member(item, "tensors"), roles, where + "\"tensors\"");
    for (const std::string& role : roles) {
      const std::string name =
          string_of(member(member(item, "tensors"), role.c_str()), where + in_quotes(role));
      const auto found = tensors.find(name);
      if (found == tensors.end()) fail(where + "there is no tensor " + in_quotes(name));
      node.tensors.emplace(role, found->second);
    }
    read_attributes(member(item, "attributes"), where, node);

    node.output = graph.values.size();
    Value output;
    output.name = string_of(member(item, "output"), where + "\"output\"");
    output.shape = shape_of(member(item, "shape"), kMaxValueElements, where + "\"shape\"");
    if (!values.emplace(output.name, node.output).second) {
      fail(where + "the value name " + in_quotes(output.name) + " is used twice");
    }
    graph.values.push_back(std::move(output));
    graph.nodes.push_back(std::move(node));
  }
}

// null, a plain integer (one side) or [height, width].
std::optional<Size> read_size(const Json& json, bool shorter_side, const std::string& where) {
  if (json.is_null()) return std::nullopt;
  if (!json.is_array()) {
    const auto side = static_cast<int>(integer_of(json, 1, kMaxInputSide, where));
    return Size{side, side, shorter_side};
  }
  array_of(json, 2, 2, where);
  return Size{static_cast<int>(integer_of(json[0], 1, kMaxInputSide, where)),
              static_cast<int>(integer_of(json[1], 1, kMaxInputSide, where)), false};
}

std::vector<float> read_floats(const Json& json, std::size_t count, const std::string& where) {
  std::vector<float> numbers;
  for (const Json& item : array_of(json, count, count, where)) {
    numbers.push_back(number_of(item, -1e6, 1e6, where));
  }
  return numbers;
}

Preprocess read_preprocess(const Json& json) {
  const std::string where = "\"preprocess\"";
  check_keys(json, {"mode", "resize", "crop", "interpolation", "mean", "std"}, where);
  Preprocess preprocess;
  const std::string mode = string_of(member(json, "mode"), where + ": \"mode\"");
  if (mode != "RGB" && mode != "L") fail(where + ": \"mode\" is neither \"RGB\" nor \"L\"");
  preprocess.mode = mode == "RGB" ? ColorMode::kRgb : ColorMode::kL;
  preprocess.resize = read_size(member(json, "resize"), true, where + ": \"resize\"");
  preprocess.crop = read_size(member(json, "crop"), false, where + ": \"crop\"");

  static const std::map<std::string, Interpolation, std::less<>> kInterpolations = {
      {"nearest", Interpolation::kNearest},
      {"bilinear", Interpolation::kBilinear},
      {"bicubic", Interpolation::kBicubic}};
  const auto found =
      kInterpolations.find(string_of(member(json, "interpolation"), where + ": \"interpolation\""));
  if (found == kInterpolations.end()) {
    fail(where + ": \"interpolation\" is not \"nearest\", \"bilinear\" or \"bicubic\"");
  }
  preprocess.interpolation = found->second;

  const Json& mean = member(json, "mean");
  const Json& std = member(json, "std");
  if (mean.is_null() != std.is_null()) fail(where + ": \"mean\" and \"std\" go together");
  if (!mean.is_null()) {
    const auto channels = static_cast<std::size_t>(preprocess.channels());
    preprocess.mean = read_floats(mean, channels, where + ": \"mean\"");
    preprocess.std = read_floats(std, channels, where + ": \"std\"");
    for (const float deviation : preprocess.std) {
      if (deviation < 1e-6F) fail(where + ": \"std\" holds a number below 1e-6");
    }
  }
  return preprocess;
}

// Refuses a chain that can give the input's shape for no image.
void check_preprocess(const Preprocess& preprocess, const Shape& input) {
  const auto height = static_cast<int>(input[2]);
  const auto width = static_cast<int>(input[3]);
  bool fits = preprocess.channels() == input[1];
  if (preprocess.crop) {
    fits = fits && preprocess.crop->height == height && preprocess.crop->width == width;
  } else if (preprocess.resize && preprocess.resize->shorter_side) {
    fits = fits && preprocess.resize->height == std::min(height, width);
  } else if (preprocess.resize) {
    fits = fits && preprocess.resize->height == height && preprocess.resize->width == width;
  }
  if (!fits) fail("\"preprocess\" does not give the input's shape " + to_string(input));
}

void read_header(const Json& header, std::size_t header_end, std::span<std::uint8_t> file,
                 WeightsFile& out) {
  check_keys(header, {"format", "input", "output", "nodes", "tensors", "preprocess", "classes"},
             "the header");
  integer_of(member(header, "format"), kVersion, kVersion, "\"format\"");

  const Json& input = member(header, "input");
  check_keys(input, {"name", "shape"}, "\"input\"");
  Graph& graph = out.graph;
  graph.values.push_back(
      {string_of(member(input, "name"), "\"input\": \"name\""),
       shape_of(member(input, "shape"), kMaxValueElements, "\"input\": \"shape\"")});
  const Shape& shape = graph.values[0].shape;
  if (shape.size() != 4 || shape[0] != 1 || shape[2] > kMaxInputSide || shape[3] > kMaxInputSide) {
    fail("\"input\": \"shape\" " + to_string(shape) + " is not [1,C,H,W] with sides up to " +
         std::to_string(kMaxInputSide));
  }
  out.preprocess = read_preprocess(member(header, "preprocess"));
  check_preprocess(out.preprocess, shape);

  std::map<std::string, std::size_t, std::less<>> tensors;
  read_tensors(member(header, "tensors"), header_end, file, graph, tensors);
  std::map<std::string, std::size_t, std::less<>> values = {{graph.values[0].name, 0}};
  read_nodes(member(header, "nodes"), tensors, values, graph);
  check_shapes(graph);

  const auto output = values.find(string_of(member(header, "output"), "\"output\""));
  if (output == values.end()) fail("\"output\" names no value");
  graph.output = output->second;
  for (const Json& label : array_of(member(header, "classes"), 1, kMaxClasses, "\"classes\"")) {
    out.classes.push_back(string_of(label, "\"classes\""));
  }
  const Shape& logits = graph.values[graph.output].shape;
  if (logits != Shape{1, static_cast<std::int64_t>(out.classes.size())}) {
    fail("the output's shape is " + to_string(logits) + ", \"classes\" has " +
         std::to_string(out.classes.size()) + " labels");
  }
}

// `bytes` holds the file of `size` bytes as it was read.
WeightsFile parse(AlignedFloats bytes, std::size_t size) {
  const std::span<std::uint8_t> file(reinterpret_cast<std::uint8_t*>(bytes.get()), size);
  const std::string_view magic(reinterpret_cast<const char*>(file.data()),
                               std::min(size, kMagic.size()));
  if (magic != kMagic) fail("not a model_weights.bin: it does not begin with QUERNWTS");
  if (size < kPrefixBytes) fail("truncated: it is shorter than its fixed fields");
  const std::uint64_t version = big_endian(file.subspan(8, 4));
  if (version != kVersion) {
    fail("format version " + std::to_string(version) + ", this server reads version " +
         std::to_string(kVersion));
  }
  if (big_endian(file.subspan(12, 4)) != kByteOrderMark) fail("the byte-order mark is wrong");
  const std::uint64_t declared = big_endian(file.subspan(16, 8));
  if (declared != size) {
    fail("the file has " + std::to_string(size) + " bytes, its header says " +
         std::to_string(declared));
  }
  const std::uint64_t header_bytes = big_endian(file.subspan(24, 8));
  if (header_bytes > kMaxHeaderBytes || header_bytes > size - kPrefixBytes) {
    fail("the header's length " + std::to_string(header_bytes) + " does not fit the file");
  }
  Digester digester;
  digester.update(file.first(kDigestOffset));
  digester.update(file.subspan(kPrefixBytes));
  if (digester.bytes() != std::vector(file.begin() + kDigestOffset, file.begin() + kPrefixBytes)) {
    fail("damaged: the content does not match its digest");
  }

  WeightsFile out;
  out.digest = digest_hex(file);
  const Json header = parse_json(file.subspan(kPrefixBytes, header_bytes));
  read_header(header, kPrefixBytes + header_bytes, file, out);
  out.bytes = std::move(bytes);
  return out;
}

AlignedFloats allocate_bytes(std::size_t size) {
  if (size > kMaxFileBytes) {
    fail("the file has " + std::to_string(size) + " bytes, at most " +
         std::to_string(kMaxFileBytes) + " are read");
  }
  return allocate_floats((size + sizeof(float) - 1) / sizeof(float));
}

struct OpenFile {
  int descriptor;
  ~OpenFile() {
    if (descriptor >= 0) ::close(descriptor);
  }
};

WeightsFile read_and_parse(const std::string& path) {
  // O_NONBLOCK: a named pipe in the file's place must not hang the server.
  const OpenFile file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct stat status = {};
  if (file.descriptor < 0 || ::fstat(file.descriptor, &status) != 0) {
    fail(std::string("cannot be opened: ") + std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) fail("not a regular file");
  const auto size = static_cast<std::size_t>(status.st_size);
  AlignedFloats bytes = allocate_bytes(size);
  auto* const memory = reinterpret_cast<std::uint8_t*>(bytes.get());
  for (std::size_t done = 0; done < size;) {
    const ssize_t count = ::read(file.descriptor, memory + done, size - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(std::string("cannot be read: ") + std::strerror(errno));
    if (count == 0) fail("it became shorter while it was read");
    done += static_cast<std::size_t>(count);
  }
  return parse(std::move(bytes), size);
}

}  // namespace

void WeightsFile::release_tensors() {
  graph.nodes = {};
  graph.tensors = {};
  graph.values.resize(1);
  graph.values.shrink_to_fit();
  bytes.reset();
}

WeightsFile read_weights_file(const std::string& path) {
  try {
    return read_and_parse(path);
  } catch (const WeightsError& error) {
    throw WeightsError(path + ": " + error.what());
  } catch (const std::bad_alloc&) {
    throw WeightsError(path + ": not enough memory to load it");
  }
}

WeightsFile parse_weights(std::span<const std::uint8_t> file) {
  AlignedFloats bytes = allocate_bytes(file.size());
  if (!file.empty()) std::memcpy(bytes.get(), file.data(), file.size());
  return parse(std::move(bytes), file.size());
}

}  // namespace quern
