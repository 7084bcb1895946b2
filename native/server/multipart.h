// Takes the one file out of a multipart/form-data body (RFC 7578, RFC 2046 section 5.1), strictly:
// what is not clearly a form with an image is refused, never guessed at. Nothing is copied.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace quern {

// A body that is not what the Content-Type says. what() is one sentence for the client.
class MultipartError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The boundary parameter of a Content-Type value; throws MultipartError when there is none or it
// is not 1 to 70 characters of RFC 2046's.
std::string multipart_boundary(std::string_view content_type);

// The content of the part named `field`, a view into `body`. Throws MultipartError when the body is
// malformed or has no such part, or more than one.
std::string_view multipart_field(std::string_view body, std::string_view boundary,
                                 std::string_view field);

}  // namespace quern
