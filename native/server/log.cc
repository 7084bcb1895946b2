#include "server/log.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <system_error>

namespace quern {

namespace {
const char* program_name = "quern";
}

void set_program_name(const char* name) { program_name = name; }

void log_line(const std::string& sentence) {
  const time_t now = time(nullptr);
  tm utc{};
  gmtime_r(&now, &utc);
  char when[32];
  strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &utc);
  std::string one_line = sentence;
  // What a client sent may be in it: nothing that a terminal would obey.
  std::replace_if(
      one_line.begin(), one_line.end(), [](unsigned char c) { return std::iscntrl(c) != 0; }, ' ');
  const std::string line = std::string(when) + " " + program_name + "[" + std::to_string(getpid()) +
                           "]: " + one_line + "\n";
  // A log that cannot be written must not stop the service.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

std::string error_text(int error) { return std::generic_category().message(error); }

}  // namespace quern
