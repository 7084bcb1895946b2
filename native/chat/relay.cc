#include "chat/relay.h"

#include <strings.h>

#include <utility>

#include "server/exposition.h"
#include "server/log.h"

namespace quern {

namespace {

constexpr std::size_t kCollected = std::size_t{1} << 20;
constexpr std::size_t kMaxUnsent = std::size_t{256} << 10;  // more is left with the engine
constexpr double kPatience = 3.0;                           // for what an answer does without
constexpr int kBadGateway = 502;

std::string value_of(const Headers& headers, const char* name) {
  for (const auto& [given, value] : headers) {
    if (strcasecmp(given.c_str(), name) == 0) return value;
  }
  return "";
}

}  // namespace

Reply no_engine(int retry_after) {
  Reply reply = error_reply(503, "the model is being loaded: come again");
  reply.headers.emplace_back("Retry-After", std::to_string(retry_after));
  return reply;
}

Relay::Relay(EventLoop& loop, ExchangePointer exchange, EnginePointer engine, const Relayed& what,
             std::function<void(Relay&)> done)
    : exchange_(std::move(exchange)),
      engine_(std::move(engine)),
      takes_slot_(what.takes_slot),
      before_(what.before),
      done_(std::move(done)),
      request_(loop, engine_->socket(), what.method, what.path, what.body,
               {[this](int status, const Headers& headers, auto length) {
                  head(status, headers, length);
                },
                [this](std::string_view bytes) { piece(bytes); }, [this] { end(); },
                [this](const std::string& sentence, bool sent) { failed(sentence, sent); }}),
      patience_(loop, [this] { failed("", true); }) {
  engine_->enter(takes_slot_);
  if (!before_.empty()) patience_.start(kPatience);
  exchange_->when_sent([this] { request_.resume(); });
}

Relay::~Relay() { engine_->leave(takes_slot_); }

void Relay::head(int status, const Headers& headers, std::optional<std::size_t> length) {
  if (finished_) return;
  std::string type = value_of(headers, "Content-Type");
  if (type.empty()) type = "application/octet-stream";
  collecting_ = (length && *length <= kCollected) || !before_.empty();
  if (collecting_) {
    whole_.status = status;
    whole_.content_type = before_.empty() ? std::move(type) : kExpositionType;
    whole_.body = before_;
    return;
  }
  Headers passed = {{"Content-Type", type}};
  if (length) passed.emplace_back("Content-Length", std::to_string(*length));
  // Tells a proxy before us not to collect what is meant to be seen as it comes.
  const std::string buffering = value_of(headers, "X-Accel-Buffering");
  if (!buffering.empty()) passed.emplace_back("X-Accel-Buffering", buffering);
  exchange_->begin(status, passed);
}

void Relay::piece(std::string_view bytes) {
  if (finished_) return;
  if (collecting_) {
    whole_.body += bytes;
    return;
  }
  exchange_->piece(bytes);
  if (exchange_->unsent() > kMaxUnsent) request_.pause();
}

void Relay::end() {
  if (finished_) return;
  if (!collecting_) {
    exchange_->end();
  } else if (!before_.empty() && whole_.status != 200) {
    failed("", true);
    return;
  } else {
    exchange_->reply(whole_);
  }
  finish();
}

void Relay::failed(const std::string& sentence, bool sent) {
  if (finished_) return;
  engine_failed_ = true;
  if (!before_.empty()) {
    Reply reply;
    reply.content_type = kExpositionType;
    reply.body = before_;
    exchange_->reply(reply);
  } else if (exchange_->begun()) {
    log_line("an answer was cut: the engine: " + sentence);
    exchange_->abandon(kBadGateway);
  } else if (sent) {
    exchange_->reply(error_reply(kBadGateway, "the model's engine failed: " + sentence));
  } else {
    exchange_->reply(no_engine(engine_->retry_after()));
  }
  finish();
}

void Relay::abandon_if_client_gone() {
  if (finished_ || !exchange_->client_gone()) return;
  exchange_->abandon(kClientLeft);
  finish();
}

void Relay::abandon(const std::string& sentence) {
  if (finished_) return;
  if (exchange_->begun()) {
    exchange_->abandon(kBadGateway);
  } else {
    exchange_->reply(error_reply(503, sentence));
  }
  finish();
}

void Relay::finish() {
  finished_ = true;
  done_(*this);
}

}  // namespace quern
