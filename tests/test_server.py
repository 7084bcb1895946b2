"""quern-server as its users meet it: a real process on a free port, asked over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from PIL import Image

from tests.native_build import Binaries, programs
from tests.server_world import (
    BREEDS,
    CLASSES,
    PNG,
    Hammer,
    Running,
    ask,
    ask_on,
    connections,
    expected_logits,
    png,
    read_all,
    serving,
    slow_png,
    small_image,
    softmax,
    wait,
    weights_bytes,
    write_model,
)

READ, ADMIN = "a read key", "an admin key"


@pytest.fixture(scope="session")
def binaries() -> Binaries:
    return programs()


@pytest.fixture(scope="module")
def server(binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(binaries.server, tmp_path_factory.mktemp("server")) as run:
        yield run


def form(content: bytes, field: str = "image") -> tuple[bytes, dict[str, str]]:
    head = f'--xyz\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"\r\n'
    body = head.encode() + b"Content-Type: image/png\r\n\r\n" + content + b"\r\n--xyz--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=xyz"}


def refused(binaries: Binaries, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """Standard error of a server that must not start: one line, exit status 1."""
    done = subprocess.run(
        [str(binaries.server), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n")
    return done.stderr


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["raw", "octets", "form"])
def test_prediction_is_the_models(server: Running, way: str) -> None:
    image = small_image()
    body, headers = png(image), PNG
    if way == "octets":
        headers = {"Content-Type": "application/octet-stream"}
    if way == "form":
        body, headers = form(body)
    answer = ask(server.port, "POST", "/predict", body, headers)
    assert answer.status == 200
    scores = softmax(expected_logits(image))
    order = np.argsort(-scores)[:5]
    predictions = answer.json()["predictions"]
    assert [one["class_id"] for one in predictions] == [int(i) for i in order]
    for one, i in zip(predictions, order, strict=True):
        assert one["score"] == pytest.approx(scores[i], rel=1e-4)
        assert one["breed_en"] == f"breed {i}"
        assert one["breed_ko"] == f"견종 {i}"
    assert answer.json()["release"] == ""
    timing = answer.json()["timing"]
    assert set(timing) == {"decode_ms", "resize_ms", "inference_ms", "total_ms"}
    total = timing.pop("total_ms")
    assert 0 < sum(timing.values()) <= total + 0.002  # each is rounded


@pytest.mark.parametrize("top", [1, 3, 10, 1000])
def test_top_says_how_many(server: Running, top: int) -> None:
    answer = ask(server.port, "POST", f"/predict?top={top}", png(small_image()), PNG)
    predictions = answer.json()["predictions"]
    assert len(predictions) == min(top, CLASSES)
    if top >= CLASSES:
        assert sum(one["score"] for one in predictions) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("top", ["0", "-1", "x", "1.5", "1x", "99999999999999999999999"])
def test_bad_top(server: Running, top: str) -> None:
    answer = ask(server.port, "POST", f"/predict?top={top}", png(small_image()), PNG)
    assert answer.status == 400
    assert "top" in answer.json()["error"]


def test_jpeg(server: Running) -> None:
    buffer = io.BytesIO()
    small_image().save(buffer, "JPEG")
    with Image.open(buffer) as decoded:
        scores = softmax(expected_logits(decoded))
    answer = ask(
        server.port, "POST", "/predict?top=1", buffer.getvalue(), {"Content-Type": "image/jpeg"}
    )
    (best,) = answer.json()["predictions"]
    assert best["class_id"] == int(scores.argmax())
    assert best["score"] == pytest.approx(scores.max(), rel=1e-4)


@pytest.mark.parametrize(
    ("classes", "entry"),
    [
        ([f"n{i}" for i in range(CLASSES)], lambda i: {"name": f"n{i}"}),
        ([{"breed_en": f"e{i}"} for i in range(CLASSES)], lambda i: {"breed_en": f"e{i}"}),
        ({str(i): f"n{i}" for i in range(CLASSES)}, lambda i: {"name": f"n{i}"}),
        (BREEDS, lambda i: BREEDS[str(i)]),
        # The server's own fields win over the user's.
        ([{"class_id": 99, "score": 2, "x": [i]} for i in range(CLASSES)], lambda i: {"x": [i]}),
    ],
)
def test_each_form_of_classes(binaries: Binaries, tmp_path: Path, classes: Any, entry: Any) -> None:
    with serving(binaries.server, tmp_path, classes=classes) as run:
        answer = ask(run.port, "POST", "/predict?top=10", png(small_image()), PNG)
    seen = set()
    for one in answer.json()["predictions"]:
        class_id = one.pop("class_id")
        assert 0 < one.pop("score") < 1
        assert one == entry(class_id)
        seen.add(class_id)
    assert seen == set(range(CLASSES))


def test_health_and_info(server: Running, binaries: Binaries) -> None:
    weights = xxhash.xxh3_128(weights_bytes()).hexdigest()
    assert ask(server.port, "GET", "/health").json() == {
        "status": "ok",
        "model": "model_weights.bin",
        "release": "",
        "weights": weights,
    }
    info = ask(server.port, "GET", "/models/info").json()
    assert info.pop("started") == pytest.approx(time.time(), abs=3600)
    assert info == {
        "loaded": True,
        "model": "model_weights.bin",
        "label": "model_weights.bin",
        "release": "",
        "weights": weights,
        "classes": CLASSES,
        "input": [3, 32, 32],
        "pid": server.process.pid,
        "server": xxhash.xxh3_128(binaries.server.read_bytes()).hexdigest(),
    }


def test_head_has_no_body_and_keeps_the_connection(server: Running) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        answer = ask_on(connection, "HEAD", "/health")
        assert answer.status == 200
        assert int(answer.headers["content-length"]) > 0
        assert ask_on(connection, "GET", "/health").json()["status"] == "ok"


def test_many_requests_on_one_connection(server: Running) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        connection.connect()
        first = connection.sock
        for _ in range(50):
            assert ask_on(connection, "POST", "/predict", png(small_image()), PNG).status == 200
        assert connection.sock is first


def test_pipelined_requests(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        client.sendall(b"GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        text = read_all(client)
    assert text.count(b"HTTP/1.1 200 ") == 3
    assert text.count(b"HTTP/1.1 404 ") == 1


def test_metrics_parse(binaries: Binaries, tmp_path: Path) -> None:
    with serving(binaries.server, tmp_path) as run:
        for _ in range(3):
            ask(run.port, "POST", "/predict", png(small_image()), PNG)
        ask(run.port, "GET", "/nothing")
        answer = ask(run.port, "GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values, types = {}, {}
    for line in answer.body.decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            types[name] = kind
        elif not line.startswith("# HELP "):
            found = re.fullmatch(r'(\w+(?:\{\w+="[^"]*"(?:,\w+="[^"]*")*\})?) ([-+.\de]+)', line)
            assert found, line
            values[found[1]] = float(found[2])
    assert values['quern_requests_total{code="200"}'] == 3
    assert values['quern_requests_total{code="404"}'] == 1
    assert values["quern_request_seconds_count"] == 3
    assert values['quern_request_seconds_bucket{le="+Inf"}'] == 3
    assert values["quern_queue_depth"] == 0
    assert values["quern_resident_bytes"] > 1e5
    assert values["quern_uptime_seconds"] > 0
    assert values['quern_release_info{release="",model="model_weights.bin"}'] == 1
    assert types["quern_request_seconds"] == "histogram"
    assert types["quern_requests_total"] == "counter"


def test_metrics_count_every_refusal(binaries: Binaries, tmp_path: Path) -> None:
    """Those that evhttp answers by itself and those of the queue, too."""
    with serving(binaries.server, tmp_path, "--max-body", "100000") as run:
        for _ in range(2):
            assert ask(run.port, "POST", "/predict", b"x" * 100001, PNG).status == 413
        with socket.create_connection(("127.0.0.1", run.port), timeout=30) as client:
            client.sendall(b"nonsense\r\n\r\n")
            assert read_all(client).startswith(b"HTTP/1.1 400 ")
        assert ask(run.port, "POST", "/predict", b"GIF89a", PNG).status == 415
        text = ask(run.port, "GET", "/metrics").body.decode()
    counts = dict(re.findall(r'quern_requests_total\{code="(\d+)"\} (\d+)', text))
    assert counts == {"413": "2", "400": "1", "415": "1"}


# ---- refusals ------------------------------------------------------------------------------------


def half_a_png() -> bytes:
    data = png(small_image())
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/", None, {}, 404),
        ("GET", "/predict/", None, {}, 404),
        ("GET", "/status", None, {}, 404),
        ("GET", "/predict", None, {}, 405),
        ("POST", "/health", b"", {}, 405),
        ("DELETE", "/models/info", None, {}, 405),
        ("OPTIONS", "/predict", None, {}, 405),
        ("BREW", "/predict", None, {}, 405),
        ("POST", "/predict", b"", PNG, 400),
        ("POST", "/predict", half_a_png(), PNG, 400),
        ("POST", "/predict", b"not an image", PNG, 415),
        ("POST", "/predict", b"GIF89a" + b"\0" * 64, {"Content-Type": "image/gif"}, 415),
        ("POST", "/predict", b"{}", {"Content-Type": "application/json"}, 415),
        ("POST", "/predict", png(small_image()), {}, 415),
        ("POST", "/predict", *form(png(small_image()), "picture"), 400),
        ("POST", "/predict", *form(b""), 400),
        ("POST", "/predict", b"--", {"Content-Type": "multipart/form-data"}, 400),
        ("POST", "/models/reload", b"", {}, 403),
    ],
)
def test_refusals_are_a_sentence(
    server: Running,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    status: int,
) -> None:
    answer = ask(server.port, method, path, body, headers)
    assert answer.status == status
    assert set(answer.json()) == {"error"}
    assert len(answer.json()["error"]) > 5
    if status == 405:
        assert answer.headers["allow"] in ("GET", "POST")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /health HTTP/1.11111111\r\nno colon\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"x" * 20000 + b"\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("after_another", [False, True])
def test_what_is_not_http(server: Running, request_bytes: bytes, after_another: bool) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        if after_another:
            client.sendall(b"HEAD /health HTTP/1.1\r\n\r\n")
            assert client.recv(65536).endswith(b"\r\n\r\n")
        client.sendall(request_bytes)
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nContent-Type: application/json" in head
    assert b"\r\nConnection: close" in head
    assert set(json.loads(body)) == {"error"}
    assert ask(server.port, "GET", "/health").status == 200


@pytest.mark.parametrize("version", ["0.0", "0.9", "1.2", "1.11111111"])
def test_other_versions_are_refused(server: Running, version: str) -> None:
    request = f"GET /health HTTP/{version}\r\nConnection: keep-alive\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(request.encode() * 2)
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close" in head
    assert set(json.loads(body)) == {"error"}


def test_chunked_body(server: Running) -> None:
    image = png(small_image())
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        connection.request(
            "POST", "/predict", iter([image[:10], image[10:]]), PNG, encode_chunked=True
        )
        assert connection.getresponse().status == 200


def test_expect_continue(server: Running) -> None:
    image = png(small_image())
    head = (
        "POST /predict HTTP/1.1\r\nContent-Type: image/png\r\nExpect: 100-continue\r\n"
        f"Connection: close\r\nContent-Length: {len(image)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(head.encode())
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(image)
        assert b"HTTP/1.1 200 " in read_all(client)


def test_clients_that_leave_harm_nobody(binaries: Binaries, tmp_path: Path) -> None:
    image = slow_png()
    head = f"POST /predict HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\n"
    with serving(binaries.server, tmp_path, "--workers", "2") as run:
        for sent in (
            b"",
            head.encode(),
            head.encode() + b"\r\n" + image[:100],
            head.encode() + b"\r\n" + image,
            head.encode() + b"\r\n" + image,
        ):
            with socket.create_connection(("127.0.0.1", run.port)) as client:
                client.sendall(sent)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert ask(run.port, "POST", "/predict", image, PNG, timeout=120).status == 200
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(60) == 0


# ---- keys ----------------------------------------------------------------------------------------


def test_keys(binaries: Binaries, tmp_path: Path) -> None:
    keys = {"QUERN_READ_KEY": READ, "QUERN_ADMIN_KEY": ADMIN}
    image = png(small_image())
    with serving(binaries.server, tmp_path, environment=keys) as run:
        for path in ("/health", "/metrics"):
            assert ask(run.port, "GET", path).status == 200
        for headers in (
            {},
            {"X-API-Key": "a read kez"},
            {"X-API-Key": READ + "x"},
            {"X-API-Key": ""},
            {"Authorization": f"Basic {READ}"},
            {"Authorization": "Bearer "},
        ):
            assert ask(run.port, "GET", "/models/info", None, headers).status == 401
            answer = ask(run.port, "POST", "/predict", image, {**PNG, **headers})
            assert answer.status == 401
            assert READ not in answer.json()["error"]
        for headers in (
            {"X-API-Key": READ},
            {"Authorization": f"Bearer {READ}"},
            {"Authorization": f"bearer {READ}"},
        ):
            assert ask(run.port, "GET", "/models/info", None, headers).status == 200
            assert ask(run.port, "POST", "/predict", image, {**PNG, **headers}).status == 200
        for headers in ({}, {"X-API-Key": READ}):
            assert ask(run.port, "POST", "/models/reload", b"", headers).status == 401
        assert ask(run.port, "POST", "/models/reload", b"", {"X-API-Key": ADMIN}).status == 200


def test_an_empty_key_is_refused(binaries: Binaries, tmp_path: Path) -> None:
    weights, names = write_model(tmp_path)
    sentence = refused(
        binaries,
        "--port",
        "0",
        "--weights",
        str(weights),
        "--classes",
        str(names),
        environment={"QUERN_READ_KEY": ""},
    )
    assert "QUERN_READ_KEY" in sentence


# ---- reload --------------------------------------------------------------------------------------


def test_reload_good_and_bad(binaries: Binaries, tmp_path: Path) -> None:
    with serving(binaries.server, tmp_path, environment={"QUERN_ADMIN_KEY": ADMIN}) as run:

        def reload() -> Any:
            return ask(run.port, "POST", "/models/reload", b"", {"X-API-Key": ADMIN})

        def best() -> int:
            answer = ask(run.port, "POST", "/predict?top=1", png(small_image()), PNG)
            return int(answer.json()["predictions"][0]["class_id"])

        image = small_image()
        assert best() == int(expected_logits(image, 0).argmax())
        (tmp_path / "model_weights.bin").write_bytes(weights_bytes(4))
        assert best() == int(expected_logits(image, 0).argmax())
        answer = reload()
        assert answer.status == 200
        assert answer.json()["weights"] == xxhash.xxh3_128(weights_bytes(4)).hexdigest()
        assert best() == int(expected_logits(image, 4).argmax())
        assert best() != int(expected_logits(image, 0).argmax())

        (tmp_path / "model_weights.bin").write_bytes(weights_bytes(5)[:-1])
        answer = reload()
        assert answer.status == 422
        assert "model_weights.bin" in answer.json()["error"]
        (tmp_path / "model_weights.bin").write_bytes(weights_bytes(5))
        (tmp_path / "classes.json").write_text('["a"]')
        answer = reload()
        assert answer.status == 422
        assert "classes.json" in answer.json()["error"]
        assert best() == int(expected_logits(image, 4).argmax())
        health = ask(run.port, "GET", "/health").json()
        assert health["weights"] == xxhash.xxh3_128(weights_bytes(4)).hexdigest()


def test_reload_under_load_fails_nothing(binaries: Binaries, tmp_path: Path) -> None:
    with serving(binaries.server, tmp_path, environment={"QUERN_ADMIN_KEY": ADMIN}) as run:
        with Hammer(run.port) as hammer:
            for variant in range(10):
                path = tmp_path / "new"
                path.write_bytes(weights_bytes(variant))
                path.rename(tmp_path / "model_weights.bin")
                answer = ask(run.port, "POST", "/models/reload", b"", {"X-API-Key": ADMIN})
                assert answer.status == 200
                hammer.wait_for("", more=20)
        assert hammer.failures == []


# ---- start ---------------------------------------------------------------------------------------


def test_port_taken(server: Running, binaries: Binaries, tmp_path: Path) -> None:
    weights, names = write_model(tmp_path)
    sentence = refused(
        binaries, "--port", str(server.port), "--weights", str(weights), "--classes", str(names)
    )
    assert f"127.0.0.1:{server.port}" in sentence
    assert "in use" in sentence
    assert ask(server.port, "GET", "/health").status == 200


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda w, c: w.write_bytes(w.read_bytes()[:-1]), "model_weights.bin"),
        (lambda w, c: w.write_bytes(w.read_bytes()[:40]), "model_weights.bin"),
        (lambda w, c: w.write_bytes(b""), "model_weights.bin"),
        (lambda w, c: w.write_bytes(w.read_bytes()[:-1] + b"\xff"), "model_weights.bin"),
        (lambda w, c: w.unlink(), "model_weights.bin"),
        (lambda w, c: c.unlink(), "classes.json"),
        (lambda w, c: c.write_text("{"), "classes.json"),
        (lambda w, c: c.write_text('["only", "two"]'), "10"),
    ],
)
def test_bad_files_are_refused_at_start(
    binaries: Binaries, tmp_path: Path, damage: Any, word: str
) -> None:
    weights, names = write_model(tmp_path)
    damage(weights, names)
    sentence = refused(binaries, "--port", "0", "--weights", str(weights), "--classes", str(names))
    assert word in sentence


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--port"),
        (["--port"], "--port"),
        (["--port", "99999"], "--port"),
        (["--prot", "1"], "--prot"),
        (["--port", "1", "extra"], "extra"),
        (["--workers", "0"], "--workers"),
        (["--release", "x"], "--admin-socket"),
        (["--release", "x", "--admin-socket", "y"], "LISTEN_FDS"),
        (["--release", "x", "--admin-socket", "y", "--port", "1"], "both"),
    ],
)
def test_bad_command_lines(binaries: Binaries, arguments: list[str], word: str) -> None:
    assert word in refused(binaries, *arguments)


def test_first_log_line(server: Running) -> None:
    first = server.log().splitlines()[0]
    assert f"listening on http://127.0.0.1:{server.port}, model_weights.bin" in first


def test_access_log(binaries: Binaries, tmp_path: Path) -> None:
    with serving(binaries.server, tmp_path, "--access-log") as run:
        ask(run.port, "GET", "/health")
        assert re.search(r"\]: GET /health 200 \d+\.\d+ ms$", run.log(), re.MULTILINE)
        with socket.create_connection(("127.0.0.1", run.port), timeout=30) as client:
            client.sendall(b"GET /\x1b[2J HTTP/1.1\r\nConnection: close\r\n\r\n")
            read_all(client)
        assert "\x1b" not in run.log()


def test_access_log_is_off_by_default(server: Running) -> None:
    assert ask(server.port, "GET", "/health").status == 200
    assert "/health" not in server.log()


# ---- drain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_are_answered(
    binaries: Binaries, tmp_path: Path, number: signal.Signals
) -> None:
    image, answers = slow_png(), []
    with serving(binaries.server, tmp_path, "--workers", "1", "--drain-seconds", "120") as run:

        def one() -> None:
            answers.append(ask(run.port, "POST", "/predict", image, PNG, timeout=120))

        threads = [threading.Thread(target=one) for _ in range(3)]
        for thread in threads:
            thread.start()

        def all_arrived() -> bool:  # one computes, two wait
            return b"quern_queue_depth 2\n" in ask(run.port, "GET", "/metrics").body

        wait(all_arrived, "three requests in flight")
        run.process.send_signal(number)
        for thread in threads:
            thread.join()
        assert run.process.wait(60) == 0
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert all(answer.headers["connection"] == "close" for answer in answers)


def test_drain_answers_what_still_arrives(binaries: Binaries, tmp_path: Path) -> None:
    """A request half sent and one sent later on an idle connection are both answered."""
    image = png(small_image())
    with serving(binaries.server, tmp_path, "--drain-seconds", "60") as run:
        half = socket.create_connection(("127.0.0.1", run.port), timeout=30)
        half.sendall(
            b"POST /predict HTTP/1.1\r\nContent-Type: image/png\r\n"
            + f"Content-Length: {len(image)}\r\n\r\n".encode()
            + image[:10]
        )
        idle = http.client.HTTPConnection("127.0.0.1", run.port, timeout=30)
        assert "connection" not in ask_on(idle, "GET", "/health").headers
        silent = socket.create_connection(("127.0.0.1", run.port), timeout=30)
        wait(lambda: len(connections(run.process.pid)) == 3, "three accepted connections")

        run.process.send_signal(signal.SIGTERM)
        wait(lambda: "draining" in run.log(), "the drain")
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", run.port), timeout=5)
        assert run.process.poll() is None
        answer = ask_on(idle, "POST", "/predict", image, PNG)
        assert answer.status == 200 and answer.headers["connection"] == "close"
        half.sendall(image[10:])
        text = read_all(half)
        assert text.startswith(b"HTTP/1.1 200 ") and b"Connection: close" in text
        assert run.process.poll() is None
        silent.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_all(silent).startswith(b"HTTP/1.1 200 ")
        assert run.process.wait(30) == 0
        for client in (half, silent):
            client.close()


def test_drain_ends_with_its_time(binaries: Binaries, tmp_path: Path) -> None:
    with (
        serving(binaries.server, tmp_path, "--drain-seconds", "1") as run,
        socket.create_connection(("127.0.0.1", run.port), timeout=30) as idle,
    ):
        wait(lambda: connections(run.process.pid), "the connection")
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(30) == 0
        assert idle.recv(1) == b""
