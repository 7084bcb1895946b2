// HTTP/1.1 on one event loop, by libevent's evhttp, with what evhttp leaves to its user: which
// connections are open, limits on time and number, JSON answers, and a drain that loses nothing.
//
// A client that goes away while its request is computed is no special case: evhttp does not read
// from the connection until the request is answered, so the request stays valid and the answer is
// written into a closed socket.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "server/event_loop.h"
#include "server/json.h"

struct bufferevent;
struct evbuffer;
struct evbuffer_cb_info;
struct evhttp;
struct evhttp_bound_socket;
struct evhttp_connection;
struct evhttp_request;

namespace quern {

class HttpServer;

struct Reply {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
};

Reply json_reply(int status, const Json& body);
Reply error_reply(int status, const std::string& sentence);

// One request and the answer it will get. Made and answered on the loop's thread; the body may be
// read by one worker in between.
class Exchange {
 public:
  Exchange(HttpServer& server, evhttp_request* request);

  std::string method() const;  // "GET"; "?" when evhttp doesn't know it
  std::string path() const;
  // The value of a query parameter, "" when absent.
  std::string parameter(const char* name) const;
  std::string header(const char* name) const;  // "" when absent
  std::span<const std::uint8_t> body() const { return body_; }
  double started() const { return started_; }  // monotonic seconds, request complete

  void reply(const Reply& reply);  // once

 private:
  HttpServer& server_;
  evhttp_request* request_;
  std::span<const std::uint8_t> body_;
  double started_;
};
using ExchangePointer = std::shared_ptr<Exchange>;

struct HttpLimits {
  std::size_t max_body = 1 << 20;      // bytes; more is answered 413
  std::size_t max_header = 1 << 14;    // bytes of request line and headers together
  int idle_seconds = 60;               // nothing read or written
  int request_seconds = 180;           // from connection or last answer to the next whole request
  std::size_t max_connections = 4096;  // more wait in the backlog
};

class HttpServer {
 public:
  using Handler = std::function<void(const ExchangePointer&)>;
  // Called after each answer: the exchange, its status.
  using Observer = std::function<void(const Exchange&, int)>;

  HttpServer(EventLoop& loop, const HttpLimits& limits, Handler handler);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  void observe(Observer observer) { observer_ = std::move(observer); }
  void accept_from(int listener);  // takes the descriptor
  // Accepts no more, answers everything on open connections with `Connection: close`, and calls
  // `drained` when none is open. Idle ones are kept, for a client that is just about to send its
  // next request on one, or closed at once. Closes only its own descriptor of the listening socket.
  enum class Idle { kKeep, kClose };
  void drain(Idle idle, std::function<void()> drained);
  std::size_t open_connections() const { return connections_.size() + fresh_.size(); }

 private:
  friend class Exchange;
  struct Connection {
    bool busy = false;   // a request is being answered
    double since = 0.0;  // of the connection or its last answer
  };

  bufferevent* new_connection();
  void adopt_connections();
  void closed(evhttp_connection* connection);
  void request(evhttp_request* request);
  void answered(evhttp_request* request);
  void close_unless_busy(double since);
  void listen_when_below_limit();
  static void read_on(evbuffer* input, const evbuffer_cb_info* info, void* channel);
  static void own_words(evbuffer* output, const evbuffer_cb_info* info, void* self);

  EventLoop& loop_;
  HttpLimits limits_;
  Handler handler_;
  Observer observer_;
  evhttp* http_;
  evhttp_bound_socket* listener_ = nullptr;
  EventPointer adopt_;
  Timer sweep_;
  std::vector<bufferevent*> fresh_;  // accepted in this turn of the loop
  std::unordered_map<evhttp_connection*, Connection> connections_;
  bool draining_ = false;
  bool replying_ = false;  // what evhttp writes now is our answer
  std::function<void()> drained_;
};

}  // namespace quern
