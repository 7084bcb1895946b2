"""Weights files damaged by the thousand, under the sanitizers: refused in a sentence, or run.

What is a sentence, and what memory may be taken, is checked in native/fuzz/run_weights.cc.
"""

import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from native.fuzz.run import CORPUS, build, environment
from tasks.models.graph import encode
from tasks.models.lower import lower
from tasks.models.tracing import trace
from tests.native_build import native_build
from tests.test_fuzz import needs_libfuzzer

FILES = 100_000
NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU6())
        self.depthwise = nn.Conv2d(6, 6, 3, 1, 1, groups=6)
        self.squeeze = nn.Conv2d(6, 2, 1)
        self.excite = nn.Conv2d(2, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.depthwise(x)
        scale = self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head((x + y * scale).mean((2, 3)))
"""


def lowered(folder: Path) -> Path:
    """The file that the build makes of a network like LiteCNNPro."""
    network = {
        "architecture": folder / "net.py",
        "class_name": "Net",
        "arguments": {},
        "preprocess": {"resize": 10, "crop": 8, "mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.25]},
    }
    (folder / "net.py").write_text(NETWORK)
    (folder / "classes.json").write_text('["red", "green", "blue"]')
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    exec(NETWORK, scope)
    checkpoint = {"model_state_dict": scope["Net"]().state_dict(), "epoch": 1, "val_acc": 0.5}
    torch.save(checkpoint, folder / "best_model.pth")
    (folder / "graph.json").write_bytes(encode(trace(**network)))
    lower(
        checkpoint=folder / "best_model.pth",
        classes=folder / "classes.json",
        graph=folder / "graph.json",
        weights=folder / "model_weights.bin",
        golden=folder / "golden.json",
        details=folder / "details.json",
        probes=[],
        **network,
    )
    return folder / "model_weights.bin"


@needs_libfuzzer
@pytest.mark.slow
def test_damaged_files_are_refused_or_run(tmp_path: Path) -> None:
    seeds = [lowered(tmp_path), *sorted((CORPUS / "weights").iterdir())]
    processes = os.cpu_count() or 1
    share = -(-FILES // processes)
    running = [
        subprocess.Popen(
            [str(build() / "mutate_weights"), str(share), str(number), *map(str, seeds)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    total = {"files": 0, "refused": 0, "ran": 0, "too_large": 0}
    for process in running:
        output, complaint = process.communicate()
        assert process.returncode == 0, complaint[-8000:]
        counts = json.loads(output)
        print(counts)
        assert counts["refusals"] > 50  # kinds: the damage reaches many checks
        for key in total:
            total[key] += counts[key]
    assert total["files"] >= FILES
    assert total["refused"] + total["ran"] + total["too_large"] == total["files"]
    assert total["ran"] > FILES / 50
    assert total["too_large"] < FILES / 1000  # loaded, but a run would take minutes


HEADER = 1 << 24  # the longest that is read


@pytest.mark.slow
@pytest.mark.parametrize("item", [b"[],", b"{},", b"1,", b'"",', b"[[[[[[]]]]]],", b'{"":1},'])
def test_the_largest_headers_stay_within_memory(item: bytes, tmp_path: Path) -> None:
    """Each loads in a process of its own: refused in one line, in less than a GiB."""
    text = b"[" + item * ((HEADER - 3) // len(item)) + b"1]"
    body = bytearray(48) + text
    body += bytes(-len(body) % 64)
    body[:32] = struct.pack(">8sIIQQ", b"QUERNWTS", 1, 0x01020304, len(body), len(text))
    body[32:48] = xxhash.xxh3_128_digest(bytes(body[:32] + body[48:]))
    path = tmp_path / "model_weights.bin"
    path.write_bytes(body)
    load = f"import quern_native; quern_native.Model({str(path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", load],
        env=os.environ | {"PYTHONPATH": str(native_build())},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ValueError: {path}: the header is not an object"
