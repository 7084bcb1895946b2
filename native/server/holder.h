// The holder owns a channel's listening socket and its servers: the socket is never closed, so no
// connection is refused while servers come and go. One thread, no pid files; a holder that is
// replaced hands everything to its successor by exec in place.
#pragma once

#include <sys/types.h>

#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "server/event_loop.h"
#include "server/http_server.h"
#include "server/json.h"

namespace quern {

struct HolderOptions {
  std::string directory;
  std::string host = "127.0.0.1";
  int port = -1;
  int confirm_seconds = 60;
  int kill_seconds = 30;  // from SIGTERM to SIGKILL
  std::string connect;  // not to hold, but to join standard input and output to this address
  bool check_upgrade = false;
  bool help = false;
  bool version = false;
};

// How a probed holder says that it understands the state it would be given: any other program
// exits with 0 or an error.
inline constexpr int kUpgradeUnderstood = 17;

// What a holder needs to go on where another stopped.
struct HolderState {
  struct Child {
    pid_t pid = 0;
    std::string release;    // directory
    std::string admin;      // socket's name in the channel directory
    std::string state;      // standby, live, draining
    long started = 0;       // unix seconds
    double since = 0.0;     // monotonic, of the start
    double deadline = 0.0;  // monotonic, of the next measure (SIGTERM or SIGKILL); 0: none
    int restarts = 0;
  };
  int listener = -1;
  int control = -1;
  int lock = -1;
  int next = 1;             // number of the next admin socket
  int failures = 0;         // live children that died young, in a row
  double restart_at = 0.0;  // monotonic; 0: no restart is due
  int restarts = 0;         // of the live child, so far
  std::list<Child> children;
  std::deque<Json> exited;  // the last 8
};

Json to_json(const HolderState& state);
HolderState holder_state_from(const Json& json);  // throws std::runtime_error

inline constexpr char kStateVariable[] = "QUERN_HOLDER_STATE";

class Holder {
 public:
  // `state` with open descriptors; `arguments` is the command line for a successor.
  Holder(EventLoop& loop, const HolderOptions& options, std::vector<std::string> arguments,
         HolderState state);

  void start_current();  // the release that `current` names, live; nothing when there is none
  // Comes back when every child has left after a shutdown; after an upgrade it doesn't.
  void run();

 private:
  using Child = HolderState::Child;

  void answer(const ExchangePointer& exchange);
  void status(const ExchangePointer& exchange) const;
  void start(const ExchangePointer& exchange);
  void promote(const ExchangePointer& exchange);
  void stop(const ExchangePointer& exchange);
  void upgrade(const ExchangePointer& exchange);
  void shut_down();

  Child& start_child(const std::string& release, bool live, int restarts);
  void terminate(Child& child);
  Child* find(pid_t pid);
  void reap();
  void child_left(std::list<Child>::iterator child, int status);
  void probe_left(int status);
  void restart_later();
  void check_deadlines();
  void leave_when_empty();
  void serve_control();
  void become_successor();

  EventLoop& loop_;
  const HolderOptions options_;
  std::vector<std::string> arguments_;
  const std::string own_digest_;
  const std::string address_;
  HolderState state_;
  std::unique_ptr<HttpServer> control_;
  Timer deadlines_;
  bool shutting_down_ = false;
  bool left_ = false;  // all children have gone, and nobody waits for an answer

  struct Upgrade {
    pid_t probe = 0;  // the successor, asked whether it understands our state
    double deadline = 0.0;
    std::string path;
    std::string digest;
    ExchangePointer exchange;
    bool ready = false;
  };
  std::unique_ptr<Upgrade> upgrade_;
};

}  // namespace quern
