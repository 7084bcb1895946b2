// When a program that died is started again: at once, then after 0.2, 0.4, … at most 30 s.
#pragma once

#include <algorithm>
#include <cmath>

namespace quern {

inline constexpr double kLongRun = 60.0;  // a run that forgives earlier failures

// Seconds, after so many processes in a row that died young.
inline double restart_delay(int failures) {
  constexpr double kFirstDelay = 0.2;
  constexpr double kMaxDelay = 30.0;
  return failures == 0 ? 0.0 : std::min(kMaxDelay, kFirstDelay * std::exp2(failures - 1));
}

}  // namespace quern
