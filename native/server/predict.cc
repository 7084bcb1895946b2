#include "server/predict.h"

#include <strings.h>

#include <charconv>
#include <cmath>
#include <stdexcept>
#include <string_view>

#include "image/preprocess.h"
#include "server/event_loop.h"
#include "server/multipart.h"

namespace quern {

namespace {

bool has_type(const std::string& content_type, std::string_view type) {
  return strncasecmp(content_type.c_str(), type.data(), type.size()) == 0;
}

// The image file's bytes in the body, by its Content-Type. Throws ImageError.
std::span<const std::uint8_t> image_bytes(const PredictRequest& request) {
  std::span<const std::uint8_t> image = request.body;
  if (has_type(request.content_type, "multipart/form-data")) {
    const std::string_view body(reinterpret_cast<const char*>(request.body.data()),
                                request.body.size());
    const std::string_view field =
        multipart_field(body, multipart_boundary(request.content_type), "image");
    image = {reinterpret_cast<const std::uint8_t*>(field.data()), field.size()};
  } else if (!has_type(request.content_type, "image/") &&
             !has_type(request.content_type, "application/octet-stream")) {
    throw ImageError(415,
                     "send the image as multipart/form-data (field image), or as the body with "
                     "Content-Type image/jpeg, image/png or application/octet-stream");
  }
  if (image.empty()) throw ImageError(400, "the request has no image");
  return image;
}

double milliseconds(double from, double to) { return std::round((to - from) * 1e6) / 1e3; }

Json prediction(const ServedModel& served, const Prediction& answer) {
  Json entry = served.classes[answer.class_id];
  entry["class_id"] = answer.class_id;  // after the entry's fields: these two win
  entry["score"] = float_number(answer.score);
  return entry;
}

Json answer(ServedModel& served, const PredictRequest& request) {
  const Model& model = *served.model;
  const std::span<const std::uint8_t> file = image_bytes(request);
  std::unique_ptr<Session> session = served.take_session();
  PrepareTime times;
  try {
    times = prepare(file, model.preprocess(), model.height(), model.width(), session->input(),
                    request.max_pixels);
  } catch (...) {
    served.give_back(std::move(session));  // whoever sends bad images must not cost a new one
    throw;
  }
  const double prepared = monotonic_seconds();
  const std::span<const float> logits = session->logits(session->input());
  const std::vector<Prediction> best = top_k(softmax(logits), request.top);
  const double end = monotonic_seconds();

  Json result;
  result["predictions"] = Json::array();
  for (const Prediction& one : best) result["predictions"].push_back(prediction(served, one));
  result["release"] = served.release;
  result["timing"] = {{"decode_ms", milliseconds(0.0, times.decode)},
                      {"resize_ms", milliseconds(0.0, times.resize)},
                      {"inference_ms", milliseconds(prepared, end)},
                      {"total_ms", milliseconds(request.started, end)}};
  if (request.with_logits) {
    result["logits"] = Json::array();
    for (const float logit : logits) result["logits"].push_back(float_number(logit));
  }
  served.give_back(std::move(session));
  return result;
}

}  // namespace

std::size_t parse_top(const std::string& text) {
  if (text.empty()) return 5;
  std::size_t top = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), top);
  if (error != std::errc() || end != text.data() + text.size() || top == 0) {
    throw std::runtime_error("top must be a whole number greater than 0");
  }
  return top;
}

Reply predict(ServedModel& served, const PredictRequest& request) {
  try {
    return json_reply(200, answer(served, request));
  } catch (const ImageError& e) {
    return error_reply(e.status(), e.what());
  } catch (const MultipartError& e) {
    return error_reply(400, e.what());
  } catch (const std::exception& e) {
    return error_reply(500, std::string("the prediction failed: ") + e.what());
  }
}

}  // namespace quern
