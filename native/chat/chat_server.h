// The state of quern-chat and its few changes: which engine answers, which one waits to be proved,
// and whether connections are accepted. Everything here belongs to the loop's thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "chat/chat_options.h"
#include "chat/engine.h"
#include "chat/relay.h"
#include "server/access_keys.h"
#include "server/event_loop.h"
#include "server/http_server.h"
#include "server/worker_pool.h"

namespace quern {

class ChatServer {
 public:
  enum class State { kStandby, kLive, kDraining };

  // `listener`: the public socket, which is taken.
  ChatServer(EventLoop& loop, const ChatOptions& options, AccessKeys keys, int listener);

  // Loads the release of the options. With --activate the public socket is accepted from at once,
  // and answered that the model is being loaded; the admin socket is there when it is loaded. A
  // release that cannot be loaded stops the loop.
  void start();
  // Answers what is open, ends the engines, then stops the loop; after --drain-seconds at the
  // latest.
  void drain();
  void reap();                             // at SIGCHLD
  bool failed() const { return failed_; }  // to start
  void stop_hashing();                     // after the loop has ended

 private:
  void answer_public(const ExchangePointer& exchange);  // chat_public_api.cc
  void health(const ExchangePointer& exchange) const;
  void models_info(const ExchangePointer& exchange) const;
  void reload(const ExchangePointer& exchange);
  void metrics(const ExchangePointer& exchange);
  std::string own_metrics() const;
  void ask_model(const ExchangePointer& exchange);
  void pass_on(const ExchangePointer& exchange, bool takes_slot);
  void answer_admin(const ExchangePointer& exchange);  // chat_admin_api.cc
  void status(const ExchangePointer& exchange) const;
  void load(const ExchangePointer& exchange);
  void predict(const ExchangePointer& exchange);
  void activate(const ExchangePointer& exchange);
  void discard(const ExchangePointer& exchange);

  // Hashes the release's files on the admin thread, then starts an engine beside the others; calls
  // one of the two on the loop's thread. One at a time: false when another is being loaded.
  bool load_beside(const std::string& directory, std::function<void(EnginePointer)> loaded,
                   std::function<void(int status, const std::string&)> refused);
  void start_engine(const ChatReleasePointer& release);
  void not_loaded(int status, const std::string& sentence);
  void cancel_loading(const std::string& sentence);
  void replace_current(EnginePointer engine);
  void discard_candidate();
  void forget_gone_engines();
  void go_live();
  void relay(const ExchangePointer& exchange, const EnginePointer& engine, const Relayed& what);
  void serve_waiting();
  void look_for_lost_clients();
  void leave();

  EventLoop& loop_;
  const ChatOptions options_;
  const AccessKeys keys_;
  const std::string own_digest_;
  const long started_;  // unix seconds
  const double started_monotonic_;
  State state_ = State::kStandby;
  int listener_;  // the public socket until go_live(), then -1
  EnginePointer current_;
  EnginePointer candidate_;
  std::list<EnginePointer> engines_;  // all that have a process or will have one again

  struct Loading {
    std::function<void(EnginePointer)> loaded;
    std::function<void(int, const std::string&)> refused;
    EnginePointer engine;  // from the moment its files are known to be good
    std::shared_ptr<std::atomic<bool>> cancelled;
  };
  std::unique_ptr<Loading> loading_;

  std::map<int, std::uint64_t> requests_;  // by status
  HttpServer public_;
  HttpServer admin_;
  std::unordered_map<Relay*, std::unique_ptr<Relay>> relays_;
  // Requests that wait for a slot. Not in the engine: there, each token that anybody gets wakes the
  // threads of all who wait.
  std::deque<ExchangePointer> waiting_;
  Timer lost_clients_;
  Timer drain_limit_;
  Timer candidate_limit_;
  WorkerPool admin_thread_;
  bool looking_ = false;
  bool leaving_ = false;
  bool failed_ = false;
};

}  // namespace quern
