// What the command line of quern-chat says, checked.
#pragma once

#include <cstddef>
#include <string>

namespace quern {

struct ChatOptions {
  std::string release;
  std::string admin_socket;
  bool activate = false;
  std::size_t max_body = std::size_t{8} << 20;
  std::size_t queue = 256;
  int idle_seconds = 60;
  int header_seconds = 20;
  int body_seconds = 180;
  int drain_seconds = 600;
  int engine_start_seconds = 600;
  int candidate_seconds = 600;
  bool access_log = false;
  bool help = false;
  bool version = false;
};

extern const char kChatUsage[];

// Throws std::runtime_error with one sentence that names the option.
ChatOptions parse_chat_options(int argc, char** argv);

}  // namespace quern
