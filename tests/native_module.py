"""What the tests of the native side share: the module, built once, and a writer of weights files.

The writer is written from the format's description alone and knows nothing of Quern's own, so that
the two cannot be wrong together.
"""

from __future__ import annotations

import importlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xxhash

from tests.native_build import native_build


@pytest.fixture(scope="session")
def native() -> Any:
    """The module quern_native."""
    sys.path.insert(0, str(native_build()))
    return importlib.import_module("quern_native")


def node(
    op: str,
    inputs: list[str],
    output: str,
    shape: tuple[int, ...],
    tensors: dict[str, str] | None = None,
    attributes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One entry of the header's "nodes"."""
    return {
        "op": op,
        "name": f"layer.{output}",
        "inputs": inputs,
        "output": output,
        "shape": list(shape),
        "tensors": tensors or {},
        "attributes": attributes or {},
    }


def preprocess(mode: str, **changes: Any) -> dict[str, Any]:
    """A "preprocess" section that does nothing but value / 255, with changes."""
    channels = 3 if mode == "RGB" else 1
    section = {
        "mode": mode,
        "resize": None,
        "crop": None,
        "interpolation": "bilinear",
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
    }
    return section | changes


def write_weights(
    path: Path,
    input_shape: tuple[int, ...],
    nodes: list[dict[str, Any]],
    tensors: dict[str, npt.NDArray[np.float32]],
    preprocessing: dict[str, Any] | None = None,
) -> str:
    """Write model_weights.bin, version 1; the last node's output is the network's.

    Returns the file's xxh3_128, 32 hex digits.
    """
    output = nodes[-1]
    header: dict[str, Any] = {
        "format": 1,
        "input": {"name": "input", "shape": list(input_shape)},
        "output": output["output"],
        "nodes": nodes,
        "tensors": [],
        "preprocess": preprocessing or preprocess("RGB" if input_shape[1] == 3 else "L"),
        "classes": [str(i) for i in range(output["shape"][1])],
    }
    text = b""
    while True:  # the offsets' digits change the header's length, and that the offsets
        end = 48 + len(text)
        entries = []
        for name, values in tensors.items():
            offset = -(-end // 64) * 64
            end = offset + values.nbytes
            entries.append(
                {
                    "name": name,
                    "shape": list(values.shape),
                    "dtype": "float32",
                    "offset": offset,
                    "length": values.nbytes,
                }
            )
        header["tensors"] = entries
        new = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if len(new) == len(text):
            text = new
            break
        text = new

    body = bytearray(48) + text
    body += bytes(-len(body) % 64)
    for values in tensors.values():
        body += bytes(-len(body) % 64)
        body += values.astype(">f4").tobytes()
    body[:32] = struct.pack(">8sIIQQ", b"QUERNWTS", 1, 0x01020304, len(body), len(text))
    body[32:48] = xxhash.xxh3_128_digest(bytes(body[:32] + body[48:]))
    path.write_bytes(body)
    return xxhash.xxh3_128_hexdigest(bytes(body))
