// What everyone may ask (docs/server.md): health, model, prediction, metrics, and with the admin
// key a reload.
#include <unistd.h>

#include "server/exposition.h"
#include "server/files.h"
#include "server/log.h"
#include "server/routes.h"
#include "server/server.h"

namespace quern {

void Server::answer_public(const ExchangePointer& exchange) {
  const auto with_read_key = [this](auto answer) {
    return [this, answer](const ExchangePointer& e) {
      if (!keys_.read.empty() && !carries_key(*e, keys_.read)) {
        e->reply(unauthorized());
      } else {
        answer(e);
      }
    };
  };
  answer_by_route(
      exchange,
      {{"GET", "/health", [this](const ExchangePointer& e) { health(e); }},
       {"GET", "/models/info", with_read_key([this](const ExchangePointer& e) { models_info(e); })},
       {"POST", "/predict", with_read_key([this](const ExchangePointer& e) {
          predict_on(inference_, e, current_, false);
        })},
       {"POST", "/models/reload", [this](const ExchangePointer& e) { reload(e); }},
       {"GET", "/metrics", [this](const ExchangePointer& e) { metrics(e); }}});
}

void Server::health(const ExchangePointer& exchange) const {
  exchange->reply(json_reply(200, {{"status", "ok"},
                                   {"model", current_->label},
                                   {"release", current_->release},
                                   {"weights", current_->weights_digest}}));
}

void Server::models_info(const ExchangePointer& exchange) const {
  const Model& model = *current_->model;
  exchange->reply(json_reply(200, {{"loaded", true},
                                   {"model", current_->name},
                                   {"label", current_->label},
                                   {"release", current_->release},
                                   {"weights", current_->weights_digest},
                                   {"classes", current_->classes.size()},
                                   {"input", {model.channels(), model.height(), model.width()}},
                                   {"server", own_digest_},
                                   {"pid", getpid()},
                                   {"started", started_}}));
}

void Server::reload(const ExchangePointer& exchange) {
  if (keys_.admin.empty()) {
    exchange->reply(
        error_reply(403, "reloading is off: start the server with QUERN_ADMIN_KEY set"));
    return;
  }
  if (!carries_key(*exchange, keys_.admin)) {
    exchange->reply(unauthorized());
    return;
  }
  load_on_admin_thread(
      exchange,
      [directory = directory_, options = options_] {
        return directory.empty() ? ServedModel::from_files(options.weights, options.classes)
                                 : ServedModel::from_release(directory);
      },
      [this, exchange, directory = directory_](ServedPointer served) {
        if (directory != directory_) {
          exchange->reply(error_reply(409, "another release was activated meanwhile"));
          return;
        }
        current_ = std::move(served);
        log_line("reloaded: weights " + current_->weights_digest);
        exchange->reply(json_reply(200, {{"release", current_->release},
                                         {"weights", current_->weights_digest},
                                         {"classes", current_->classes_digest},
                                         {"label", current_->label}}));
      });
}

void Server::metrics(const ExchangePointer& exchange) const {
  Reply reply;
  reply.content_type = kExpositionType;
  reply.body = metrics_.text(inference_.waiting(), monotonic_seconds() - started_monotonic_,
                             current_->release, current_->name);
  exchange->reply(reply);
}

}  // namespace quern
