#include "chat/chat_server.h"

#include <time.h>

#include <algorithm>
#include <utility>

#include "server/files.h"
#include "server/log.h"
#include "server/sockets.h"

namespace quern {

namespace {

constexpr std::size_t kMaxConnections = 4096;
constexpr std::size_t kAdminQueue = 4;
constexpr double kLookSeconds = 0.25;  // between looks whether clients are still there

HttpLimits limits_of(const ChatOptions& options) {
  HttpLimits limits;
  limits.max_body = options.max_body;
  limits.idle_seconds = options.idle_seconds;
  limits.header_seconds = options.header_seconds;
  limits.body_seconds = options.body_seconds;
  limits.max_connections = connections_allowed(2 * kMaxConnections) / 2;  // one more to the engine
  return limits;
}

}  // namespace

ChatServer::ChatServer(EventLoop& loop, const ChatOptions& options, AccessKeys keys, int listener)
    : loop_(loop),
      options_(options),
      keys_(std::move(keys)),
      own_digest_(own_digest()),
      started_(static_cast<long>(time(nullptr))),
      started_monotonic_(monotonic_seconds()),
      listener_(listener),
      public_(loop, limits_of(options),
              [this](const ExchangePointer& exchange) { answer_public(exchange); }),
      admin_(loop, limits_of(options),
             [this](const ExchangePointer& exchange) { answer_admin(exchange); }),
      lost_clients_(loop, [this] { look_for_lost_clients(); }),
      drain_limit_(loop, [this] { leave(); }),
      candidate_limit_(loop,
                       [this] {
                         log_line("nobody asks about the candidate: dropping it");
                         discard_candidate();
                       }),
      admin_thread_(1, kAdminQueue) {
  public_.observe([this](const Answered& answer) {
    ++requests_[answer.status];
    if (options_.access_log) {
      log_line(answer.method + " " + answer.path + " " + std::to_string(answer.status) + " " +
               std::to_string(answer.seconds * 1e3) + " ms");
    }
  });
}

void ChatServer::start() {
  if (options_.activate) go_live();
  load_beside(
      options_.release,
      [this](EnginePointer engine) {
        current_ = std::move(engine);
        try {
          admin_.accept_from(listen_unix(options_.admin_socket));
        } catch (const std::exception& e) {
          log_line(e.what());
          failed_ = true;
          leave();
          return;
        }
        log_line(std::string(state_ == State::kLive ? "live" : "standby") + ": release " +
                 current_->release().id + ", " + current_->release().label);
      },
      [this](int, const std::string&) {
        failed_ = state_ != State::kDraining;
        leave();
      });
}

void ChatServer::go_live() {
  const std::string address = address_of(listener_);
  public_.accept_from(listener_);
  listener_ = -1;
  state_ = State::kLive;
  log_line("listening on http://" + address);
}

void ChatServer::drain() {
  if (state_ == State::kDraining) return;
  state_ = State::kDraining;
  log_line("draining: no new connections, open ones are answered and closed");
  cancel_loading("the server is draining");
  public_.drain(HttpServer::Idle::kKeep,
                [this] { admin_.drain(HttpServer::Idle::kClose, [this] { leave(); }); });
  drain_limit_.start(options_.drain_seconds);
}

// Whatever is still open is closed. The engines' end is waited for: their sockets are removed then,
// and nothing of a server is left when it is gone.
void ChatServer::leave() {
  if (leaving_) return;
  leaving_ = true;
  for (const auto& one : relays_) one.second->abandon("the server is leaving");
  for (const ExchangePointer& exchange : std::exchange(waiting_, {})) {
    exchange->reply(error_reply(503, "the server is leaving"));
  }
  if (loading_) cancel_loading("the server is leaving");
  for (const EnginePointer& engine : engines_) engine->end();
  forget_gone_engines();
}

void ChatServer::stop_hashing() { admin_thread_.stop(); }

void ChatServer::reap() {
  const std::list<EnginePointer> engines = engines_;
  for (const EnginePointer& engine : engines) engine->reap();
  loop_.post([this] {
    forget_gone_engines();
    serve_waiting();
  });
}

void ChatServer::forget_gone_engines() {
  engines_.remove_if([](const EnginePointer& engine) { return engine->gone(); });
  if (leaving_ && engines_.empty()) loop_.stop();
}

bool ChatServer::load_beside(const std::string& directory,
                             std::function<void(EnginePointer)> loaded,
                             std::function<void(int, const std::string&)> refused) {
  if (loading_) return false;
  loading_ = std::make_unique<Loading>();
  loading_->loaded = std::move(loaded);
  loading_->refused = std::move(refused);
  loading_->cancelled = std::make_shared<std::atomic<bool>>(false);
  const auto cancelled = loading_->cancelled;
  const bool accepted = admin_thread_.submit([this, directory, cancelled] {
    try {
      const ChatReleasePointer release = ChatRelease::open(directory, *cancelled);
      loop_.post([this, release, cancelled] {
        if (!*cancelled) start_engine(release);
      });
    } catch (const std::exception& e) {
      loop_.post([this, sentence = std::string(e.what()), cancelled] {
        if (!*cancelled) not_loaded(422, sentence);
      });
    }
  });
  if (!accepted) loading_.reset();
  return accepted;
}

void ChatServer::start_engine(const ChatReleasePointer& release) {
  auto engine = std::make_shared<Engine>(loop_, release, options_.engine_start_seconds);
  loading_->engine = engine;
  try {
    engine->start(
        [this] {
          const auto loading = std::exchange(loading_, nullptr);
          loading->loaded(loading->engine);
        },
        [this](const std::string& sentence) { not_loaded(422, sentence); });
    engines_.push_back(engine);
  } catch (const std::exception& e) {
    not_loaded(422, e.what());
  }
}

void ChatServer::not_loaded(int status, const std::string& sentence) {
  log_line("not loaded: " + sentence);
  const auto loading = std::exchange(loading_, nullptr);
  loading->refused(status, sentence);
}

void ChatServer::cancel_loading(const std::string& sentence) {
  if (!loading_) return;
  *loading_->cancelled = true;
  if (loading_->engine) loading_->engine->end();
  not_loaded(409, sentence);
}

void ChatServer::replace_current(EnginePointer engine) {
  const EnginePointer old = std::exchange(current_, std::move(engine));
  old->retire(options_.drain_seconds);
  forget_gone_engines();
  serve_waiting();
}

void ChatServer::discard_candidate() {
  candidate_limit_.stop();
  if (const EnginePointer dropped = std::exchange(candidate_, nullptr)) {
    dropped->retire(options_.drain_seconds);
    forget_gone_engines();
  }
}

void ChatServer::relay(const ExchangePointer& exchange, const EnginePointer& engine,
                       const Relayed& what) {
  auto relay = std::make_unique<Relay>(loop_, exchange, engine, what, [this](Relay& done) {
    loop_.post([this, &done] {
      const bool engine_failed = done.engine_failed();
      relays_.erase(&done);
      // The word that the engine is dead comes a little later: none is sent after the others.
      if (!engine_failed) serve_waiting();
    });
  });
  relays_.emplace(relay.get(), std::move(relay));
  if (!looking_) look_for_lost_clients();
}

void ChatServer::serve_waiting() {
  while (!waiting_.empty() && (!current_->ready() || current_->has_free_slot())) {
    const ExchangePointer exchange = waiting_.front();
    waiting_.pop_front();
    if (exchange->client_gone()) {
      exchange->abandon(kClientLeft);
    } else if (current_->ready()) {
      pass_on(exchange, true);
    } else {
      exchange->reply(no_engine(current_->retry_after()));
    }
  }
}

void ChatServer::look_for_lost_clients() {
  looking_ = true;
  for (const auto& one : relays_) one.second->abandon_if_client_gone();
  std::erase_if(waiting_, [](const ExchangePointer& exchange) {
    if (!exchange->client_gone()) return false;
    exchange->abandon(kClientLeft);
    return true;
  });
  serve_waiting();
  looking_ = !relays_.empty() || !waiting_.empty();
  if (looking_) lost_clients_.start(kLookSeconds);
}

}  // namespace quern
