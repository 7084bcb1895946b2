#include "server/metrics.h"

#include <unistd.h>

#include <cstdio>

#ifdef __APPLE__
#include <mach/mach.h>
#endif

namespace quern {

namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string escaped(const std::string& label) {
  std::string result;
  for (const char c : label) {
    if (c == '\\' || c == '"') result += '\\';
    if (c == '\n') {
      result += "\\n";
    } else {
      result += c;
    }
  }
  return result;
}

std::string head(const std::string& name, const char* type, const char* help) {
  return "# HELP " + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
}

}  // namespace

void Metrics::predicted(double seconds) {
  for (std::size_t i = 0; i < kBounds.size(); ++i) {
    if (seconds <= kBounds[i]) ++buckets_[i];
  }
  ++count_;
  sum_ += seconds;
}

std::string Metrics::text(std::size_t queue, double uptime, const std::string& release,
                          const std::string& model) const {
  std::string out = head("quern_requests_total", "counter", "Answers on the public port.");
  for (const auto& [status, count] : requests_) {
    out += "quern_requests_total{code=\"" + std::to_string(status) + "\"} " +
           std::to_string(count) + "\n";
  }
  out += head("quern_request_seconds", "histogram",
              "Seconds from a whole /predict request to its answer.");
  for (std::size_t i = 0; i < kBounds.size(); ++i) {
    out += "quern_request_seconds_bucket{le=\"" + number(kBounds[i]) + "\"} " +
           std::to_string(buckets_[i]) + "\n";
  }
  out += "quern_request_seconds_bucket{le=\"+Inf\"} " + std::to_string(count_) + "\n";
  out += "quern_request_seconds_sum " + number(sum_) + "\n";
  out += "quern_request_seconds_count " + std::to_string(count_) + "\n";
  out += head("quern_queue_depth", "gauge", "Requests that wait for a worker.");
  out += "quern_queue_depth " + std::to_string(queue) + "\n";
  out += head("quern_resident_bytes", "gauge", "Resident memory of the server.");
  out += "quern_resident_bytes " + std::to_string(resident_bytes()) + "\n";
  out += head("quern_uptime_seconds", "gauge", "Seconds since the server started.");
  out += "quern_uptime_seconds " + number(uptime) + "\n";
  out += head("quern_release_info", "gauge", "The release and model that answer now.");
  out += "quern_release_info{release=\"" + escaped(release) + "\",model=\"" + escaped(model) +
         "\"} 1\n";
  return out;
}

std::size_t resident_bytes() {
#ifdef __APPLE__
  mach_task_basic_info_data_t info;
  mach_msg_type_number_t count = MACH_TASK_BASIC_INFO_COUNT;
  if (task_info(mach_task_self(), MACH_TASK_BASIC_INFO, reinterpret_cast<task_info_t>(&info),
                &count) != KERN_SUCCESS) {
    return 0;
  }
  return info.resident_size;
#else
  std::size_t total = 0;
  std::size_t resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  const int fields = std::fscanf(file, "%zu %zu", &total, &resident);
  std::fclose(file);
  return fields == 2 ? resident * static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) : 0;
#endif
}

}  // namespace quern
