// All that answers a request, as one immutable thing: a request keeps the one it started with, and
// a switch to another is one pointer.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/model.h"
#include "server/json.h"

namespace quern {

class ServedModel {
 public:
  // Reads and checks both files. Throws std::runtime_error with one sentence.
  static std::shared_ptr<ServedModel> from_files(const std::string& weights,
                                                 const std::string& classes);
  // The same of a release directory; what is read must have the manifest's digests.
  static std::shared_ptr<ServedModel> from_release(const std::string& directory);

  std::string release;  // id, "" for from_files
  std::string name;
  std::string label;
  std::string weights_digest;
  std::string classes_digest;
  std::vector<Json> classes;  // one object per output
  std::shared_ptr<const Model> model;

  // Sessions are kept for the next request, as many as were ever used at once, and go when the
  // model goes.
  std::unique_ptr<Session> take_session();
  void give_back(std::unique_ptr<Session> session);

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Session>> idle_;
};

}  // namespace quern
