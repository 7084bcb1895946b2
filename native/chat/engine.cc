#include "chat/engine.h"

#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <utility>

#include "server/child_process.h"
#include "server/log.h"
#include "server/restarts.h"
#include "server/sockets.h"

namespace quern {

namespace {

constexpr double kProbeSeconds = 0.1;
constexpr double kProbePatience = 5.0;
constexpr double kKillSeconds = 10.0;  // from SIGTERM to SIGKILL
constexpr mode_t kPrivate = 0177;      // umask of the engine, and so of its socket: 0600

std::string next_socket() {
  static int count = 0;
  return "engine-" + std::to_string(getpid()) + "-" + std::to_string(++count) + ".sock";
}

// The very file that was hashed, wherever its name leads by now.
std::string weights_argument(const ChatRelease& release) {
#ifdef __linux__
  (void)release;
  return "/dev/fd/" + std::to_string(kInheritedDescriptor);
#else
  // There /dev/fd shares the offset between all who open it, which llama-server does thrice. The
  // files of a release directory are never changed; that the name still leads to the same file is
  // looked at before and after.
  return release.weights;
#endif
}

void require_same_file(const ChatRelease& release) {
#ifdef __linux__
  (void)release;
#else
  struct stat status {};
  if (stat(release.weights.c_str(), &status) != 0 || status.st_dev != release.device ||
      status.st_ino != release.inode) {
    throw std::runtime_error(release.weights + " is not the file any more that was checked");
  }
#endif
}

ChildProgram program_of(const ChatRelease& release, const std::string& socket) {
  const ChatSettings& settings = release.settings;
  char temperature[32];
  std::snprintf(temperature, sizeof temperature, "%.9g", settings.temperature);
  ChildProgram program;
  program.arguments = {release.engine,
                       "--model",
                       weights_argument(release),
                       "--host",
                       socket,
                       "--alias",
                       settings.name,
                       "--ctx-size",
                       std::to_string(settings.context * settings.parallel),
                       "--parallel",
                       std::to_string(settings.parallel),
                       "--temp",
                       temperature,
                       "--check-tensors",
                       "--metrics",
                       "--slots",
                       "--jinja",
                       "--no-webui",
                       "--offline"};
  if (settings.threads > 0) {
    program.arguments.insert(program.arguments.end(),
                             {"--threads", std::to_string(settings.threads)});
  }
  // Our keys are none of its business, and its own variables would override the release.
  program.environment = environment_without({"QUERN_", "LISTEN_", "LLAMA_", "AIP_"});
  program.environment.emplace_back("GGML_NO_BACKTRACE=1");  // it would wait for a debugger
  // Threads of OpenMP that wait spin; beside other processes most of the time goes into that.
  if (getenv("GOMP_SPINCOUNT") == nullptr) program.environment.emplace_back("GOMP_SPINCOUNT=100");
  program.descriptor = release.descriptor;
  program.signal_at_our_death = SIGKILL;
  program.mask = kPrivate;
  return program;
}

}  // namespace

Engine::Engine(EventLoop& loop, ChatReleasePointer release, int start_seconds)
    : loop_(loop),
      release_(std::move(release)),
      start_seconds_(start_seconds),
      timer_(loop, [this] { tick(); }) {}

Engine::~Engine() {
  if (pid_ == 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  unlink(socket_.c_str());
}

void Engine::start(std::function<void()> ready, std::function<void(const std::string&)> failed) {
  on_ready_ = std::move(ready);
  on_failed_ = std::move(failed);
  run();
}

void Engine::run() {
  require_same_file(*release_);
  socket_ = next_socket();
  ChildProgram program = program_of(*release_, socket_);
  int output[2];
  if (pipe(output) != 0) throw std::runtime_error("cannot start an engine: " + error_text(errno));
  close_on_exec(output[0], true);
  close_on_exec(output[1], true);
  log_ = std::make_unique<EngineLog>(loop_, output[0]);
  program.output = output[1];
  try {
    pid_ = start_program(std::move(program));
  } catch (...) {
    close(output[1]);
    throw;
  }
  close(output[1]);
  since_ = monotonic_seconds();
  log_line("engine " + std::to_string(pid_) + " starts: release " + release_->id + ", " +
           release_->label);
  timer_.start(kProbeSeconds);
}

// All that an engine waits for is waited for one after the other.
void Engine::tick() {
  const double now = monotonic_seconds();
  if (ending_) {
    if (pid_ == 0) return;
    log_line("engine " + std::to_string(pid_) + " does not leave: killing it");
    kill(pid_, SIGKILL);
  } else if (pid_ == 0) {
    restart_at_ = 0.0;
    try {
      run();
    } catch (const std::exception& e) {
      log_line(std::string("the engine was not restarted: ") + e.what());
      restart_later();
    }
  } else if (retired_) {
    log_line("engine " + std::to_string(pid_) + ": its last requests take too long");
    end();
  } else if (!ready_ && now - since_ >= start_seconds_) {
    log_line("engine " + std::to_string(pid_) + " was not ready in " +
             std::to_string(start_seconds_) + " s: killing it");
    kill(pid_, SIGKILL);
  } else if (!ready_) {
    probe();
  }
}

void Engine::probe() {
  UnixRequest::Handlers handlers;
  handlers.head = [this](int status, const Headers&, auto) {
    if (status == 200) {
      loop_.post([this, pid = pid_] {
        if (pid == pid_ && !ending_) became_ready();
      });
    } else {
      timer_.start(kProbeSeconds);
    }
  };
  handlers.piece = [](std::string_view) {};
  handlers.end = [] {};
  handlers.failed = [this](const std::string&, bool) { timer_.start(kProbeSeconds); };
  probing_ = std::make_unique<UnixRequest>(loop_, socket_, "GET", "/health", "", handlers);
  timer_.start(kProbePatience);
}

void Engine::became_ready() {
  if (ready_) return;
  try {
    require_same_file(*release_);
  } catch (const std::exception& e) {
    log_line(e.what());
    kill(pid_, SIGKILL);
    return;
  }
  probing_.reset();
  timer_.stop();
  ready_ = true;
  was_ready_ = true;
  log_->forget();
  log_line("engine " + std::to_string(pid_) + " is ready");
  on_failed_ = nullptr;
  if (const auto ready = std::exchange(on_ready_, nullptr)) ready();
}

int Engine::retry_after() const {
  return std::max(1, static_cast<int>(std::ceil(restart_at_ - monotonic_seconds())));
}

void Engine::enter(bool takes_slot) {
  ++in_flight_;
  if (takes_slot) ++slots_taken_;
}

bool Engine::has_free_slot() const { return slots_taken_ < release_->settings.parallel; }

void Engine::leave(bool takes_slot) {
  --in_flight_;
  if (takes_slot) --slots_taken_;
  if (retired_ && in_flight_ == 0) end();
}

void Engine::retire(double seconds) {
  if (retired_ || ending_) return;
  retired_ = true;
  if (in_flight_ == 0 || pid_ == 0) {
    end();
  } else {
    timer_.start(seconds);
  }
}

void Engine::end() {
  if (ending_) return;
  ending_ = true;
  ready_ = false;
  on_ready_ = nullptr;
  on_failed_ = nullptr;
  probing_.reset();
  if (pid_ == 0) return;
  kill(pid_, SIGTERM);
  timer_.start(kKillSeconds);
}

void Engine::reap() {
  int status = 0;
  if (pid_ > 0 && waitpid(pid_, &status, WNOHANG) == pid_) left(status);
}

void Engine::left(int status) {
  log_->read();
  const std::string who = "engine " + std::to_string(pid_);
  log_line(who + " left: " + exit_text(status));
  unlink(socket_.c_str());
  const bool long_run = ready_ && monotonic_seconds() - since_ >= kLongRun;
  pid_ = 0;
  ready_ = false;
  probing_.reset();
  timer_.stop();
  if (ending_) return;
  if (retired_) {
    ending_ = true;
  } else if (was_ready_) {
    if (long_run) failures_ = 0;
    ++restarts_;
    restart_later();
  } else {
    ending_ = true;
    on_ready_ = nullptr;
    const std::string reason = log_->reason();
    if (const auto failed = std::exchange(on_failed_, nullptr)) {
      failed(release_->engine + " did not get ready with " + release_->weights + " (" +
             exit_text(status) + "): " + (reason.empty() ? "it said nothing" : reason));
    }
  }
}

void Engine::restart_later() {
  const double delay = restart_delay(failures_);
  ++failures_;
  restart_at_ = monotonic_seconds() + delay;
  if (delay > 0.0) log_line("the engine is restarted in " + std::to_string(delay) + " s");
  timer_.start(delay);
}

void remove_stale_engine_sockets() {
  glob_t found{};
  if (glob("engine-*-*.sock", 0, nullptr, &found) == 0) {
    for (std::size_t i = 0; i < found.gl_pathc; ++i) {
      int owner = 0;
      if (std::sscanf(found.gl_pathv[i], "engine-%d-", &owner) != 1 || owner <= 0) continue;
      if (kill(owner, 0) != 0 && errno == ESRCH) unlink(found.gl_pathv[i]);
    }
  }
  globfree(&found);
}

}  // namespace quern
