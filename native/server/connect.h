// A way in for a deployer on another machine: standard input and output joined to one of this
// machine's own sockets, through SSH (`ssh HOST quern-holder --connect ADDRESS`).
#pragma once

#include <string>

namespace quern {

// Connects to `address`, "host:port" or the path of a Unix socket, and passes on what comes until
// both sides have ended. Throws std::runtime_error with one sentence.
void connect_and_join(const std::string& address);

}  // namespace quern
