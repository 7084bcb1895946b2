// libFuzzer target: the real server (event loop, worker threads, a small model), spoken to over a
// Unix socket. An input is one byte of Flags and then what a client sends on one connection; the
// client then closes its side, and the server must answer and close in time.
#include <event2/event.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>

#include "fuzz/finding.h"
#include "server/event_loop.h"
#include "server/json.h"
#include "server/served_model.h"
#include "server/server.h"
#include "server/sockets.h"
#include "tests/engine_weights_builder.h"

using namespace quern;
using fuzz::finding;

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

// The first byte of an input.
enum Flags : std::uint8_t {
  kAdmin = 1,   // to the Unix socket of the deployer, else to the public one
  kPieces = 2,  // a few bytes at a time, as they come over a slow line
  kVanish = 4,  // the client is gone before it has read the answers
  kStay = 8,    // the client closes its side only when no more answers come
};

constexpr double kSecondsToAnswer = 10;
constexpr std::size_t kPiece = 7;
constexpr std::size_t kWhole = std::string_view::npos;
// There is one worker, and one thread for the deployer: when this one is answered, all before it
// are.
constexpr std::string_view kPredict =
    "POST /predict HTTP/1.1\r\nConnection: close\r\nContent-Type: image/png\r\n"
    "Content-Length: 3\r\n\r\nabc";

struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) close(number);
  }
};

std::filesystem::path make_folder() {
  std::string name = (std::filesystem::temp_directory_path() / "quern-fuzz-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) finding("cannot make the folder " + name);
  return name;
}

Options options_for(const std::filesystem::path& folder) {
  const test::Bytes weights = test::small_network().build();
  std::ofstream(folder / "model_weights.bin", std::ios::binary)
      .write(reinterpret_cast<const char*>(weights.data()),
             static_cast<std::streamsize>(weights.size()));
  std::ofstream(folder / "classes.json") << R"(["cat", {"name": "dog", "legs": 4}])";
  Options options;
  options.weights = folder / "model_weights.bin";
  options.classes = folder / "classes.json";
  options.workers = 1;
  options.max_body = 4096;
  options.max_pixels = 1 << 16;
  return options;
}

class Service {
 public:
  Service()
      : folder_(make_folder()),
        options_(options_for(folder_)),
        server_(loop_, options_, AccessKeys{"", "key"},
                ServedModel::from_files(options_.weights, options_.classes)) {
    server_.serve_public(listen_unix(folder_ / "public"));
    server_.serve_admin(listen_unix(folder_ / "admin"));
    server_.go_live();
  }
  ~Service() {
    server_.stop_workers();
    std::filesystem::remove_all(folder_);
  }

  // What the server answers to `request`, sent in pieces of at most `piece` bytes, until it closes.
  std::string answers(std::string_view request, bool admin, std::size_t piece, bool stay) {
    const Descriptor client = connect_to(admin);
    send_all(client.number, request, piece);
    std::string received;
    if (stay) {
      for (std::size_t before = 1; before != received.size();) {
        before = received.size();
        settle();
        if (read_end(client.number, received)) return received;
      }
    }
    shutdown(client.number, SHUT_WR);
    const double deadline = monotonic_seconds() + kSecondsToAnswer;
    while (!read_end(client.number, received)) {
      event_base_loop(loop_.base(), EVLOOP_ONCE);
      if (monotonic_seconds() > deadline) finding("the server neither answers nor closes");
    }
    return received;
  }

  // Returns when both threads have done what they were asked, and their answers are on their way.
  void settle() {
    for (const bool admin : {true, false}) {
      const std::string answer = answers(kPredict, admin, kWhole, false);
      if (!answer.starts_with("HTTP/1.1 415 ")) finding("the server is not well: " + answer);
    }
  }

  void send_and_vanish(std::string_view request, bool admin, std::size_t piece) {
    const Descriptor client = connect_to(admin);
    send_all(client.number, request, piece);
    loop_.run_once();
  }

 private:
  Descriptor connect_to(bool admin) const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = folder_ / (admin ? "admin" : "public");
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    Descriptor client{socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0)};
    if (connect(client.number, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      finding("cannot connect to the server");
    }
    return client;
  }

  // Gives up when the server no longer reads: it has closed, and its answer says why.
  void send_all(int client, std::string_view request, std::size_t piece) {
    while (!request.empty()) {
      const std::string_view part = request.substr(0, piece);
      const ssize_t sent = send(client, part.data(), part.size(), MSG_NOSIGNAL);
      if (sent < 0 && errno != EAGAIN) return;
      if (sent > 0) request.remove_prefix(static_cast<std::size_t>(sent));
      loop_.run_once();
    }
  }

  // Takes what has come; true at the end of the stream.
  static bool read_end(int client, std::string& received) {
    std::array<char, 4096> buffer;
    for (;;) {
      const ssize_t count = read(client, buffer.data(), buffer.size());
      if (count > 0) {
        received.append(buffer.data(), static_cast<std::size_t>(count));
      } else {
        return count == 0 || errno != EAGAIN;
      }
    }
  }

  std::filesystem::path folder_;
  Options options_;
  EventLoop loop_;
  Server server_;
};

// ---- What an answer must be ----

void check_json(const std::string& body, int status) {
  const Json json = Json::parse(body, nullptr, false);
  if (!json.is_object()) finding("a body that is not a JSON object: " + body);
  if (status < 400) return;
  if (!json.contains("error") || !json["error"].is_string()) finding("no error in " + body);
}

void check_status(int status) {
  static constexpr std::array kStatuses = {100, 200, 400, 401, 403, 404,
                                           405, 409, 413, 415, 417, 422};
  if (std::find(kStatuses.begin(), kStatuses.end(), status) == kStatuses.end()) {
    finding("status " + std::to_string(status));
  }
}

// Takes the answer at the front of `stream` away from it.
void check_answer(std::string_view& stream) {
  constexpr std::string_view kEnd = "\r\n\r\n";
  const std::size_t end = stream.find(kEnd);
  const std::string head(stream.substr(0, end));
  if (end == std::string_view::npos || !head.starts_with("HTTP/1.") || head.size() < 12) {
    finding("an answer that is not HTTP: " + std::string(stream));
  }
  stream.remove_prefix(end + kEnd.size());
  const int status = std::atoi(head.c_str() + std::strlen("HTTP/1.1 "));
  check_status(status);
  if (status == 100) return;

  std::size_t length = stream.size();  // before HTTP/1.1: as far as the stream goes
  const std::size_t at = head.find("\r\nContent-Length: ");
  if (at != std::string::npos) {
    length = std::strtoul(head.c_str() + at + std::strlen("\r\nContent-Length: "), nullptr, 10);
    // The answer to a HEAD: no body of ours begins like this.
    if (stream.empty() || stream.starts_with("HTTP/1.")) return;
  }
  if (length > stream.size()) finding("an answer is cut off: " + head);
  const std::string body(stream.substr(0, length));
  stream.remove_prefix(length);
  if (head.find("\r\nContent-Type: application/json") != std::string::npos) {
    check_json(body, status);
  } else if (status != 200 || !body.starts_with("# ")) {
    finding("an answer that is neither JSON nor metrics: " + head);
  }
}

// Half of the time the last Content-Length is made that of what follows its headers.
std::size_t put_right_length(std::uint8_t* data, std::size_t size, std::size_t most) {
  constexpr std::string_view kHeader = "Content-Length: ";
  std::string text(reinterpret_cast<const char*>(data), size);
  const std::size_t at = text.rfind(kHeader);
  if (at == std::string::npos) return size;
  const std::size_t digits = at + kHeader.size();
  const std::size_t line_end = text.find("\r\n", digits);
  const std::size_t body = text.find("\r\n\r\n", digits);
  if (body == std::string::npos || line_end - digits > 20) return size;
  text.replace(digits, line_end - digits, std::to_string(text.size() - body - 4));
  if (text.size() > most) return size;
  std::memcpy(data, text.data(), text.size());
  return text.size();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto ignored = signal(SIGPIPE, SIG_IGN);
  static Service service;
  if (size == 0 || ignored == SIG_ERR) return 0;
  const std::string_view request(reinterpret_cast<const char*>(data) + 1, size - 1);
  const bool admin = (data[0] & kAdmin) != 0;
  const std::size_t piece = (data[0] & kPieces) != 0 ? kPiece : kWhole;
  if ((data[0] & kVanish) != 0) {
    service.send_and_vanish(request, admin, piece);
    service.settle();
    return 0;
  }
  const std::string received = service.answers(request, admin, piece, (data[0] & kStay) != 0);
  std::string_view stream = received;
  while (!stream.empty()) check_answer(stream);
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  size = LLVMFuzzerMutate(data, size, most);
  return seed % 2 == 0 ? put_right_length(data, size, most) : size;
}
