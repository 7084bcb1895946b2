#include "server/options.h"

#include <getopt.h>

#include <climits>
#include <stdexcept>

#include "server/numbers.h"

namespace quern {

const char kUsage[] =
    "usage: quern-server --port N --weights FILE --classes FILE [--host 127.0.0.1]\n"
    "       quern-server --release DIR --admin-socket NAME [--activate]   (under quern-holder)\n"
    "\n"
    "  --workers N         inference threads (default: one a core)\n"
    "  --queue N           requests that may wait for a worker before 503 (default 256)\n"
    "  --max-body BYTES    larger requests are answered 413 (default 33554432)\n"
    "  --max-pixels N      larger images are answered 413 (default 50000000)\n"
    "  --idle-seconds N    connections without a request are closed (default 60)\n"
    "  --header-seconds N  a request's headers may take so long to arrive (default 20)\n"
    "  --body-seconds N    and then its body (default 180)\n"
    "  --drain-seconds N   after SIGTERM, at most this long for open connections (default 10)\n"
    "  --access-log        one line per request on standard error\n"
    "  --help, --version\n"
    "\n"
    "keys from the environment: QUERN_READ_KEY (/predict, /models/info), QUERN_ADMIN_KEY "
    "(/models/reload)\n";

namespace {

enum Option {
  kHost = 1,
  kPort,
  kWeights,
  kClasses,
  kRelease,
  kAdminSocket,
  kActivate,
  kWorkers,
  kMaxBody,
  kMaxPixels,
  kQueue,
  kIdleSeconds,
  kHeaderSeconds,
  kBodySeconds,
  kDrainSeconds,
  kAccessLog,
  kHelp,
  kVersion
};

const option kOptions[] = {{"host", required_argument, nullptr, kHost},
                           {"port", required_argument, nullptr, kPort},
                           {"weights", required_argument, nullptr, kWeights},
                           {"classes", required_argument, nullptr, kClasses},
                           {"release", required_argument, nullptr, kRelease},
                           {"admin-socket", required_argument, nullptr, kAdminSocket},
                           {"activate", no_argument, nullptr, kActivate},
                           {"workers", required_argument, nullptr, kWorkers},
                           {"max-body", required_argument, nullptr, kMaxBody},
                           {"max-pixels", required_argument, nullptr, kMaxPixels},
                           {"queue", required_argument, nullptr, kQueue},
                           {"idle-seconds", required_argument, nullptr, kIdleSeconds},
                           {"header-seconds", required_argument, nullptr, kHeaderSeconds},
                           {"body-seconds", required_argument, nullptr, kBodySeconds},
                           {"drain-seconds", required_argument, nullptr, kDrainSeconds},
                           {"access-log", no_argument, nullptr, kAccessLog},
                           {"help", no_argument, nullptr, kHelp},
                           {"version", no_argument, nullptr, kVersion},
                           {nullptr, 0, nullptr, 0}};

void require_one_way_to_start(const Options& options) {
  const bool released = !options.release.empty();
  const bool standalone = options.port >= 0 || !options.weights.empty() || !options.classes.empty();
  if (released && standalone) {
    throw std::runtime_error("give --release, or --port with --weights and --classes, not both");
  }
  if (released && options.admin_socket.empty()) {
    throw std::runtime_error("--release needs --admin-socket");
  }
  if (!released && (options.port < 0 || options.weights.empty() || options.classes.empty())) {
    throw std::runtime_error("--port, --weights and --classes are needed; --help tells all");
  }
}

}  // namespace

Options parse_options(int argc, char** argv) {
  Options options;
  opterr = 0;
  for (int code = 0; (code = getopt_long(argc, argv, ":", kOptions, nullptr)) != -1;) {
    const std::string value = optarg == nullptr ? "" : optarg;
    switch (code) {
      case kHost:
        options.host = value;
        break;
      case kPort:
        options.port = static_cast<int>(whole_number("--port", value, 0, 65535));
        break;
      case kWeights:
        options.weights = value;
        break;
      case kClasses:
        options.classes = value;
        break;
      case kRelease:
        options.release = value;
        break;
      case kAdminSocket:
        options.admin_socket = value;
        break;
      case kActivate:
        options.activate = true;
        break;
      case kWorkers:
        options.workers = static_cast<int>(whole_number("--workers", value, 1, 1024));
        break;
      case kMaxBody:
        options.max_body = static_cast<std::size_t>(whole_number("--max-body", value, 1, INT_MAX));
        break;
      case kMaxPixels:
        options.max_pixels =
            static_cast<std::size_t>(whole_number("--max-pixels", value, 1, INT_MAX));
        break;
      case kQueue:
        options.queue = static_cast<std::size_t>(whole_number("--queue", value, 1, 1000000));
        break;
      case kIdleSeconds:
        options.idle_seconds = static_cast<int>(whole_number("--idle-seconds", value, 1, 86400));
        break;
      case kHeaderSeconds:
        options.header_seconds =
            static_cast<int>(whole_number("--header-seconds", value, 1, 86400));
        break;
      case kBodySeconds:
        options.body_seconds = static_cast<int>(whole_number("--body-seconds", value, 1, 86400));
        break;
      case kDrainSeconds:
        options.drain_seconds = static_cast<int>(whole_number("--drain-seconds", value, 0, 86400));
        break;
      case kAccessLog:
        options.access_log = true;
        break;
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
  require_one_way_to_start(options);
  return options;
}

}  // namespace quern
