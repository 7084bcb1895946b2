// What of a request's body concerns us before the engine gets it: which model it asks for, and
// whether a chat begins with a system message.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include "chat/chat_release.h"

namespace quern {

// A request that is refused; what() is the sentence.
struct Refused : std::runtime_error {
  Refused(int s, const std::string& sentence) : std::runtime_error(sentence), status(s) {}
  int status;
};

// Checks that `body` is a JSON object of bearable depth that asks for this release's model, under
// its name or its label, or for none. Returns what the engine is to be given when that is
// another body: with the release's system message put first, for a chat that has none. "": the
// body as it is. Throws Refused.
std::string checked_request(std::span<const std::uint8_t> body, const ChatRelease& release,
                            bool chat);

}  // namespace quern
