// A release directory's manifest.json: role -> file and digest. From its bytes alone comes the
// release's identity.
#pragma once

#include <map>
#include <string>

namespace quern {

struct ReleaseFile {
  std::string path;      // the directory and the file's name
  std::string xxh3_128;  // as the manifest says
};

struct Release {
  std::string directory;
  std::string id;  // first 16 hex digits of xxh3_128(manifest.json)
  std::string model;
  std::string label;
  std::map<std::string, ReleaseFile> roles;

  // Throws std::runtime_error when the manifest has no such role.
  const ReleaseFile& role(const std::string& name) const;
};

// Throws std::runtime_error with one sentence that names the file and key.
Release read_release(const std::string& directory);

}  // namespace quern
