// From the request with an image to the answer with classes; pure computation for a worker thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "server/http_server.h"
#include "server/served_model.h"

namespace quern {

struct PredictRequest {
  std::string content_type;
  std::span<const std::uint8_t> body;
  std::size_t top = 5;
  std::size_t max_pixels = 0;
  bool with_logits = false;
  double started = 0.0;  // monotonic seconds, when the whole request was there
};

// The `top` parameter's value ("" is 5); throws std::runtime_error unless it is a whole number > 0.
std::size_t parse_top(const std::string& text);

// Answers 200, or 400, 413 or 415 with one sentence (contract: docs/server.md).
Reply predict(ServedModel& served, const PredictRequest& request);

}  // namespace quern
