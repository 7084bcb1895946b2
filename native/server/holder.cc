#include "server/holder.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "engine/digest.h"
#include "server/child_process.h"
#include "server/files.h"
#include "server/log.h"
#include "server/release.h"
#include "server/request_json.h"
#include "server/restarts.h"
#include "server/routes.h"
#include "server/sockets.h"

extern char** environ;

namespace quern {

namespace {

constexpr double kProbeSeconds = 10.0;    // for a successor to say that it understands
constexpr double kHandoverSeconds = 2.0;  // for control connections to end before an exec
constexpr std::size_t kExitedKept = 8;
constexpr char kStandby[] = "standby";
constexpr char kLive[] = "live";
constexpr char kDraining[] = "draining";

// `current` resolved once: a release directory, so that nobody mixes two releases.
std::string resolve_current() {
  char resolved[PATH_MAX];
  if (realpath("current", resolved) == nullptr) {
    throw std::runtime_error("cannot resolve current: " + error_text(errno));
  }
  return resolved;
}

std::string absolute_path(const Exchange& exchange, const char* key) {
  const std::string path = string_at(request_json(exchange), key, "the request");
  if (path.empty() || path.front() != '/') {
    throw std::runtime_error(std::string("\"") + key + "\" must be an absolute path");
  }
  return path;
}

pid_t requested_pid(const Exchange& exchange) {
  const Json json = request_json(exchange);
  if (!json.is_object() || !json.value("pid", Json()).is_number_integer()) {
    throw std::runtime_error("the request needs \"pid\", a number");
  }
  return json.at("pid").get<pid_t>();
}

}  // namespace

Holder::Holder(EventLoop& loop, const HolderOptions& options, std::vector<std::string> arguments,
               HolderState state)
    : loop_(loop),
      options_(options),
      arguments_(std::move(arguments)),
      own_digest_(own_digest()),
      address_(address_of(state.listener)),
      state_(std::move(state)),
      deadlines_(loop, [this] { check_deadlines(); }) {
  loop.on_signal(SIGCHLD, [this] { reap(); });
  loop.on_signal(SIGTERM, [this] { shut_down(); });
  loop.on_signal(SIGINT, [this] { shut_down(); });
  serve_control();
  check_deadlines();
  loop.post([this] { reap(); });  // children that left while one holder became the next
}

void Holder::serve_control() {
  control_ = std::make_unique<HttpServer>(
      loop_, HttpLimits(), [this](const ExchangePointer& exchange) { answer(exchange); });
  control_->accept_from(fcntl(state_.control, F_DUPFD_CLOEXEC, 0));
}

void Holder::start_current() {
  struct stat link {};
  if (lstat("current", &link) != 0) {
    log_line("no release yet: " + options_.directory + "/current does not exist");
    return;
  }
  try {
    start_child(resolve_current(), true, 0);
  } catch (const std::exception& e) {
    log_line(std::string("current was not started: ") + e.what());
    restart_later();
  }
}

void Holder::run() {
  while (!left_) {
    loop_.run();
    if (!left_ && upgrade_ && upgrade_->ready) become_successor();
  }
}

void Holder::answer(const ExchangePointer& exchange) {
  // A bad request is a sentence of the throwing function; the holder's own refusals come as
  // replies.
  const auto checked = [this](void (Holder::*action)(const ExchangePointer&)) {
    return [this, action](const ExchangePointer& e) {
      try {
        (this->*action)(e);
      } catch (const std::exception& error) {
        e->reply(error_reply(400, error.what()));
      }
    };
  };
  answer_by_route(exchange, {{"GET", "/status", [this](const ExchangePointer& e) { status(e); }},
                             {"POST", "/start", checked(&Holder::start)},
                             {"POST", "/promote", checked(&Holder::promote)},
                             {"POST", "/stop", checked(&Holder::stop)},
                             {"POST", "/upgrade", checked(&Holder::upgrade)},
                             {"POST", "/shutdown", [this](const ExchangePointer& e) {
                                e->reply(json_reply(200, {{"stopping", state_.children.size()}}));
                                shut_down();
                              }}});
}

void Holder::status(const ExchangePointer& exchange) const {
  Json children = Json::array();
  for (const Child& child : state_.children) {
    children.push_back({{"pid", child.pid},
                        {"release", child.release},
                        {"admin", child.admin},
                        {"state", child.state},
                        {"started", child.started},
                        {"restarts", child.restarts}});
  }
  exchange->reply(json_reply(200, {{"pid", getpid()},
                                   {"address", address_},
                                   {"holder", own_digest_},
                                   {"children", children},
                                   {"exited", state_.exited}}));
}

void Holder::start(const ExchangePointer& exchange) {
  const std::string release = absolute_path(*exchange, "release");
  try {
    Child& child = start_child(release, false, 0);
    child.deadline = child.since + options_.confirm_seconds;
    check_deadlines();
    exchange->reply(json_reply(200, {{"pid", child.pid}, {"admin", child.admin}}));
  } catch (const std::exception& e) {
    exchange->reply(error_reply(422, e.what()));
  }
}

void Holder::promote(const ExchangePointer& exchange) {
  const pid_t pid = requested_pid(*exchange);
  Child* promoted = find(pid);
  if (promoted == nullptr || promoted->state == kDraining) {
    exchange->reply(error_reply(
        409, "pid " + std::to_string(pid) + " is not a server in standby or live: see /status"));
    return;
  }
  promoted->state = kLive;
  promoted->deadline = 0.0;
  state_.restart_at = 0.0;
  state_.failures = 0;
  for (Child& child : state_.children) {
    if (&child != promoted && child.state == kLive) terminate(child);
  }
  log_line("live: pid " + std::to_string(pid) + ", " + promoted->release);
  exchange->reply(json_reply(200, {{"pid", pid}}));
}

void Holder::stop(const ExchangePointer& exchange) {
  const pid_t pid = requested_pid(*exchange);
  Child* child = find(pid);
  if (child == nullptr) {
    exchange->reply(error_reply(409, "pid " + std::to_string(pid) + " is not a server held here"));
    return;
  }
  terminate(*child);
  exchange->reply(json_reply(200, {{"pid", pid}}));
}

Holder::Child& Holder::start_child(const std::string& directory, bool live, int restarts) {
  const Release release = read_release(directory);
  Child child;
  child.release = directory;
  child.admin = "server-" + std::to_string(state_.next) + ".sock";
  child.state = live ? kLive : kStandby;
  child.started = static_cast<long>(time(nullptr));
  child.since = monotonic_seconds();
  child.restarts = restarts;
  std::vector<std::string> command = {release.role("server").path, "--release", directory,
                                      "--admin-socket", child.admin};
  if (live) command.emplace_back("--activate");
  child.pid = start_server(command, state_.listener);
  ++state_.next;
  log_line("started pid " + std::to_string(child.pid) + " (" + child.state + ") from " + directory);
  state_.children.push_back(std::move(child));
  return state_.children.back();
}

void Holder::terminate(Child& child) {
  if (child.state != kDraining) child.deadline = monotonic_seconds() + options_.kill_seconds;
  child.state = kDraining;
  kill(child.pid, SIGTERM);
  check_deadlines();
}

Holder::Child* Holder::find(pid_t pid) {
  const auto found = std::find_if(state_.children.begin(), state_.children.end(),
                                  [pid](const Child& child) { return child.pid == pid; });
  return found == state_.children.end() ? nullptr : &*found;
}

void Holder::reap() {
  int status = 0;
  for (pid_t pid = 0; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
    if (upgrade_ && upgrade_->probe == pid) {
      probe_left(status);
      continue;
    }
    const auto child = std::find_if(state_.children.begin(), state_.children.end(),
                                    [pid](const Child& one) { return one.pid == pid; });
    if (child != state_.children.end()) child_left(child, status);
  }
}

void Holder::child_left(std::list<Child>::iterator child, int status) {
  log_line("pid " + std::to_string(child->pid) + " (" + child->state +
           ") left: " + exit_text(status));
  state_.exited.push_back({{"pid", child->pid},
                           {"release", child->release},
                           {"status", exit_text(status)},
                           {"at", static_cast<long>(time(nullptr))}});
  if (state_.exited.size() > kExitedKept) state_.exited.pop_front();
  unlink(child->admin.c_str());
  const bool died_live = child->state == kLive;
  if (died_live) {
    if (monotonic_seconds() - child->since >= kLongRun) state_.failures = 0;
    state_.restarts = child->restarts + 1;
  }
  state_.children.erase(child);
  if (died_live && !shutting_down_) restart_later();
  leave_when_empty();
}

void Holder::restart_later() {
  const double delay = restart_delay(state_.failures);
  ++state_.failures;
  if (delay > 0.0) log_line("restarting in " + std::to_string(delay) + " s");
  state_.restart_at = monotonic_seconds() + delay;
  check_deadlines();
}

// All that is done by the clock, in one place; sets the timer for the next of it.
void Holder::check_deadlines() {
  const double now = monotonic_seconds();
  double next = HUGE_VAL;
  if (state_.restart_at > 0.0 && state_.restart_at <= now) {
    state_.restart_at = 0.0;
    try {
      start_child(resolve_current(), true, state_.restarts);
    } catch (const std::exception& e) {
      log_line(std::string("not restarted: ") + e.what());
      restart_later();
      return;  // which has called us
    }
  }
  if (state_.restart_at > 0.0) next = state_.restart_at;
  for (Child& child : state_.children) {
    if (child.deadline <= 0.0) continue;
    if (child.deadline <= now) {
      if (child.state == kStandby) {
        log_line("pid " + std::to_string(child.pid) + " was not promoted in " +
                 std::to_string(options_.confirm_seconds) + " s: stopping it");
        child.state = kDraining;
        kill(child.pid, SIGTERM);
      } else {
        log_line("pid " + std::to_string(child.pid) + " does not leave: killing it");
        kill(child.pid, SIGKILL);
      }
      child.deadline = now + options_.kill_seconds;
    }
    next = std::min(next, child.deadline);
  }
  if (upgrade_ && upgrade_->probe > 0) {
    if (upgrade_->deadline <= now) kill(upgrade_->probe, SIGKILL);
    next = std::min(next, std::max(upgrade_->deadline, now + 1.0));
  } else if (upgrade_) {
    if (upgrade_->deadline <= now) {
      upgrade_->ready = true;
      loop_.stop();
    }
    next = std::min(next, upgrade_->deadline);
  }
  if (next < HUGE_VAL) deadlines_.start(next - now);
}

void Holder::shut_down() {
  if (shutting_down_) return;
  shutting_down_ = true;
  log_line("shutting down");
  state_.restart_at = 0.0;
  close(state_.listener);  // clients are refused at once instead of waiting for nobody
  state_.listener = -1;
  for (Child& child : state_.children) terminate(child);
  leave_when_empty();
}

void Holder::leave_when_empty() {
  if (!shutting_down_ || !state_.children.empty()) return;
  control_->drain(HttpServer::Idle::kClose, [this] {
    left_ = true;
    loop_.stop();
  });
}

// The successor is asked before anything is given up: it must say that it understands our state.
void Holder::upgrade(const ExchangePointer& exchange) {
  const std::string path = absolute_path(*exchange, "holder");
  if (upgrade_ || shutting_down_) {
    exchange->reply(error_reply(409, "an upgrade or a shutdown is under way"));
    return;
  }
  auto upgrade = std::make_unique<Upgrade>();
  try {
    upgrade->digest = file_digest_hex(path);
    setenv(kStateVariable, json_text(to_json(state_)).c_str(), 1);
    // With our own arguments before it, which the successor will be given: it must know them all.
    std::vector<std::string> command = arguments_;
    command[0] = path;
    command.emplace_back("--check-upgrade");
    upgrade->probe = start_server(command, state_.listener);
  } catch (const std::exception& e) {
    unsetenv(kStateVariable);
    exchange->reply(error_reply(422, e.what()));
    return;
  }
  unsetenv(kStateVariable);
  upgrade->path = path;
  upgrade->exchange = exchange;
  upgrade->deadline = monotonic_seconds() + kProbeSeconds;
  upgrade_ = std::move(upgrade);
  check_deadlines();
}

void Holder::probe_left(int status) {
  if (!WIFEXITED(status) || WEXITSTATUS(status) != kUpgradeUnderstood) {
    upgrade_->exchange->reply(
        error_reply(422, upgrade_->path + " does not take over this holder's state (" +
                             exit_text(status) + "); its own words are in the holder's log"));
    upgrade_.reset();
    return;
  }
  upgrade_->probe = 0;
  upgrade_->exchange->reply(json_reply(200, {{"pid", getpid()}, {"holder", upgrade_->digest}}));
  upgrade_->exchange.reset();
  upgrade_->deadline = monotonic_seconds() + kHandoverSeconds;
  check_deadlines();
  control_->drain(HttpServer::Idle::kClose, [this] {
    if (upgrade_) upgrade_->ready = true;
    loop_.stop();
  });
}

// Outside the loop, so that no callback of ours is on the stack. Signals that come from here on
// wait for the successor; its waitpid() finds children that left meanwhile.
void Holder::become_successor() {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, &before);
  loop_.run_once();  // signals that came before
  if (!shutting_down_) {
    log_line("becoming " + upgrade_->path);
    setenv(kStateVariable, json_text(to_json(state_)).c_str(), 1);
    arguments_[0] = upgrade_->path;
    std::vector<char*> arguments;
    for (std::string& one : arguments_) arguments.push_back(one.data());
    arguments.push_back(nullptr);
    for (const int handed : {state_.listener, state_.control, state_.lock}) {
      close_on_exec(handed, false);
    }
    execve(upgrade_->path.c_str(), arguments.data(), environ);
    const int error = errno;
    for (const int kept : {state_.listener, state_.control, state_.lock}) {
      close_on_exec(kept, true);
    }
    unsetenv(kStateVariable);
    log_line("still the old holder: cannot run " + upgrade_->path + ": " + error_text(error));
  }
  upgrade_.reset();
  serve_control();
  sigprocmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace quern
