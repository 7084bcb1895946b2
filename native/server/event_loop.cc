#include "server/event_loop.h"

#include <event2/event.h>
#include <event2/thread.h>
#include <time.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace quern {

void FreeEvent::operator()(event* e) const { event_free(e); }

double monotonic_seconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

struct EventLoop::SignalAction {
  std::function<void()> action;
  EventPointer event;
};

EventLoop::EventLoop() : base_(nullptr) {
  evthread_use_pthreads();  // event_active() comes from worker threads
  base_ = event_base_new();
  if (base_ == nullptr) throw std::runtime_error("cannot start an event loop");
  wake_.reset(event_new(
      base_, -1, 0,
      [](evutil_socket_t, short, void* self) { static_cast<EventLoop*>(self)->run_posted(); },
      this));
}

EventLoop::~EventLoop() {
  signals_.clear();
  wake_.reset();
  event_base_free(base_);
}

void EventLoop::run() { event_base_loop(base_, EVLOOP_NO_EXIT_ON_EMPTY); }

void EventLoop::run_once() { event_base_loop(base_, EVLOOP_NONBLOCK); }

void EventLoop::stop() { event_base_loopbreak(base_); }

void EventLoop::post(std::function<void()> task) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    posted_.push_back(std::move(task));
  }
  event_active(wake_.get(), EV_TIMEOUT, 0);
}

void EventLoop::run_posted() {
  std::vector<std::function<void()>> tasks;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tasks.swap(posted_);
  }
  for (const auto& task : tasks) task();
}

void EventLoop::on_signal(int number, std::function<void()> action) {
  auto entry = std::make_unique<SignalAction>();
  entry->action = std::move(action);
  entry->event.reset(evsignal_new(
      base_, number,
      [](evutil_socket_t, short, void* self) { static_cast<SignalAction*>(self)->action(); },
      entry.get()));
  event_add(entry->event.get(), nullptr);
  signals_.push_back(std::move(entry));
}

Timer::Timer(EventLoop& loop, std::function<void()> action) : action_(std::move(action)) {
  event_.reset(evtimer_new(
      loop.base(), [](evutil_socket_t, short, void* self) { static_cast<Timer*>(self)->action_(); },
      this));
}

void Timer::start(double seconds) {
  seconds = std::max(seconds, 0.0);
  timeval delay{};
  delay.tv_sec = static_cast<decltype(delay.tv_sec)>(seconds);
  delay.tv_usec =
      static_cast<decltype(delay.tv_usec)>((seconds - static_cast<double>(delay.tv_sec)) * 1e6);
  evtimer_add(event_.get(), &delay);
}

void Timer::stop() { evtimer_del(event_.get()); }

}  // namespace quern
