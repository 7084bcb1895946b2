// JSON as every answer and every file here uses it: what goes wrong is one sentence, and numbers
// of a float32 are printed as short as they are exact.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace quern {

using Json = nlohmann::json;

// Parses `text`; throws std::runtime_error "<what> is not valid JSON ..." otherwise.
Json parse_json(std::string_view text, const std::string& what);

// One line without a line end. Bytes that are not UTF-8 become U+FFFD.
std::string json_text(const Json& value);

// {"error": sentence}
Json json_error(const std::string& sentence);

// The string at `key` of an object; throws std::runtime_error that names `what` and the key.
std::string string_at(const Json& object, const char* key, const std::string& what);

// A float32 as %.9g: it reads back as the same float32.
Json float_number(float value);

}  // namespace quern
