"""What the tests of server and holder share: a model whose answer is computable by hand, release
directories, real processes, and clients. Nothing here is a stand-in for the programs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from tests.native_module import node, preprocess, write_weights

CLASSES = 10
MEAN = [0.485, 0.456, 0.406]
STD = [0.229, 0.224, 0.225]
Logits = npt.NDArray[np.float64]


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parameters(variant: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weight [10, 3] and bias [10] of a model; variants prefer different classes."""
    random = np.random.default_rng(variant)
    weight = random.normal(size=(CLASSES, 3)).astype(np.float32)
    bias = random.normal(size=CLASSES).astype(np.float32)
    bias[variant % CLASSES] += 4.0
    return weight, bias


@functools.cache
def weights_bytes(variant: int = 0) -> bytes:
    """A model_weights.bin (contract 1): mean over the pixels, then linear 3 -> 10."""
    weight, bias = parameters(variant)
    nodes = [
        node("adaptive_average_pool2d", ["input"], "v0", (1, 3, 1, 1), attributes={"size": [1, 1]}),
        node("reshape", ["v0"], "v1", (1, 3)),
        node("linear", ["v1"], "v2", (1, CLASSES), {"weight": "head.weight", "bias": "head.bias"}),
    ]
    steps = preprocess("RGB", resize=[32, 32], mean=MEAN, std=STD)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model_weights.bin"
        write_weights(
            path, (1, 3, 32, 32), nodes, {"head.weight": weight, "head.bias": bias}, steps
        )
        return path.read_bytes()


def expected_logits(image: Image.Image, variant: int = 0) -> Logits:
    """What the model answers for a 32x32 image, in float64."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255.0
    mean = ((pixels - MEAN) / STD).mean(axis=(0, 1))
    weight, bias = parameters(variant)
    return np.asarray(weight.astype(np.float64) @ mean + bias)


def softmax(logits: Logits) -> Logits:
    exponents = np.exp(logits - logits.max())
    return np.asarray(exponents / exponents.sum())


def small_image(seed: int = 1) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def slow_png() -> bytes:
    """An image that takes some tenths of a second to answer: 16 million pixels."""
    return png(Image.new("RGB", (4000, 4000), (10, 200, 30)))


BREEDS = {str(i): {"breed_en": f"breed {i}", "breed_ko": f"견종 {i}"} for i in range(CLASSES)}


def write_model(directory: Path, variant: int = 0, classes: Any = BREEDS) -> tuple[Path, Path]:
    directory.mkdir(parents=True, exist_ok=True)
    weights, names = directory / "model_weights.bin", directory / "classes.json"
    weights.write_bytes(weights_bytes(variant))
    names.write_text(json.dumps(classes, ensure_ascii=False))
    return weights, names


def write_release(
    root: Path,
    server: Path,
    variant: int,
    changed: dict[str, str] | None = None,
    classes: Any = BREEDS,
) -> Path:
    """A release directory (contract 4); `changed` replaces digests in the manifest, by role."""
    building = root / f"building-{variant}"
    write_model(building, variant, classes)
    shutil.copy(server, building / "quern-server")
    probe = small_image()
    logits = expected_logits(probe, variant)
    golden = {
        "format": 1,
        "weights": xxhash.xxh3_128(weights_bytes(variant)).hexdigest(),
        "tolerance": {"relative": 1e-4},
        "probes": [
            {
                "name": "probe.png",
                "image": "",
                "logits": list(logits),
                "class_id": int(logits.argmax()),
            }
        ],
    }
    (building / "golden.json").write_bytes(canonical(golden) + b"\n")
    roles: dict[str, Any] = {}
    for role, name in [
        ("server", "quern-server"),
        ("weights", "model_weights.bin"),
        ("classes", "classes.json"),
        ("golden", "golden.json"),
    ]:
        data = (building / name).read_bytes()
        roles[role] = {
            "file": name,
            "xxh3_128": xxhash.xxh3_128(data).hexdigest(),
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
        }
        if changed and role in changed:
            roles[role]["xxh3_128"] = changed[role]
    manifest = (
        canonical(
            {
                "format": 1,
                "model": "digits",
                "label": f"Cycle {variant}",
                "roles": roles,
                "checkpoint": {},
            }
        )
        + b"\n"
    )
    (building / "manifest.json").write_bytes(manifest)
    final = root / xxhash.xxh3_128(manifest).hexdigest()[:16]
    building.rename(final)
    return final


# ---- clients -------------------------------------------------------------------------------------


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket whose path may be longer than sun_path: by way of a short link."""

    def __init__(self, path: Path, timeout: float = 30) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="q") as short:
            link = Path(short) / "d"
            link.symlink_to(self.path.parent)
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(link / self.path.name))


def ask(
    where: int | Path,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 30,
) -> Answer:
    """One request on a connection of its own, to a port or to a Unix socket."""
    connection = (
        UnixConnection(where, timeout)
        if isinstance(where, Path)
        else http.client.HTTPConnection("127.0.0.1", where, timeout=timeout)
    )
    with contextlib.closing(connection):
        return ask_on(connection, method, path, body, headers)


def ask_on(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return Answer(
        response.status,
        response.read(),
        {name.lower(): value for name, value in response.getheaders()},
    )


def post_json(where: int | Path, path: str, value: Any, timeout: float = 30) -> Answer:
    return ask(
        where,
        "POST",
        path,
        json.dumps(value).encode(),
        {"Content-Type": "application/json"},
        timeout,
    )


PNG = {"Content-Type": "image/png"}


@dataclass
class Hammer:
    """Keep-alive clients that ask /predict without a pause. A failed request is a request without a
    200: only a connection that closed *between* requests (announced by `Connection: close`) is
    opened anew."""

    port: int
    clients: int = 4
    releases: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Hammer:
        self.image = png(small_image())
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.work) for _ in range(self.clients)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def work(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while not self.stopping.is_set():
            try:
                answer = ask_on(connection, "POST", "/predict?top=1", self.image, PNG)
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status} {answer.body!r}")
                release = answer.json()["release"]
                with self.lock:
                    self.releases[release] = self.releases.get(release, 0) + 1
            except Exception as error:  # whatever it is, the client has lost a request
                self.failures.append(repr(error))
                connection.close()
        connection.close()

    def total(self) -> int:
        with self.lock:
            return sum(self.releases.values())

    def wait_for(self, release: str, more: int = 20) -> None:
        """Until `release` has answered `more` further requests."""
        before = self.releases.get(release, 0)
        wait(
            lambda: self.releases.get(release, 0) >= before + more,
            f"release {release} to answer; seen {self.releases}, failures {self.failures[:3]}",
        )


# ---- processes -----------------------------------------------------------------------------------


def wait(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    log_path: Path
    port: int = 0

    def log(self) -> str:
        return self.log_path.read_text()


@contextlib.contextmanager
def running(
    command: list[str],
    log: Path,
    environment: dict[str, str] | None = None,
) -> Iterator[Running]:
    """A process until the end of the block; its standard error goes to `log`. A sanitizer's report
    in the log fails the test."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env={**os.environ, **(environment or {})}
        )
    result = Running(process, log)
    try:
        yield result
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    report = re.search(r"(?:ERROR|WARNING): \w+Sanitizer.*|runtime error:.*", result.log())
    assert report is None, result.log()


def listening_port(run: Running) -> int:
    """The port that the program's log names, once it listens."""

    def look() -> int:
        assert run.process.poll() is None, run.log()
        found = re.search(r"(?:listening on http://|holding )127\.0\.0\.1:(\d+)", run.log())
        return int(found[1]) if found else 0

    run.port = wait(look, "the program to listen")
    return run.port


@contextlib.contextmanager
def serving(
    server: Path,
    directory: Path,
    *options: str,
    classes: Any = BREEDS,
    environment: dict[str, str] | None = None,
) -> Iterator[Running]:
    """A server alone on a free port, with the model that is computable by hand."""
    weights, names = write_model(directory, classes=classes)
    command = [
        str(server),
        "--port",
        "0",
        "--weights",
        str(weights),
        "--classes",
        str(names),
        *options,
    ]
    with running(command, directory / "log", environment) as run:
        listening_port(run)
        yield run


def read_all(client: socket.socket) -> bytes:
    data = b""
    while piece := client.recv(65536):
        data += piece
    return data


def connections(pid: int) -> list[str]:
    """The process's accepted TCP sockets, as inode numbers; one may just be closing."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink())):
                inodes.add(match[1])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[9] for row in rows if row[3] == "01" and row[9] in inodes]


def peak_bytes(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024
