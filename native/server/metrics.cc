#include "server/metrics.h"

#include "server/exposition.h"

namespace quern {

void Metrics::predicted(double seconds) {
  for (std::size_t i = 0; i < kBounds.size(); ++i) {
    if (seconds <= kBounds[i]) ++buckets_[i];
  }
  ++count_;
  sum_ += seconds;
}

std::string Metrics::text(std::size_t queue, double uptime, const std::string& release,
                          const std::string& model) const {
  std::string out = metric_head("quern_requests_total", "counter", "Answers on the public port.");
  for (const auto& [status, count] : requests_) {
    out += "quern_requests_total{code=\"" + std::to_string(status) + "\"} " +
           std::to_string(count) + "\n";
  }
  out += metric_head("quern_request_seconds", "histogram",
                     "Seconds from a whole /predict request to its answer.");
  for (std::size_t i = 0; i < kBounds.size(); ++i) {
    out += "quern_request_seconds_bucket{le=\"" + metric_number(kBounds[i]) + "\"} " +
           std::to_string(buckets_[i]) + "\n";
  }
  out += "quern_request_seconds_bucket{le=\"+Inf\"} " + std::to_string(count_) + "\n";
  out += "quern_request_seconds_sum " + metric_number(sum_) + "\n";
  out += "quern_request_seconds_count " + std::to_string(count_) + "\n";
  out += metric_head("quern_queue_depth", "gauge", "Requests that wait for a worker.");
  out += "quern_queue_depth " + std::to_string(queue) + "\n";
  out += metric_head("quern_resident_bytes", "gauge", "Resident memory of the server.");
  out += "quern_resident_bytes " + std::to_string(resident_bytes()) + "\n";
  out += metric_head("quern_uptime_seconds", "gauge", "Seconds since the server started.");
  out += "quern_uptime_seconds " + metric_number(uptime) + "\n";
  out += metric_head("quern_release_info", "gauge", "The release and model that answer now.");
  out += "quern_release_info{release=\"" + metric_label(release) + "\",model=\"" +
         metric_label(model) + "\"} 1\n";
  return out;
}

}  // namespace quern
