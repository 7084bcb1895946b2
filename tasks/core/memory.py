"""How much memory a program could still have."""

import contextlib
from pathlib import Path


def available_memory() -> int | None:
    """Bytes that can be had without swapping (Linux: MemAvailable), None where nobody says."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
