// How a fuzzing program says that the product is wrong where no sanitizer would: it dies, and
// libFuzzer keeps the input.
#pragma once

#include <string>
#include <string_view>

namespace quern::fuzz {

// Prints the sentence, even when the program's standard error was closed, and aborts.
[[noreturn]] void finding(const std::string& sentence);

// A message that people read: one line of at least a word, at most 400 bytes, UTF-8, no control
// characters. Anything else is a finding.
void check_sentence(std::string_view text);

}  // namespace quern::fuzz
