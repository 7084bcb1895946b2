"""quern-chat with a real holder, a real llama-server and real, if tiny, language models."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chat_world import (
    CHAT,
    Channel,
    Factory,
    Hammer,
    chat_program,
    engine_files,
    said,
    talk,
    words,
    write_gguf,
)
from tests.native_build import programs
from tests.server_world import UnixConnection, alive, ask, post_json, read_all, wait

pytestmark = pytest.mark.slow  # they compile llama.cpp, once

READ, ADMIN = "a read key", "an admin key"
JSON = {"Content-Type": "application/json"}
LONG = 30_000  # tokens: more than a test waits for


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    return Factory(tmp_path_factory.mktemp("releases"), programs().holder)


@pytest.fixture(scope="session")
def one(factory: Factory) -> Path:
    return factory.release(1)


@pytest.fixture(scope="session")
def two(factory: Factory) -> Path:
    return factory.release(2)


@pytest.fixture(scope="session")
def long_winded(factory: Factory) -> Path:
    """A release with one slot, whose answers may be very long."""
    return factory.release(3, parallel=1, context=65536)


@pytest.fixture
def channel(factory: Factory, tmp_path: Path) -> Iterator[Channel]:
    channel = Channel(tmp_path / "channel", factory.holder)
    yield channel
    wait(lambda: not channel.engines(), "the engines to be gone")
    assert list(channel.directory.glob("*.sock")) == []


@pytest.fixture(scope="module")
def serving(
    factory: Factory, one: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Channel]:
    channel = Channel(tmp_path_factory.mktemp("serving") / "channel", factory.holder)
    with channel.holding(one):
        yield channel


def digest(release: Path, role: str) -> str:
    manifest = json.loads((release / "manifest.json").read_bytes())
    return str(manifest["roles"][role]["xxh3_128"])


def slots(channel: Channel) -> Any:
    """What the (only) engine says of its slots."""
    (path,) = channel.directory.glob("engine-*.sock")
    return json.loads(ask(path, "GET", "/slots").body)


# ---- answers -------------------------------------------------------------------------------------


def test_a_chat(serving: Channel) -> None:
    answer = serving.chat(tokens=8)
    spoken = words(answer)
    assert spoken
    assert json.loads(answer.body)["usage"]["completion_tokens"] == 8
    assert "content-length" in answer.headers
    assert words(serving.chat(tokens=8)) == spoken
    assert words(serving.chat(tokens=8, model="tiny")) == spoken
    assert words(serving.chat(tokens=8, model="Talk 1")) == spoken


def test_a_stream_is_the_same_chat(serving: Channel) -> None:
    stream = serving.stream(tokens=40)
    assert stream.status == 200
    assert stream.response.getheader("Content-Type", "").startswith("text/event-stream")
    assert said(stream.rest()) == words(serving.chat(tokens=40))
    # The connection goes on.
    stream.connection.request("GET", "/health")
    assert stream.connection.getresponse().status == 200
    stream.close()


def test_a_stream_for_an_old_client(serving: Channel) -> None:
    """HTTP/1.0 has no chunks: the answer ends with the connection, whatever the client asks for."""
    body = json.dumps(talk(stream=True)).encode()
    with socket.create_connection(("127.0.0.1", serving.port), timeout=30) as client:
        client.sendall(
            f"POST {CHAT} HTTP/1.0\r\nConnection: keep-alive\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head, _, events = read_all(client).partition(b"\r\n\r\n")
    assert b" 200 " in head.split(b"\r\n")[0]
    assert b"chunked" not in head and b"ontent-Length" not in head
    assert events.startswith(b"data: {") and events.rstrip().endswith(b"data: [DONE]")


def test_other_requests(serving: Channel) -> None:
    answer = post_json(serving.port, "/tokenize", {"content": "hehe!"})
    tokens = json.loads(answer.body)["tokens"]
    assert len(tokens) == 3  # "he" is one of its words
    answer = post_json(serving.port, "/detokenize", {"tokens": tokens})
    assert json.loads(answer.body)["content"] == "hehe!"
    answer = post_json(serving.port, "/apply-template", talk("hi"))
    assert json.loads(answer.body)["prompt"] == "<|user|>hi<|end|><|assistant|>"
    asked = {"prompt": "hello", "max_tokens": 3, "ignore_eos": True}
    answer = post_json(serving.port, "/v1/completions", asked)
    assert json.loads(answer.body)["usage"]["completion_tokens"] == 3
    answer = post_json(serving.port, "/completion", {"prompt": "hello", "n_predict": 3})
    assert json.loads(answer.body)["tokens_predicted"] <= 3
    (model,) = json.loads(ask(serving.port, "GET", "/v1/models").body)["data"]
    assert model["id"] == "tiny"
    head = ask(serving.port, "HEAD", "/v1/models")
    assert head.status == 200 and head.body == b"" and int(head.headers["content-length"]) > 0


def test_an_engines_refusal_passes(serving: Channel) -> None:
    answer = post_json(serving.port, CHAT, {"messages": "none"})
    assert answer.status in (400, 500)
    assert "message" in json.loads(answer.body)["error"]
    answer = post_json(serving.port, "/v1/embeddings", {"input": "hello"})
    assert answer.status == 501  # llama-server's own word: it was not started for them


def test_system_message(factory: Factory, channel: Channel) -> None:
    def prompt(answer: Any) -> int:
        return int(json.loads(answer.body)["usage"]["prompt_tokens"])

    system = {"role": "system", "content": "Be brief — «très»."}
    user = {"role": "user", "content": "hello"}
    other = {"role": "system", "content": "no"}
    with channel.holding(factory.release(1, system=system["content"])):
        inserted = channel.chat(tokens=20)
        assert words(inserted) == words(channel.chat(tokens=20, messages=[system, user]))
        assert prompt(inserted) == prompt(channel.chat(messages=[system, user]))
        # One that is there stays alone, wherever it is.
        alone = prompt(channel.chat(messages=[other, user]))
        assert alone == prompt(channel.chat(messages=[user, other]))
        assert alone < prompt(inserted)
        assert said(channel.stream(tokens=20).rest()) == words(inserted)


def test_health_info_and_metrics(serving: Channel, one: Path) -> None:
    weights = digest(one, "weights")
    health = ask(serving.port, "GET", "/health").json()
    assert health == {"status": "ok", "model": "Talk 1", "release": one.name, "weights": weights}
    info = ask(serving.port, "GET", "/models/info").json()
    file = (one / "model.gguf").stat()
    expected = {
        "loaded": True,
        "model": "talk",
        "name": "tiny",
        "label": "Talk 1",
        "release": one.name,
        "weights": weights,
        "size": file.st_size,
        "device": file.st_dev,
        "inode": file.st_ino,
        "context": 4096,
        "parallel": 4,
        "engine_restarts": 0,
        "server": digest(one, "server"),
    }
    assert {key: info[key] for key in expected} == expected
    assert info["pid"] == serving.children("live")[0]["pid"]
    assert [info["engine_pid"]] == serving.engines()
    status = ask(serving.admin, "GET", "/status").json()
    for role in ("server", "weights", "chat", "engine"):
        assert status[role] == digest(one, role)
    assert (status["state"], status["release"], status["candidate"]) == ("live", one.name, None)

    before = serving.metric('quern_requests_total{code="200"}')
    serving.chat()
    metrics = ask(serving.port, "GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = metrics.body.decode()
    assert f'quern_requests_total{{code="200"}} {before + 2:.0f}\n' in text
    assert f'quern_release_info{{release="{one.name}",model="talk"}} 1\n' in text
    assert "\nllamacpp:tokens_predicted_total " in text


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at the process")
def test_the_engine_reads_the_very_file(serving: Channel, one: Path) -> None:
    file = (one / "model.gguf").stat()
    (pid,) = serving.engines()
    mapped = Path(f"/proc/{pid}/maps").read_text()
    assert re.search(rf" {file.st_ino} +.*/model\.gguf$", mapped, re.MULTILINE)
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert b"GGML_NO_BACKTRACE=1" in environment
    assert not any(one.startswith((b"QUERN_", b"LISTEN_")) for one in environment)
    links = (Path(f"/proc/{pid}/fd").iterdir()) if os.geteuid() == 0 else ()
    assert sum(str(link.readlink()).endswith("/model.gguf") for link in links) <= 2
    (path,) = serving.directory.glob("engine-*.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(serving.admin.stat().st_mode) == 0o600


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        (CHAT, json.dumps(talk(model="gpt-4")), 404, "no such model: gpt-4"),
        ("/completion", '{"prompt":"a","model":"x"}', 404, "no such model: x"),
        (CHAT, json.dumps(talk(model=3)), 400, '"model" must be a string'),
        (CHAT, "{", 400, "not valid JSON"),
        (CHAT, "", 400, "not valid JSON"),
        (CHAT, "[]", 400, "must be a JSON object"),
        ("/tokenize", '{"content":' + "[" * 200 + "]" * 200 + "}", 400, "too deeply"),
        ("/tokenize", '{"content":' + "[" * 2_000_000, 400, "too deeply"),
        ("/slots", "{}", 404, "no such path"),
        ("/props", "{}", 404, "no such path"),
        ("/predict", "{}", 404, "no such path"),
        ("/health", "{}", 405, "asked with GET"),
    ],
)
def test_refused(serving: Channel, path: str, body: str, status: int, says: str) -> None:
    answer = ask(serving.port, "POST", path, body.encode(), JSON)
    assert answer.status == status
    assert says in answer.json()["error"]


def test_a_body_too_large(channel: Channel, one: Path) -> None:
    with channel.holding(one):
        answer = ask(channel.port, "POST", CHAT, b" " * (9 << 20), JSON)
        assert answer.status == 413
        assert "larger" in answer.json()["error"]
        assert channel.chat().status == 200


def test_keys(channel: Channel, one: Path) -> None:
    keys = {"QUERN_READ_KEY": READ, "QUERN_ADMIN_KEY": ADMIN}
    with channel.holding(one, environment=keys):
        for method, path in [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/models/info")]:
            assert ask(channel.port, method, path).status == 401
        bearer = {"Authorization": f"Bearer {READ}"} | JSON
        body = json.dumps(talk()).encode()
        assert ask(channel.port, "POST", CHAT, body, bearer).status == 200
        assert ask(channel.port, "GET", "/models/info", headers={"X-API-Key": READ}).status == 200
        assert ask(channel.port, "POST", "/models/reload", headers=bearer).status == 401
        assert ask(channel.port, "GET", "/health").status == 200
        assert ask(channel.port, "GET", "/metrics").status == 200
        (pid,) = channel.engines()
        assert b"QUERN_" not in Path(f"/proc/{pid}/environ").read_bytes()

        answer = ask(channel.port, "POST", "/models/reload", headers={"X-API-Key": ADMIN})
        assert answer.status == 200
        assert answer.json()["weights"] == digest(one, "weights")
        wait(lambda: not alive(pid), "the engine before the reload to leave")
        assert ask(channel.port, "POST", CHAT, body, bearer).status == 200


def test_reloading_is_off_without_a_key(serving: Channel) -> None:
    assert ask(serving.port, "POST", "/models/reload").status == 403


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--release and --admin-socket are needed"),
        (["--release", "x"], "--release and --admin-socket are needed"),
        (["--no-such"], "unknown option --no-such"),
        (["--max-body", "0"], "--max-body must be a whole number from 1"),
        (["--engine-start-seconds"], "a value is missing after --engine-start-seconds"),
        (["--release", "x", "--admin-socket", "y"], "start it under quern-holder"),
    ],
)
def test_command_line(factory: Factory, arguments: list[str], says: str) -> None:
    done = subprocess.run([chat_program(), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert says in done.stderr and done.stderr.count("\n") == 1


# ---- releases that are not good ------------------------------------------------------------------


def broken(factory: Factory, tmp_path: Path, fault: str) -> tuple[Path, str]:
    """A release with that fault, and what is said of it."""
    good = tmp_path / "good.gguf"
    write_gguf(good, 7)
    data = good.read_bytes()
    if fault == "digest":
        return factory.release(10, digests={"weights": "0" * 32}), "its manifest says 000"
    if fault == "library":
        library = next(role for role in engine_files() if role.startswith("lib"))
        return factory.release(12, digests={library: "0" * 32}), "its manifest says 000"
    if fault == "truncated":
        return factory.release(13, weights=data[: len(data) // 2]), "did not get ready"
    if fault == "garbage":
        return factory.release(14, weights=b"\xff" * len(data)), "did not get ready"
    if fault == "empty":
        return factory.release(15, weights=b""), "did not get ready"
    if fault == "not a number":
        # In the last tensor, which --check-tensors reads.
        return factory.release(16, weights=data[:-64] + b"\xff" * 64), "did not get ready"
    assert fault == "settings"
    return factory.release(17, parallel=0), '"parallel", a whole number from 1'


FAULTS = ["digest", "library", "truncated", "garbage", "empty", "not a number", "settings"]


def test_a_bad_release_displaces_nothing(
    factory: Factory, channel: Channel, one: Path, two: Path, tmp_path: Path
) -> None:
    with channel.holding(one):
        spoken = words(channel.chat())
        for fault in FAULTS:
            release, says = broken(factory, tmp_path, fault)
            answer = post_json(channel.admin, "/load", {"release": str(release)})
            assert answer.status == 422, (fault, answer.body)
            assert says in answer.json()["error"], fault
            assert "\n" not in answer.json()["error"]
            status = ask(channel.admin, "GET", "/status").json()
            assert (status["release"], status["candidate"]) == (one.name, None)
            refused = post_json(channel.admin, "/activate", {"release": release.name})
            assert refused.status == 409
            assert words(channel.chat()) == spoken
        wait(lambda: len(channel.engines()) == 1, "the bad engines to be gone")
        channel.switch_to(two, channel.admin)
        assert words(channel.chat()) != spoken


@pytest.mark.parametrize("fault", ["digest", "garbage"])
def test_a_server_does_not_start_with_a_bad_release(
    factory: Factory, channel: Channel, tmp_path: Path, one: Path, fault: str
) -> None:
    release, says = broken(Factory(tmp_path / "releases", factory.holder), tmp_path, fault)
    with channel.holding(one):
        spoken = words(channel.chat())
        pid = post_json(channel.control, "/start", {"release": str(release)}).json()["pid"]

        def ended() -> Any:
            exited = ask(channel.control, "GET", "/status").json()["exited"]
            return next((e["status"] for e in exited if e["pid"] == pid), None)

        assert wait(ended, "the server to end") == "exit 1"
        assert says in channel.run.log()
        assert words(channel.chat()) == spoken


def test_discard(channel: Channel, one: Path, two: Path) -> None:
    with channel.holding(one):
        loaded = post_json(channel.admin, "/load", {"release": str(two)}).json()
        assert loaded["release"] == two.name and loaded["label"] == "Talk 2"
        for role in ("weights", "chat", "engine"):
            assert loaded[role] == digest(two, role)
        assert len(channel.engines()) == 2
        probe = {"prompt": "he", "n_predict": 8, "temperature": 0, "ignore_eos": True}
        candidate = post_json(channel.admin, "/predict", probe)
        assert post_json(channel.admin, "/discard", {}).json() == {"release": one.name}
        wait(lambda: len(channel.engines()) == 1, "the candidate's engine to leave")
        live = post_json(channel.admin, "/predict", probe)
        assert json.loads(candidate.body)["content"] != json.loads(live.body)["content"]


# ---- switching -----------------------------------------------------------------------------------


def test_switching_under_clients(channel: Channel, one: Path, two: Path) -> None:
    with channel.holding(one):
        with Hammer(channel.port) as hammer:
            hammer.more()
            for i in range(6):
                channel.switch_to(two if i % 2 == 0 else one, channel.admin)
                hammer.more()
        assert hammer.failures == []
        assert len(hammer.said) == 2
        wait(lambda: len(channel.engines()) == 1, "the earlier engines to leave")
        channel.answers(one)


def test_a_new_program_under_clients(channel: Channel, one: Path, two: Path) -> None:
    with channel.holding(one):
        with Hammer(channel.port) as hammer:
            hammer.more()
            old = channel.children("live")[0]["pid"]
            pid, admin = channel.start(two)
            assert post_json(admin, "/predict", {"prompt": "he", "n_predict": 2}).status == 200
            assert post_json(admin, "/activate", {"release": two.name}).status == 200
            channel.point_current_at(two)
            assert post_json(channel.control, "/promote", {"pid": pid}).status == 200
            hammer.more()
            wait(lambda: not alive(old), "the old server to drain")
            hammer.more()
        assert hammer.failures == []
        channel.answers(two)


def test_a_request_keeps_its_engine(channel: Channel, long_winded: Path, two: Path) -> None:
    with channel.holding(long_winded):
        (old,) = channel.engines()
        stream = channel.stream(tokens=3000)
        assert stream.next()
        channel.switch_to(two, channel.admin)
        assert words(channel.chat())
        channel.answers(two)
        assert len(stream.rest()) > 1000
        stream.close()
        wait(lambda: not alive(old), "the old engine to leave")


# ---- what dies -----------------------------------------------------------------------------------


def test_a_killed_engine(channel: Channel, factory: Factory) -> None:
    with channel.holding(factory.release(4, parallel=2, context=32768)):
        spoken = words(channel.chat())
        (pid,) = channel.engines()
        server = channel.children("live")[0]["pid"]
        stream = channel.stream(tokens=LONG)
        assert stream.next()
        computed, waiting = (
            http.client.HTTPConnection("127.0.0.1", channel.port, timeout=60) for _ in range(2)
        )
        computed.request("POST", CHAT, json.dumps(talk(tokens=LONG)), JSON)
        wait(
            lambda: all(slot["is_processing"] for slot in slots(channel)), "both slots to be taken"
        )
        waiting.request("POST", CHAT, json.dumps(talk()), JSON)
        wait(lambda: channel.metric("quern_requests_waiting") == 1, "the third to wait")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises((EOFError, http.client.HTTPException, OSError)):
            stream.rest()  # half an answer is not taken for a whole one
        answer = computed.getresponse()
        assert answer.status == 502
        assert "engine" in json.loads(answer.read())["error"]
        answer = waiting.getresponse()
        assert answer.status == 503 and int(answer.headers["Retry-After"]) >= 1
        answer.read()

        answers = []

        def again() -> bool:
            answer = channel.chat()
            answers.append(answer.status)
            if answer.status == 503:
                assert int(answer.headers["retry-after"]) >= 1
                assert ask(channel.port, "GET", "/health").status in (200, 503)
            return answer.status == 200 and words(answer) == spoken

        wait(again, "the engine to answer again")
        assert set(answers) <= {200, 502, 503}
        assert channel.children("live")[0]["pid"] == server
        assert channel.engine_pid() != pid
        assert channel.metric("quern_engine_restarts_total") == 1
        for connection in (computed, waiting):
            connection.close()


def test_an_engine_restarts_from_the_same_bytes(
    channel: Channel, factory: Factory, one: Path, tmp_path: Path
) -> None:
    """Even when its file's name has come to mean another."""
    release = Factory(tmp_path / "releases", factory.holder).release(5)
    with channel.holding(release):
        spoken = words(channel.chat())
        write_gguf(tmp_path / "other.gguf", 6)
        (tmp_path / "other.gguf").rename(release / "model.gguf")
        (pid,) = channel.engines()
        os.kill(pid, signal.SIGKILL)
        wait(lambda: not alive(pid), "the engine to be gone")
        wait(lambda: channel.chat().status == 200, "the engine to answer again")
        assert words(channel.chat()) == spoken


def test_a_killed_server(channel: Channel, one: Path) -> None:
    with channel.holding(one):
        spoken = words(channel.chat())
        (engine,) = channel.engines()
        os.kill(channel.children("live")[0]["pid"], signal.SIGKILL)
        wait(lambda: not alive(engine), "its engine to go with it")
        channel.answers(one)
        assert words(channel.chat()) == spoken
        assert len(channel.engines()) == 1


def test_a_stream_is_drained(channel: Channel, long_winded: Path) -> None:
    with channel.holding(long_winded, "--kill-seconds", "300"):
        child = channel.children("live")[0]["pid"]
        stream = channel.stream(tokens=3000)
        assert stream.next()
        channel.run.process.send_signal(signal.SIGTERM)
        wait(lambda: "draining" in channel.run.log(), "the drain")
        with pytest.raises(OSError):
            ask(channel.port, "GET", "/health")
        assert len(stream.rest()) > 1000
        stream.close()
        assert channel.run.process.wait(60) == 0
        assert not alive(child)


def test_a_killed_holder_leaves_no_engine(channel: Channel, one: Path) -> None:
    with channel.holding(one):
        child = channel.children("live")[0]["pid"]
        (engine,) = channel.engines()
        channel.run.process.kill()
        wait(lambda: not alive(child) and not alive(engine), "server and engine to leave")
    (channel.directory / "holder.sock").unlink()


def test_the_holders_patience_is_an_option(channel: Channel, long_winded: Path) -> None:
    with channel.holding(long_winded, "--kill-seconds", "1"):
        child = channel.children("live")[0]["pid"]
        stream = channel.stream(tokens=LONG)
        assert stream.next()
        post_json(channel.control, "/stop", {"pid": child})
        wait(lambda: not alive(child), "the server to be killed")
        assert "does not leave: killing it" in channel.run.log()
        stream.close()
    # What it could not remove is left for the next one's start.
    for path in channel.directory.glob("engine-*.sock"):
        path.unlink()


# ---- clients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_frees_its_slot(
    channel: Channel, long_winded: Path, streaming: bool
) -> None:
    with channel.holding(long_winded):
        connection = http.client.HTTPConnection("127.0.0.1", channel.port, timeout=60)
        connection.request("POST", CHAT, json.dumps(talk(tokens=LONG, stream=streaming)), JSON)
        wait(lambda: slots(channel)[0]["is_processing"], "the slot to be taken")
        connection.close()

        def free() -> bool:
            # llama-server looks whether a client is there after a second without any result for
            # anyone, and what it says of its slots is such a result.
            time.sleep(1.5)
            return not slots(channel)[0]["is_processing"]

        wait(free, "the slot to be free")
        assert channel.metric('quern_requests_total{code="499"}') == 1
        assert slots(channel)[0]["next_token"][0]["n_decoded"] < LONG
        assert channel.chat().status == 200


@pytest.mark.slow
def test_a_slow_client_does_not_grow_the_server(channel: Channel, long_winded: Path) -> None:
    """It reads nothing until all is computed: that waits in the engine, and nothing is lost."""
    with channel.holding(long_winded):
        child = channel.children("live")[0]["pid"]
        body = json.dumps(talk(tokens=6000, stream=True)).encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(60)
            client.connect(("127.0.0.1", channel.port))
            client.sendall(
                f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            before = resident(child)
            wait(lambda: slots(channel)[0]["is_processing"], "the slot to be taken")
            wait(lambda: not slots(channel)[0]["is_processing"], "all to be computed", 300)
            if b"__asan_" not in chat_program().read_bytes():  # which keeps what was freed
                assert resident(child) - before < 4 << 20
            answer = read_all(client)
        assert answer.count(b"data: {") > 3_000
        assert answer.rstrip().endswith(b"0") and b"data: [DONE]" in answer


def resident(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_a_full_queue(channel: Channel, long_winded: Path) -> None:
    """One slot, and a queue of the default length behind it."""
    with channel.holding(long_winded), contextlib.ExitStack() as open_ones:
        first = channel.stream(tokens=LONG)
        assert first.next()
        for _ in range(256):
            one = http.client.HTTPConnection("127.0.0.1", channel.port, timeout=60)
            one.request("POST", CHAT, json.dumps(talk()), JSON)
            open_ones.callback(one.close)
        wait(lambda: channel.metric("quern_requests_waiting") == 256, "the queue to be full")
        answer = post_json(channel.port, "/tokenize", {"content": "he"})
        assert answer.status == 200  # it needs no slot
        answer = channel.chat()
        assert answer.status == 503 and answer.headers["retry-after"] == "1"
        assert "busy" in answer.json()["error"]
        first.close()


def test_admin_socket_refuses(serving: Channel, one: Path) -> None:
    admin = serving.admin
    assert post_json(admin, "/load", {"release": "relative"}).status == 400
    assert post_json(admin, "/load", {}).status == 400
    assert post_json(admin, "/load", {"release": "/nowhere"}).status == 422
    assert post_json(admin, "/activate", {"release": one.name}).status == 409  # it is live
    assert ask(admin, "GET", "/v1/models").status == 404
    with contextlib.closing(UnixConnection(admin)) as connection:
        connection.request("POST", "/predict", b"{", JSON)
        assert connection.getresponse().status in (400, 500)  # as the engine has it
