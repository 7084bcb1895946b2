#include "server/access_keys.h"

#include <strings.h>

#include <cstdlib>
#include <stdexcept>

namespace quern {

namespace {

std::string key_from(const char* variable) {
  const char* value = std::getenv(variable);
  if (value == nullptr) return "";
  if (*value == '\0') {
    throw std::runtime_error(std::string(variable) + " is set but empty: unset it or give a key");
  }
  return value;
}

bool same_key(const std::string& given, const std::string& key) {
  unsigned difference = given.size() == key.size() ? 0 : 1;
  for (std::size_t i = 0; i < given.size(); ++i) {
    difference |= static_cast<unsigned char>(given[i] ^ key[i % key.size()]);
  }
  return difference == 0;
}

}  // namespace

AccessKeys access_keys_from_environment() {
  return {key_from("QUERN_READ_KEY"), key_from("QUERN_ADMIN_KEY")};
}

bool carries_key(const Exchange& exchange, const std::string& key) {
  constexpr char kScheme[] = "Bearer ";
  constexpr std::size_t kSchemeSize = sizeof kScheme - 1;
  const std::string authorization = exchange.header("Authorization");
  if (strncasecmp(authorization.c_str(), kScheme, kSchemeSize) == 0) {
    return same_key(authorization.substr(kSchemeSize), key);
  }
  return same_key(exchange.header("X-API-Key"), key);
}

Reply unauthorized() {
  Reply reply = error_reply(
      401, "a key is needed: send it as Authorization: Bearer KEY or as X-API-Key: KEY");
  reply.headers.emplace_back("WWW-Authenticate", "Bearer");
  return reply;
}

}  // namespace quern
