// The JSON bodies of control requests.
#pragma once

#include <string>

#include "server/http_server.h"
#include "server/json.h"

namespace quern {

// Throws std::runtime_error with one sentence when it is not JSON.
Json request_json(const Exchange& exchange);

// The string at `key` of the request's JSON. Answers 400 and returns "" when there is none.
std::string required_string(Exchange& exchange, const char* key);

// The same of an absolute path.
std::string required_path(Exchange& exchange, const char* key);

}  // namespace quern
