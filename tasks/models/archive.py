"""Is a checkpoint file whole? Asked of the zip directory at its end, before torch sees the file."""

import os
import struct
from pathlib import Path

# PKWARE APPNOTE.TXT 4.3.14 to 4.3.16.
END = b"PK\x05\x06"
END_SIZE = 22
LOCATOR_64 = b"PK\x06\x07"
LOCATOR_64_SIZE = 20
END_64 = b"PK\x06\x06"
END_64_SIZE = 56
TAIL_BYTES = 1 << 16


def is_complete_zip(path: Path) -> str | None:
    """None if the file is a zip archive with nothing missing at its end, else the reason.

    Raises OSError.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(4)
        file.seek(max(0, size - TAIL_BYTES))
        return zip_fault(size, head, file.read(TAIL_BYTES))


def zip_fault(size: int, head: bytes, tail: bytes) -> str | None:
    """None if a file of `size` bytes is a zip archive with nothing missing at its end, else the
    reason; `head` are its first bytes, `tail` its last TAIL_BYTES or all of it.

    torch.save writes the archive's directory last, so a save that was cut short, or is still
    under way, lacks it even when the file already has its full size.
    """
    if size == 0:
        return "is empty"
    if not head.startswith(b"PK\x03\x04"):
        return "is not a zip archive, which torch.save has written since version 1.6"
    start = size - len(tail)
    at = tail.rfind(END)
    if at < 0 or len(tail) - at < END_SIZE:
        return "is cut short: the zip directory at its end is missing"
    directory_size, directory_start, comment = struct.unpack_from("<IIH", tail, at + 12)
    if start + at + END_SIZE + comment != size:
        return "is cut short, or has bytes after its end"
    end = start + at
    locator = at - LOCATOR_64_SIZE
    if locator >= 0 and tail.startswith(LOCATOR_64, locator):
        (end,) = struct.unpack_from("<Q", tail, locator + 8)
        if end + END_64_SIZE > size:
            return "is damaged: its zip64 directory lies outside the file"
        record = tail[max(0, end - start) :] if end >= start else b""
        if not record.startswith(END_64) or len(record) < END_64_SIZE:
            return "is damaged: its zip64 directory is missing"
        directory_size, directory_start = struct.unpack_from("<QQ", record, 40)
    if directory_start + directory_size != end:
        return "is damaged: its zip directory lies elsewhere than its end says"
    return None
