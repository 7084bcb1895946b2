#include "fuzz/finding.h"

#include <unistd.h>

#include <cstdint>
#include <cstdlib>

namespace quern::fuzz {
namespace {

constexpr std::size_t kLongestSentence = 400;

// Before main(), and so before libFuzzer's -close_fd_mask silences the server's log.
const int kStandardError = dup(STDERR_FILENO);

// The code point at the front of `text`, which loses it; -1 when that is not UTF-8.
std::int32_t next_code_point(std::string_view& text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::size_t length = byte(0) < 0x80 ? 1 : byte(0) < 0xE0 ? 2 : byte(0) < 0xF0 ? 3 : 4;
  constexpr std::int32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (text.size() < length || (length > 1 && byte(0) < 0xC2) || byte(0) > 0xF4) return -1;
  std::int32_t point = length == 1 ? byte(0) : byte(0) & (0x7F >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return -1;
    point = point << 6 | (byte(i) & 0x3F);
  }
  text.remove_prefix(length);
  const bool surrogate = point >= 0xD800 && point < 0xE000;
  return point < kSmallest[length] || point > 0x10FFFF || surrogate ? -1 : point;
}

}  // namespace

void finding(const std::string& sentence) {
  const std::string line = "FINDING: " + sentence + "\n";
  [[maybe_unused]] const ssize_t written = write(kStandardError, line.data(), line.size());
  std::abort();
}

void check_sentence(std::string_view text) {
  const std::string quoted = "\"" + std::string(text) + "\"";
  if (text.size() < 4) finding("a message without a word: " + quoted);
  if (text.size() > kLongestSentence) finding("a message that is too long: " + quoted);
  while (!text.empty()) {
    const std::int32_t point = next_code_point(text);
    if (point < 0) finding("a message that is not UTF-8: " + quoted);
    if (point < 0x20 || (point >= 0x7F && point < 0xA0)) {
      finding("a message with a control character: " + quoted);
    }
  }
}

}  // namespace quern::fuzz
