#include "engine/digest.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstdio>
#include <iterator>
#include <stdexcept>

namespace quern {
namespace {

std::string canonical_hex(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * sizeof(canonical.digest));
  for (const unsigned char byte : canonical.digest) {
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

}  // namespace

struct Digester::State {
  XXH3_state_t xxh3;  // aligned to 64 bytes by its type
};

Digester::Digester() : state_(std::make_unique<State>()) { XXH3_128bits_reset(&state_->xxh3); }

Digester::~Digester() = default;

void Digester::update(std::span<const std::uint8_t> bytes) {
  XXH3_128bits_update(&state_->xxh3, bytes.data(), bytes.size());
}

std::string Digester::hex() const { return canonical_hex(XXH3_128bits_digest(&state_->xxh3)); }

std::vector<std::uint8_t> Digester::bytes() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state_->xxh3));
  return {std::begin(canonical.digest), std::end(canonical.digest)};
}

std::string digest_hex(std::span<const std::uint8_t> bytes) {
  return canonical_hex(XXH3_128bits(bytes.data(), bytes.size()));
}

std::string file_digest_hex(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             std::fclose);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  Digester digester;
  std::vector<std::uint8_t> piece(1U << 18U);
  std::size_t count = 0;
  while ((count = std::fread(piece.data(), 1, piece.size(), file.get())) > 0) {
    digester.update({piece.data(), count});
  }
  if (std::ferror(file.get()) != 0) throw std::runtime_error(path + ": cannot be read");
  return digester.hex();
}

}  // namespace quern
