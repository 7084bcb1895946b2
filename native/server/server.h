// The server's state and its few changes: which model answers, which one waits to be proved, and
// whether connections are accepted. Everything here belongs to the loop's thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "server/access_keys.h"
#include "server/event_loop.h"
#include "server/http_server.h"
#include "server/metrics.h"
#include "server/options.h"
#include "server/served_model.h"
#include "server/worker_pool.h"

namespace quern {

using ServedPointer = std::shared_ptr<ServedModel>;

class Server {
 public:
  enum class State { kStandby, kLive, kDraining };

  Server(EventLoop& loop, const Options& options, AccessKeys keys, ServedPointer first);

  void serve_admin(int listener);   // takes the descriptor
  void serve_public(int listener);  // takes the descriptor; not accepted from until go_live()
  void go_live();
  // Answers what is open, then stops the loop; after --drain-seconds at the latest.
  void drain();
  void stop_workers();  // after the loop has ended

 private:
  void answer_public(const ExchangePointer& exchange);  // public_api.cc
  void health(const ExchangePointer& exchange) const;
  void models_info(const ExchangePointer& exchange) const;
  void reload(const ExchangePointer& exchange);
  void metrics(const ExchangePointer& exchange) const;
  void answer_admin(const ExchangePointer& exchange);  // admin_api.cc
  void status(const ExchangePointer& exchange) const;
  void load(const ExchangePointer& exchange);
  void activate(const ExchangePointer& exchange);

  // Answers from `served` on a thread of `pool`; 503 when its queue is full.
  void predict_on(WorkerPool& pool, const ExchangePointer& exchange, ServedPointer served,
                  bool with_logits);
  // Loads on the admin thread, then calls one of the two on the loop's.
  void load_on_admin_thread(const ExchangePointer& exchange, std::function<ServedPointer()> loader,
                            std::function<void(ServedPointer)> loaded);

  EventLoop& loop_;
  const Options options_;
  const AccessKeys keys_;
  const std::string own_digest_;
  const long started_;  // unix seconds
  const double started_monotonic_;
  State state_ = State::kStandby;
  int listener_ = -1;      // the public socket while in standby
  std::string directory_;  // the release that a reload reads again, "" when standalone
  ServedPointer current_;
  ServedPointer candidate_;
  std::string candidate_directory_;
  Metrics metrics_;
  HttpServer public_;
  HttpServer admin_;
  Timer drain_limit_;
  Timer rest_;  // some time after the last prediction
  WorkerPool inference_;
  WorkerPool admin_thread_;  // loading and probing never wait behind the public's requests
};

}  // namespace quern
