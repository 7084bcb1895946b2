#include "server/routes.h"

#include <string>

namespace quern {

void answer_by_route(const ExchangePointer& exchange, std::initializer_list<Route> routes) {
  const std::string path = exchange->path();
  const std::string method = exchange->method() == "HEAD" ? "GET" : exchange->method();
  for (const Route& route : routes) {
    if (path != route.path) continue;
    if (method == route.method) {
      route.answer(exchange);
      return;
    }
    Reply refused = error_reply(405, path + " is asked with " + route.method);
    refused.headers.emplace_back("Allow", route.method);
    exchange->reply(refused);
    return;
  }
  exchange->reply(error_reply(404, "no such path: " + path));
}

}  // namespace quern
