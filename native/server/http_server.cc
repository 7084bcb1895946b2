#include "server/http_server.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/http_struct.h>
#include <event2/keyvalq_struct.h>
#include <event2/listener.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <stdexcept>
#include <string_view>

namespace quern {

namespace {

constexpr double kSweepSeconds = 1.0;
constexpr int kDrainingIdleSeconds = 10;
constexpr std::uint16_t kAllMethods = 0xFFFF;  // unknown ones too: ours to refuse, in JSON

const char* reason(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 422:
      return "Unprocessable Content";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    default:
      return status < 500 ? "Refused" : "Internal Server Error";
  }
}

const char* refusal(int status) {
  switch (status) {
    case 413:
      return "the request body is larger than this server accepts";
    case 417:
      return "the only expectation this server meets is 100-continue";
    default:
      return "the request is not valid HTTP, or its headers are too long";
  }
}

}  // namespace

Reply json_reply(int status, const Json& body) {
  Reply reply;
  reply.status = status;
  reply.body = json_text(body) + "\n";
  return reply;
}

Reply error_reply(int status, const std::string& sentence) {
  return json_reply(status, json_error(sentence));
}

Exchange::Exchange(HttpServer& server, evhttp_request* request)
    : server_(server), request_(request), started_(monotonic_seconds()) {
  evbuffer* input = evhttp_request_get_input_buffer(request);
  const std::size_t size = evbuffer_get_length(input);
  const std::uint8_t* bytes = size == 0 ? nullptr : evbuffer_pullup(input, -1);
  if (bytes != nullptr) body_ = {bytes, size};  // nullptr when memory is short: no body
}

std::string Exchange::method() const {
  switch (evhttp_request_get_command(request_)) {
    case EVHTTP_REQ_GET:
      return "GET";
    case EVHTTP_REQ_POST:
      return "POST";
    case EVHTTP_REQ_HEAD:
      return "HEAD";
    default:
      return "?";
  }
}

std::string Exchange::path() const {
  const evhttp_uri* uri = evhttp_request_get_evhttp_uri(request_);
  const char* path = uri == nullptr ? nullptr : evhttp_uri_get_path(uri);
  return path == nullptr ? "" : path;
}

std::string Exchange::parameter(const char* name) const {
  const evhttp_uri* uri = evhttp_request_get_evhttp_uri(request_);
  const char* query = uri == nullptr ? nullptr : evhttp_uri_get_query(uri);
  if (query == nullptr) return "";
  evkeyvalq parameters{};
  if (evhttp_parse_query_str(query, &parameters) != 0) return "";
  const char* value = evhttp_find_header(&parameters, name);
  std::string result = value == nullptr ? "" : value;
  evhttp_clear_headers(&parameters);
  return result;
}

std::string Exchange::header(const char* name) const {
  const char* value = evhttp_find_header(evhttp_request_get_input_headers(request_), name);
  return value == nullptr ? "" : value;
}

void Exchange::reply(const Reply& reply) {
  evkeyvalq* headers = evhttp_request_get_output_headers(request_);
  evhttp_add_header(headers, "Content-Type", reply.content_type.c_str());
  add_headers(reply.headers);
  observed(reply.status);

  const std::unique_ptr<evbuffer, decltype(&evbuffer_free)> body(evbuffer_new(), &evbuffer_free);
  if (evhttp_request_get_command(request_) == EVHTTP_REQ_HEAD) {
    evhttp_add_header(headers, "Content-Length", std::to_string(reply.body.size()).c_str());
  } else {
    evbuffer_add(body.get(), reply.body.data(), reply.body.size());
  }
  own_answer_on_complete();
  server_.replying_ = true;
  evhttp_send_reply(request_, reply.status, reason(reply.status), body.get());
  server_.replying_ = false;
  request_ = nullptr;
}

void Exchange::add_headers(const Headers& headers) {
  evkeyvalq* output = evhttp_request_get_output_headers(request_);
  for (const auto& [name, value] : headers) {
    evhttp_add_header(output, name.c_str(), value.c_str());
  }
  if (server_.draining_) evhttp_add_header(output, "Connection", "close");
}

void Exchange::observed(int status) const {
  if (!server_.observer_) return;
  server_.observer_({method(), path(), status, monotonic_seconds() - started_});
}

void Exchange::own_answer_on_complete() {
  evhttp_request_set_on_complete_cb(
      request_,
      [](evhttp_request* sent, void* server) { static_cast<HttpServer*>(server)->answered(sent); },
      &server_);
}

void Exchange::begin(int status, const Headers& headers) {
  begun_ = true;
  status_ = status;
  // Without chunks the end of the answer is the end of the connection, whatever was asked for;
  // evhttp would say "Content-Length: 0".
  if (request_->minor == 0) {
    evhttp_remove_header(evhttp_request_get_input_headers(request_), "Connection");
  }
  add_headers(headers);
  own_answer_on_complete();
  server_.replying_ = true;
  evhttp_send_reply_start(request_, status, reason(status));
  server_.replying_ = false;
  stop_reading();
}

void Exchange::piece(std::string_view bytes) {
  if (bytes.empty()) return;  // evhttp would end the answer's chunks
  const std::unique_ptr<evbuffer, decltype(&evbuffer_free)> body(evbuffer_new(), &evbuffer_free);
  evbuffer_add(body.get(), bytes.data(), bytes.size());
  server_.replying_ = true;
  evhttp_send_reply_chunk_with_cb(
      request_, body.get(),
      [](evhttp_connection*, void* self) {
        const auto& exchange = *static_cast<Exchange*>(self);
        if (exchange.sent_) exchange.sent_();
      },
      this);
  server_.replying_ = false;
  stop_reading();
}

void Exchange::end() {
  observed(status_);
  server_.replying_ = true;
  evhttp_send_reply_end(request_);
  server_.replying_ = false;
  request_ = nullptr;
}

// evhttp reads while it writes, to see a connection's end: without a bound, and for no longer than
// the idle seconds, after which it would cut an answer that is still being written.
void Exchange::stop_reading() {
  evhttp_connection* connection = evhttp_request_get_connection(request_);
  if (connection == nullptr) return;
  bufferevent_disable(evhttp_connection_get_bufferevent(connection), EV_READ);
}

std::size_t Exchange::unsent() const {
  evhttp_connection* connection = evhttp_request_get_connection(request_);
  if (connection == nullptr) return 0;
  return evbuffer_get_length(bufferevent_get_output(evhttp_connection_get_bufferevent(connection)));
}

void Exchange::abandon(int status) {
  observed(status);
  evhttp_connection* connection = evhttp_request_get_connection(request_);
  if (connection != nullptr) {
    evhttp_connection_free(connection);  // and with it the request
  } else {
    evhttp_request_free(request_);
  }
  request_ = nullptr;
}

bool Exchange::client_gone() const {
  evhttp_connection* connection = evhttp_request_get_connection(request_);
  if (connection == nullptr) return true;  // evhttp has seen it
#ifdef POLLRDHUP
  constexpr short kHungUp = POLLRDHUP;
#else
  constexpr short kHungUp = 0;  // POLLHUP is said without being asked for
#endif
  pollfd end{bufferevent_getfd(evhttp_connection_get_bufferevent(connection)), kHungUp, 0};
  return poll(&end, 1, 0) > 0 && (end.revents & (kHungUp | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

HttpServer::HttpServer(EventLoop& loop, const HttpLimits& limits, Handler handler)
    : loop_(loop),
      limits_(limits),
      handler_(std::move(handler)),
      http_(evhttp_new(loop.base())),
      sweep_(loop, [this] {
        close_overdue();
        sweep_.start(kSweepSeconds);
      }) {
  if (http_ == nullptr) throw std::runtime_error("cannot start an HTTP server");
  evhttp_set_max_headers_size(http_, static_cast<ev_ssize_t>(limits.max_header));
  evhttp_set_max_body_size(http_, static_cast<ev_ssize_t>(limits.max_body));
  evhttp_set_timeout(http_, limits.idle_seconds);
  evhttp_set_allowed_methods(http_, kAllMethods);
  evhttp_set_default_content_type(http_, nullptr);
  // Reads (and forgets) a body that is too long before the 413: closing earlier resets the
  // connection, and the client would never see the answer.
  evhttp_set_flags(http_, EVHTTP_SERVER_LINGERING_CLOSE);
  evhttp_set_gencb(
      http_,
      [](evhttp_request* request, void* self) { static_cast<HttpServer*>(self)->request(request); },
      this);
  evhttp_set_bevcb(
      http_,
      [](event_base*, void* self) { return static_cast<HttpServer*>(self)->new_connection(); },
      this);
  adopt_.reset(event_new(
      loop.base(), -1, 0,
      [](evutil_socket_t, short, void* self) {
        static_cast<HttpServer*>(self)->adopt_connections();
      },
      this));
  sweep_.start(kSweepSeconds);
}

HttpServer::~HttpServer() {
  drained_ = nullptr;
  adopt_connections();
  evhttp_free(http_);
}

void HttpServer::accept_from(int descriptor) {
  evconnlistener* listener = evconnlistener_new(
      loop_.base(), nullptr, nullptr, LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_CLOSE_ON_FREE, 0, descriptor);
  if (listener == nullptr) throw std::runtime_error("cannot accept connections");
  listener_ = evhttp_bind_listener(http_, listener);
}

// evhttp 2.1 tells nobody of a connection that has not sent a request. It asks for a bufferevent
// for each, though, and once the accept is through, that bufferevent's callback argument is the
// evhttp_connection (http.c, evhttp_start_read_).
bufferevent* HttpServer::new_connection() {
  bufferevent* channel = bufferevent_socket_new(loop_.base(), -1, 0);
  if (channel == nullptr) return nullptr;
  bufferevent_incref(channel);
  Connection& connection = connections_.emplace(channel, Connection{this}).first->second;
  enter(connection, Phase::kIdle);
  evbuffer_add_cb(bufferevent_get_input(channel), &HttpServer::read_on, &connection);
  evbuffer_add_cb(bufferevent_get_output(channel), &HttpServer::own_words, this);
  fresh_.push_back(channel);
  event_active(adopt_.get(), EV_TIMEOUT, 0);  // runs before the loop looks at any socket again
  if (open_connections() >= limits_.max_connections && listener_ != nullptr) {
    evconnlistener_disable(evhttp_bound_socket_get_listener(listener_));
  }
  return channel;
}

void HttpServer::adopt_connections() {
  for (bufferevent* channel : fresh_) {
    void* argument = nullptr;
    bufferevent_getcb(channel, nullptr, nullptr, nullptr, &argument);
    if (argument == nullptr) {  // freed before it was open
      connections_.erase(channel);
    } else {
      auto* connection = static_cast<evhttp_connection*>(argument);
      connections_.at(channel).evhttp = connection;
      evhttp_connection_set_closecb(
          connection,
          [](evhttp_connection* c, void* self) { static_cast<HttpServer*>(self)->closed(c); },
          this);
    }
    bufferevent_decref(channel);
  }
  fresh_.clear();
}

void HttpServer::closed(evhttp_connection* connection) {
  connections_.erase(evhttp_connection_get_bufferevent(connection));
  listen_when_below_limit();
  if (drained_ && open_connections() == 0) {
    loop_.post(drained_);
    drained_ = nullptr;
  }
}

void HttpServer::listen_when_below_limit() {
  if (listener_ != nullptr && open_connections() < limits_.max_connections) {
    evconnlistener_enable(evhttp_bound_socket_get_listener(listener_));
  }
}

void HttpServer::request(evhttp_request* request) {
  if (Connection* connection = connection_of(request)) enter(*connection, Phase::kAnswer);
  const auto exchange = std::make_shared<Exchange>(*this, request);
  const auto refuse_and_close = [&](const char* sentence) {
    Reply refused = error_reply(400, sentence);
    refused.headers.emplace_back("Connection", "close");
    exchange->reply(refused);
  };
  // evhttp answers in the version of the request: HTTP/0.9 without saying where the answer ends, on
  // a connection that stays open, and HTTP/1.111 as HTTP/1.-57.
  if (request->major != 1 || (request->minor != 0 && request->minor != 1)) {
    request->major = 1;
    request->minor = 1;
    refuse_and_close("only HTTP/1.0 and HTTP/1.1 are answered");
    return;
  }
  // evhttp reads only "chunked" and ignores a Content-Length beside it; whoever sends anything
  // else may mean another end of the request than we see.
  const std::string coding = exchange->header("Transfer-Encoding");
  if (!coding.empty() && (coding != "chunked" || !exchange->header("Content-Length").empty())) {
    refuse_and_close("Transfer-Encoding must be chunked, without Content-Length");
    return;
  }
  // libevent is C: an exception must not pass through it.
  try {
    handler_(exchange);
  } catch (const std::exception& e) {
    exchange->reply(error_reply(500, std::string("the request failed: ") + e.what()));
  }
}

void HttpServer::answered(evhttp_request* request) {
  Connection* connection = connection_of(request);
  if (connection == nullptr) return;
  enter(*connection, Phase::kIdle);
  // What a client sent ahead belongs to its next request.
  evbuffer* input = bufferevent_get_input(evhttp_connection_get_bufferevent(connection->evhttp));
  scan_headers(*connection, input, evbuffer_get_length(input));
}

HttpServer::Connection* HttpServer::connection_of(evhttp_request* request) {
  evhttp_connection* connection = evhttp_request_get_connection(request);
  if (connection == nullptr) return nullptr;
  const auto found = connections_.find(evhttp_connection_get_bufferevent(connection));
  return found == connections_.end() ? nullptr : &found->second;
}

void HttpServer::enter(Connection& connection, Phase phase) {
  connection.phase = phase;
  connection.since = monotonic_seconds();
  connection.line_empty = false;
}

// Follows the last `added` bytes of a connection's input as far as the empty line after its
// headers, which evhttp does not tell of.
void HttpServer::scan_headers(Connection& connection, evbuffer* input, std::size_t added) {
  if (added == 0 || connection.phase == Phase::kBody || connection.phase == Phase::kAnswer) return;
  if (connection.phase == Phase::kIdle) enter(connection, Phase::kHeaders);
  evbuffer_ptr at{};
  evbuffer_ptr_set(input, &at, evbuffer_get_length(input) - added, EVBUFFER_PTR_SET);
  evbuffer_iovec piece{};
  while (added > 0 && evbuffer_peek(input, -1, &at, &piece, 1) > 0) {
    for (const char c : std::string_view(static_cast<const char*>(piece.iov_base), piece.iov_len)) {
      if (c == '\n' && connection.line_empty) {
        enter(connection, Phase::kBody);
        return;
      }
      if (c != '\r') connection.line_empty = c == '\n';
    }
    added -= piece.iov_len;
    evbuffer_ptr_set(input, &at, piece.iov_len, EVBUFFER_PTR_ADD);
  }
}

double HttpServer::seconds_allowed(Phase phase) const {
  switch (phase) {
    case Phase::kIdle:
      return limits_.idle_seconds;
    case Phase::kHeaders:
      return limits_.header_seconds;
    case Phase::kBody:
      return limits_.body_seconds;
    default:
      return HUGE_VAL;
  }
}

void HttpServer::close_overdue() {
  const double now = monotonic_seconds();
  close_unless_answering([this, now](const Connection& connection) {
    return now - connection.since >= seconds_allowed(connection.phase);
  });
}

void HttpServer::close_unless_answering(const std::function<bool(const Connection&)>& chosen) {
  std::vector<evhttp_connection*> closing;  // closing one changes connections_
  for (const auto& [channel, connection] : connections_) {
    if (connection.phase != Phase::kAnswer && connection.evhttp != nullptr && chosen(connection)) {
      closing.push_back(connection.evhttp);
    }
  }
  for (evhttp_connection* connection : closing) evhttp_connection_free(connection);
}

void HttpServer::drain(Idle idle, std::function<void()> drained) {
  draining_ = true;
  limits_.idle_seconds = std::min(limits_.idle_seconds, kDrainingIdleSeconds);
  if (listener_ != nullptr) {
    evhttp_del_accept_socket(http_, listener_);
    listener_ = nullptr;
  }
  if (idle == Idle::kClose) close_unless_answering([](const Connection&) { return true; });
  if (open_connections() == 0) {
    loop_.post(std::move(drained));
  } else {
    drained_ = std::move(drained);
  }
}

// libevent 2.1 reads 4 KiB at a time, each with a turn of the loop. Where that was filled, more has
// arrived, and is read at once: for a photograph a few system calls instead of a hundred.
void HttpServer::read_on(evbuffer* input, const evbuffer_cb_info* info, void* connection) {
  constexpr std::size_t kLibeventReads = 4096;
  constexpr std::size_t kMore = 60 * 1024;  // libevent makes it 64 KiB with its own header
  auto& reader = *static_cast<Connection*>(connection);
  scan_headers(reader, input, info->n_added);
  // What is committed below comes as a call of its own.
  if (info->n_added != kLibeventReads || reader.reading_on || reader.evhttp == nullptr) return;
  evbuffer_iovec space{};
  if (evbuffer_reserve_space(input, kMore, &space, 1) != 1) return;
  const evutil_socket_t socket =
      bufferevent_getfd(evhttp_connection_get_bufferevent(reader.evhttp));
  const ssize_t got = read(socket, space.iov_base, kMore);
  if (got <= 0) return;  // nothing yet, or an end that libevent will see itself
  space.iov_len = static_cast<std::size_t>(got);
  reader.reading_on = true;
  evbuffer_commit_space(input, &space, 1);
  reader.reading_on = false;
}

// What evhttp refuses by itself it answers with a page of HTML, and 2.1 has no hook for it
// (evhttp_set_errorcb is newer): its words are replaced while they lie in the output buffer.
void HttpServer::own_words(evbuffer* output, const evbuffer_cb_info* info, void* self) {
  const auto& server = *static_cast<HttpServer*>(self);
  if (info->n_added == 0 || server.replying_) return;
  constexpr std::string_view kPageEnd = "</HTML>\n";
  const std::size_t size = evbuffer_get_length(output);
  std::string page(size, '\0');
  evbuffer_unfreeze(output, 1);  // frozen from the first write on, and then not even read
  evbuffer_copyout(output, page.data(), size);
  evbuffer_freeze(output, 1);
  if (!page.ends_with(kPageEnd)) return;
  const int status = std::atoi(page.c_str() + page.find(' '));  // after a version of any length
  if (server.observer_) server.observer_({"-", "-", status, 0.0});
  const std::string body = json_text(json_error(refusal(status))) + "\n";
  evbuffer_unfreeze(output, 1);
  evbuffer_drain(output, size);
  evbuffer_freeze(output, 1);
  evbuffer_add_printf(output,
                      "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\n"
                      "Content-Length: %zu\r\nConnection: close\r\n\r\n%s",
                      status, reason(status), body.size(), body.c_str());
}

}  // namespace quern
