// What the server counts about itself, as Prometheus' text format (exposition format 0.0.4) reads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace quern {

class Metrics {
 public:
  void answered(int status) { ++requests_[status]; }
  void predicted(double seconds);  // from the whole request to its answer

  // `queue`: requests waiting for a worker; `uptime` in seconds.
  std::string text(std::size_t queue, double uptime, const std::string& release,
                   const std::string& model) const;

 private:
  static constexpr std::array<double, 12> kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                     0.1,   0.25,   0.5,   1.0,  2.5,   10.0};
  std::map<int, std::uint64_t> requests_;
  std::array<std::uint64_t, kBounds.size()> buckets_{};
  std::uint64_t count_ = 0;
  double sum_ = 0.0;
};

}  // namespace quern
