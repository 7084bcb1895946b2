// The parts of the server that are pure: forms, classes, metrics. The rest is tested by real
// processes in tests/test_server.py and tests/test_holder.py.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <string>

#include "server/classes.h"
#include "server/exposition.h"
#include "server/metrics.h"
#include "server/multipart.h"

namespace quern {
namespace {

std::string part(const std::string& headers, const std::string& content) {
  return "--b\r\n" + headers + "\r\n\r\n" + content + "\r\n";
}

const std::string kImagePart = "Content-Disposition: form-data; name=\"image\"; filename=\"a.png\"";

TEST_CASE("the boundary of a form") {
  CHECK(multipart_boundary("multipart/form-data; boundary=b") == "b");
  CHECK(multipart_boundary("multipart/form-data;charset=utf-8; BOUNDARY=\"a b:c\"") == "a b:c");
  CHECK(multipart_boundary("multipart/form-data; x; boundary = b ; y=1") == "b");
  CHECK_THROWS_AS(multipart_boundary("multipart/form-data"), MultipartError);
  CHECK_THROWS_AS(multipart_boundary("multipart/form-data; boundary="), MultipartError);
  CHECK_THROWS_AS(multipart_boundary("multipart/form-data; boundary=\"b"), MultipartError);
  CHECK_THROWS_AS(multipart_boundary("multipart/form-data; boundary=" + std::string(71, 'b')),
                  MultipartError);
  CHECK_THROWS_AS(multipart_boundary("multipart/form-data; boundary=\"b\r\n\""), MultipartError);
}

TEST_CASE("a field of a form") {
  const std::string binary("\r\n--\r\n\0--b\r--", 13);
  const std::string body = part("Content-Disposition: form-data; name=other", "x") +
                           part("Content-Type: image/png\r\n" + kImagePart, binary) + "--b--\r\n";
  CHECK(multipart_field(body, "b", "image") == binary);
  CHECK(multipart_field("\r\n" + body, "b", "image") == binary);
  CHECK(multipart_field(body, "b", "other") == "x");
  CHECK(multipart_field(part(kImagePart, "") + "--b--", "b", "image").empty());
}

TEST_CASE("a name is read as a quoted string, wherever else it stands") {
  CHECK(multipart_field(part("content-disposition:form-data; filename=\"x; name=image\"; "
                             "name=\"a\\\"b\"",
                             "1") +
                            "--b--",
                        "b", "a\"b") == "1");
}

TEST_CASE("what is not clearly a form with that field is refused") {
  const std::string good = part(kImagePart, "x");
  for (const std::string& bad :
       {std::string(), std::string("x"), std::string("--b"), std::string("--b--"),
        std::string("--b\r\n"), std::string("--c\r\n") + good, good, good + "--", good + "--b",
        good + good + "--b--", part("", "x") + "--b--",
        part("Content-Type: image/png", "x") + "--b--",
        part("no colon here\r\n" + kImagePart, "x") + "--b--",
        part("Content-Disposition: attachment; name=\"image\"", "x") + "--b--",
        part("Content-Disposition: form-data; name=\"image", "x") + "--b--",
        part(kImagePart + "\r\nX: " + std::string(9000, 'x'), "x") + "--b--"}) {
    CAPTURE(bad.substr(0, 200));
    CHECK_THROWS_AS(multipart_field(bad, "b", "image"), MultipartError);
  }
}

TEST_CASE("a form that is cut off anywhere is refused") {
  const std::string body = part(kImagePart, "content") + "--b--";
  for (std::size_t size = 0; size < body.size(); ++size) {
    CAPTURE(size);
    CHECK_THROWS_AS(multipart_field(std::string_view(body).substr(0, size), "b", "image"),
                    MultipartError);
  }
  CHECK(multipart_field(body, "b", "image") == "content");
}

TEST_CASE("a form has at most 16 parts") {
  std::string body;
  for (int i = 0; i < 16; ++i) {
    body += part("Content-Disposition: form-data; name=p" + std::to_string(i), "x");
  }
  CHECK(multipart_field(body + "--b--", "b", "p15") == "x");
  CHECK_THROWS_AS(multipart_field(body + part(kImagePart, "x") + "--b--", "b", "p15"),
                  MultipartError);
}

TEST_CASE("each accepted form of classes.json") {
  CHECK(parse_classes(R"(["a","b"])", "c", 2)[1] == Json{{"name", "b"}});
  CHECK(parse_classes(R"([{"x":1},{"y":2}])", "c", 2)[1] == Json{{"y", 2}});
  CHECK(parse_classes(R"({"1":"b","0":"a"})", "c", 2)[0] == Json{{"name", "a"}});
  CHECK(parse_classes(R"({"0":{"x":1},"1":{"x":2}})", "c", 2)[1] == Json{{"x", 2}});
}

TEST_CASE("other classes are refused, and the sentence names the file") {
  for (const char* bad : {"", "[", "3", "[1,2]", R"(["a"])", R"(["a","b","c"])",
                          R"({"0":"a","2":"b"})", R"({"a":"a","b":"b"})", R"([["a"],["b"]])"}) {
    CAPTURE(bad);
    CHECK_THROWS_WITH_AS(parse_classes(bad, "classes.json", 2), doctest::Contains("classes.json"),
                         std::runtime_error);
  }
}

TEST_CASE("metrics: buckets are cumulative, labels are escaped") {
  Metrics metrics;
  metrics.answered(200);
  metrics.predicted(0.002);
  metrics.predicted(20.0);
  const std::string text = metrics.text(3, 1.5, "id", "a\"b\\c\nd");
  CHECK(text.find("quern_requests_total{code=\"200\"} 1\n") != std::string::npos);
  CHECK(text.find("quern_request_seconds_bucket{le=\"0.001\"} 0\n") != std::string::npos);
  CHECK(text.find("quern_request_seconds_bucket{le=\"0.0025\"} 1\n") != std::string::npos);
  CHECK(text.find("quern_request_seconds_bucket{le=\"10\"} 1\n") != std::string::npos);
  CHECK(text.find("quern_request_seconds_bucket{le=\"+Inf\"} 2\n") != std::string::npos);
  CHECK(text.find("quern_queue_depth 3\n") != std::string::npos);
  CHECK(text.find("model=\"a\\\"b\\\\c\\nd\"} 1\n") != std::string::npos);
  CHECK(resident_bytes() > 0);
}

}  // namespace
}  // namespace quern
