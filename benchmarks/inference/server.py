"""The server as its clients meet it: what a request costs, what it holds, how soon it answers.

Its CPU time is its own clock's, read from outside, so that no client's is in it.
"""

from __future__ import annotations

import io
import re
import selectors
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import psutil
from PIL import Image
from sklearn.datasets import load_sample_image

from benchmarks.inference.subjects import Subject
from benchmarks.inference.turns import Turns, engine, median_ratio

CLIENTS = 64
MORE_WORKERS = 4
ANSWER = re.compile(rb"HTTP/1\.1 200 .*?\r\ncontent-length: (\d+)\r\n.*?(?<=\r\n)\r\n", re.S | re.I)


class Server:
    """quern-server with a subject's weights, until the end of the block."""

    def __init__(self, program: Path, subject: Subject, workers: int) -> None:
        self.process = subprocess.Popen(
            [
                *(str(program), "--port", "0", "--workers", str(workers)),
                *("--weights", str(subject.folder / "model_weights.bin")),
                *("--classes", str(subject.folder / "classes.json")),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr
        line = self.process.stderr.readline()
        found = re.search(r"listening on http://.*:(\d+)", line)
        if not found:
            self.process.kill()
            sys.exit(f"quern-server did not start: {line.strip()}")
        self.port = int(found[1])

    def cpu_seconds(self) -> float:
        if sys.platform == "linux":  # clock_getcpuclockid(3), where cpu_times() counts in 10 ms
            return time.clock_gettime((~self.process.pid << 3) | 2)
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def resident_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss / 1e6)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # to drain takes as long as clients keep their connections
        self.process.communicate()


class Client:
    """A keep-alive connection that asks for the same prediction again and again."""

    def __init__(self, server: Server, jpeg: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = (
            "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {len(jpeg)}\r\n\r\n"
        )
        self.request = head.encode() + jpeg

    def send(self) -> None:
        self.socket.sendall(self.request)

    def receive(self) -> None:
        """Read one answer to its end, which must be a prediction."""
        answer = b""
        while not (found := ANSWER.match(answer)) or len(answer) < found.end() + int(found[1]):
            received = self.socket.recv(65536)
            if not received or (found is None and b"\r\n\r\n" in answer):
                sys.exit(f"quern-server answered {answer[:300]!r}")
            answer += received

    def ask(self) -> None:
        self.send()
        self.receive()


def photograph() -> bytes:
    """A 640x480 photograph as JPEG, quality 85."""
    buffer = io.BytesIO()
    china = Image.fromarray(load_sample_image("china.jpg"))
    china.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def start_ms(program: Path, subject: Subject, jpeg: bytes, rounds: int) -> float:
    """From the start of the process to its first prediction, by the wall."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        with Server(program, subject, workers=1) as server:
            Client(server, jpeg).ask()
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def memory(program: Path, subject: Subject, jpeg: bytes) -> tuple[float, float]:
    """MB resident after the first prediction with one worker, and for each worker more.

    Each further worker has predicted, under the same load as the one worker alone.
    """
    after_load = []
    for workers in (1, 1 + MORE_WORKERS):
        with Server(program, subject, workers) as server:
            Client(server, jpeg).ask()
            if workers == 1:
                after_first = server.resident_mb()
            clients = [Client(server, jpeg) for _ in range(2 * MORE_WORKERS)]
            for _ in range(5):
                for client in clients:
                    client.send()
                for client in clients:
                    client.receive()
            after_load.append(server.resident_mb())
    return after_first, (after_load[1] - after_load[0]) / MORE_WORKERS


def request_times(server: Server, client: Client, seconds: float) -> list[float]:
    """The server's CPU seconds for each request, one after the other, for about `seconds`."""
    client.ask()  # what ran in between has taken the caches
    times: list[float] = []
    before, end = server.cpu_seconds(), time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        client.ask()
        after = server.cpu_seconds()
        times.append(after - before)
        before = after
    return times


def request_ratio(
    server: Server, client: Client, forward: Turns, rounds: int, seconds: float
) -> tuple[float, float]:
    """CPU ms of a request, and its ratio to the forward alone, in turn with it: medians of both."""
    request, alone = [], []
    for _ in range(rounds):
        alone.append(statistics.median(forward.ask("turn")))
        request.append(1000 * statistics.median(request_times(server, client, seconds)))
    return statistics.median(request), median_ratio(request, alone)


def throughput_ratio(
    server: Server, clients: list[Client], rounds: int, seconds: float
) -> tuple[float, float]:
    """Requests/s of all clients, and its ratio to workers / CPU seconds of a request alone.

    One worker a core. The clients run on the same cores, and so may others: a worker's second is
    taken as what the server used of the CPU and what stayed idle, so that theirs is not counted.
    """
    rates, ratios = [], []
    for _ in range(rounds):
        alone = statistics.fmean(request_times(server, clients[0], seconds))
        count, wall, available = load(server, clients, seconds)
        rates.append(count / wall)
        ratios.append(count * alone / available)
    return statistics.median(rates), statistics.median(ratios)


def load(server: Server, clients: list[Client], seconds: float) -> tuple[int, float, float]:
    """Requests answered to clients that never pause, in how many seconds by the wall, and how many
    CPU seconds the server could have had.
    """
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send()

        def answer(seconds: float) -> int:
            count, end = 0, time.perf_counter() + seconds
            while time.perf_counter() < end:
                for key, _ in selector.select(1):
                    key.data.receive()
                    key.data.send()
                    count += 1
            return count

        answer(0.2 * seconds)  # until all are at it
        start, used, idle = time.perf_counter(), server.cpu_seconds(), idle_seconds()
        count = answer(seconds)
        wall = time.perf_counter() - start
        available = server.cpu_seconds() - used + idle_seconds() - idle
        for client in clients:
            client.receive()
    return count, wall, available


def idle_seconds() -> float:
    """What all cores have spent on nothing since the machine started."""
    times = psutil.cpu_times()
    return float(times.idle + getattr(times, "iowait", 0.0))


def binary_kb(program: Path, folder: Path) -> float:
    """Size of the program without its symbols, in 1000 bytes."""
    stripped = folder / "stripped"
    subprocess.run(["strip", "-o", str(stripped), str(program)], check=True)
    return stripped.stat().st_size / 1000


def measure(
    program: Path, subject: Subject, folder: Path, rounds: int, seconds: float
) -> dict[str, float]:
    """Every figure of the server; `rounds` turns of about `seconds` each."""
    jpeg = photograph()
    resident, per_worker = memory(program, subject, jpeg)
    with Server(program, subject, 1) as server, engine("quern", subject, seconds) as forward:
        client = Client(server, jpeg)
        request_ms, to_forward = request_ratio(server, client, forward, rounds, seconds)
    with Server(program, subject, psutil.cpu_count()) as server:
        clients = [Client(server, jpeg) for _ in range(CLIENTS)]
        per_second, to_workers = throughput_ratio(server, clients, rounds, 4 * seconds)
    return {
        "resident_mb": resident,
        "resident_mb_per_worker": per_worker,
        "binary_kb": binary_kb(program, folder),
        "start_ms": start_ms(program, subject, jpeg, rounds),
        "request_ms": request_ms,
        "request_ratio": to_forward,
        "requests_per_s": per_second,
        "throughput_ratio": to_workers,
    }
