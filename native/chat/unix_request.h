// One HTTP/1.1 request to a server on a Unix socket, on a connection of its own; the answer comes
// in pieces, as it arrives. libevent 2.1 has no client for Unix sockets.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "server/event_loop.h"
#include "server/http_server.h"

struct bufferevent;

namespace quern {

class UnixRequest {
 public:
  // Called on the loop's thread, from the constructor never. None may destroy the request.
  struct Handlers {
    // The answer's head; `length` when it says how long it is.
    std::function<void(int status, const Headers&, std::optional<std::size_t> length)> head;
    std::function<void(std::string_view)> piece;
    std::function<void()> end;  // the answer is whole
    // There is no answer, or half of one; `sent`: the server may have seen the request.
    std::function<void(const std::string& sentence, bool sent)> failed;
  };

  UnixRequest(EventLoop& loop, std::string socket, const char* method, const std::string& path,
              std::string_view body, Handlers handlers);
  ~UnixRequest();  // closes the connection: a server that still answers sees nobody waits for it
  UnixRequest(const UnixRequest&) = delete;
  UnixRequest& operator=(const UnixRequest&) = delete;

  // Reads no more until resume(): the server has to wait as well.
  void pause();
  void resume();

 private:
  enum class State { kHead, kLength, kUntilClosed, kChunkSize, kChunk, kChunkEnd, kTrailer, kDone };

  void connect();
  void talk(int descriptor);
  void read();
  bool read_head();
  bool read_line(std::string& line);
  bool read_piece();
  bool read_chunk_size();
  void ended();  // the connection
  void finish();
  void fail(const std::string& sentence);

  const std::string socket_;
  std::string request_;
  Handlers handlers_;
  Timer connecting_;
  double deadline_;
  bufferevent* channel_ = nullptr;
  State state_ = State::kHead;
  std::size_t left_ = 0;  // of the body or the chunk
  bool paused_ = false;
};

}  // namespace quern
