// What the deployer asks on the Unix socket: load a release beside the live one, prove it by
// asking it, then switch.
#include <unistd.h>

#include "chat/chat_server.h"
#include "server/log.h"
#include "server/request_json.h"
#include "server/routes.h"

namespace quern {

namespace {

const char* state_name(ChatServer::State state) {
  switch (state) {
    case ChatServer::State::kStandby:
      return "standby";
    case ChatServer::State::kLive:
      return "live";
    default:
      return "draining";
  }
}

}  // namespace

void ChatServer::answer_admin(const ExchangePointer& exchange) {
  answer_by_route(exchange,
                  {{"GET", "/status", [this](const ExchangePointer& e) { status(e); }},
                   {"POST", "/load", [this](const ExchangePointer& e) { load(e); }},
                   {"POST", "/predict", [this](const ExchangePointer& e) { predict(e); }},
                   {"POST", "/activate", [this](const ExchangePointer& e) { activate(e); }},
                   {"POST", "/discard", [this](const ExchangePointer& e) { discard(e); }}});
}

void ChatServer::status(const ExchangePointer& exchange) const {
  const ChatRelease& release = current_->release();
  exchange->reply(
      json_reply(200, {{"state", state_name(state_)},
                       {"release", release.id},
                       {"candidate", candidate_ ? Json(candidate_->release().id) : Json()},
                       {"pid", getpid()},
                       {"server", own_digest_},
                       {"weights", release.weights_digest},
                       {"chat", release.chat_digest},
                       {"engine", release.engine_digest},
                       {"engine_pid", current_->pid()},
                       {"engine_restarts", current_->restarts()}}));
}

void ChatServer::load(const ExchangePointer& exchange) {
  const std::string directory = required_path(*exchange, "release");
  if (directory.empty()) return;
  if (state_ == State::kDraining) {
    exchange->reply(error_reply(409, "the server is draining"));
    return;
  }
  if (!loading_) discard_candidate();  // memory for three models need not be there
  const bool accepted = load_beside(
      directory,
      [this, exchange](EnginePointer engine) {
        candidate_ = std::move(engine);
        candidate_limit_.start(options_.candidate_seconds);
        const ChatRelease& release = candidate_->release();
        exchange->reply(json_reply(200, {{"release", release.id},
                                         {"weights", release.weights_digest},
                                         {"chat", release.chat_digest},
                                         {"engine", release.engine_digest},
                                         {"label", release.label}}));
      },
      [exchange](int status, const std::string& sentence) {
        exchange->reply(error_reply(status, sentence));
      });
  if (!accepted) exchange->reply(error_reply(409, "another release is being loaded"));
}

void ChatServer::predict(const ExchangePointer& exchange) {
  if (candidate_) candidate_limit_.start(options_.candidate_seconds);
  const EnginePointer& engine = candidate_ ? candidate_ : current_;
  if (!engine->ready()) {
    exchange->reply(no_engine(engine->retry_after()));
    return;
  }
  const auto body = exchange->body();
  Relayed what;
  what.path = "/completion";
  what.body = {reinterpret_cast<const char*>(body.data()), body.size()};
  relay(exchange, engine, what);
}

void ChatServer::activate(const ExchangePointer& exchange) {
  const std::string id = required_string(*exchange, "release");
  if (id.empty()) return;
  if (state_ == State::kDraining) {
    exchange->reply(error_reply(409, "the server is draining"));
    return;
  }
  if (candidate_ && candidate_->release().id == id) {
    candidate_limit_.stop();
    replace_current(std::exchange(candidate_, nullptr));
  } else if (current_->release().id != id || state_ != State::kStandby) {
    exchange->reply(error_reply(409, "release " + id +
                                         " is not the candidate, nor the loaded one "
                                         "of a server in standby"));
    return;
  }
  if (state_ == State::kStandby) go_live();
  log_line("live: release " + id + ", " + current_->release().label);
  exchange->reply(json_reply(200, {{"release", id}}));
}

void ChatServer::discard(const ExchangePointer& exchange) {
  discard_candidate();
  // A reload, too: whoever discards wants one engine to be left.
  cancel_loading("the release was discarded while it was loaded");
  exchange->reply(json_reply(200, {{"release", current_->release().id}}));
}

}  // namespace quern
