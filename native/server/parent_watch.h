// A server leaves when its holder dies. On Linux the system tells it (child_process.h); elsewhere
// a child has to look whether its parent is still there.
#pragma once

#include <functional>

#include "server/event_loop.h"

#ifndef __linux__
#include <unistd.h>
#endif

namespace quern {

#ifdef __linux__
class ParentWatch {
 public:
  ParentWatch(EventLoop& /*loop*/, const std::function<void()>& /*orphaned*/) {}
};
#else
class ParentWatch {
 public:
  ParentWatch(EventLoop& loop, std::function<void()> orphaned)
      : parent_(getppid()), timer_(loop, [this, orphaned = std::move(orphaned)] {
          if (getppid() != parent_) {
            orphaned();
          } else {
            timer_.start(kSeconds);
          }
        }) {
    timer_.start(kSeconds);
  }

 private:
  static constexpr double kSeconds = 0.5;
  pid_t parent_;
  Timer timer_;
};
#endif

}  // namespace quern
