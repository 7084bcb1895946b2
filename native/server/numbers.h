// Whole numbers as the command lines of both programs give them.
#pragma once

#include <string>

namespace quern {

// `text` as a number between `least` and `most`; throws std::runtime_error that names `option`.
long whole_number(const std::string& option, const std::string& text, long least, long most);

}  // namespace quern
