// A language model's release, opened and checked: what an engine is started from, as often as that
// is needed.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <memory>
#include <string>

namespace quern {

// chat.json
struct ChatSettings {
  std::string name;  // "model" in requests
  int context = 0;   // tokens of a slot
  int parallel = 0;  // slots
  int threads = 0;   // that compute; 0: as many as llama-server chooses
  double temperature = 0.0;
  std::string system;  // put before a chat that has no system message; "": nothing is
};

class ChatRelease {
 public:
  // Reads the manifest and chat.json, and opens and hashes the weights; all that the engine is made
  // of must have the manifest's digests. Takes as long as reading the files does; gives up soon
  // after `cancelled` is true. Throws std::runtime_error with one sentence.
  static std::shared_ptr<const ChatRelease> open(const std::string& directory,
                                                 const std::atomic<bool>& cancelled);
  ChatRelease() = default;
  ~ChatRelease();
  ChatRelease(const ChatRelease&) = delete;
  ChatRelease& operator=(const ChatRelease&) = delete;

  std::string directory;
  std::string id;
  std::string model;
  std::string label;
  ChatSettings settings;
  std::string engine;  // the path of llama-server
  std::string engine_digest;
  std::string chat_digest;

  std::string weights;  // their path
  int descriptor = -1;  // of the weights: these bytes were hashed, and these an engine is given
  std::string weights_digest;
  off_t size = 0;
  dev_t device = 0;
  ino_t inode = 0;
};
using ChatReleasePointer = std::shared_ptr<const ChatRelease>;

}  // namespace quern
