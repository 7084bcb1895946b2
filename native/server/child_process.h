// Starting a program as this process's child, so that it can never outlive it unnoticed.
#pragma once

#include <signal.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <string>
#include <vector>

namespace quern {

inline constexpr int kInheritedDescriptor = 3;  // SD_LISTEN_FDS_START

struct ChildProgram {
  std::vector<std::string> arguments;    // [0] is the program's path
  std::vector<std::string> environment;  // "NAME=value", all of it
  int descriptor = -1;                   // becomes kInheritedDescriptor
  int output = -1;                       // becomes standard output and error; -1: ours
  int signal_at_our_death = SIGTERM;     // on Linux, when the thread that starts it ends
  mode_t mask = 0;                       // its umask; 0: ours
  // Set to the child's pid, as digits, before it becomes the program: within `environment`.
  char* pid_digits = nullptr;
};

// The variables of our own environment whose names begin with none of `prefixes`.
std::vector<std::string> environment_without(const std::vector<std::string>& prefixes);

// Forks and execs in the working directory, with default signals. Returns the pid once exec has
// succeeded; throws std::runtime_error otherwise.
pid_t start_program(ChildProgram program);

// Starts a server (arguments[0] is the program's path) with `listener` as descriptor 3
// (LISTEN_FDS=1, LISTEN_PID) and, on Linux, SIGTERM when this process dies.
pid_t start_server(const std::vector<std::string>& arguments, int listener);

// "exit 3" or "signal 11", of a waitpid() status.
std::string exit_text(int status);

}  // namespace quern
