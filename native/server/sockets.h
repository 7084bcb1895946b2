// Where connections come from: a port of our own, a socket that the holder opened before us, or a
// Unix socket. All are listening, non-blocking and close-on-exec; the caller owns the descriptor.
// Each function throws std::runtime_error with one sentence.
#pragma once

#include <cstddef>
#include <string>

namespace quern {

inline constexpr int kBacklog = 1024;

// SO_REUSEADDR only: with SO_REUSEPORT a second server would start silently on the same port.
int listen_tcp(const std::string& host, int port);

// The socket of the LISTEN_FDS protocol (sd_listen_fds(3)): descriptor 3, when LISTEN_FDS is 1 and
// LISTEN_PID is this process. Removes both from the environment.
int inherited_listener();

// A Unix socket at `path` (mode 0600), in place of whatever is there.
int listen_unix(const std::string& path);

// "127.0.0.1:8891" or "[::1]:8891" of a listening TCP socket.
std::string address_of(int listener);

// How many of the `wanted` connections may be open. Running out of descriptors makes accept() fail
// in a busy loop: the number is kept below the limit on descriptors, which is raised as far as it
// may be.
std::size_t connections_allowed(std::size_t wanted);

void close_on_exec(int descriptor, bool enabled);

}  // namespace quern
