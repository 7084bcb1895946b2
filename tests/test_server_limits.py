"""What quern-server bounds: bodies, pixels, connections, the queue, and the time that each part of
a request may take. A real process on a free port."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native_build import Binaries, programs
from tests.server_world import (
    PNG,
    ask,
    ask_on,
    connections,
    listening_port,
    peak_bytes,
    png,
    read_all,
    running,
    serving,
    slow_png,
    small_image,
    wait,
    write_model,
)

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
SYS_PIDFD_GETFD = 438


@pytest.fixture(scope="session")
def binaries() -> Binaries:
    return programs()


# ---- size ----------------------------------------------------------------------------------------


def test_body_limit(binaries: Binaries, tmp_path: Path) -> None:
    # A sanitizer keeps what was freed; that would count as the server's.
    kept = {"ASAN_OPTIONS": "quarantine_size_mb=1"}
    with serving(binaries.server, tmp_path, "--max-body", "100000", environment=kept) as run:
        assert ask(run.port, "POST", "/predict", png(small_image()), PNG).status == 200
        before = peak_bytes(run.process.pid)
        for size in (100001, 20_000_000):
            answer = ask(run.port, "POST", "/predict", b"x" * size, PNG)
            assert answer.status == 413
            assert "larger" in answer.json()["error"]
        assert peak_bytes(run.process.pid) - before < 10_000_000
        with socket.create_connection(("127.0.0.1", run.port), timeout=30) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n")
            assert read_all(client).startswith(b"HTTP/1.1 413 ")
        assert ask(run.port, "POST", "/predict", png(small_image()), PNG).status == 200


def test_connections_have_a_limit_below_that_of_descriptors(
    binaries: Binaries, tmp_path: Path
) -> None:
    weights, names = write_model(tmp_path)
    command = (
        f"ulimit -n 100; exec {binaries.server} --port 0 --weights {weights} --classes {names}"
    )
    with running(["sh", "-c", command], tmp_path / "log") as run, contextlib.ExitStack() as stack:
        port = listening_port(run)
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(150)
        ]
        with pytest.raises(TimeoutError):
            ask(port, "GET", "/health", timeout=1)
        assert len(connections(run.process.pid)) < 100
        for client in clients:
            client.close()
        assert ask(port, "GET", "/health").status == 200
        assert "Too many open files" not in run.log()


def test_pixel_limit(binaries: Binaries, tmp_path: Path) -> None:
    with serving(binaries.server, tmp_path, "--max-pixels", "1023") as run:
        answer = ask(run.port, "POST", "/predict", png(small_image()), PNG)
    assert answer.status == 413
    assert "pixels" in answer.json()["error"]


def test_queue_full_is_503_with_retry_after(binaries: Binaries, tmp_path: Path) -> None:
    image, answers = slow_png(), []
    with serving(binaries.server, tmp_path, "--workers", "1", "--queue", "1") as run:

        def one() -> None:
            answers.append(ask(run.port, "POST", "/predict", image, PNG, timeout=120))

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ask(run.port, "POST", "/predict", png(small_image()), PNG).status == 200
    assert {answer.status for answer in answers} == {200, 503}
    for answer in answers:
        if answer.status == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert "busy" in answer.json()["error"]


def bomb(width: int, height: int) -> bytes:
    """A PNG of `width` x `height` pixels of one bit, all 0, whose rows compress a thousandfold."""
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", rows),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_a_bomb_is_refused_before_memory_is_taken(binaries: Binaries, tmp_path: Path) -> None:
    image = bomb(20000, 20000)
    assert len(image) < 100_000
    with serving(binaries.server, tmp_path) as run:
        before = peak_bytes(run.process.pid)
        answer = ask(run.port, "POST", "/predict", image, PNG)
        assert answer.status == 413
        assert "20000x20000 pixels" in answer.json()["error"]
        assert peak_bytes(run.process.pid) - before < 10_000_000


# ---- time ----------------------------------------------------------------------------------------


def drip(client: socket.socket, content: bytes, pause: float) -> bool:
    """Send byte after byte with a pause between; False when the server closed the connection."""
    for byte in content:
        try:
            client.sendall(bytes([byte]))
        except OSError:
            return False
        client.settimeout(pause)
        try:
            if client.recv(1) == b"":
                return False
        except TimeoutError:
            continue
        except OSError:
            return False
        raise AssertionError("the server answered half a request")
    return True


def post(length: int) -> bytes:
    return (
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
        b"Content-Length: %d\r\n\r\n" % length
    )


SLOW = b"GET /health HTTP/1.1\r\nX-Slow: " + b"x" * 300


@pytest.mark.parametrize(
    ("limit", "start"),
    [
        ("--header-seconds", lambda client: None),
        ("--header-seconds", lambda client: answered(client, HEALTH)),
        ("--header-seconds", lambda client: answered(client, HEALTH + b"GET /heal")),
        ("--body-seconds", lambda client: client.sendall(post(10_000))),
    ],
    ids=["headers", "headers of the second request", "headers sent ahead", "body"],
)
def test_a_slow_request_is_cut_off(
    binaries: Binaries, tmp_path: Path, limit: str, start: Callable[[socket.socket], None]
) -> None:
    """The client sends often enough never to be idle; other clients are served meanwhile."""
    with serving(binaries.server, tmp_path, limit, "1") as run:
        slow = [socket.create_connection(("127.0.0.1", run.port)) for _ in range(20)]
        for client in slow:
            start(client)
        assert not drip(slow[0], SLOW, 0.2)
        assert ask(run.port, "POST", "/predict", png(small_image()), PNG).status == 200
        for client in slow[1:]:
            client.sendall(b"x")
        wait(lambda: not connections(run.process.pid), "the others to be closed", 30)
        for client in slow:
            client.close()


def answered(client: socket.socket, request: bytes) -> None:
    """Send a request; read its answer."""
    client.sendall(request)
    text = b""
    while not text.endswith(b"}\n"):
        text += client.recv(65536)
    assert text.startswith(b"HTTP/1.1 200 ")


def test_each_part_of_a_request_has_its_own_time(binaries: Binaries, tmp_path: Path) -> None:
    """A slow body and a pause between requests are not measured by the limit on headers."""
    image = png(small_image())
    with (
        serving(binaries.server, tmp_path, "--header-seconds", "1") as run,
        socket.create_connection(("127.0.0.1", run.port)) as client,
    ):
        client.sendall(post(len(image)))
        assert drip(client, image[:12], 0.25)
        client.settimeout(30)
        answered(client, image[12:])
        time.sleep(2.5)
        answered(client, HEALTH)


def test_an_idle_connection_is_closed(binaries: Binaries, tmp_path: Path) -> None:
    with serving(binaries.server, tmp_path, "--idle-seconds", "1") as run:
        with socket.create_connection(("127.0.0.1", run.port), timeout=30) as silent:
            assert silent.recv(1) == b""
        with socket.create_connection(("127.0.0.1", run.port), timeout=30) as client:
            answered(client, HEALTH)
            assert client.recv(1) == b""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into the server by pidfd_getfd(2)")
def test_answers_are_not_delayed(binaries: Binaries, tmp_path: Path) -> None:
    """The server's sockets have TCP_NODELAY: a keep-alive answer waits for no acknowledgement."""
    with (
        serving(binaries.server, tmp_path) as run,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", run.port)) as connection,
    ):
        assert ask_on(connection, "GET", "/health").status == 200
        pidfd = os.pidfd_open(run.process.pid)
        accepted = []
        for link in Path(f"/proc/{run.process.pid}/fd").iterdir():
            if not str(link.readlink()).startswith("socket:"):
                continue
            copy = ctypes.CDLL(None, use_errno=True).syscall(
                SYS_PIDFD_GETFD, pidfd, int(link.name), 0
            )
            if copy < 0:
                pytest.skip(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
            with socket.socket(fileno=copy) as theirs:
                if theirs.family == socket.AF_INET and not theirs.getsockopt(
                    socket.SOL_SOCKET, socket.SO_ACCEPTCONN
                ):
                    accepted.append(theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        os.close(pidfd)
    assert accepted == [1]
