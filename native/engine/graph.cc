#include "engine/graph.h"

#include <algorithm>

namespace quern {

std::int64_t element_count(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t dimension : shape) count *= dimension;
  return count;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ",";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

std::string in_quotes(const std::string& name) {
  constexpr std::size_t kLongest = 120;
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(name[i]); };
  std::size_t end = std::min(name.size(), kLongest);
  while (end > 0 && end < name.size() && (byte(end) & 0xC0U) == 0x80) --end;  // a whole character
  std::string text = "\"";
  for (std::size_t i = 0; i < end; ++i) {
    const bool c1 = byte(i) == 0xC2 && i + 1 < end && byte(i + 1) < 0xA0;  // U+0080 to U+009F
    const bool control = c1 || byte(i) < 0x20 || byte(i) == 0x7F;
    text += control ? '?' : name[i];
    if (c1) ++i;
  }
  return text + (end < name.size() ? "…\"" : "\"");
}

}  // namespace quern
