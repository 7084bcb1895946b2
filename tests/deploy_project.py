"""A project with the real chapters, server and holder, and small networks trained a little."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from tests.native_build import DOIT, ROOT, native_build

COPIED = ("dodo.py", "pyproject.toml", "CMakeLists.txt", "native", "examples")
MODELS = """
models:
  digits:
    kind: classifier
    checkpoint: {{path: training/checkpoints_cycle*/best_model.pth}}
    architecture: {{file: examples/digits/litecnn.py, class: LiteCNNPro,
                    arguments: {{num_classes: 10, width: 0.125}}}}
    classes: examples/digits/classes.json
    preprocess: {{resize: 36, crop: 32, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
    deploy: {{local: {{stable: {port}}}}}
"""


LARGE_BYTES = 8 << 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def share_store(root: Path) -> None:
    """Give the project in `root` what this one's store has; large objects are the same files."""

    def share(source: str, target: str) -> None:
        if os.stat(source).st_size > LARGE_BYTES:
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    try:
        shutil.copytree(ROOT / ".quern" / "store", root / ".quern" / "store", copy_function=share)
    except (OSError, shutil.Error):  # another file system
        shutil.rmtree(root / ".quern" / "store")
        shutil.copytree(ROOT / ".quern" / "store", root / ".quern" / "store")


def end_holders(folder: Path) -> None:
    """End the holders of a model's channels on this machine, and their servers."""
    from tasks.hosts.unix_http import Unreachable, ask_socket

    for channel in folder.glob("*/holder.sock"):
        try:
            ask_socket(channel, "POST", "/shutdown")
            while True:
                ask_socket(channel, "GET", "/status", timeout=2)
                time.sleep(0.02)
        except Unreachable:
            pass


def train_a_little(path: Path, seed: int, steps: int = 24) -> None:
    """A LiteCNNPro, width 1/8, after some steps on the digits: its answers depend on its input."""
    import torch
    import torch.nn.functional as F

    from examples.digits.litecnn import LiteCNNPro
    from examples.digits.train import as_inputs, digits

    torch.manual_seed(seed)
    torch.set_num_threads(2)
    images, labels = digits()
    inputs, targets = as_inputs(images[:256]), torch.from_numpy(labels[:256])
    model = LiteCNNPro(num_classes=10, width=0.125)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(steps):
        rows = torch.arange(step % 4, 256, 4)
        loss = F.cross_entropy(model(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = {"model_state_dict": model.state_dict(), "epoch": seed, "val_acc": 0.5}
    torch.save(checkpoint, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


@dataclass
class DeployProject:
    """A temporary project; its store starts with the programs already built."""

    root: Path
    checkpoints: list[Path]
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        native_build()
        self.root.mkdir(exist_ok=True)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns(
                    "build", "checkpoints_*", "held_out", "__pycache__"
                )
                shutil.copytree(source, self.root / name, ignore=ignored)
            else:
                shutil.copy(source, self.root / name)
        share_store(self.root)
        (self.root / "models.yaml").write_text(MODELS.format(port=self.port))

    @property
    def host(self) -> Path:
        return self.root / ".quern" / "hosts" / "local" / "digits"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def use_checkpoint(self, number: int) -> None:
        """Training wrote checkpoint `number`, as cycle 1."""
        target = self.root / "training" / "checkpoints_cycle1" / "best_model.pth"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.checkpoints[number], target.with_suffix(".partial"))
        os.replace(target.with_suffix(".partial"), target)

    def command(self, *arguments: str) -> list[str]:
        return [str(DOIT), *arguments]

    def doit(self, *arguments: str, status: int | None = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            self.command(*arguments), cwd=self.root, capture_output=True, text=True, timeout=600
        )
        if status is not None:
            assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def health(self) -> dict[str, str]:
        with urllib.request.urlopen(f"http://{self.address}/health", timeout=10) as answer:
            return json.load(answer)  # type: ignore[no-any-return]

    def history(self) -> list[dict]:  # type: ignore[type-arg]
        lines = (self.host / "history.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def stop(self) -> None:
        """End the holders and their servers."""
        end_holders(self.host)


class Hammer:
    """Clients that post an image again and again, half of them keeping their connection."""

    def __init__(self, address: str, image: bytes, clients: int = 4) -> None:
        self.address, self.image = address, image
        self.answers = 0
        self.failures: list[str] = []
        self.releases: set[str] = set()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._post, args=(number % 2 == 0,))
            for number in range(clients)
        ]

    def __enter__(self) -> "Hammer":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _post(self, keep: bool) -> None:
        connection = HTTPConnection(self.address, timeout=30)
        headers = {"Content-Type": "image/png", "Connection": "keep-alive" if keep else "close"}
        while not self._stop.is_set():
            try:
                connection.request("POST", "/predict", self.image, headers)
                response = connection.getresponse()
                data = response.read()
                answer = json.loads(data)
                good = response.status == 200 and len(answer["predictions"]) == 5
                with self._lock:
                    self.answers += 1
                    if good:
                        self.releases.add(answer["release"])
                    else:
                        self.failures.append(f"{response.status} {data[:100]!r}")
            except (OSError, HTTPException, ValueError, KeyError) as error:
                with self._lock:
                    self.failures.append(repr(error))
                connection.close()
            if not keep:
                connection.close()
