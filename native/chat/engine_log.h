// What an engine says: passed on to our standard error line by line, and remembered for the
// sentence that tells why it ended.
#pragma once

#include <string>

#include "server/event_loop.h"

namespace quern {

class EngineLog {
 public:
  // Takes the descriptor: the reading end of the pipe that is the engine's output.
  EngineLog(EventLoop& loop, int descriptor);
  ~EngineLog();
  EngineLog(const EngineLog&) = delete;
  EngineLog& operator=(const EngineLog&) = delete;

  // Reads what is left after the engine ended.
  void read();
  // The first line that told of an error, else the last one; "" when it said nothing.
  std::string reason() const { return error_.empty() ? last_ : error_; }
  // Errors from here on are another matter.
  void forget();

 private:
  void line(const std::string& text);

  int descriptor_;
  EventPointer readable_;
  std::string partial_;
  std::string last_;
  std::string error_;
};

}  // namespace quern
