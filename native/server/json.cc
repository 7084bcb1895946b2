#include "server/json.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <stdexcept>

namespace quern {

Json parse_json(std::string_view text, const std::string& what) {
  // As bytes, as the engine reads its header: one parser is compiled instead of two.
  const std::span<const std::uint8_t> bytes(reinterpret_cast<const std::uint8_t*>(text.data()),
                                            text.size());
  try {
    return Json::parse(bytes.begin(), bytes.end());
  } catch (const Json::parse_error& e) {
    throw std::runtime_error(what + " is not valid JSON (byte " + std::to_string(e.byte) + ")");
  }
}

std::string json_text(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json json_error(const std::string& sentence) { return Json{{"error", sentence}}; }

std::string string_at(const Json& object, const char* key, const std::string& what) {
  if (!object.is_object()) throw std::runtime_error(what + " must be a JSON object");
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) {
    throw std::runtime_error(what + " needs \"" + key + "\", a string");
  }
  return found->get<std::string>();
}

Json float_number(float value) {
  if (!std::isfinite(value)) return nullptr;
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
  return std::strtod(text, nullptr);
}

}  // namespace quern
