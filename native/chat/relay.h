// One request on its way to an engine, and the answer on its way back. A short answer of known
// length is passed on whole; any other as it comes, no faster than the client takes it: what it has
// not taken waits in the engine, where the context bounds it.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "chat/engine.h"
#include "chat/unix_request.h"
#include "server/http_server.h"

namespace quern {

inline constexpr int kClientLeft = 499;  // as others count it: nobody is there to be told

struct Relayed {
  const char* method = "POST";
  std::string path;
  std::string_view body;
  bool takes_slot = false;
  // Put before the engine's answer; when there is none in a few seconds, this alone is the answer.
  std::string before;
};

class Relay {
 public:
  // `done` is called once the exchange has been answered or abandoned; not from the constructor.
  Relay(EventLoop& loop, ExchangePointer exchange, EnginePointer engine, const Relayed& what,
        std::function<void(Relay&)> done);
  ~Relay();
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  // Ends what nobody waits for any more: the engine stops computing it.
  void abandon_if_client_gone();
  // Whether it was the engine that did not answer it: then it may be dying.
  bool engine_failed() const { return engine_failed_; }
  // Ends it in any case: an answer that has not begun is `sentence`, with 503.
  void abandon(const std::string& sentence);

 private:
  void head(int status, const Headers& headers, std::optional<std::size_t> length);
  void piece(std::string_view bytes);
  void end();
  void failed(const std::string& sentence, bool sent);
  void finish();

  ExchangePointer exchange_;
  EnginePointer engine_;
  const bool takes_slot_;
  const std::string before_;
  std::function<void(Relay&)> done_;
  UnixRequest request_;
  Timer patience_;
  Reply whole_;
  bool collecting_ = false;
  bool engine_failed_ = false;
  bool finished_ = false;
};

// 503 for a model whose engine does not run just now.
Reply no_engine(int retry_after);

}  // namespace quern
