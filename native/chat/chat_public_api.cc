// What everyone may ask (docs/chat.md): health, model, chats and completions, metrics, and with the
// admin key a reload.
#include <unistd.h>

#include <algorithm>
#include <iterator>

#include "chat/chat_request.h"
#include "chat/chat_server.h"
#include "server/exposition.h"
#include "server/log.h"
#include "server/routes.h"

namespace quern {

namespace {

constexpr char kChat[] = "/v1/chat/completions";
const char* const kComputed[] = {kChat, "/v1/completions", "/v1/embeddings", "/completion"};
constexpr int kRetryLoading = 5;  // seconds, while the first release is loaded

Reply busy() {
  Reply reply = error_reply(503, "the server is busy: all slots and the queue are taken");
  reply.headers.emplace_back("Retry-After", "1");
  return reply;
}

}  // namespace

void ChatServer::answer_public(const ExchangePointer& exchange) {
  const auto with_read_key = [this](auto answer) {
    return [this, answer](const ExchangePointer& e) {
      if (!keys_.read.empty() && !carries_key(*e, keys_.read)) {
        e->reply(unauthorized());
      } else {
        answer(e);
      }
    };
  };
  const auto model = with_read_key([this](const ExchangePointer& e) { ask_model(e); });
  answer_by_route(
      exchange,
      {{"GET", "/health", [this](const ExchangePointer& e) { health(e); }},
       {"GET", "/models/info", with_read_key([this](const ExchangePointer& e) { models_info(e); })},
       {"POST", "/models/reload", [this](const ExchangePointer& e) { reload(e); }},
       {"GET", "/metrics", [this](const ExchangePointer& e) { metrics(e); }},
       {"POST", kChat, model},
       {"POST", "/v1/completions", model},
       {"POST", "/v1/embeddings", model},
       {"GET", "/v1/models", model},
       {"POST", "/completion", model},
       {"POST", "/tokenize", model},
       {"POST", "/detokenize", model},
       {"POST", "/apply-template", model}});
}

void ChatServer::ask_model(const ExchangePointer& exchange) {
  if (!current_ || !current_->ready()) {
    exchange->reply(no_engine(current_ ? current_->retry_after() : kRetryLoading));
    return;
  }
  const std::string path = exchange->path();
  const bool takes_slot = std::any_of(std::begin(kComputed), std::end(kComputed),
                                      [&path](const char* computed) { return path == computed; });
  if (!takes_slot || current_->has_free_slot()) {
    pass_on(exchange, takes_slot);
  } else if (waiting_.size() < options_.queue) {
    waiting_.push_back(exchange);
  } else {
    exchange->reply(busy());
  }
}

void ChatServer::pass_on(const ExchangePointer& exchange, bool takes_slot) {
  const auto body = exchange->body();
  Relayed what;
  what.path = exchange->path();
  what.takes_slot = takes_slot;
  std::string changed;
  if (exchange->method() == "POST") {
    what.body = {reinterpret_cast<const char*>(body.data()), body.size()};
    try {
      changed = checked_request(body, current_->release(), what.path == kChat);
    } catch (const Refused& refused) {
      exchange->reply(error_reply(refused.status, refused.what()));
      return;
    }
  } else {
    what.method = "GET";
  }
  if (!changed.empty()) what.body = changed;
  relay(exchange, current_, what);
}

void ChatServer::health(const ExchangePointer& exchange) const {
  const bool ready = current_ && current_->ready();
  Json body = {{"status", ready ? "ok" : "starting"}};
  if (current_) {
    body["model"] = current_->release().label;
    body["release"] = current_->release().id;
    body["weights"] = current_->release().weights_digest;
  }
  Reply reply = json_reply(ready ? 200 : 503, body);
  if (!ready) {
    const int seconds = current_ ? current_->retry_after() : kRetryLoading;
    reply.headers.emplace_back("Retry-After", std::to_string(seconds));
  }
  exchange->reply(reply);
}

void ChatServer::models_info(const ExchangePointer& exchange) const {
  if (!current_) {
    exchange->reply(no_engine(kRetryLoading));
    return;
  }
  const ChatRelease& release = current_->release();
  exchange->reply(json_reply(200, {{"loaded", current_->ready()},
                                   {"model", release.model},
                                   {"name", release.settings.name},
                                   {"label", release.label},
                                   {"release", release.id},
                                   {"weights", release.weights_digest},
                                   {"size", release.size},
                                   {"device", release.device},
                                   {"inode", release.inode},
                                   {"context", release.settings.context},
                                   {"parallel", release.settings.parallel},
                                   {"engine_pid", current_->pid()},
                                   {"engine_restarts", current_->restarts()},
                                   {"server", own_digest_},
                                   {"pid", getpid()},
                                   {"started", started_}}));
}

void ChatServer::reload(const ExchangePointer& exchange) {
  if (keys_.admin.empty()) {
    exchange->reply(
        error_reply(403, "reloading is off: start the server with QUERN_ADMIN_KEY set"));
    return;
  }
  if (!carries_key(*exchange, keys_.admin)) {
    exchange->reply(unauthorized());
    return;
  }
  if (!current_ || state_ == State::kDraining) {
    exchange->reply(error_reply(409, "the server is starting or draining"));
    return;
  }
  const bool accepted = load_beside(
      current_->release().directory,
      [this, exchange, replaced = current_](EnginePointer engine) {
        if (replaced != current_) {
          engine->end();
          exchange->reply(error_reply(409, "another release was activated meanwhile"));
          return;
        }
        replace_current(std::move(engine));
        const ChatRelease& release = current_->release();
        log_line("reloaded: weights " + release.weights_digest);
        exchange->reply(json_reply(200, {{"release", release.id},
                                         {"weights", release.weights_digest},
                                         {"chat", release.chat_digest},
                                         {"label", release.label}}));
      },
      [exchange](int status, const std::string& sentence) {
        exchange->reply(error_reply(status, sentence));
      });
  if (!accepted) exchange->reply(error_reply(409, "another release is being loaded"));
}

// The engine's own follow ours, as long as it answers.
void ChatServer::metrics(const ExchangePointer& exchange) {
  if (!current_ || !current_->ready()) {
    Reply reply;
    reply.content_type = kExpositionType;
    reply.body = own_metrics();
    exchange->reply(reply);
    return;
  }
  Relayed what;
  what.method = "GET";
  what.path = "/metrics";
  what.before = own_metrics();
  relay(exchange, current_, what);
}

std::string ChatServer::own_metrics() const {
  const auto gauge = [](const std::string& name, const char* help, const std::string& value) {
    return metric_head(name, "gauge", help) + name + " " + value + "\n";
  };
  std::string out = metric_head("quern_requests_total", "counter", "Answers on the public port.");
  for (const auto& [status, count] : requests_) {
    out += "quern_requests_total{code=\"" + std::to_string(status) + "\"} " +
           std::to_string(count) + "\n";
  }
  out += gauge("quern_requests_in_flight", "Requests that engines are answering.",
               std::to_string(relays_.size()));
  out += gauge("quern_requests_waiting", "Requests that wait for a slot.",
               std::to_string(waiting_.size()));
  out += gauge("quern_engines", "Engines that run or are being started.",
               std::to_string(engines_.size()));
  out += gauge("quern_engine_ready", "Whether the release's engine answers.",
               current_ && current_->ready() ? "1" : "0");
  out += gauge("quern_resident_bytes", "Resident memory of the server, without its engines.",
               std::to_string(resident_bytes()));
  out += gauge("quern_uptime_seconds", "Seconds since the server started.",
               metric_number(monotonic_seconds() - started_monotonic_));
  if (!current_) return out;
  out += metric_head("quern_engine_restarts_total", "counter",
                     "Times that the release's engine died and was started again.");
  out += "quern_engine_restarts_total " + std::to_string(current_->restarts()) + "\n";
  out += metric_head("quern_release_info", "gauge", "The release and model that answer now.");
  out += "quern_release_info{release=\"" + metric_label(current_->release().id) + "\",model=\"" +
         metric_label(current_->release().model) + "\"} 1\n";
  return out;
}

}  // namespace quern
