// The words of Prometheus' text format (exposition format 0.0.4), and what every server can say
// about itself.
#pragma once

#include <cstddef>
#include <string>

namespace quern {

inline constexpr char kExpositionType[] = "text/plain; version=0.0.4; charset=utf-8";

// The lines before a metric's samples; `type` is counter, gauge or histogram.
std::string metric_head(const std::string& name, const char* type, const char* help);
std::string metric_number(double value);
std::string metric_label(const std::string& value);  // escaped, without the quotes

// Bytes of memory that this process occupies now; 0 when the system does not say.
std::size_t resident_bytes();

}  // namespace quern
