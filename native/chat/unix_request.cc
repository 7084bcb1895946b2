#include "chat/unix_request.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <fcntl.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>
#include <utility>

#include "server/log.h"
#include "server/sockets.h"

namespace quern {

namespace {

constexpr std::size_t kMaxHead = std::size_t{64} << 10;
constexpr std::size_t kMaxLine = 1024;      // of a chunk's size, or a trailer
constexpr std::size_t kMaxTrailers = 1000;  // lines
constexpr std::size_t kReadAhead = std::size_t{64} << 10;
constexpr double kConnectSeconds = 10.0;
constexpr double kBacklogFull = 0.01;

bool number_in(std::string_view text, int base, std::size_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

}  // namespace

UnixRequest::UnixRequest(EventLoop& loop, std::string socket, const char* method,
                         const std::string& path, std::string_view body, Handlers handlers)
    : socket_(std::move(socket)),
      handlers_(std::move(handlers)),
      connecting_(loop,
                  [this, base = loop.base()] {
                    if (channel_ == nullptr) {
                      channel_ = bufferevent_socket_new(base, -1, BEV_OPT_CLOSE_ON_FREE);
                    }
                    connect();
                  }),
      deadline_(monotonic_seconds() + kConnectSeconds) {
  request_ = std::string(method) + " " + path + " HTTP/1.1\r\nHost: localhost\r\n";
  request_ += "Connection: close\r\n";
  if (!body.empty()) {
    request_ += "Content-Type: application/json\r\n";
    request_ += "Content-Length: " + std::to_string(body.size()) + "\r\n";
  }
  request_ += "\r\n";
  request_ += body;
  connecting_.start(0.0);
}

UnixRequest::~UnixRequest() {
  if (channel_ != nullptr) bufferevent_free(channel_);
}

void UnixRequest::connect() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (channel_ == nullptr || socket_.size() >= sizeof address.sun_path) {
    fail("cannot connect to " + socket_);
    return;
  }
  memcpy(address.sun_path, socket_.c_str(), socket_.size() + 1);
  const int descriptor = ::socket(AF_UNIX, SOCK_STREAM, 0);
  if (descriptor < 0) {
    fail("cannot connect to " + socket_ + ": " + error_text(errno));
    return;
  }
  close_on_exec(descriptor, true);
  fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
  if (::connect(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
    talk(descriptor);
    return;
  }
  const int error = errno;
  close(descriptor);
  // On Unix sockets a full backlog is an error, which passes.
  if ((error == EAGAIN || error == EINTR) && monotonic_seconds() < deadline_) {
    connecting_.start(kBacklogFull);
  } else {
    fail("cannot connect to " + socket_ + ": " + error_text(error));
  }
}

void UnixRequest::talk(int descriptor) {
  bufferevent_setfd(channel_, descriptor);
  bufferevent_setcb(
      channel_, [](bufferevent*, void* self) { static_cast<UnixRequest*>(self)->read(); }, nullptr,
      [](bufferevent*, short what, void* self) {
        if ((what & (BEV_EVENT_EOF | BEV_EVENT_ERROR)) != 0) {
          static_cast<UnixRequest*>(self)->ended();
        }
      },
      this);
  bufferevent_setwatermark(channel_, EV_READ, 0, kReadAhead);
  bufferevent_write(channel_, request_.data(), request_.size());
  request_ = std::string();
  bufferevent_enable(channel_, EV_READ | EV_WRITE);
}

void UnixRequest::pause() {
  paused_ = true;
  bufferevent_disable(channel_, EV_READ);
}

void UnixRequest::resume() {
  if (!paused_) return;
  paused_ = false;
  if (state_ == State::kDone) return;
  bufferevent_enable(channel_, EV_READ);
  bufferevent_trigger(channel_, EV_READ, BEV_TRIG_IGNORE_WATERMARKS | BEV_TRIG_DEFER_CALLBACKS);
}

// Takes what has arrived, as far as it goes.
void UnixRequest::read() {
  std::string line;
  std::size_t trailers = 0;
  for (bool more = true; more && !paused_;) {
    switch (state_) {
      case State::kHead:
        more = read_head();
        break;
      case State::kLength:
      case State::kUntilClosed:
      case State::kChunk:
        more = read_piece();
        break;
      case State::kChunkSize:
        more = read_chunk_size();
        break;
      case State::kChunkEnd:
        more = read_line(line);
        if (!more) break;
        state_ = State::kChunkSize;
        if (!line.empty()) fail("a chunk of its answer is longer than it says");
        break;
      case State::kTrailer:
        more = read_line(line);
        if (!more) break;
        if (line.empty()) {
          finish();
        } else if (++trailers > kMaxTrailers) {
          fail("its answer does not end");
        }
        break;
      case State::kDone:
        more = false;
        break;
    }
  }
}

bool UnixRequest::read_head() {
  evbuffer* input = bufferevent_get_input(channel_);
  constexpr char kEnd[] = "\r\n\r\n";
  const evbuffer_ptr end = evbuffer_search(input, kEnd, sizeof kEnd - 1, nullptr);
  if (end.pos < 0 || static_cast<std::size_t>(end.pos) > kMaxHead) {
    // Up to the watermark and no further is read.
    if (evbuffer_get_length(input) >= kMaxHead) fail("the head of its answer is too long");
    return false;
  }
  std::string head(static_cast<std::size_t>(end.pos) + 2, '\0');
  evbuffer_remove(input, head.data(), head.size());
  evbuffer_drain(input, 2);

  std::string_view rest = head;
  const auto next_line = [&rest] {
    const std::size_t size = rest.find("\r\n");
    const std::string_view line = rest.substr(0, size);
    rest.remove_prefix(size + 2);
    return line;
  };
  const std::string_view first = next_line();
  std::size_t status = 0;
  if (!first.starts_with("HTTP/1.") || first.size() < 12 ||
      !number_in(first.substr(9, 3), 10, status) || status < 100) {
    fail("its answer is not HTTP");
    return false;
  }
  Headers headers;
  std::optional<std::size_t> length;
  bool chunked = false;
  while (!rest.empty()) {
    const std::string_view line = next_line();
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos) continue;
    const std::string name(trimmed(line.substr(0, colon)));
    const std::string value(trimmed(line.substr(colon + 1)));
    if (strcasecmp(name.c_str(), "Content-Length") == 0) {
      std::size_t said = 0;
      if (!number_in(value, 10, said)) {
        fail("the length of its answer is not a number");
        return false;
      }
      length = said;
    } else if (strcasecmp(name.c_str(), "Transfer-Encoding") == 0) {
      chunked = strcasecmp(value.c_str(), "chunked") == 0;
    }
    headers.emplace_back(name, value);
  }
  if (status < 200) return true;  // 100 Continue: the answer comes after it
  if (status == 204 || status == 304) length = 0;
  if (chunked) length.reset();
  left_ = length.value_or(0);
  state_ = chunked ? State::kChunkSize : length ? State::kLength : State::kUntilClosed;
  handlers_.head(static_cast<int>(status), headers, length);
  if (state_ == State::kLength && left_ == 0) finish();
  return true;
}

bool UnixRequest::read_line(std::string& line) {
  evbuffer* input = bufferevent_get_input(channel_);
  std::size_t size = 0;
  const std::unique_ptr<char, decltype(&free)> text(
      evbuffer_readln(input, &size, EVBUFFER_EOL_CRLF_STRICT), &free);
  if (text == nullptr || size > kMaxLine) {
    if (text != nullptr || evbuffer_get_length(input) > kMaxLine) {
      fail("a line of its answer is too long");
    }
    return false;
  }
  line.assign(text.get(), size);
  return true;
}

bool UnixRequest::read_chunk_size() {
  std::string line;
  if (!read_line(line)) return false;
  if (!number_in(trimmed(std::string_view(line).substr(0, line.find(';'))), 16, left_)) {
    fail("a chunk of its answer has no size");
    return false;
  }
  state_ = left_ == 0 ? State::kTrailer : State::kChunk;
  return true;
}

bool UnixRequest::read_piece() {
  evbuffer* input = bufferevent_get_input(channel_);
  std::size_t size = evbuffer_get_contiguous_space(input);
  if (state_ != State::kUntilClosed) size = std::min(size, left_);
  if (size == 0) return false;
  const auto* bytes =
      reinterpret_cast<const char*>(evbuffer_pullup(input, static_cast<ev_ssize_t>(size)));
  handlers_.piece({bytes, size});
  evbuffer_drain(input, size);
  if (state_ == State::kUntilClosed) return true;
  left_ -= size;
  if (left_ > 0) return true;
  if (state_ == State::kChunk) {
    state_ = State::kChunkEnd;
  } else {
    finish();
  }
  return true;
}

void UnixRequest::ended() {
  read();
  if (state_ == State::kDone) return;
  if (state_ == State::kUntilClosed) {
    finish();
  } else {
    fail(state_ == State::kHead ? "it ended before it answered" : "it ended within its answer");
  }
}

void UnixRequest::finish() {
  state_ = State::kDone;
  bufferevent_disable(channel_, EV_READ | EV_WRITE);
  handlers_.end();
}

void UnixRequest::fail(const std::string& sentence) {
  if (state_ == State::kDone) return;
  state_ = State::kDone;
  const bool sent = channel_ != nullptr && bufferevent_getfd(channel_) >= 0;
  if (channel_ != nullptr) bufferevent_disable(channel_, EV_READ | EV_WRITE);
  handlers_.failed(sentence, sent);
}

}  // namespace quern
