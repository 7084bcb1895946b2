// quern-server: answers /predict from one model, alone on a port or as a child of quern-holder.
#include <event2/event.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <exception>

#include "server/freed_memory.h"
#include "server/log.h"
#include "server/parent_watch.h"
#include "server/server.h"
#include "server/sockets.h"
#include "server/version.h"

namespace {

using namespace quern;

void serve(const Options& options) {
  const AccessKeys keys = access_keys_from_environment();
  const bool released = !options.release.empty();
  const int listener = released ? inherited_listener() : listen_tcp(options.host, options.port);
  const ServedPointer first = released ? ServedModel::from_release(options.release)
                                       : ServedModel::from_files(options.weights, options.classes);
  EventLoop loop;
  Server server(loop, options, keys, first);
  loop.on_signal(SIGTERM, [&server] { server.drain(); });
  loop.on_signal(SIGINT, [&server] { server.drain(); });
  server.serve_public(listener);
  if (!options.admin_socket.empty()) server.serve_admin(listen_unix(options.admin_socket));
  const ParentWatch watch(loop, [&server] { server.drain(); });
  const std::string address = "http://" + address_of(listener) + ", " + first->label;
  if (!released || options.activate) {
    server.go_live();
    log_line("listening on " + address);
  } else {
    log_line("standby on " + address);
  }
  loop.run();
  server.stop_workers();
  if (!options.admin_socket.empty()) unlink(options.admin_socket.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  bound_freed_memory();
  unsetenv("JSIMD_FORCENONE");  // libjpeg-turbo without SIMD is not linked in (stand_ins.cc)
  set_program_name("quern-server");
  signal(SIGPIPE, SIG_IGN);
  event_set_log_callback([](int severity, const char* message) {
    if (severity >= EVENT_LOG_WARN) log_line(message);
  });
  try {
    const Options options = parse_options(argc, argv);
    if (options.help) {
      std::fputs(kUsage, stdout);
    } else if (options.version) {
      std::puts("quern-server " QUERN_VERSION);
    } else {
      serve(options);
    }
    return 0;
  } catch (const std::exception& e) {
    log_line(e.what());
    return 1;
  }
}
