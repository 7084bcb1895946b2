#include "chat/chat_options.h"

#include <getopt.h>

#include <climits>
#include <stdexcept>

#include "server/numbers.h"

namespace quern {

const char kChatUsage[] =
    "usage: quern-chat --release DIR --admin-socket NAME [--activate]   (under quern-holder)\n"
    "\n"
    "  --queue N                 requests that may wait for a slot before 503 (default 256)\n"
    "  --max-body BYTES          larger requests are answered 413 (default 8388608)\n"
    "  --idle-seconds N          connections without a request are closed (default 60)\n"
    "  --header-seconds N        a request's headers may take so long to arrive (default 20)\n"
    "  --body-seconds N          and then its body (default 180)\n"
    "  --drain-seconds N         what runs may take so long to end: after SIGTERM, and on the\n"
    "                            engine of a release that was replaced (default 600)\n"
    "  --engine-start-seconds N  and an engine so long to read its model (default 600)\n"
    "  --candidate-seconds N     a release that was loaded is dropped when nobody asks about it\n"
    "                            for so long (default 600)\n"
    "  --access-log              one line per request on standard error\n"
    "  --help, --version\n"
    "\n"
    "keys from the environment: QUERN_READ_KEY (all of the model's requests, /models/info), "
    "QUERN_ADMIN_KEY (/models/reload)\n";

namespace {

constexpr long kDay = 86400;

enum Option {
  kRelease = 1,
  kAdminSocket,
  kActivate,
  kQueue,
  kMaxBody,
  kIdleSeconds,
  kHeaderSeconds,
  kBodySeconds,
  kDrainSeconds,
  kEngineStartSeconds,
  kCandidateSeconds,
  kAccessLog,
  kHelp,
  kVersion
};

const option kOptions[] = {
    {"release", required_argument, nullptr, kRelease},
    {"admin-socket", required_argument, nullptr, kAdminSocket},
    {"activate", no_argument, nullptr, kActivate},
    {"queue", required_argument, nullptr, kQueue},
    {"max-body", required_argument, nullptr, kMaxBody},
    {"idle-seconds", required_argument, nullptr, kIdleSeconds},
    {"header-seconds", required_argument, nullptr, kHeaderSeconds},
    {"body-seconds", required_argument, nullptr, kBodySeconds},
    {"drain-seconds", required_argument, nullptr, kDrainSeconds},
    {"engine-start-seconds", required_argument, nullptr, kEngineStartSeconds},
    {"candidate-seconds", required_argument, nullptr, kCandidateSeconds},
    {"access-log", no_argument, nullptr, kAccessLog},
    {"help", no_argument, nullptr, kHelp},
    {"version", no_argument, nullptr, kVersion},
    {nullptr, 0, nullptr, 0}};

int seconds(const char* option, const std::string& value, long least = 1) {
  return static_cast<int>(whole_number(option, value, least, kDay));
}

}  // namespace

ChatOptions parse_chat_options(int argc, char** argv) {
  ChatOptions options;
  opterr = 0;
  for (int code = 0; (code = getopt_long(argc, argv, ":", kOptions, nullptr)) != -1;) {
    const std::string value = optarg == nullptr ? "" : optarg;
    switch (code) {
      case kRelease:
        options.release = value;
        break;
      case kAdminSocket:
        options.admin_socket = value;
        break;
      case kActivate:
        options.activate = true;
        break;
      case kQueue:
        options.queue = static_cast<std::size_t>(whole_number("--queue", value, 1, 1000000));
        break;
      case kMaxBody:
        options.max_body = static_cast<std::size_t>(whole_number("--max-body", value, 1, INT_MAX));
        break;
      case kIdleSeconds:
        options.idle_seconds = seconds("--idle-seconds", value);
        break;
      case kHeaderSeconds:
        options.header_seconds = seconds("--header-seconds", value);
        break;
      case kBodySeconds:
        options.body_seconds = seconds("--body-seconds", value);
        break;
      case kDrainSeconds:
        options.drain_seconds = seconds("--drain-seconds", value, 0);
        break;
      case kEngineStartSeconds:
        options.engine_start_seconds = seconds("--engine-start-seconds", value);
        break;
      case kCandidateSeconds:
        options.candidate_seconds = seconds("--candidate-seconds", value);
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
  if (options.release.empty() || options.admin_socket.empty()) {
    throw std::runtime_error("--release and --admin-socket are needed; --help tells all");
  }
  return options;
}

}  // namespace quern
