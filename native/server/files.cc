#include "server/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <stdexcept>

#ifdef __APPLE__
#include <mach-o/dyld.h>
#endif

#include "engine/digest.h"
#include "server/log.h"

namespace quern {

std::string read_file(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw std::runtime_error("cannot read " + path + ": " + error_text(errno));
  std::string content;
  char piece[65536];
  ssize_t got = 0;
  while ((got = read(descriptor, piece, sizeof piece)) > 0) {
    content.append(piece, static_cast<std::size_t>(got));
  }
  const int error = errno;
  close(descriptor);
  if (got < 0) throw std::runtime_error("cannot read " + path + ": " + error_text(error));
  return content;
}

std::string own_executable() {
#ifdef __APPLE__
  char path[PATH_MAX];
  uint32_t size = sizeof path;
  return _NSGetExecutablePath(path, &size) == 0 ? path : "";
#else
  return "/proc/self/exe";  // the file that was opened, even when its name is another's by now
#endif
}

std::string own_digest() {
  try {
    return file_digest_hex(own_executable());
  } catch (const std::runtime_error&) {
    return "";
  }
}

std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

}  // namespace quern
