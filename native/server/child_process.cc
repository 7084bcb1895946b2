#include "server/child_process.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
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

constexpr int kAboveInherited = 10;
constexpr char kPidVariable[] = "LISTEN_PID=";
constexpr std::size_t kPidDigits = 20;

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> result;
  for (std::string& one : strings) result.push_back(one.data());
  result.push_back(nullptr);
  return result;
}

// Runs in the child, between fork and exec: nothing here may allocate.
[[noreturn]] void become(const ChildProgram& program, char** arguments, char** environment,
                         int report, pid_t parent) {
#ifdef __linux__
  prctl(PR_SET_PDEATHSIG, program.signal_at_our_death);
#endif
  if (getppid() != parent) _exit(1);  // it died before we could ask to be told
  if (program.pid_digits != nullptr) {
    *std::to_chars(program.pid_digits, program.pid_digits + kPidDigits, getpid()).ptr = '\0';
  }
  signal(SIGPIPE, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (program.mask != 0) umask(program.mask);
  if (program.output >= 0 &&
      (dup2(program.output, STDOUT_FILENO) < 0 || dup2(program.output, STDERR_FILENO) < 0)) {
    _exit(1);
  }
  if (program.descriptor == kInheritedDescriptor) {
    close_on_exec(program.descriptor, false);
  } else if (dup2(program.descriptor, kInheritedDescriptor) < 0) {
    _exit(1);
  }
  execve(arguments[0], arguments, environment);
  const int error = errno;
  [[maybe_unused]] const ssize_t told = write(report, &error, sizeof error);
  _exit(1);
}

}  // namespace

std::vector<std::string> environment_without(const std::vector<std::string>& prefixes) {
  std::vector<std::string> result;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const bool left_out = std::any_of(prefixes.begin(), prefixes.end(), [&](const auto& prefix) {
      return strncmp(*variable, prefix.c_str(), prefix.size()) == 0;
    });
    if (!left_out) result.emplace_back(*variable);
  }
  return result;
}

pid_t start_program(ChildProgram program) {
  std::vector<char*> argument_pointers = pointers(program.arguments);
  std::vector<char*> environment_pointers = pointers(program.environment);

  // The pipe closes at exec; what comes through it is the reason why there was none.
  int report[2];
  if (pipe(report) != 0) throw std::runtime_error("cannot start a child: " + error_text(errno));
  const int report_end = fcntl(report[1], F_DUPFD_CLOEXEC, kAboveInherited);  // 3 is taken over
  close(report[1]);
  close_on_exec(report[0], true);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    become(program, argument_pointers.data(), environment_pointers.data(), report_end, parent);
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
    throw std::runtime_error("cannot run " + program.arguments[0] + ": " + error_text(error));
  }
  return child;
}

pid_t start_server(const std::vector<std::string>& arguments, int listener) {
  ChildProgram server;
  server.arguments = arguments;
  server.environment = environment_without({"LISTEN_"});
  server.environment.emplace_back("LISTEN_FDS=1");
  server.environment.emplace_back(std::string(kPidVariable) + std::string(kPidDigits, '\0'));
  server.pid_digits = server.environment.back().data() + sizeof kPidVariable - 1;
  server.descriptor = listener;
  return start_program(std::move(server));  // strings of a moved vector stay where they are
}

std::string exit_text(int status) {
  if (WIFSIGNALED(status)) return "signal " + std::to_string(WTERMSIG(status));
  return "exit " + std::to_string(WEXITSTATUS(status));
}

}  // namespace quern
