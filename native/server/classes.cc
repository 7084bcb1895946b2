#include "server/classes.h"

#include <stdexcept>

namespace quern {

std::vector<Json> parse_classes(std::string_view text, const std::string& file, std::size_t count) {
  Json given = parse_json(text, file);
  if (!given.is_array() && !given.is_object()) {
    throw std::runtime_error(file + " must be an array, or an object keyed \"0\", \"1\", …");
  }
  if (given.size() != count) {
    throw std::runtime_error(file + " has " + std::to_string(given.size()) +
                             " classes, the model has " + std::to_string(count) +
                             " outputs: give the classes that it was trained with");
  }
  std::vector<Json> classes;
  classes.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::string key = std::to_string(i);
    if (given.is_object() && !given.contains(key)) {
      throw std::runtime_error(file + " has no class \"" + key + "\"");
    }
    Json& entry = given.is_object() ? given[key] : given[i];
    if (entry.is_string()) entry = Json{{"name", entry}};
    if (!entry.is_object()) {
      throw std::runtime_error(file + ": class " + key + " must be a string or an object");
    }
    classes.push_back(std::move(entry));
  }
  return classes;
}

}  // namespace quern
