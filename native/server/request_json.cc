#include "server/request_json.h"

#include <exception>

namespace quern {

Json request_json(const Exchange& exchange) {
  const auto body = exchange.body();
  return parse_json({reinterpret_cast<const char*>(body.data()), body.size()},
                    "the request's body");
}

std::string required_string(Exchange& exchange, const char* key) {
  try {
    const std::string value = string_at(request_json(exchange), key, "the request");
    if (!value.empty()) return value;
    exchange.reply(error_reply(400, std::string("\"") + key + "\" is empty"));
  } catch (const std::exception& e) {
    exchange.reply(error_reply(400, e.what()));
  }
  return "";
}

std::string required_path(Exchange& exchange, const char* key) {
  const std::string path = required_string(exchange, key);
  if (path.empty() || path.front() == '/') return path;
  exchange.reply(error_reply(400, std::string("\"") + key + "\" must be an absolute path"));
  return "";
}

}  // namespace quern
