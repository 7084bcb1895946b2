#include "server/served_model.h"

#include <stdexcept>
#include <utility>

#include "engine/digest.h"
#include "server/classes.h"
#include "server/files.h"
#include "server/release.h"

namespace quern {

namespace {

void require_digest(const std::string& path, const std::string& read, const std::string& manifest) {
  if (read == manifest) return;
  throw std::runtime_error(path + " has digest " + read + ", its manifest says " + manifest +
                           ": the release is damaged, send it again");
}

}  // namespace

std::shared_ptr<ServedModel> ServedModel::from_files(const std::string& weights,
                                                     const std::string& classes) {
  auto served = std::make_shared<ServedModel>();
  served->model = Model::load(weights);
  served->weights_digest = served->model->weights_digest();
  const std::string text = read_file(classes);
  served->classes_digest =
      digest_hex({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
  served->classes = parse_classes(text, classes, served->model->classes().size());
  served->name = base_name(weights);
  served->label = served->name;
  served->give_back(served->take_session());  // the first request need not wait for memory
  return served;
}

std::shared_ptr<ServedModel> ServedModel::from_release(const std::string& directory) {
  const Release release = read_release(directory);
  const ReleaseFile& weights = release.role("weights");
  const ReleaseFile& classes = release.role("classes");
  auto served = from_files(weights.path, classes.path);
  require_digest(weights.path, served->weights_digest, weights.xxh3_128);
  require_digest(classes.path, served->classes_digest, classes.xxh3_128);
  served->release = release.id;
  served->name = release.model;
  served->label = release.label;
  return served;
}

std::unique_ptr<Session> ServedModel::take_session() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!idle_.empty()) {
      auto session = std::move(idle_.back());
      idle_.pop_back();
      return session;
    }
  }
  return std::make_unique<Session>(model);
}

void ServedModel::give_back(std::unique_ptr<Session> session) {
  const std::lock_guard<std::mutex> lock(mutex_);
  idle_.push_back(std::move(session));
}

}  // namespace quern
