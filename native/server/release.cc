#include "server/release.h"

#include <span>
#include <stdexcept>

#include "engine/digest.h"
#include "server/files.h"
#include "server/json.h"

namespace quern {

const ReleaseFile& Release::role(const std::string& name) const {
  const auto found = roles.find(name);
  if (found == roles.end()) {
    throw std::runtime_error(directory + "/manifest.json has no role \"" + name + "\"");
  }
  return found->second;
}

Release read_release(const std::string& directory) {
  const std::string path = directory + "/manifest.json";
  const std::string text = read_file(path);
  const Json manifest = parse_json(text, path);
  if (!manifest.is_object() || manifest.value("format", Json()) != 1) {
    throw std::runtime_error(path + " is not a manifest of format 1");
  }
  Release release;
  release.directory = directory;
  release.id =
      digest_hex({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}).substr(0, 16);
  release.model = string_at(manifest, "model", path);
  release.label = string_at(manifest, "label", path);
  const auto roles = manifest.find("roles");
  if (roles == manifest.end() || !roles->is_object()) {
    throw std::runtime_error(path + " needs \"roles\", an object");
  }
  for (const auto& [name, entry] : roles->items()) {
    const std::string what = path + ", role " + name;
    const std::string file = string_at(entry, "file", what);
    // A manifest came over the network: it may name files beside it and nothing else.
    if (file.empty() || file == "." || file == ".." || file.find('/') != std::string::npos) {
      throw std::runtime_error(what + ": \"file\" must be the name of a file in the release");
    }
    release.roles[name] = {directory + "/" + file, string_at(entry, "xxh3_128", what)};
  }
  return release;
}

}  // namespace quern
