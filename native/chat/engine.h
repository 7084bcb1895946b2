// A llama-server process that answers from one release, on a Unix socket of its own. One that dies
// after it was ready is started again, from the same descriptor of the same bytes.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>

#include "chat/chat_release.h"
#include "chat/engine_log.h"
#include "chat/unix_request.h"
#include "server/event_loop.h"

namespace quern {

class Engine {
 public:
  Engine(EventLoop& loop, ChatReleasePointer release, int start_seconds);
  ~Engine();  // kills what still runs
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Calls one of the two, once: `failed` with a sentence, when it ends before it is ready, or is
  // not in the seconds given. Throws std::runtime_error when it cannot be started.
  void start(std::function<void()> ready, std::function<void(const std::string&)> failed);
  bool ready() const { return ready_; }
  // Seconds from now until it may be ready again.
  int retry_after() const;

  // Requests that are being answered by it, and those among them that a slot computes.
  void enter(bool takes_slot);
  void leave(bool takes_slot);
  bool has_free_slot() const;

  // No more requests come: ends it once those in flight are answered, or after `seconds`.
  void retire(double seconds);
  void end();                                         // SIGTERM, later SIGKILL
  bool gone() const { return ending_ && pid_ == 0; }  // for good

  // Looks whether the process has ended; to be called at SIGCHLD.
  void reap();

  const ChatRelease& release() const { return *release_; }
  const std::string& socket() const { return socket_; }
  pid_t pid() const { return pid_; }  // 0: no process just now
  int restarts() const { return restarts_; }

 private:
  void run();
  void left(int status);
  void restart_later();
  void probe();
  void became_ready();
  void tick();

  EventLoop& loop_;
  const ChatReleasePointer release_;
  const int start_seconds_;
  std::function<void()> on_ready_;
  std::function<void(const std::string&)> on_failed_;
  Timer timer_;  // the next probe, restart or kill
  std::unique_ptr<EngineLog> log_;
  std::unique_ptr<UnixRequest> probing_;
  std::string socket_;
  pid_t pid_ = 0;
  double since_ = 0.0;       // monotonic, of the process's start
  double restart_at_ = 0.0;  // monotonic; 0: none is due
  int in_flight_ = 0;
  int slots_taken_ = 0;
  int failures_ = 0;  // processes that died young, in a row
  int restarts_ = 0;
  bool ready_ = false;
  bool was_ready_ = false;  // then it is restarted, not given up
  bool retired_ = false;
  bool ending_ = false;
};
using EnginePointer = std::shared_ptr<Engine>;

// Unix sockets in the working directory of engines whose server is no more.
void remove_stale_engine_sockets();

}  // namespace quern
