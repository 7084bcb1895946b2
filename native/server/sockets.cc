#include "server/sockets.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "server/log.h"

namespace quern {

namespace {

constexpr int kFirstInherited = 3;  // SD_LISTEN_FDS_START
constexpr rlim_t kOtherDescriptors = 64;

void set_option(int descriptor, int level, int option) {
  const int on = 1;
  setsockopt(descriptor, level, option, &on, sizeof on);
}

void make_ready(int descriptor) {
  close_on_exec(descriptor, true);
  fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
}

// Accepted sockets inherit TCP_NODELAY; without it keep-alive answers wait for a delayed ACK.
void no_delay(int descriptor) { set_option(descriptor, IPPROTO_TCP, TCP_NODELAY); }

std::runtime_error listen_error(const std::string& where, int error) {
  const char* advice =
      error == EADDRINUSE ? "; another process listens there: stop it or choose another port" : "";
  return std::runtime_error("cannot listen on " + where + ": " + error_text(error) + advice);
}

}  // namespace

void close_on_exec(int descriptor, bool enabled) {
  fcntl(descriptor, F_SETFD, enabled ? FD_CLOEXEC : 0);
}

int listen_tcp(const std::string& host, int port) {
  const std::string where = host + ":" + std::to_string(port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int failure = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (failure != 0) {
    throw std::runtime_error("cannot listen on " + where + ": " + gai_strerror(failure));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, &freeaddrinfo);
  const int descriptor =
      socket(addresses->ai_family, addresses->ai_socktype, addresses->ai_protocol);
  if (descriptor < 0) throw listen_error(where, errno);
  make_ready(descriptor);
  set_option(descriptor, SOL_SOCKET, SO_REUSEADDR);
  no_delay(descriptor);
  if (bind(descriptor, addresses->ai_addr, addresses->ai_addrlen) != 0 ||
      listen(descriptor, kBacklog) != 0) {
    const int error = errno;
    close(descriptor);
    throw listen_error(where, error);
  }
  return descriptor;
}

int inherited_listener() {
  const char* count = getenv("LISTEN_FDS");
  const char* pid = getenv("LISTEN_PID");
  const bool ours = count != nullptr && pid != nullptr && strcmp(count, "1") == 0 &&
                    std::to_string(getpid()) == pid;
  unsetenv("LISTEN_FDS");
  unsetenv("LISTEN_PID");
  if (!ours) {
    throw std::runtime_error(
        "--release needs a listening socket by the LISTEN_FDS protocol: start it under "
        "quern-holder, or use --port with --weights and --classes");
  }
  int listening = 0;
  socklen_t size = sizeof listening;
  if (getsockopt(kFirstInherited, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) != 0 ||
      listening == 0) {
    throw std::runtime_error("descriptor 3 (LISTEN_FDS) is not a listening socket");
  }
  make_ready(kFirstInherited);
  no_delay(kFirstInherited);
  return kFirstInherited;
}

std::size_t connections_allowed(std::size_t wanted) {
  rlimit descriptors{};
  if (getrlimit(RLIMIT_NOFILE, &descriptors) != 0) return wanted;
  const rlim_t needed = wanted + kOtherDescriptors;
  if (descriptors.rlim_cur < needed) {
    descriptors.rlim_cur = std::min<rlim_t>(needed, descriptors.rlim_max);
    setrlimit(RLIMIT_NOFILE, &descriptors);
    getrlimit(RLIMIT_NOFILE, &descriptors);
  }
  if (descriptors.rlim_cur >= needed) return wanted;
  return std::max<std::size_t>(descriptors.rlim_cur, 2 * kOtherDescriptors) - kOtherDescriptors;
}

int listen_unix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    throw std::runtime_error("socket name " + path + " is empty or longer than " +
                             std::to_string(sizeof address.sun_path - 1) +
                             " bytes; give one relative to the working directory");
  }
  memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const int descriptor = socket(AF_UNIX, SOCK_STREAM, 0);
  if (descriptor < 0) throw listen_error(path, errno);
  make_ready(descriptor);
  unlink(path.c_str());
  const mode_t mask = umask(0177);  // created 0600: no moment in which others can connect
  const int bound = bind(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address);
  const int error = errno;
  umask(mask);
  if (bound != 0) {
    close(descriptor);
    throw listen_error(path, error);
  }
  listen(descriptor, kBacklog);
  return descriptor;
}

std::string address_of(int listener) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  char host[NI_MAXHOST];
  char port[NI_MAXSERV];
  if (getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
      getnameinfo(reinterpret_cast<sockaddr*>(&address), size, host, sizeof host, port, sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "?";
  }
  const std::string name = address.ss_family == AF_INET6 ? "[" + std::string(host) + "]" : host;
  return name + ":" + port;
}

}  // namespace quern
