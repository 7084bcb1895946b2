// quern-chat: answers chats from one language model, as a child of quern-holder; llama-server
// computes them as a child of its own.
#include <event2/event.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <exception>

#include "chat/chat_server.h"
#include "server/log.h"
#include "server/parent_watch.h"
#include "server/sockets.h"
#include "server/version.h"

namespace {

using namespace quern;

int serve(const ChatOptions& options) {
  const AccessKeys keys = access_keys_from_environment();
  const int listener = inherited_listener();
  remove_stale_engine_sockets();
  EventLoop loop;
  ChatServer server(loop, options, keys, listener);
  loop.on_signal(SIGTERM, [&server] { server.drain(); });
  loop.on_signal(SIGINT, [&server] { server.drain(); });
  loop.on_signal(SIGCHLD, [&server] { server.reap(); });
  const ParentWatch watch(loop, [&server] { server.drain(); });
  server.start();
  loop.run();
  server.stop_hashing();
  unlink(options.admin_socket.c_str());
  return server.failed() ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  set_program_name("quern-chat");
  signal(SIGPIPE, SIG_IGN);
  event_set_log_callback([](int severity, const char* message) {
    if (severity >= EVENT_LOG_WARN) log_line(message);
  });
  try {
    const ChatOptions options = parse_chat_options(argc, argv);
    if (options.help) {
      std::fputs(kChatUsage, stdout);
    } else if (options.version) {
      std::puts("quern-chat " QUERN_VERSION);
    } else {
      return serve(options);
    }
    return 0;
  } catch (const std::exception& e) {
    log_line(e.what());
    return 1;
  }
}
