// Who may ask what: keys come from the environment, never from the command line (ps shows that).
#pragma once

#include <string>

#include "server/http_server.h"

namespace quern {

struct AccessKeys {
  std::string read;   // QUERN_READ_KEY, "" when not set
  std::string admin;  // QUERN_ADMIN_KEY, "" when not set
};

// Throws std::runtime_error when one is set and empty: that would silently be an open door.
AccessKeys access_keys_from_environment();

// True when the request carries `key` as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Takes the
// same time wherever the given key differs.
bool carries_key(const Exchange& exchange, const std::string& key);

// 401, which says how to send one.
Reply unauthorized();

}  // namespace quern
