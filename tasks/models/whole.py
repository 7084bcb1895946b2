"""Is a file whole? Told from its size and its ends, wherever the file lies."""

import json
import struct

from tasks.models.archive import zip_fault

ZIPPED = (".pth", ".pt", ".ckpt", ".bin")


def fault_of(name: str, size: int, head: bytes, tail: bytes, checkpoint: bool = False) -> str:
    """What is missing of a file of `size` bytes, "" if nothing is known to be. `head` are its first
    bytes and `tail` its last 64 KiB; of a safetensors file `tail` is its header. A `checkpoint` is
    torch.save's, whatever its name."""
    if name.endswith(".safetensors"):
        return safetensors_fault(size, tail)
    if checkpoint or name.endswith(ZIPPED):
        return zip_fault(size, head, tail) or ""
    return ""


def safetensors_fault(size: int, header: bytes) -> str:
    """What is missing of a safetensors file whose first bytes are `header`
    (huggingface/safetensors, "Format")."""
    if size < 8:
        return "is cut short: it has no header"
    (length,) = struct.unpack_from("<Q", header) if len(header) >= 8 else (0,)
    if 8 + length > size:
        return "is cut short within its header"
    try:
        tensors = json.loads(header[8 : 8 + length])
        ends = [
            int(entry["data_offsets"][1]) for n, entry in tensors.items() if n != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "is damaged: its header can't be read"
    expected = 8 + length + max(ends, default=0)
    return "" if size == expected else f"has {size} bytes of {expected}"
