// What the command line of quern-server says, checked.
#pragma once

#include <cstddef>
#include <string>

namespace quern {

struct Options {
  std::string host = "127.0.0.1";
  int port = -1;  // 0: any free port; the first log line tells which
  std::string weights;
  std::string classes;
  std::string release;  // not "": under a holder
  std::string admin_socket;
  bool activate = false;
  int workers = 0;  // 0: one a core
  std::size_t max_body = std::size_t{32} << 20;
  std::size_t max_pixels = 50'000'000;
  std::size_t queue = 256;
  int idle_seconds = 60;
  int header_seconds = 20;
  int body_seconds = 180;
  int drain_seconds = 10;
  bool access_log = false;
  bool help = false;
  bool version = false;
};

extern const char kUsage[];

// Throws std::runtime_error with one sentence that names the option.
Options parse_options(int argc, char** argv);

}  // namespace quern
