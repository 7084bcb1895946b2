// What the programs say to the person who reads their standard error: one line at a time, written
// whole, so that several processes can share a file.
#pragma once

#include <string>

namespace quern {

void log_line(const std::string& sentence);  // "2026-01-31T12:00:00Z quern-server[123]: sentence"
void set_program_name(const char* name);

// The sentence of an errno value ("Address already in use").
std::string error_text(int error);

}  // namespace quern
