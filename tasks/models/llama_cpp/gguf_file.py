"""The header of a GGUF file: metadata and where each tensor's data lies.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.errors import QuernError

MAGIC = b"GGUF"
# Types of values by number, as struct codes.
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
FLOAT32 = 0


@dataclass(frozen=True)
class Tensor:
    """`shape` in ggml's order, rows' length first; `type` by ggml.h's number; `offset` in bytes
    from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """`data_offset`: where the tensors' data begins, in bytes."""

    metadata: dict[str, Any]
    tensors: list[Tensor]
    data_offset: int


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        if length > len(self.data) - self.at:
            raise ValueError("a string is longer than the file")
        self.at += length
        return self.data[self.at - length : self.at].decode(errors="replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            of, count = self.scalar("I"), self.scalar("Q")
            if count > len(self.data) - self.at:
                raise ValueError("an array is longer than the file")
            return [self.value(of) for _ in range(count)]
        return self.scalar(SCALARS[kind])


def read_header(path: str) -> Header:
    """The header of the GGUF file at `path`. Raises QuernError: not a GGUF file, or cut off."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            return _read(_Reader(data))
    except (ValueError, KeyError, struct.error) as error:
        raise QuernError(f"{path}: not a whole GGUF file ({error}); build it again") from None


def _read(reader: _Reader) -> Header:
    if reader.data[:4] != MAGIC:
        raise ValueError("no GGUF magic")
    reader.at = 4
    version, tensor_count, value_count = (reader.scalar(code) for code in "IQQ")
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    metadata = {}
    for _ in range(value_count):
        name = reader.string()
        metadata[name] = reader.value(reader.scalar("I"))
    found = []
    for _ in range(tensor_count):
        name = reader.string()
        shape = tuple(reader.scalar("Q") for _ in range(reader.scalar("I")))
        found.append((name, shape, reader.scalar("I"), reader.scalar("Q")))
    alignment = metadata.get("general.alignment", 32)
    start = -(-reader.at // alignment) * alignment
    return Header(metadata, [Tensor(n, s, t, start + o) for n, s, t, o in found], start)


def read_floats(path: str, tensor: Tensor) -> list[float]:
    """A float32 tensor's numbers, flat. Raises QuernError: another type, or cut off."""
    count = 1
    for length in tensor.shape:
        count *= length
    data = b""
    if tensor.type == FLOAT32:
        with Path(path).open("rb") as file:
            file.seek(tensor.offset)
            data = file.read(4 * count)
    if len(data) < 4 * count:
        raise QuernError(f"{path}: {tensor.name} is not {count} numbers of float32; make it again")
    return list(struct.unpack(f"<{count}f", data))
