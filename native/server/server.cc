#include "server/server.h"

#include <time.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "server/files.h"
#include "server/freed_memory.h"
#include "server/log.h"
#include "server/predict.h"
#include "server/sockets.h"

namespace quern {

namespace {

constexpr std::size_t kAdminQueue = 64;
constexpr double kRestSeconds = 1.0;

HttpLimits limits_of(const Options& options) {
  HttpLimits limits;
  limits.max_body = options.max_body;
  limits.idle_seconds = options.idle_seconds;
  limits.header_seconds = options.header_seconds;
  limits.body_seconds = options.body_seconds;
  limits.max_connections = connections_allowed(limits.max_connections);
  return limits;
}

int worker_count(const Options& options) {
  if (options.workers > 0) return options.workers;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

Reply queue_full() {
  Reply reply = error_reply(503, "the server is busy: all workers and the queue are taken");
  reply.headers.emplace_back("Retry-After", "1");
  return reply;
}

}  // namespace

Server::Server(EventLoop& loop, const Options& options, AccessKeys keys, ServedPointer first)
    : loop_(loop),
      options_(options),
      keys_(std::move(keys)),
      own_digest_(own_digest()),
      started_(static_cast<long>(time(nullptr))),
      started_monotonic_(monotonic_seconds()),
      directory_(options.release),
      current_(std::move(first)),
      public_(loop, limits_of(options),
              [this](const ExchangePointer& exchange) { answer_public(exchange); }),
      admin_(loop, limits_of(options),
             [this](const ExchangePointer& exchange) { answer_admin(exchange); }),
      drain_limit_(loop, [this] { loop_.stop(); }),
      rest_(loop, give_back_freed_memory),
      inference_(worker_count(options), options.queue),
      admin_thread_(1, kAdminQueue) {
  public_.observe([this](const Answered& answer) {
    metrics_.answered(answer.status);
    if (answer.path == "/predict") metrics_.predicted(answer.seconds);
    if (options_.access_log) {
      log_line(answer.method + " " + answer.path + " " + std::to_string(answer.status) + " " +
               std::to_string(answer.seconds * 1e3) + " ms");
    }
  });
}

void Server::serve_admin(int listener) { admin_.accept_from(listener); }

void Server::serve_public(int listener) { listener_ = listener; }

void Server::go_live() {
  public_.accept_from(listener_);
  listener_ = -1;
  state_ = State::kLive;
}

void Server::drain() {
  if (state_ == State::kDraining) return;
  state_ = State::kDraining;
  log_line("draining: no new connections, open ones are answered and closed");
  public_.drain(HttpServer::Idle::kKeep,
                [this] { admin_.drain(HttpServer::Idle::kClose, [this] { loop_.stop(); }); });
  drain_limit_.start(options_.drain_seconds);
}

void Server::stop_workers() {
  inference_.stop();
  admin_thread_.stop();
}

void Server::predict_on(WorkerPool& pool, const ExchangePointer& exchange, ServedPointer served,
                        bool with_logits) {
  PredictRequest request;
  try {
    request.top = parse_top(exchange->parameter("top"));
  } catch (const std::exception& e) {
    exchange->reply(error_reply(400, e.what()));
    return;
  }
  request.content_type = exchange->header("Content-Type");
  request.body = exchange->body();
  request.max_pixels = options_.max_pixels;
  request.with_logits = with_logits;
  request.started = exchange->started();
  const bool accepted =
      pool.submit([this, exchange, served = std::move(served), request = std::move(request)] {
        Reply reply = predict(*served, request);
        loop_.post([this, exchange, reply = std::move(reply)] {
          exchange->reply(reply);
          rest_.start(kRestSeconds);
        });
      });
  if (!accepted) exchange->reply(queue_full());
}

void Server::load_on_admin_thread(const ExchangePointer& exchange,
                                  std::function<ServedPointer()> loader,
                                  std::function<void(ServedPointer)> loaded) {
  const bool accepted = admin_thread_.submit(
      [this, exchange, loader = std::move(loader), loaded = std::move(loaded)] {
        try {
          loop_.post([loaded, served = loader()] { loaded(served); });
        } catch (const std::exception& e) {
          const std::string sentence = e.what();
          log_line("not loaded: " + sentence);
          loop_.post([exchange, sentence] { exchange->reply(error_reply(422, sentence)); });
        }
      });
  if (!accepted) exchange->reply(queue_full());
}

}  // namespace quern
