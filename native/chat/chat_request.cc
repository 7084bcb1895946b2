#include "chat/chat_request.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace quern {

namespace {

// The order of keys is kept: a template may write a tool's description into the prompt.
using OrderedJson = nlohmann::ordered_json;

// Deeper values exhaust the stack of whoever writes them out again, the engine's too.
constexpr int kMaxDepth = 100;

OrderedJson parse(std::span<const std::uint8_t> body) {
  const auto bounded = [](int depth, OrderedJson::parse_event_t, const OrderedJson&) {
    if (depth > kMaxDepth) throw Refused(400, "the request's JSON is nested too deeply");
    return true;
  };
  try {
    return OrderedJson::parse(body.begin(), body.end(), bounded);
  } catch (const OrderedJson::parse_error& e) {
    throw Refused(400,
                  "the request's body is not valid JSON (byte " + std::to_string(e.byte) + ")");
  }
}

void require_model(const OrderedJson& request, const ChatRelease& release) {
  const auto model = request.find("model");
  if (model == request.end() || model->is_null()) return;
  if (!model->is_string()) throw Refused(400, "\"model\" must be a string");
  const auto& name = model->get_ref<const std::string&>();
  if (name == release.settings.name || name == release.label) return;
  throw Refused(404, "no such model: " + name.substr(0, 100) + "; this server answers for " +
                         release.settings.name);
}

bool has_system_message(const OrderedJson& messages) {
  return std::any_of(messages.begin(), messages.end(), [](const OrderedJson& message) {
    return message.is_object() && message.value("role", OrderedJson()) == "system";
  });
}

}  // namespace

std::string checked_request(std::span<const std::uint8_t> body, const ChatRelease& release,
                            bool chat) {
  OrderedJson request = parse(body);
  if (!request.is_object()) throw Refused(400, "the request must be a JSON object");
  require_model(request, release);
  const std::string& system = release.settings.system;
  if (!chat || system.empty()) return "";
  const auto messages = request.find("messages");
  if (messages == request.end() || !messages->is_array() || has_system_message(*messages)) {
    return "";
  }
  OrderedJson first = OrderedJson::object();
  first["role"] = "system";
  first["content"] = system;
  messages->insert(messages->begin(), std::move(first));
  return request.dump();
}

}  // namespace quern
