"""model_weights.bin, version 1: written, and read back by other code than wrote it.

The format is described in docs/weight-format.md. Neither side needs torch.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from tasks.core.digest import canonical_json
from tasks.core.errors import QuernError
from tasks.models.graph import INPUT, Graph

MAGIC = b"QUERNWTS"
VERSION = 1
BYTE_ORDER_MARK = 0x01020304
PREFIX = struct.Struct(">8sIIQQ")  # magic, version, byte-order mark, file size, header length
DIGEST_END = PREFIX.size + 16
ALIGNMENT = 64


@dataclass
class WeightsFile:
    """The JSON header and the tensors by name, in big-endian float32."""

    header: dict[str, Any]
    tensors: dict[str, npt.NDArray[Any]]


def encode(graph: Graph, preprocess: dict[str, Any], classes: list[str]) -> bytes:
    """The file's bytes; the same graph gives the same bytes.

    Raises QuernError where a folded weight is too large for float32.
    """
    nodes: list[dict[str, Any]] = []
    arrays: dict[str, npt.NDArray[Any]] = {}
    for node in graph.nodes:
        names = {}
        for role in sorted(node.tensors):
            names[role] = _unused(f"{node.name}.{role}", arrays)
            with np.errstate(over="ignore"):
                arrays[names[role]] = np.ascontiguousarray(node.tensors[role], ">f4")
            if not np.isfinite(arrays[names[role]]).all():
                raise QuernError(
                    f"{names[role]}: is too large for float32, as a batch norm that is folded in or"
                    " a division by nearly 0 makes it"
                )
        nodes.append(
            {
                "op": node.op,
                "name": node.name,
                "inputs": node.inputs,
                "output": node.output,
                "shape": list(node.shape),
                "tensors": names,
                "attributes": node.attributes,
            }
        )
    header = {
        "format": VERSION,
        "input": {"name": INPUT, "shape": list(graph.input_shape)},
        "output": graph.output,
        "nodes": nodes,
        "preprocess": preprocess,
        "classes": classes,
    }
    return _pack(header, arrays)


def decode(data: bytes, name: str) -> WeightsFile:
    """The header and tensors of a file's bytes, digest and bounds checked.

    Raises QuernError naming `name`.
    """

    def check(good: bool, fault: str) -> None:
        if not good:
            raise QuernError(f"{name}: {fault}; build it again")

    check(len(data) >= DIGEST_END, "is too short for a model_weights.bin")
    magic, version, mark, size, length = PREFIX.unpack_from(data)
    check(magic == MAGIC and mark == BYTE_ORDER_MARK, "is not a model_weights.bin")
    check(version == VERSION, f"is of version {version}, and only {VERSION} is known")
    check(size == len(data), f"says {size} bytes and has {len(data)}")
    digest = xxhash.xxh3_128(data[: PREFIX.size])
    digest.update(memoryview(data)[DIGEST_END:])
    check(digest.digest() == data[PREFIX.size : DIGEST_END], "is damaged: its digest differs")
    check(DIGEST_END + length <= size, "has a header that ends outside the file")
    try:
        header = json.loads(data[DIGEST_END : DIGEST_END + length])
        tensors, end = {}, DIGEST_END + length
        for tensor in header["tensors"]:
            start, count = tensor["offset"], math.prod(tensor["shape"])
            check(
                start % ALIGNMENT == 0
                and end <= start < end + ALIGNMENT
                and tensor["length"] == 4 * count
                and start + 4 * count <= size
                and tensor["dtype"] == "float32"
                and not any(data[end:start]),
                f"tensor {tensor['name']} is not where and what its header says",
            )
            end = start + 4 * count
            flat = np.frombuffer(data, ">f4", count, start)
            tensors[tensor["name"]] = flat.reshape(tensor["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise QuernError(f"{name}: has a damaged header: {error!r}; build it again") from None
    check(end == size, "has bytes after its last tensor")
    return WeightsFile(header, tensors)


def read_weights(path: Path) -> WeightsFile:
    """`decode` of a file. Raises QuernError, OSError."""
    return decode(path.read_bytes(), str(path))


def _pack(header: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    # Offsets stand in the header whose length moves them: repeat until they agree. They only
    # ever grow, so this ends.
    length = 0
    while True:
        end = DIGEST_END + length
        entries: list[dict[str, Any]] = []
        for name, array in arrays.items():
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + array.nbytes
            entries.append(
                {
                    "name": name,
                    "shape": list(array.shape),
                    "dtype": "float32",
                    "offset": start,
                    "length": array.nbytes,
                }
            )
        text = canonical_json({**header, "tensors": entries})
        if len(text) == length:
            break
        length = len(text)
    data = bytearray(end)
    PREFIX.pack_into(data, 0, MAGIC, VERSION, BYTE_ORDER_MARK, end, length)
    data[DIGEST_END : DIGEST_END + length] = text
    for entry, array in zip(entries, arrays.values(), strict=True):
        data[entry["offset"] : entry["offset"] + array.nbytes] = array.tobytes()
    digest = xxhash.xxh3_128(data[: PREFIX.size])
    digest.update(memoryview(data)[DIGEST_END:])
    data[PREFIX.size : DIGEST_END] = digest.digest()
    return bytes(data)


def _unused(name: str, taken: dict[str, Any]) -> str:
    """`name`, or name#2, name#3, … where a module is called more than once."""
    count, unused = 1, name
    while unused in taken:
        count += 1
        unused = f"{name}#{count}"
    return unused
