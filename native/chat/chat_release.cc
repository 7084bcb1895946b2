#include "chat/chat_release.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "engine/digest.h"
#include "server/files.h"
#include "server/json.h"
#include "server/log.h"
#include "server/release.h"

namespace quern {

namespace {

constexpr std::size_t kPiece = std::size_t{1} << 20;
constexpr int kAboveInherited = 10;  // descriptors below are given other meanings in children

void require_digest(const ReleaseFile& file, const std::string& read) {
  if (read == file.xxh3_128) return;
  throw std::runtime_error(file.path + " has digest " + read + ", its manifest says " +
                           file.xxh3_128 + ": the release is damaged, send it again");
}

std::runtime_error unreadable(const std::string& path, int error) {
  return std::runtime_error("cannot read " + path + ": " + error_text(error));
}

std::string digest_of(int descriptor, const std::string& path, const std::atomic<bool>& cancelled) {
  Digester digester;
  std::vector<std::uint8_t> piece(kPiece);
  off_t at = 0;
  for (ssize_t got = 0; (got = pread(descriptor, piece.data(), piece.size(), at)) != 0; at += got) {
    if (got < 0) throw unreadable(path, errno);
    if (cancelled) throw std::runtime_error("given up: the server leaves");
    digester.update({piece.data(), static_cast<std::size_t>(got)});
  }
  return digester.hex();
}

int whole_number_at(const Json& json, const char* key, int most, const std::string& path) {
  const Json value = json.value(key, Json());
  if (!value.is_number_integer() || value < 1 || value > most) {
    throw std::runtime_error(path + " needs \"" + key + "\", a whole number from 1 to " +
                             std::to_string(most));
  }
  return value.get<int>();
}

ChatSettings parse_settings(const std::string& text, const std::string& path) {
  constexpr int kMostParallel = 100;
  constexpr int kMostThreads = 512;
  constexpr double kMostTemperature = 100.0;
  const Json json = parse_json(text, path);
  ChatSettings settings;
  settings.name = string_at(json, "name", path);
  // llama-server takes a comma for the end of a name.
  const bool plain = std::none_of(settings.name.begin(), settings.name.end(),
                                  [](unsigned char c) { return c < ' ' || c == ','; });
  if (settings.name.empty() || !plain) {
    throw std::runtime_error(path + ": \"name\" must be a name without commas");
  }
  settings.parallel = whole_number_at(json, "parallel", kMostParallel, path);
  settings.context = whole_number_at(json, "context", INT_MAX / kMostParallel, path);
  if (json.contains("threads")) {
    settings.threads = whole_number_at(json, "threads", kMostThreads, path);
  }
  const Json temperature = json.value("temperature", Json());
  if (!temperature.is_number() || !(temperature >= 0.0 && temperature <= kMostTemperature)) {
    throw std::runtime_error(path + " needs \"temperature\", a number from 0 to 100");
  }
  settings.temperature = temperature.get<double>();
  const Json system = json.value("system", Json());
  if (!system.is_string() && !system.is_null()) {
    throw std::runtime_error(path + ": \"system\" must be a string or null");
  }
  if (system.is_string()) settings.system = system.get<std::string>();
  return settings;
}

}  // namespace

std::shared_ptr<const ChatRelease> ChatRelease::open(const std::string& directory,
                                                     const std::atomic<bool>& cancelled) {
  const Release manifest = read_release(directory);
  auto release = std::make_shared<ChatRelease>();
  release->directory = directory;
  release->id = manifest.id;
  release->model = manifest.model;
  release->label = manifest.label;

  const ReleaseFile& chat = manifest.role("chat");
  const std::string text = read_file(chat.path);
  release->chat_digest =
      digest_hex({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
  require_digest(chat, release->chat_digest);
  release->settings = parse_settings(text, chat.path);

  release->engine = manifest.role("engine").path;
  release->engine_digest = manifest.role("engine").xxh3_128;
  for (const auto& [role, file] : manifest.roles) {
    // Of the other roles the engine may be made: its libraries lie beside it.
    const bool of_others = role == "server" || role == "holder" || role == "golden";
    if (of_others || role == "weights" || role == "chat") continue;
    require_digest(file, file_digest_hex(file.path));
  }

  const ReleaseFile& weights = manifest.role("weights");
  release->weights = weights.path;
  const int opened = ::open(weights.path.c_str(), O_RDONLY | O_CLOEXEC);
  if (opened < 0) throw unreadable(weights.path, errno);
  release->descriptor = fcntl(opened, F_DUPFD_CLOEXEC, kAboveInherited);
  close(opened);
  struct stat status {};
  if (release->descriptor < 0 || fstat(release->descriptor, &status) != 0) {
    throw unreadable(weights.path, errno);
  }
  if (!S_ISREG(status.st_mode)) throw std::runtime_error(weights.path + " is not a file");
  release->size = status.st_size;
  release->device = status.st_dev;
  release->inode = status.st_ino;
  release->weights_digest = digest_of(release->descriptor, weights.path, cancelled);
  require_digest(weights, release->weights_digest);
  return release;
}

ChatRelease::~ChatRelease() {
  if (descriptor >= 0) close(descriptor);
}

}  // namespace quern
