// What the user says about each class (classes.json), as the fields that an answer carries.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "server/json.h"

namespace quern {

// One object per class, in the order of the model's outputs. Accepted: an array of strings, an
// array of objects, an object keyed "0".."n-1" of strings or objects; a string s means {"name": s}.
// Throws std::runtime_error that names `file` when it is none of these or has not `count` entries.
std::vector<Json> parse_classes(std::string_view text, const std::string& file, std::size_t count);

}  // namespace quern
