#include "server/connect.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "server/log.h"

namespace quern {

namespace {

int connect_unix(const std::string& path) {
  // A socket's address is bounded, a directory's depth is not.
  const std::size_t slash = path.rfind('/');
  const std::string folder = path.substr(0, slash);
  if (!folder.empty() && chdir(folder.c_str()) != 0) {
    throw std::runtime_error("cannot enter " + folder + ": " + error_text(errno));
  }
  const std::string name = path.substr(slash + 1);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (name.size() >= sizeof address.sun_path) throw std::runtime_error(name + " is too long");
  memcpy(address.sun_path, name.c_str(), name.size() + 1);
  const int made = socket(AF_UNIX, SOCK_STREAM, 0);
  if (made < 0 || connect(made, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    throw std::runtime_error("cannot connect to " + path + ": " + error_text(errno));
  }
  return made;
}

int connect_tcp(const std::string& address) {
  const std::size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.size() > 1 && host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found) != 0) {
    throw std::runtime_error(address + ": not an address and port");
  }
  const int made = socket(found->ai_family, SOCK_STREAM, 0);
  const bool connected = made >= 0 && connect(made, found->ai_addr, found->ai_addrlen) == 0;
  const int failure = errno;
  freeaddrinfo(found);
  if (!connected) {
    throw std::runtime_error("cannot connect to " + address + ": " + error_text(failure));
  }
  return made;
}

// Passes on what can be read now; false at the end of it, or when nobody takes it.
bool pass_on(int from, int to) {
  std::array<char, 1 << 16> buffer;
  const ssize_t size = read(from, buffer.data(), buffer.size());
  if (size < 0) return errno == EINTR;
  for (ssize_t sent = 0; sent < size;) {
    const ssize_t written = write(to, buffer.data() + sent, static_cast<std::size_t>(size - sent));
    if (written < 0 && errno != EINTR) return false;
    if (written > 0) sent += written;
  }
  return size > 0;
}

}  // namespace

void connect_and_join(const std::string& address) {
  const int joined =
      address.find('/') != std::string::npos ? connect_unix(address) : connect_tcp(address);
  std::array<pollfd, 2> ends{{{STDIN_FILENO, POLLIN, 0}, {joined, POLLIN, 0}}};
  while (ends[1].fd >= 0) {
    if (poll(ends.data(), ends.size(), -1) < 0) {
      if (errno == EINTR) continue;
      throw std::runtime_error(std::string("cannot wait: ") + error_text(errno));
    }
    if (ends[1].revents != 0 && !pass_on(joined, STDOUT_FILENO)) ends[1].fd = -1;
    if (ends[0].fd >= 0 && ends[0].revents != 0 && !pass_on(STDIN_FILENO, joined)) {
      shutdown(joined, SHUT_WR);
      ends[0].fd = -1;  // what is still answered is passed on
    }
  }
  close(joined);
}

}  // namespace quern
