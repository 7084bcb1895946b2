#include "fuzz/weights_mutator.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <string>

#include "engine/digest.h"
#include "engine/weights_file.h"

namespace quern::fuzz {
namespace {

constexpr std::size_t kPrefixBytes = 48;
constexpr std::size_t kDigestOffset = 32;
constexpr std::size_t kMostRounds = 8;         // of asking the loader what would fit
constexpr std::size_t kMostContent = 1 << 16;  // bytes of one tensor

void put_big_endian(std::uint8_t* at, std::uint64_t value, int count) {
  for (int i = count - 1; i >= 0; --i, value >>= 8U) at[i] = static_cast<std::uint8_t>(value);
}

std::uint64_t big_endian(std::span<const std::uint8_t> bytes) {
  std::uint64_t value = 0;
  for (const std::uint8_t byte : bytes) value = value << 8U | byte;
  return value;
}

std::size_t aligned(std::size_t offset) { return (offset + 63) / 64 * 64; }

std::string text_of(const Json& header) {
  return header.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// The list at `key`, or nullptr when it is none or empty.
Json* list(Json& object, const char* key) {
  if (!object.is_object() || !object.contains(key)) return nullptr;
  Json& found = object[key];
  return found.is_array() && !found.empty() ? &found : nullptr;
}

std::string string_at(const Json& object, const char* key) {
  if (!object.is_object() || !object.contains(key) || !object[key].is_string()) return "";
  return object[key];
}

void collect(Json& value, std::vector<Json*>& found) {
  found.push_back(&value);
  if (value.is_structured()) {
    for (Json& item : value) collect(item, found);
  }
}

// The shape "[1,2,3]" that follows `before` in a message; null when there is none.
Json shape_after(const std::string& message, const std::string& before) {
  const std::size_t at = message.find(before + "[");
  if (at == std::string::npos) return nullptr;
  const std::size_t start = at + before.size();
  return Json::parse(message.substr(start, message.find(']', start) + 1 - start), nullptr, false);
}

std::size_t index_of_tensor(const Json& header, const std::string& name) {
  const Json& entries = header["tensors"];
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (string_at(entries[i], "name") == name) return i;
  }
  return entries.size();
}

// Whether the parts have the form that the mutations of single nodes and tensors rely on.
bool well_formed(const WeightsParts& parts) {
  const Json& header = parts.header;
  if (!header.is_object() || !header.contains("nodes") || !header.contains("tensors")) return false;
  const auto is_object = [](const Json& item) { return item.is_object(); };
  const Json& nodes = header["nodes"];
  const Json& tensors = header["tensors"];
  return nodes.is_array() && std::all_of(nodes.begin(), nodes.end(), is_object) &&
         tensors.is_array() && std::all_of(tensors.begin(), tensors.end(), is_object) &&
         tensors.size() == parts.contents.size();
}

}  // namespace

std::optional<WeightsParts> take_apart(std::span<const std::uint8_t> file) {
  if (file.size() < kPrefixBytes) return std::nullopt;
  const std::uint64_t length = big_endian(file.subspan(24, 8));
  if (length > file.size() - kPrefixBytes) return std::nullopt;
  const auto text = file.subspan(kPrefixBytes, length);
  WeightsParts parts;
  const auto shallow = [](int depth, Json::parse_event_t, Json&) { return depth < 32; };
  parts.header = Json::parse(text.begin(), text.end(), shallow, false);
  if (parts.header.is_discarded()) return std::nullopt;
  if (const Json* tensors = list(parts.header, "tensors")) {
    for (const Json& entry : *tensors) {
      const auto number = [&](const char* key) -> std::uint64_t {
        const bool there = entry.is_object() && entry.contains(key);
        return there && entry[key].is_number_unsigned() ? entry[key].get<std::uint64_t>() : 0;
      };
      const std::uint64_t offset = std::min<std::uint64_t>(number("offset"), file.size());
      const std::uint64_t length_in_file =
          std::min<std::uint64_t>(number("length"), file.size() - offset);
      const auto content = file.subspan(offset, length_in_file);
      parts.contents.emplace_back(content.begin(), content.end());
    }
  }
  return parts;
}

Bytes put_together(WeightsParts& parts) {
  Json* const tensors = list(parts.header, "tensors");
  std::string text = text_of(parts.header);
  for (int round = 0; round < 8 && tensors != nullptr; ++round) {
    std::size_t end = kPrefixBytes + text.size();
    for (std::size_t i = 0; i < std::min(tensors->size(), parts.contents.size()); ++i) {
      Json& entry = (*tensors)[i];
      if (!entry.is_object()) continue;
      entry["offset"] = aligned(end);
      entry["length"] = parts.contents[i].size();
      end = aligned(end) + parts.contents[i].size();
    }
    std::string again = text_of(parts.header);
    const bool settled = again.size() == text.size();
    text = std::move(again);
    if (settled) break;
  }

  Bytes file(kPrefixBytes);
  std::memcpy(file.data(), "QUERNWTS", 8);
  file.insert(file.end(), text.begin(), text.end());
  if (parts.contents.empty()) file.resize(aligned(file.size()));
  for (const Bytes& content : parts.contents) {
    file.resize(aligned(file.size()));
    file.insert(file.end(), content.begin(), content.end());
  }
  put_big_endian(file.data() + 8, 1, 4);
  put_big_endian(file.data() + 12, 0x01020304, 4);
  put_big_endian(file.data() + 16, file.size(), 8);
  put_big_endian(file.data() + 24, text.size(), 8);
  put_right_digest(file);
  return file;
}

void put_right_digest(Bytes& file) {
  if (file.size() < kPrefixBytes) return;
  Digester digester;
  digester.update(std::span(file).first(kDigestOffset));
  digester.update(std::span(file).subspan(kPrefixBytes));
  const Bytes digest = digester.bytes();
  std::copy(digest.begin(), digest.end(), file.begin() + kDigestOffset);
}

Bytes WeightsMutator::mutate(std::span<const std::uint8_t> file,
                             std::span<const std::uint8_t> donor) {
  Bytes result(file.begin(), file.end());
  std::optional<WeightsParts> parts = take_apart(file);
  if (parts && !one_in(8)) {
    for (std::size_t changes = 1 + below(3); changes > 0; --changes) mutate_parts(*parts, donor);
    if (one_in(2)) make_consistent(*parts);
    result = put_together(*parts);
    if (one_in(6)) break_layout(result);
  }
  if (!parts || one_in(8)) mutate_bytes_(result);
  put_right_digest(result);
  return result;
}

// Tensors that don't lie where the header says: some digits in it change, or the file's length
// does.
void WeightsMutator::break_layout(Bytes& file) {
  if (one_in(2)) {
    file.resize(kPrefixBytes + below(file.size() - kPrefixBytes + 128));
    put_big_endian(file.data() + 16, file.size(), 8);
  }
  std::vector<std::size_t> digits;
  const std::size_t header_end =
      std::min<std::size_t>(file.size(), kPrefixBytes + big_endian(std::span(file).subspan(24, 8)));
  for (std::size_t i = kPrefixBytes; i < header_end; ++i) {
    if (file[i] >= '0' && file[i] <= '9') digits.push_back(i);
  }
  for (std::size_t changes = digits.empty() ? 0 : below(4); changes > 0; --changes) {
    file[digits[below(digits.size())]] = static_cast<std::uint8_t>('0' + below(10));
  }
}

void WeightsMutator::mutate_parts(WeightsParts& parts, std::span<const std::uint8_t> donor) {
  if (!well_formed(parts)) return change_value(parts.header);
  switch (below(10)) {
    case 0:
    case 1:
      return change_value(parts.header);
    case 2:
    case 3:
      return change_attribute(parts.header);
    case 4:
      return change_content(parts);
    case 5:
      return change_tensor_shape(parts);
    case 6:
      return change_input(parts.header);
    case 7:
      return add_node(parts, donor);
    case 8:
      return rewire(parts.header);
    default:
      return one_in(3) ? remove_node(parts.header) : add_node(parts, donor);
  }
}

// ---- Values ----

std::int64_t WeightsMutator::any_integer() {
  static constexpr std::array<std::int64_t, 18> kEdges = {
      -1,        0,         1,
      2,         15,        16,
      17,        64,        255,
      4096,      65535,     65536,
      1LL << 26, 1LL << 29, 2147483647,
      1LL << 32, 1LL << 62, std::numeric_limits<std::int64_t>::max()};
  return one_in(3) ? static_cast<std::int64_t>(below(10)) : kEdges[below(kEdges.size())];
}

Json WeightsMutator::any_value() {
  switch (below(12)) {
    case 0:
      return nullptr;
    case 1:
      return one_in(2);
    case 2:
      return "";
    case 3:
      return std::string(1 + below(600), "x\n\"\x7F"[below(4)]);
    case 4:  // control characters that UTF-8 has beyond ASCII's
      return "\u009b31m\u2028\u202e\U0001F600";
    case 5:
      return Json::array();
    case 6:
      return Json::object();
    case 7:
      return std::array{0.5, -0.0, 1e-45, 3.5e38, 1e308, -1.5}[below(6)];
    case 8:
      return small_shape(1 + below(8));
    case 9: {
      Json nested = 1;
      for (std::size_t depth = below(16); depth > 0; --depth) nested = Json::array({nested});
      return nested;
    }
    default:
      return any_integer();
  }
}

Json WeightsMutator::small_shape(std::size_t rank) {
  Json shape = Json::array({1});
  while (shape.size() < rank) shape.push_back(1 + below(one_in(4) ? 40 : 6));
  return shape;
}

// A value of the same kind that stands elsewhere in the header: a name that exists, a shape that
// is one.
Json WeightsMutator::another(const Json& value, const Json& header) {
  std::vector<Json*> all;
  collect(const_cast<Json&>(header), all);
  std::erase_if(all, [&](const Json* other) { return other->type() != value.type(); });
  return all.empty() ? value : *all[below(all.size())];
}

void WeightsMutator::change_value(Json& header) {
  std::vector<Json*> all;
  if (header.is_object() && !header.empty() && !one_in(16)) {  // no section is lost in a large one
    collect(*std::next(header.begin(), static_cast<std::ptrdiff_t>(below(header.size()))), all);
  } else {
    collect(header, all);
  }
  Json& value = *all[below(all.size())];
  if (one_in(4)) {
    value = one_in(2) ? any_value() : another(value, header);
  } else if (value.is_number()) {
    const auto number = static_cast<std::uint64_t>(
        value.is_number_integer() ? value.get<std::int64_t>() : any_integer());
    const std::uint64_t step = one_in(2) ? 1 : ~std::uint64_t{0};  // up or down, with wrap
    value = one_in(2) ? any_integer() : static_cast<std::int64_t>(number + step);
  } else if (value.is_string() && one_in(2)) {
    value = another(value, header);
  } else if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    Bytes bytes(text.begin(), text.end());
    mutate_bytes_(bytes);
    value = std::string(bytes.begin(), bytes.end());
  } else if (value.is_array() && !value.empty()) {
    const std::size_t at = below(value.size());
    const std::size_t other = below(value.size());
    switch (below(4)) {
      case 0:
        value.erase(at);
        break;
      case 1:
        value.insert(value.begin() + static_cast<std::ptrdiff_t>(at), Json(value[other]));
        break;
      case 2:
        std::swap(value[at], value[other]);
        break;
      default:
        value.push_back(any_value());
    }
  } else if (value.is_object() && !value.empty()) {
    const auto item = std::next(value.begin(), static_cast<std::ptrdiff_t>(below(value.size())));
    const std::string key = item.key();
    const Json content = item.value();
    if (one_in(2)) value.erase(key);
    if (one_in(2)) value[one_in(2) ? key + "x" : string_at(any_value(), "")] = content;
  } else {
    value = any_value();
  }
}

// ---- The network ----

void WeightsMutator::change_attribute(Json& header) {
  Json* const nodes = list(header, "nodes");
  if (nodes == nullptr) return;
  std::vector<Json*> numbers;
  for (Json& node : *nodes) {
    std::vector<Json*> all;
    if (node.contains("attributes")) collect(node["attributes"], all);
    std::erase_if(all, [](const Json* value) { return !value->is_number(); });
    numbers.insert(numbers.end(), all.begin(), all.end());
  }
  if (numbers.empty()) return;
  Json& value = *numbers[below(numbers.size())];
  if (value.is_number_float()) {
    value = std::array{0.0, -0.5, 1.0, 1e-5, -1e30, 1e30, 3.4e38, 1e-45}[below(8)];
  } else {
    value = one_in(3) ? any_integer() : static_cast<std::int64_t>(below(5));
  }
}

void WeightsMutator::rewire(Json& header) {
  Json* const nodes = list(header, "nodes");
  if (nodes == nullptr) return;
  const std::size_t at = below(nodes->size());
  Json& node = (*nodes)[at];
  const std::size_t source = below(at + 1 + (one_in(16) ? nodes->size() - at : 0));
  const std::string name =
      source == 0 && header["input"].is_object()
          ? string_at(header["input"], "name")
          : string_at((*nodes)[std::max<std::size_t>(source, 1) - 1], "output");
  if (Json* const inputs = list(node, "inputs")) {
    (*inputs)[below(inputs->size())] = name;
    if (one_in(4)) inputs->push_back(name);
  }
}

void WeightsMutator::remove_node(Json& header) {
  Json* const nodes = list(header, "nodes");
  if (nodes == nullptr) return;
  const std::size_t at = below(nodes->size());
  const std::string output = string_at((*nodes)[at], "output");
  const Json* const inputs = list((*nodes)[at], "inputs");
  const Json input = inputs == nullptr ? Json("") : (*inputs)[0];
  nodes->erase(at);
  for (Json& node : *nodes) {  // those that read it read what it read
    if (Json* const names = list(node, "inputs")) {
      for (Json& name : *names) {
        if (name == output) name = input;
      }
    }
  }
}

// A node of the donor with its tensors, fed from here, and perhaps read by a node that follows.
void WeightsMutator::add_node(WeightsParts& parts, std::span<const std::uint8_t> donor_file) {
  std::optional<WeightsParts> donor = take_apart(donor_file);
  if (!donor || !well_formed(*donor) || donor->header["nodes"].empty()) return;
  Json& nodes = parts.header["nodes"];
  Json node = donor->header["nodes"][below(donor->header["nodes"].size())];
  const std::string mark = std::to_string(random_() % 100'000);
  if (node.contains("tensors") && node["tensors"].is_object()) {
    for (Json& name : node["tensors"]) {
      if (!name.is_string()) continue;
      const std::size_t index = index_of_tensor(donor->header, name.get<std::string>());
      if (index == donor->contents.size()) continue;
      Json entry = donor->header["tensors"][index];
      entry["name"] = name = name.get<std::string>().substr(0, 20) + mark;
      parts.header["tensors"].push_back(entry);
      parts.contents.push_back(donor->contents[index]);
    }
  }
  const std::size_t at = below(nodes.size() + 1);
  const std::string output = "v" + mark;
  node["name"] = "added." + mark;
  node["output"] = output;
  std::string replaced;
  if (Json* const inputs = list(node, "inputs")) {
    for (Json& name : *inputs) {
      const std::size_t source = below(at + 1);
      name = source == 0 ? Json(string_at(parts.header["input"], "name"))
                         : Json(string_at(nodes[source - 1], "output"));
      replaced = name;
    }
  }
  nodes.insert(nodes.begin() + static_cast<std::ptrdiff_t>(at), node);
  if (one_in(3)) return;  // nobody reads it
  for (std::size_t i = at + 1; i < nodes.size(); ++i) {
    if (Json* const names = list(nodes[i], "inputs")) {
      for (Json& name : *names) {
        if (name == replaced || replaced.empty()) {
          name = output;
          if (one_in(2)) return;
        }
      }
    }
  }
}

// ---- Tensors and shapes ----

void WeightsMutator::change_content(WeightsParts& parts) {
  if (parts.contents.empty()) return;
  Bytes& content = parts.contents[below(parts.contents.size())];
  if (content.size() < 4 || one_in(4)) return mutate_bytes_(content);
  static constexpr std::array<std::uint32_t, 9> kBits = {0x7F7FFFFF, 0xFF7FFFFF, 0x00000001,
                                                         0x80000000, 0x7F800000, 0xFF800000,
                                                         0x7FC00000, 0x7F800001, 0x3F800000};
  put_big_endian(content.data() + below(content.size() / 4) * 4, kBits[below(kBits.size())], 4);
}

void WeightsMutator::resize(WeightsParts& parts, std::size_t tensor, const Json& shape) {
  std::size_t elements = 1;
  for (const Json& dimension : shape) {
    const auto size = dimension.is_number_unsigned() ? dimension.get<std::size_t>() : 0;
    if (size == 0 || size > kMostContent / 4 / elements) return;
    elements *= size;
  }
  parts.header["tensors"][tensor]["shape"] = shape;
  Bytes& content = parts.contents[tensor];
  if (content.empty()) content.resize(4);
  const std::size_t had = content.size();
  content.resize(elements * 4);
  for (std::size_t i = had; i < content.size(); ++i) content[i] = content[i % (had / 4 * 4 + 4)];
}

void WeightsMutator::change_tensor_shape(WeightsParts& parts) {
  if (parts.contents.empty()) return;
  const std::size_t tensor = below(parts.contents.size());
  Json shape = parts.header["tensors"][tensor].value("shape", Json::array());
  if (!shape.is_array()) return;
  if (shape.empty() || one_in(6)) {
    shape = small_shape(1 + below(6));
  } else {
    shape[below(shape.size())] = 1 + below(one_in(4) ? 40 : 8);
  }
  resize(parts, tensor, shape);
}

void WeightsMutator::change_input(Json& header) {
  if (!header.contains("input") || !header.contains("preprocess")) return;
  if (!header["input"].is_object() || !header["preprocess"].is_object()) return;
  Json& shape = header["input"]["shape"];
  const bool gray = header["preprocess"].value("mode", Json("RGB")) == "L";
  shape = {1, gray ? 1 : 3, 1 + below(20), 1 + below(20)};
  const Json side = Json::array({shape[2], shape[3]});
  header["preprocess"]["resize"] = one_in(3) ? Json() : side;
  header["preprocess"]["crop"] = one_in(3) ? side : Json();
}

void WeightsMutator::make_consistent(WeightsParts& parts) {
  if (!well_formed(parts)) return;
  Json& header = parts.header;
  Json& nodes = header["nodes"];
  for (std::size_t i = 0; i < nodes.size(); ++i) {  // a name serves only messages
    nodes[i]["name"] = "n" + std::to_string(i);
  }
  for (std::size_t round = 0; round < kMostRounds; ++round) {
    std::string message;
    try {
      parse_weights(put_together(parts));
      return;
    } catch (const WeightsError& error) {
      message = error.what();
    }
    if (const Json logits = shape_after(message, "the output's shape is "); logits.is_array()) {
      if (logits.size() != 2 || logits[1] > 1000) return;
      header["classes"] = Json::array();
      while (header["classes"].size() < logits[1]) header["classes"].push_back("c");
      continue;
    }
    std::size_t at = 0;
    if (std::sscanf(message.c_str(), "node \"n%zu\" (", &at) != 1 || at >= nodes.size()) return;
    Json& node = nodes[at];
    if (const Json shape = shape_after(message, "the output is "); shape.is_array()) {
      node["shape"] = shape;
      continue;
    }
    // A weight for another number of inputs: dimension 1 of conv2d's and linear's.
    const Json input = shape_after(message, "does not fit the input ");
    const std::size_t tensor = index_of_tensor(
        header, node.contains("tensors") ? string_at(node["tensors"], "weight") : "");
    if (!input.is_array() || input.size() < 2 || tensor == parts.contents.size()) return;
    const Json& groups =
        node["attributes"].is_object() ? node["attributes"].value("groups", Json(1)) : Json(1);
    Json shape = header["tensors"][tensor]["shape"];
    if (!groups.is_number_unsigned() || groups == 0 || !shape.is_array() || shape.size() < 2)
      return;
    const std::size_t channels = input[1].get<std::size_t>() / groups.get<std::size_t>();
    if (shape[1] == channels) return;
    shape[1] = channels;
    resize(parts, tensor, shape);
  }
}

}  // namespace quern::fuzz
