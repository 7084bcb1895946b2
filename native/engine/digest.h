// One digest for everything: xxh3_128 is the identity of bytes inside Quern, and this is the only
// place that computes it in C++.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace quern {

// xxh3_128 of `bytes` as 32 lower-case hex digits, canonical (big-endian) form: what Python's
// xxhash.xxh3_128(...).hexdigest() prints.
std::string digest_hex(std::span<const std::uint8_t> bytes);

// The same of a file's content, read in pieces.
// Throws std::runtime_error with one sentence when the file cannot be read.
std::string file_digest_hex(const std::string& path);

// The same of bytes that come in pieces.
class Digester {
 public:
  Digester();
  ~Digester();
  Digester(const Digester&) = delete;
  Digester& operator=(const Digester&) = delete;

  void update(std::span<const std::uint8_t> bytes);
  std::string hex() const;
  std::vector<std::uint8_t> bytes() const;  // 16, canonical (big-endian)

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace quern
