// HTTP/1.1 on one event loop, by libevent's evhttp, with what evhttp leaves to its user: which
// connections are open, limits on time and number, JSON answers, and a drain that loses nothing.
//
// A client that goes away while its request is computed is no special case: evhttp does not read
// from the connection until the request is answered, so the request stays valid and the answer is
// written into a closed socket. Who would rather not compute it asks client_gone().
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
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

using Headers = std::vector<std::pair<std::string, std::string>>;

struct Reply {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  Headers headers;
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

  // Or an answer in pieces, of a length that is not known yet: begin() and end() once.
  void begin(int status, const Headers& headers);
  void piece(std::string_view bytes);
  void end();
  bool begun() const { return begun_; }
  std::size_t unsent() const;  // bytes of it that the client has not taken yet
  // Called when the client has taken all that was given so far.
  void when_sent(std::function<void()> action) { sent_ = std::move(action); }
  // Or none: closes the connection, so that a client of half an answer sees that it is half.
  // `status` is what the observer is told.
  void abandon(int status);
  // Whether the client has closed its end of the connection: then nobody waits for the answer.
  bool client_gone() const;

 private:
  void add_headers(const Headers& headers);
  void observed(int status) const;
  void own_answer_on_complete();
  void stop_reading();

  HttpServer& server_;
  evhttp_request* request_;
  std::span<const std::uint8_t> body_;
  double started_;
  int status_ = 0;
  bool begun_ = false;
  std::function<void()> sent_;
};
using ExchangePointer = std::shared_ptr<Exchange>;

struct HttpLimits {
  std::size_t max_body = 1 << 20;      // bytes; more is answered 413
  std::size_t max_header = 1 << 14;    // bytes of request line and headers together
  int idle_seconds = 60;               // between requests, and wherever nothing is read or written
  int header_seconds = 20;             // from a request's first byte to the end of its headers
  int body_seconds = 180;              // from there to the end of its body
  std::size_t max_connections = 4096;  // more wait in the backlog
};

// What is to be known of an answer that was given. evhttp's own refusals have neither method nor
// path: "-".
struct Answered {
  std::string method;
  std::string path;
  int status = 0;
  double seconds = 0.0;  // since the whole request was there
};

class HttpServer {
 public:
  using Handler = std::function<void(const ExchangePointer&)>;
  using Observer = std::function<void(const Answered&)>;  // called at each answer

  HttpServer(EventLoop& loop, const HttpLimits& limits, Handler handler);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  void observe(Observer observer) { observer_ = std::move(observer); }
  void accept_from(int listener);  // takes the descriptor
  // Accepts no more, answers everything on open connections with `Connection: close`, and calls
  // `drained` when none is open. Idle ones are kept for 10 s, for a client that is just about to
  // send its next request on one, or closed at once. Closes only its own descriptor of the
  // listening socket.
  enum class Idle { kKeep, kClose };
  void drain(Idle idle, std::function<void()> drained);
  std::size_t open_connections() const { return connections_.size(); }

 private:
  friend class Exchange;
  enum class Phase { kIdle, kHeaders, kBody, kAnswer };
  struct Connection {
    HttpServer* server;
    evhttp_connection* evhttp = nullptr;  // from adopt_connections() on
    Phase phase = Phase::kIdle;
    double since = 0.0;       // of the phase, monotonic seconds
    bool line_empty = false;  // so far, the line of the headers that is being read
    bool reading_on = false;
  };

  bufferevent* new_connection();
  void adopt_connections();
  void closed(evhttp_connection* connection);
  void request(evhttp_request* request);
  void answered(evhttp_request* request);
  Connection* connection_of(evhttp_request* request);
  double seconds_allowed(Phase phase) const;
  void close_overdue();
  void close_unless_answering(const std::function<bool(const Connection&)>& chosen);
  void listen_when_below_limit();
  static void enter(Connection& connection, Phase phase);
  static void scan_headers(Connection& connection, evbuffer* input, std::size_t added);
  static void read_on(evbuffer* input, const evbuffer_cb_info* info, void* connection);
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
  std::unordered_map<bufferevent*, Connection> connections_;
  bool draining_ = false;
  bool replying_ = false;  // what evhttp writes now is our answer
  std::function<void()> drained_;
};

}  // namespace quern
