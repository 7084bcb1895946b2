// One table per API says which method each path has; 404 and 405 follow from it.
#pragma once

#include <functional>
#include <initializer_list>

#include "server/http_server.h"

namespace quern {

struct Route {
  const char* method;  // "GET" (also answers HEAD) or "POST"
  const char* path;
  std::function<void(const ExchangePointer&)> answer;
};

void answer_by_route(const ExchangePointer& exchange, std::initializer_list<Route> routes);

}  // namespace quern
