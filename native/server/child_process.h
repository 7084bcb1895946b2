// Starting a server as the holder's child, so that it can never outlive the holder unnoticed.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace quern {

// Forks and execs `arguments` (arguments[0] is the program's path) in the working directory, with
// `listener` as descriptor 3 (LISTEN_FDS=1, LISTEN_PID), default signals and, on Linux, SIGTERM
// when this process dies. Returns the pid once exec has succeeded; throws std::runtime_error
// otherwise.
pid_t start_server(const std::vector<std::string>& arguments, int listener);

// "exit 3" or "signal 11", of a waitpid() status.
std::string exit_text(int status);

}  // namespace quern
