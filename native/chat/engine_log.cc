#include "chat/engine_log.h"

#include <event2/event.h>
#include <fcntl.h>
#include <strings.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>

namespace quern {

namespace {

constexpr std::size_t kMaxLine = 4096;  // a longer one is several

bool tells_of_an_error(const std::string& text) {
  return strcasestr(text.c_str(), "error") != nullptr ||
         strcasestr(text.c_str(), "failed") != nullptr ||
         strcasestr(text.c_str(), "invalid") != nullptr;
}

}  // namespace

EngineLog::EngineLog(EventLoop& loop, int descriptor) : descriptor_(descriptor) {
  fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
  readable_.reset(event_new(
      loop.base(), descriptor, EV_READ | EV_PERSIST,
      [](evutil_socket_t, short, void* self) { static_cast<EngineLog*>(self)->read(); }, this));
  event_add(readable_.get(), nullptr);
}

EngineLog::~EngineLog() {
  readable_.reset();
  close(descriptor_);
}

void EngineLog::read() {
  constexpr int kPiecesAtOnce = 16;  // others want to be heard as well
  char piece[4096];
  for (int i = 0; i < kPiecesAtOnce; ++i) {
    const ssize_t got = ::read(descriptor_, piece, sizeof piece);
    if (got <= 0) {
      if (got == 0 || (errno != EAGAIN && errno != EINTR)) event_del(readable_.get());
      return;
    }
    for (const char c : std::string(piece, static_cast<std::size_t>(got))) {
      if (c != '\n') partial_ += c;
      if (c == '\n' || partial_.size() >= kMaxLine) {
        line(partial_);
        partial_.clear();
      }
    }
  }
}

void EngineLog::line(const std::string& text) {
  std::string whole = text;
  // What a client sent may be in it: nothing that a terminal would obey.
  std::replace_if(
      whole.begin(), whole.end(), [](unsigned char c) { return std::iscntrl(c) != 0; }, ' ');
  whole += '\n';
  // A log that cannot be written must not stop the service.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, whole.data(), whole.size());
  if (text.find_first_not_of(' ') == std::string::npos) return;
  last_ = text;
  if (error_.empty() && tells_of_an_error(text)) error_ = text;
}

void EngineLog::forget() {
  last_.clear();
  error_.clear();
}

}  // namespace quern
