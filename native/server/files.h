// Whole small files, and the program's own.
#pragma once

#include <string>

namespace quern {

// Throws std::runtime_error "cannot read PATH: ..." .
std::string read_file(const std::string& path);

std::string own_executable();  // "" when the system does not say

// The digest of the program that runs, of its file as it was opened; "" when it cannot be read.
std::string own_digest();

std::string base_name(const std::string& path);

}  // namespace quern
