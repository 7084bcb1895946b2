// The one thread that does all input and output: what runs on it needs no locks, and what other
// threads have to say comes to it through post().
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

struct event;
struct event_base;

namespace quern {

struct FreeEvent {
  void operator()(event* e) const;
};
using EventPointer = std::unique_ptr<event, FreeEvent>;

double monotonic_seconds();

class EventLoop {
 public:
  EventLoop();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  event_base* base() { return base_; }
  void run();       // until stop()
  void run_once();  // what is ready now, without waiting
  void stop();
  void post(std::function<void()> task);  // from any thread; runs on the loop's
  void on_signal(int number, std::function<void()> action);

 private:
  struct SignalAction;
  void run_posted();

  event_base* base_;
  EventPointer wake_;
  std::vector<std::unique_ptr<SignalAction>> signals_;
  std::mutex mutex_;
  std::vector<std::function<void()>> posted_;
};

// Calls `action` once, `seconds` after start(), unless stopped or started anew before.
class Timer {
 public:
  Timer(EventLoop& loop, std::function<void()> action);
  void start(double seconds);
  void stop();

 private:
  std::function<void()> action_;
  EventPointer event_;
};

}  // namespace quern
