"""Folders that are whole or absent: written under a temporary name, synced, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.core.atomic import sync_directory


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `path` if nothing is raised."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors makes them 0600
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        sync_directory(partial)
        if path.exists():
            # A folder can't be renamed over a full one.
            old = path.with_name(f".{path.name}.old.partial")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            partial.rename(path)
        sync_directory(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
