#include "server/multipart.h"

#include <cctype>
#include <optional>

namespace quern {

namespace {

constexpr std::size_t kMaxParts = 16;
constexpr std::size_t kMaxPartHeader = 8192;
constexpr std::string_view kLineEnd = "\r\n";

bool same_word(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::tolower(static_cast<unsigned char>(a[i])) !=
        std::tolower(static_cast<unsigned char>(b[i]))) {
      return false;
    }
  }
  return true;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// The value of parameter `name` in "type; name=value; other="quoted"", unquoted.
std::optional<std::string> header_parameter(std::string_view header, std::string_view name) {
  std::size_t at = header.find(';');
  while (at < header.size()) {
    header.remove_prefix(at + 1);
    const std::size_t equals = header.find_first_of("=;");
    if (equals == std::string_view::npos) return std::nullopt;
    if (header[equals] == ';') {
      at = equals;
      continue;
    }
    const std::string_view key = trimmed(header.substr(0, equals));
    header.remove_prefix(equals + 1);
    while (!header.empty() && (header.front() == ' ' || header.front() == '\t')) {
      header.remove_prefix(1);
    }
    std::string value;
    if (!header.empty() && header.front() == '"') {
      std::size_t i = 1;
      while (i < header.size() && header[i] != '"') {
        if (header[i] == '\\' && i + 1 < header.size()) ++i;
        value += header[i++];
      }
      if (i == header.size()) return std::nullopt;  // the quote is never closed
      at = header.find(';', i);
    } else {
      at = header.find(';');
      value = trimmed(header.substr(0, at));
    }
    if (same_word(key, name)) return value;
  }
  return std::nullopt;
}

// The form field's name that a part's header lines give; throws when there is none.
std::string part_name(std::string_view lines) {
  while (!lines.empty()) {
    const std::size_t end = lines.find(kLineEnd);
    const std::string_view line = lines.substr(0, end);
    lines.remove_prefix(end == std::string_view::npos ? lines.size() : end + kLineEnd.size());
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos) {
      throw MultipartError("a part of the form has a header line without a colon");
    }
    if (!same_word(line.substr(0, colon), "Content-Disposition")) continue;
    const std::string_view value = trimmed(line.substr(colon + 1));
    const auto name = header_parameter(value, "name");
    if (!same_word(trimmed(value.substr(0, value.find(';'))), "form-data") || !name) break;
    return *name;
  }
  throw MultipartError("a part of the form has no Content-Disposition: form-data with a name");
}

}  // namespace

std::string multipart_boundary(std::string_view content_type) {
  const auto boundary = header_parameter(content_type, "boundary");
  if (!boundary) throw MultipartError("the Content-Type multipart/form-data has no boundary");
  constexpr std::string_view kAllowed =
      "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'()+_,-./:=? ";
  if (boundary->empty() || boundary->size() > 70 || boundary->back() == ' ' ||
      boundary->find_first_not_of(kAllowed) != std::string::npos) {
    throw MultipartError("the boundary of the form is not 1 to 70 of the allowed characters");
  }
  return *boundary;
}

std::string_view multipart_field(std::string_view body, std::string_view boundary,
                                 std::string_view field) {
  const std::string first = "--" + std::string(boundary);
  const std::string delimiter = "\r\n" + first;
  if (body.starts_with(kLineEnd)) body.remove_prefix(kLineEnd.size());
  if (!body.starts_with(first)) throw MultipartError("the form does not start with its boundary");
  body.remove_prefix(first.size());

  std::optional<std::string_view> found;
  for (std::size_t parts = 0; !body.starts_with("--"); ++parts) {
    if (parts == kMaxParts) {
      throw MultipartError("the form has more than " + std::to_string(kMaxParts) + " parts");
    }
    while (!body.empty() && (body.front() == ' ' || body.front() == '\t')) body.remove_prefix(1);
    if (!body.starts_with(kLineEnd)) throw MultipartError("the form is cut off or malformed");
    body.remove_prefix(kLineEnd.size());

    const std::size_t header_end = body.substr(0, kMaxPartHeader).find("\r\n\r\n");
    if (header_end == std::string_view::npos) {
      throw MultipartError("a part of the form has no end of its headers");
    }
    const std::string name = part_name(body.substr(0, header_end));
    body.remove_prefix(header_end + 4);

    const std::size_t end = body.find(delimiter);
    if (end == std::string_view::npos) throw MultipartError("the form is cut off");
    if (name == field) {
      if (found) throw MultipartError("the form has more than one field " + std::string(field));
      found = body.substr(0, end);
    }
    body.remove_prefix(end + delimiter.size());
  }
  if (!found) throw MultipartError("the form has no field " + std::string(field));
  return *found;
}

}  // namespace quern
