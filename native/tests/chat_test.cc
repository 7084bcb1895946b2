#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "chat/chat_request.h"
#include "chat/unix_request.h"
#include "server/sockets.h"

using namespace quern;

namespace {

struct Outcome {
  int status = 0;
  std::string body;
  bool whole = false;
  std::string failure;
  bool sent = false;
  std::string request;  // as the server got it
};

// Asks a server that answers with `pieces`, one write each, and closes.
Outcome ask(const std::vector<std::string>& pieces, bool pausing = false) {
  const std::string path = "chat_test-" + std::to_string(getpid()) + ".sock";
  const int listener = listen_unix(path);
  Outcome outcome;
  std::thread server([&] {
    int connection = -1;
    while (connection < 0) connection = accept(listener, nullptr, nullptr);
    char bytes[4096];
    while (outcome.request.find("\r\n\r\nbody") == std::string::npos) {
      const ssize_t got = read(connection, bytes, sizeof bytes);
      if (got <= 0) break;
      outcome.request.append(bytes, static_cast<std::size_t>(got));
    }
    for (const std::string& piece : pieces) {
      if (send(connection, piece.data(), piece.size(), MSG_NOSIGNAL) < 0) break;
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    close(connection);
  });
  EventLoop loop;
  UnixRequest* asking = nullptr;
  Timer resume(loop, [&] { asking->resume(); });
  UnixRequest::Handlers handlers;
  handlers.head = [&](int status, const Headers&, auto) { outcome.status = status; };
  handlers.piece = [&](std::string_view bytes) {
    outcome.body += bytes;
    if (!pausing) return;
    asking->pause();
    resume.start(0.001);
  };
  handlers.end = [&] {
    outcome.whole = true;
    loop.stop();
  };
  handlers.failed = [&](const std::string& sentence, bool sent) {
    outcome.failure = sentence;
    outcome.sent = sent;
    loop.stop();
  };
  {
    UnixRequest request(loop, path, "POST", "/x", "body", handlers);
    asking = &request;
    loop.run();
  }
  server.join();
  close(listener);
  unlink(path.c_str());
  return outcome;
}

std::vector<std::string> byte_by_byte(const std::string& text) {
  std::vector<std::string> pieces;
  for (const char c : text) pieces.emplace_back(1, c);
  return pieces;
}

int refusal_of(const std::string& body, const ChatRelease& release) {
  try {
    checked_request({reinterpret_cast<const std::uint8_t*>(body.data()), body.size()}, release,
                    true);
    return 0;
  } catch (const Refused& refused) {
    return refused.status;
  }
}

std::string checked(const std::string& body, const ChatRelease& release, bool chat = true) {
  return checked_request({reinterpret_cast<const std::uint8_t*>(body.data()), body.size()}, release,
                         chat);
}

}  // namespace

TEST_CASE("an answer of known length, in chunks, or to the connection's end") {
  const std::string lengthy = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
  const std::string chunked =
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
      "2\r\nhe\r\n3;note\r\nllo\r\n0\r\nTrailer: x\r\n\r\n";
  const std::string closing = "HTTP/1.0 200 OK\r\n\r\nhello";
  const std::string continued = "HTTP/1.1 100 Continue\r\n\r\n" + lengthy;
  for (const std::string& answer : {lengthy, chunked, closing, continued}) {
    CAPTURE(answer);
    for (const bool pausing : {false, true}) {
      const Outcome whole = ask({answer}, pausing);
      CHECK(whole.status == 200);
      CHECK(whole.body == "hello");
      CHECK(whole.whole);
      const Outcome slow = ask(byte_by_byte(answer), pausing);
      CHECK(slow.body == "hello");
      CHECK(slow.whole);
    }
  }
  const Outcome asked = ask({lengthy});
  CHECK(asked.request ==
        "POST /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        "Content-Type: application/json\r\nContent-Length: 4\r\n\r\nbody");
}

TEST_CASE("an answer without a body") {
  CHECK(ask({"HTTP/1.1 204 No Content\r\n\r\n"}).whole);
  CHECK(ask({"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"}).whole);
}

TEST_CASE("a large answer with pauses") {
  const std::string body(3'000'000, 'x');
  const Outcome outcome = ask({"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + body}, true);
  CHECK(outcome.whole);
  CHECK(outcome.body == body);
}

TEST_CASE("what is no answer, or half of one, is a failure") {
  const std::string chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
  const std::vector<std::string> answers = {
      "",
      "HTTP/1.1 200 OK\r\nContent-Le",
      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
      "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
      "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello",
      "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
      "HTTP/1.1 2 OK\r\n\r\n",
      "HTTP/2\r\n\r\n",
      "\r\n\r\n",
      "SSH-2.0-x\r\n\r\n",
      "HTTP/1.1 200 OK\r\n" + std::string(100'000, 'a'),
      chunked,
      chunked + "5\r\nhel",
      chunked + "5\r\nhello!\r\n0\r\n\r\n",
      chunked + "x\r\nhello\r\n0\r\n\r\n",
      chunked + "\r\nhello\r\n0\r\n\r\n",
      chunked + "ffffffffffffffffff\r\nhello",
      chunked + "5\r\nhello\r\n",
      chunked + "5\r\nhello\r\n0\r\n",
      chunked + std::string(5000, '1'),
  };
  for (const std::string& answer : answers) {
    CAPTURE(answer.substr(0, 120));
    const Outcome outcome = ask({answer});
    CHECK_FALSE(outcome.whole);
    CHECK_FALSE(outcome.failure.empty());
    CHECK(outcome.sent);
  }
}

TEST_CASE("nobody listens") {
  EventLoop loop;
  Outcome outcome;
  UnixRequest::Handlers handlers;
  handlers.failed = [&](const std::string& sentence, bool sent) {
    outcome.failure = sentence;
    outcome.sent = sent;
    loop.stop();
  };
  const UnixRequest request(loop, "no-such.sock", "GET", "/", "", handlers);
  loop.run();
  CHECK_FALSE(outcome.failure.empty());
  CHECK_FALSE(outcome.sent);
}

TEST_CASE("a request's model and system message") {
  ChatRelease release;
  release.settings.name = "tiny";
  release.label = "Tiny 1";
  CHECK(checked(R"({"messages":[]})", release).empty());
  release.settings.system = "Be \"brief\".";
  CHECK(checked(R"({"zebra":1,"messages":[{"role":"user"}],"apple":1.50})", release) ==
        R"({"zebra":1,"messages":[{"role":"system","content":"Be \"brief\"."},{"role":"user"}],)"
        R"("apple":1.5})");
  for (const std::string as_it_is :
       {R"({"messages":[{"role":"user"},{"role":"system"}]})", R"({"messages":"none"})", "{}"}) {
    CHECK(checked(as_it_is, release).empty());
  }
  CHECK(checked(R"({"messages":[]})", release, false).empty());
  CHECK_FALSE(checked(R"({"messages":[1,{"role":2}],"model":"tiny"})", release).empty());

  CHECK(refusal_of(R"({"model":"Tiny 1"})", release) == 0);
  CHECK(refusal_of(R"({"model":null})", release) == 0);
  CHECK(refusal_of(R"({"model":"other"})", release) == 404);
  CHECK(refusal_of(R"({"model":1})", release) == 400);
  for (const std::string bad : {"", "{", "[]", "3", "{\"a\":\"\xff\"}"}) {
    CHECK(refusal_of(bad, release) == 400);
  }
  CHECK(refusal_of("{\"a\":" + std::string(90, '[') + std::string(90, ']') + "}", release) == 0);
  CHECK(refusal_of("{\"a\":" + std::string(200, '[') + std::string(200, ']') + "}", release) ==
        400);
  CHECK(refusal_of(std::string(3'000'000, '['), release) == 400);
}
