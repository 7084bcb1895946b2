// A holder's state as JSON, for its successor.
#include <stdexcept>

#include "server/holder.h"

namespace quern {

namespace {
constexpr int kFormat = 1;
}

Json to_json(const HolderState& state) {
  Json children = Json::array();
  for (const HolderState::Child& child : state.children) {
    children.push_back({{"pid", child.pid},
                        {"release", child.release},
                        {"admin", child.admin},
                        {"state", child.state},
                        {"started", child.started},
                        {"since", child.since},
                        {"deadline", child.deadline},
                        {"restarts", child.restarts}});
  }
  return {{"format", kFormat},
          {"listener", state.listener},
          {"control", state.control},
          {"lock", state.lock},
          {"next", state.next},
          {"failures", state.failures},
          {"restart_at", state.restart_at},
          {"restarts", state.restarts},
          {"children", children},
          {"exited", state.exited}};
}

HolderState holder_state_from(const Json& json) {
  try {
    if (json.at("format") != kFormat) throw std::runtime_error("its format is not 1");
    HolderState state;
    json.at("listener").get_to(state.listener);
    json.at("control").get_to(state.control);
    json.at("lock").get_to(state.lock);
    json.at("next").get_to(state.next);
    json.at("failures").get_to(state.failures);
    json.at("restart_at").get_to(state.restart_at);
    json.at("restarts").get_to(state.restarts);
    json.at("exited").get_to(state.exited);
    for (const Json& entry : json.at("children")) {
      HolderState::Child child;
      entry.at("pid").get_to(child.pid);
      entry.at("release").get_to(child.release);
      entry.at("admin").get_to(child.admin);
      entry.at("state").get_to(child.state);
      entry.at("started").get_to(child.started);
      entry.at("since").get_to(child.since);
      entry.at("deadline").get_to(child.deadline);
      entry.at("restarts").get_to(child.restarts);
      state.children.push_back(child);
    }
    return state;
  } catch (const std::exception& e) {
    throw std::runtime_error(std::string(kStateVariable) + " cannot be taken over: " + e.what());
  }
}

}  // namespace quern
