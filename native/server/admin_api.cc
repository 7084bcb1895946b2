// What the deployer asks on the Unix socket: load a release beside the live one, prove it by
// predicting, then switch.
#include <unistd.h>

#include "server/log.h"
#include "server/request_json.h"
#include "server/routes.h"
#include "server/server.h"

namespace quern {

namespace {

const char* state_name(Server::State state) {
  switch (state) {
    case Server::State::kStandby:
      return "standby";
    case Server::State::kLive:
      return "live";
    default:
      return "draining";
  }
}

}  // namespace

void Server::answer_admin(const ExchangePointer& exchange) {
  answer_by_route(exchange,
                  {{"GET", "/status", [this](const ExchangePointer& e) { status(e); }},
                   {"POST", "/load", [this](const ExchangePointer& e) { load(e); }},
                   {"POST", "/predict",
                    [this](const ExchangePointer& e) {
                      predict_on(admin_thread_, e, candidate_ ? candidate_ : current_, true);
                    }},
                   {"POST", "/activate", [this](const ExchangePointer& e) { activate(e); }},
                   {"POST", "/discard", [this](const ExchangePointer& e) {
                      candidate_.reset();
                      e->reply(json_reply(200, {{"release", current_->release}}));
                    }}});
}

void Server::status(const ExchangePointer& exchange) const {
  exchange->reply(json_reply(200, {{"state", state_name(state_)},
                                   {"release", current_->release},
                                   {"candidate", candidate_ ? Json(candidate_->release) : Json()},
                                   {"pid", getpid()},
                                   {"server", own_digest_},
                                   {"weights", current_->weights_digest},
                                   {"classes", current_->classes_digest}}));
}

void Server::load(const ExchangePointer& exchange) {
  const std::string directory = required_path(*exchange, "release");
  if (directory.empty()) return;
  load_on_admin_thread(
      exchange, [directory] { return ServedModel::from_release(directory); },
      [this, exchange, directory](ServedPointer served) {
        candidate_ = std::move(served);
        candidate_directory_ = directory;
        exchange->reply(json_reply(200, {{"release", candidate_->release},
                                         {"weights", candidate_->weights_digest},
                                         {"classes", candidate_->classes_digest},
                                         {"label", candidate_->label}}));
      });
}

void Server::activate(const ExchangePointer& exchange) {
  const std::string id = required_string(*exchange, "release");
  if (id.empty()) return;
  if (state_ == State::kDraining) {
    exchange->reply(error_reply(409, "the server is draining"));
    return;
  }
  if (candidate_ && candidate_->release == id) {
    current_ = std::move(candidate_);
    candidate_.reset();
    directory_ = candidate_directory_;
  } else if (current_->release != id || state_ != State::kStandby) {
    exchange->reply(error_reply(409, "release " + id +
                                         " is not the candidate, nor the loaded one "
                                         "of a server in standby"));
    return;
  }
  if (state_ == State::kStandby) go_live();
  log_line("live: release " + id + ", " + current_->label);
  exchange->reply(json_reply(200, {{"release", id}}));
}

}  // namespace quern
