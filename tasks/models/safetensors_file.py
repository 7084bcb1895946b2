"""Safetensors files by their headers: what is where, read without trusting or loading it.

A file is the header's length (8 bytes, little-endian), the header (JSON: name → dtype, shape and
offsets) and the tensors' bytes, which follow one another without gaps.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.core.errors import QuernError

# Bytes of one element; the float types also with the integers, and the bits among them, by which
# NaN and infinity are told.
SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
EXPONENTS: dict[str, tuple[type[np.unsignedinteger], int]] = {
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
}
LONGEST_HEADER = 100_000_000  # the format's own limit
COUNTED_AT_ONCE = 1 << 17  # bytes; stays in a core's cache

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor in a file: safetensors' name of its dtype, its shape, and where it begins and
    ends, in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsFile:
    """A file's header, as its bytes (the length included) and as tensors in the file's order."""

    path: Path
    header: bytes
    tensors: dict[str, Stored]

    def read(self, name: str) -> Bytes:
        """The bytes of one tensor, uint8 of one dimension. Raises OSError."""
        stored = self.tensors[name]
        data = np.empty(stored.end - stored.begin, np.uint8)
        with open(self.path, "rb", buffering=0) as file:
            read_exactly(file.fileno(), data, stored.begin, self.path)
        return data


def read_header(path: Path) -> SafetensorsFile:
    """Read and check a file's header against the file's size.

    Raises QuernError: missing, cut short, not safetensors, offsets that don't fit shapes.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, LONGEST_HEADER):
                told = "is cut short" if length <= LONGEST_HEADER else "is no safetensors file"
                raise _broken(path, f"{told} ({size} bytes, within its header)")
            text = file.read(length)
    except FileNotFoundError:
        raise QuernError(f"{path}: no such file; copy the whole directory again") from None
    except OSError as error:
        raise QuernError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        found = {name: _stored(value, 8 + length) for name, value in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _broken(path, "its header is not that of a safetensors file") from None
    tensors = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = 8 + length
    for name, stored in tensors.items():
        if stored.dtype not in SIZES:
            raise QuernError(f"{path}: {name} has the unknown type {stored.dtype}; save it as bf16")
        if stored.end - stored.begin != math.prod(stored.shape) * SIZES[stored.dtype]:
            raise _broken(path, f"{name}: its size is not that of its shape")
        if stored.begin != end:
            raise _broken(path, f"{name} does not begin where the tensor before it ends")
        end = stored.end
    if end != size:
        what = "is cut short" if end > size else "has bytes after its last tensor"
        raise _broken(path, f"{what} ({size} bytes, and its header says {end})")
    return SafetensorsFile(path, prefix + text, tensors)


def _stored(value: dict[str, object], data: int) -> Stored:
    shape, offsets = value["shape"], value["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError
    if not all(type(number) is int and number >= 0 for number in (*shape, *offsets)):
        raise ValueError
    return Stored(str(value["dtype"]), tuple(shape), data + offsets[0], data + offsets[1])


def _broken(path: Path, what: str) -> QuernError:
    return QuernError(f"{path}: {what}; copy or save it again")


def read_exactly(descriptor: int, into: Bytes, offset: int, path: Path) -> None:
    """Fill `into` from a file's bytes at `offset`. Raises OSError, QuernError if they end."""
    view = into.data
    while view:
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise QuernError(f"{path}: was cut short while it was read; run again")
        view, offset = view[count:], offset + count


def write_exactly(descriptor: int, data: Bytes, offset: int) -> None:
    """Write all of `data` into a file at `offset`. Raises OSError."""
    view = data.data
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def not_finite(data: Bytes, dtype: str) -> int:
    """How many of a tensor's numbers are NaN or infinite; `data` is its bytes, uint8."""
    if dtype not in EXPONENTS:
        return 0
    integer, exponent = EXPONENTS[dtype]
    bits = integer(exponent)
    numbers = data.view(integer)
    return sum(int(np.count_nonzero((part & bits) == bits)) for part in _parts(numbers))


def _parts(numbers: npt.NDArray[np.unsignedinteger]) -> Iterator[npt.NDArray[np.unsignedinteger]]:
    step = COUNTED_AT_ONCE // numbers.itemsize
    for start in range(0, len(numbers), step):
        yield numbers[start : start + step]
