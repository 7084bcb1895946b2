"""The local host: the folder that releases live in, and what is done there.

The other hosts will offer the same few operations over SSH.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.core.atomic import sync_directory, write_atomically
from tasks.core.digest import read_digests
from tasks.core.errors import Busy, QuernError

LOG_BYTES = 10 << 20


class LocalHost:
    """Operations below `root` on this machine."""

    name = "local"

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    def has_file(self, path: Path) -> bool:
        """Whether `path` exists."""
        return path.exists()

    def put_file(self, source: Path, destination: Path, xxh3: str, executable: bool) -> None:
        """Copy `source` to `destination` (read-only there), verified by digest, by rename.

        Raises QuernError when the bytes that arrived are not those of the digest.
        """
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = destination.with_name(f".{destination.name}.partial")
        temporary.unlink(missing_ok=True)
        try:
            if not self._link_read_only(source, temporary):
                shutil.copyfile(source, temporary)
            _, arrived, _ = read_digests(temporary)
            if arrived != xxh3:
                raise QuernError(
                    f"{source}: its digest is {arrived[:12]}, the manifest says {xxh3[:12]}; "
                    "it was changed after the release was made, run doit again"
                )
            os.chmod(temporary, 0o555 if executable else 0o444)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, destination)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(destination.parent)

    @staticmethod
    def _link_read_only(source: Path, destination: Path) -> bool:
        """Share a large artifact, which the build keeps read-only, instead of copying it."""
        if source.stat().st_mode & 0o222:
            return False
        try:
            os.link(source, destination)
        except OSError:
            return False
        return True

    def link_file(self, source: Path, destination: Path) -> None:
        """A second name for a file that never changes."""
        with contextlib.suppress(FileExistsError):
            os.link(source, destination)

    def digest(self, path: Path) -> str:
        """xxh3_128 of a file, read anew."""
        return read_digests(path)[1]

    def write(self, path: Path, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        write_atomically(path, data)

    def read(self, path: Path) -> bytes | None:
        """A small file's bytes, None if there is none."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def rename_directory(self, source: Path, destination: Path) -> None:
        """Give a finished directory its name."""
        os.rename(source, destination)
        sync_directory(destination.parent)

    def remove_directory(self, path: Path) -> None:
        """Remove a directory and what is in it, if it is there."""
        shutil.rmtree(path, ignore_errors=True)

    def remove_file(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)

    def directories(self, path: Path) -> list[str]:
        """Names of the directories in `path`, the oldest first; temporary ones are left out."""
        if not path.exists():
            return []
        found = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
        return [p.name for p in sorted(found, key=lambda p: p.stat().st_mtime_ns)]

    def make_directory(self, path: Path) -> None:
        """Make a directory and its parents."""
        path.mkdir(parents=True, exist_ok=True)

    def link_target(self, link: Path) -> Path | None:
        """Where a symbolic link points, None if there is none."""
        try:
            return Path(os.readlink(link))
        except (FileNotFoundError, OSError):
            return None

    def point(self, link: Path, target: Path) -> None:
        """Make `link` point at `target`, by rename: a reader sees the old or the new."""
        temporary = link.with_name(f".{link.name}.partial")
        temporary.unlink(missing_ok=True)
        os.symlink(target, temporary)
        os.replace(temporary, link)
        sync_directory(link.parent)

    def remove_link(self, link: Path) -> None:
        """Remove a symbolic link, if it is there."""
        link.unlink(missing_ok=True)

    def append_line(self, path: Path, record: dict[str, Any]) -> None:
        """Append one JSON line, durably."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def spawn(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a program that outlives this run on purpose; its output goes to `log`."""
        if log.exists() and log.stat().st_size > LOG_BYTES:
            os.replace(log, log.with_name(f"{log.name}.1"))
        with open(log, "ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=log.parent,
            )

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """One deployer at a time per model. Raises Busy."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"{path}: another deploy of this model is at work") from None
            yield
