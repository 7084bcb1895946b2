#include "server/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <stdexcept>

#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "server/log.h"
#include "server/sockets.h"

extern char** environ;

namespace quern {

namespace {

constexpr int kListenDescriptor = 3;  // SD_LISTEN_FDS_START
constexpr int kAboveInherited = 10;
constexpr char kPidVariable[] = "LISTEN_PID=";

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (std::string& one : strings) result.push_back(one.data());
  result.push_back(nullptr);
  return result;
}

std::vector<std::string> child_environment() {
  std::vector<std::string> result;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (strncmp(*variable, "LISTEN_", 7) != 0) result.emplace_back(*variable);
  }
  result.emplace_back("LISTEN_FDS=1");
  result.emplace_back(std::string(kPidVariable) + std::string(20, '\0'));  // the child fills it in
  return result;
}

// Runs in the child, between fork and exec: nothing here may allocate.
[[noreturn]] void become(const char* program, char** arguments, char** environment,
                         char* pid_digits, int listener, int report, pid_t parent) {
#ifdef __linux__
  prctl(PR_SET_PDEATHSIG, SIGTERM);
#endif
  if (getppid() != parent) _exit(1);  // it died before we could ask to be told
  *std::to_chars(pid_digits, pid_digits + 20, getpid()).ptr = '\0';
  signal(SIGPIPE, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (listener == kListenDescriptor) {
    close_on_exec(listener, false);
  } else if (dup2(listener, kListenDescriptor) < 0) {
    _exit(1);
  }
  execve(program, arguments, environment);
  const int error = errno;
  [[maybe_unused]] const ssize_t told = write(report, &error, sizeof error);
  _exit(1);
}

}  // namespace

pid_t start_server(const std::vector<std::string>& command, int listener) {
  std::vector<std::string> arguments = command;
  std::vector<std::string> environment = child_environment();
  std::vector<char*> argument_pointers = pointers(arguments);
  std::vector<char*> environment_pointers = pointers(environment);
  char* const pid_digits = environment.back().data() + sizeof kPidVariable - 1;

  // The pipe closes at exec; what comes through it is the reason why there was none.
  int report[2];
  if (pipe(report) != 0) throw std::runtime_error("cannot start a child: " + error_text(errno));
  const int report_end = fcntl(report[1], F_DUPFD_CLOEXEC, kAboveInherited);  // 3 is taken over
  close(report[1]);
  close_on_exec(report[0], true);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    become(arguments[0].c_str(), argument_pointers.data(), environment_pointers.data(), pid_digits,
           listener, report_end, parent);
  }
  const int fork_error = errno;
  close(report_end);
  int error = 0;
  ssize_t got = 0;
  do {
    got = child < 0 ? 0 : read(report[0], &error, sizeof error);
  } while (got < 0 && errno == EINTR);
  close(report[0]);
  if (child < 0) throw std::runtime_error("cannot start a child: " + error_text(fork_error));
  if (got > 0) {
    waitpid(child, nullptr, 0);
    throw std::runtime_error("cannot run " + command[0] + ": " + error_text(error));
  }
  return child;
}

std::string exit_text(int status) {
  if (WIFSIGNALED(status)) return "signal " + std::to_string(WTERMSIG(status));
  return "exit " + std::to_string(WEXITSTATUS(status));
}

}  // namespace quern
