// quern-holder: keeps a channel's port open and its servers alive (holder.h).
#include <event2/event.h>
#include <fcntl.h>
#include <getopt.h>
#include <glob.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <stdexcept>

#include "server/connect.h"
#include "server/holder.h"
#include "server/log.h"
#include "server/numbers.h"
#include "server/sockets.h"
#include "server/version.h"

namespace {

using namespace quern;

constexpr char kUsage[] =
    "usage: quern-holder --directory CHANNEL_DIR --port N [--host 127.0.0.1]\n"
    "                    [--confirm-seconds 60] [--kill-seconds 30]\n"
    "       quern-holder --connect ADDRESS\n"
    "\n"
    "Owns the listening socket and starts the release that CHANNEL_DIR/current names.\n"
    "Controlled over the Unix socket CHANNEL_DIR/holder.sock (docs/server.md).\n"
    "--connect joins standard input and output to a Unix socket or to host:port.\n";

constexpr int kFirstDescriptor = 10;  // below are those that a child is given

enum Option {
  kDirectory = 1,
  kHost,
  kPort,
  kConfirm,
  kKill,
  kConnect,
  kCheckUpgrade,
  kHelp,
  kVersion
};

const option kOptions[] = {{"directory", required_argument, nullptr, kDirectory},
                           {"host", required_argument, nullptr, kHost},
                           {"port", required_argument, nullptr, kPort},
                           {"confirm-seconds", required_argument, nullptr, kConfirm},
                           {"kill-seconds", required_argument, nullptr, kKill},
                           {"connect", required_argument, nullptr, kConnect},
                           {"check-upgrade", no_argument, nullptr, kCheckUpgrade},
                           {"help", no_argument, nullptr, kHelp},
                           {"version", no_argument, nullptr, kVersion},
                           {nullptr, 0, nullptr, 0}};

HolderOptions parse_options(int argc, char** argv) {
  HolderOptions options;
  opterr = 0;
  for (int code = 0; (code = getopt_long(argc, argv, ":", kOptions, nullptr)) != -1;) {
    const std::string value = optarg == nullptr ? "" : optarg;
    switch (code) {
      case kDirectory:
        options.directory = value;
        break;
      case kHost:
        options.host = value;
        break;
      case kPort:
        options.port = static_cast<int>(whole_number("--port", value, 0, 65535));
        break;
      case kConfirm:
        options.confirm_seconds =
            static_cast<int>(whole_number("--confirm-seconds", value, 1, 86400));
        break;
      case kKill:
        options.kill_seconds = static_cast<int>(whole_number("--kill-seconds", value, 1, 86400));
        break;
      case kConnect:
        options.connect = value;
        return options;
      case kCheckUpgrade:
        options.check_upgrade = true;
        return options;
      case kHelp:
        options.help = true;
        return options;
      case kVersion:
        options.version = true;
        return options;
      default:
        throw std::runtime_error(
            std::string(code == ':' ? "a value is missing after " : "unknown option ") +
            argv[optind - 1] + "; --help tells all");
    }
  }
  if (optind < argc) {
    throw std::runtime_error(std::string("unexpected argument ") + argv[optind]);
  }
  if (options.directory.empty() || options.port < 0) {
    throw std::runtime_error("--directory and --port are needed; --help tells all");
  }
  return options;
}

// The state that a predecessor left for us in the environment.
HolderState inherited_state() {
  const char* text = getenv(kStateVariable);
  if (text == nullptr) throw std::runtime_error(std::string(kStateVariable) + " is not set");
  return holder_state_from(parse_json(text, kStateVariable));
}

int moved_up(int descriptor) {
  const int moved = fcntl(descriptor, F_DUPFD_CLOEXEC, kFirstDescriptor);
  close(descriptor);
  return moved;
}

void remove_stale_sockets() {
  glob_t found{};
  if (glob("server-*.sock", 0, nullptr, &found) == 0) {
    for (size_t i = 0; i < found.gl_pathc; ++i) unlink(found.gl_pathv[i]);
  }
  globfree(&found);
}

HolderState new_state(const HolderOptions& options) {
  if (chdir(options.directory.c_str()) != 0) {
    throw std::runtime_error("cannot enter " + options.directory + ": " + error_text(errno));
  }
  HolderState state;
  state.lock = open("holder.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (state.lock < 0) {
    throw std::runtime_error("cannot open " + options.directory +
                             "/holder.lock: " + error_text(errno));
  }
  if (flock(state.lock, LOCK_EX | LOCK_NB) != 0) {
    throw std::runtime_error("another holder runs in " + options.directory +
                             " (holder.lock is held)");
  }
  state.lock = moved_up(state.lock);
  state.listener = moved_up(listen_tcp(options.host, options.port));
  remove_stale_sockets();
  state.control = moved_up(listen_unix("holder.sock"));
  return state;
}

void hold(const HolderOptions& options, std::vector<std::string> arguments) {
  const bool successor = getenv(kStateVariable) != nullptr;
  HolderState state = successor ? inherited_state() : new_state(options);
  unsetenv(kStateVariable);
  for (const int descriptor : {state.listener, state.control, state.lock}) {
    close_on_exec(descriptor, true);
  }
  EventLoop loop;
  const std::string address = address_of(state.listener);
  Holder holder(loop, options, std::move(arguments), std::move(state));
  log_line((successor ? "took over " : "holding ") + address + " for " + options.directory);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);  // a predecessor blocked them for the handover
  if (!successor) holder.start_current();
  holder.run();
  unlink("holder.sock");
}

}  // namespace

int main(int argc, char** argv) {
  set_program_name("quern-holder");
  signal(SIGPIPE, SIG_IGN);
  event_set_log_callback([](int severity, const char* message) {
    if (severity >= EVENT_LOG_WARN) log_line(message);
  });
  try {
    const HolderOptions options = parse_options(argc, argv);
    if (options.help) {
      std::fputs(kUsage, stdout);
    } else if (options.version) {
      std::puts("quern-holder " QUERN_VERSION);
    } else if (!options.connect.empty()) {
      connect_and_join(options.connect);
    } else if (options.check_upgrade) {
      inherited_state();
      return kUpgradeUnderstood;
    } else {
      hold(options, {argv, argv + argc});
    }
    return 0;
  } catch (const std::exception& e) {
    log_line(e.what());
    return 1;
  }
}
