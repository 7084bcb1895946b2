#include "server/numbers.h"

#include <charconv>
#include <stdexcept>

namespace quern {

long whole_number(const std::string& option, const std::string& text, long least, long most) {
  long value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) {
    throw std::runtime_error(option + " must be a whole number from " + std::to_string(least) +
                             " to " + std::to_string(most) + ", not \"" + text + "\"");
  }
  return value;
}

}  // namespace quern
