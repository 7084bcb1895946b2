"""Files from and to a host: resumed where they stopped, verified by SHA-256, whole or absent.

A partial file has the SHA-256 of what it shall be in its name: the same bytes go on where they
stopped, whatever happened in between; other bytes begin anew.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.core.atomic import sync_directory
from tasks.core.errors import QuernError
from tasks.hosts import sftp_stream
from tasks.hosts.ssh import Connection

Progress = Callable[[int, int], None]  # bytes done, bytes in all

SILENCE_SECONDS = 30.0
BLOCK_BYTES = 1 << 20


class Changed(QuernError):
    """The bytes that came are not those that were asked for: the file changed meanwhile."""


def download(
    connection: Connection,
    source: str,
    size: int,
    sha256: str,
    destination: Path,
    partials: Path,
    progress: Progress | None = None,
) -> None:
    """Bring the remote file `source` (absolute) of `size` bytes and digest `sha256` (hex) to
    `destination`, by way of `partials`/<sha256>.partial, from where an earlier attempt stopped.

    Raises Changed when other bytes came, OutOfReach when the link was cut (what came is kept),
    QuernError when the disk is too full or the host refuses.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise QuernError(f"{sha256!r}: not a SHA-256 in hex")
    partials.mkdir(parents=True, exist_ok=True)
    partial = partials / f"{sha256}.partial"
    with _locked(partial) as descriptor:
        have = os.fstat(descriptor).st_size
        if have > size:
            os.ftruncate(descriptor, 0)
            have = 0
        _need_space(destination, partial, size, size - have)
        got = _fill(connection, source, descriptor, have, size, destination, progress)
        if got != sha256 and have:
            # What an earlier attempt left was damaged, or the file has changed since.
            os.ftruncate(descriptor, 0)
            got = _fill(connection, source, descriptor, 0, size, destination, progress)
        if got != sha256:
            partial.unlink()
            raise Changed(
                f"{connection.name}:{source}: changed while it was brought: its SHA-256 should "
                f"be {sha256}, what came has {got}"
            )
        os.fsync(descriptor)
        _move(partial, destination)


def _fill(
    connection: Connection,
    source: str,
    descriptor: int,
    have: int,
    size: int,
    destination: Path,
    progress: Progress | None,
) -> str:
    """Append what is missing to an open partial file; returns the SHA-256 of the whole."""
    hashing = _Follower(descriptor, have)
    try:
        os.lseek(descriptor, have, os.SEEK_SET)
        done = have
        if done < size:
            for block in sftp_stream.read(connection, source, have, SILENCE_SECONDS):
                done += _write(descriptor, block[: size - done + 1], destination)
                hashing.written(done)
                if progress:
                    progress(min(done, size), size)
                if done > size:
                    break
    finally:
        found = hashing.finish()
    return found


def _write(descriptor: int, block: bytes, destination: Path) -> int:
    """Write all of `block`; returns its length. Raises QuernError when the disk is full."""
    view = memoryview(block)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QuernError(
                f"{destination}: the disk is full; what came is kept: make room and run again"
            ) from None
        raise
    return len(block)


class _Follower:
    """Takes the SHA-256 of a file while it is written, in a thread beside."""

    def __init__(self, descriptor: int, have: int) -> None:
        self._descriptor, self._known = descriptor, have
        self._more = threading.Condition()
        self._ended = False
        self._digest = hashlib.sha256()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def written(self, size: int) -> None:
        """The file has `size` bytes now."""
        with self._more:
            self._known = size
            self._more.notify()

    def finish(self) -> str:
        """The SHA-256 of all that was written, in hex."""
        with self._more:
            self._ended = True
            self._more.notify()
        self._thread.join()
        return self._digest.hexdigest()

    def _follow(self) -> None:
        buffer, done = memoryview(bytearray(BLOCK_BYTES)), 0
        while True:
            with self._more:
                while self._known == done and not self._ended:
                    self._more.wait()
                known = self._known
            if known == done:
                return
            while done < known:
                count = os.preadv(self._descriptor, [buffer[: known - done]], done)
                if not count:
                    return
                self._digest.update(buffer[:count])
                done += count


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """An open file, made if it isn't there, that nobody else writes meanwhile."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever had it may have put it in its place.
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _need_space(destination: Path, partial: Path, size: int, missing: int) -> None:
    """Raise QuernError unless there is room where the bytes go."""
    needs = {partial.parent: missing}
    if os.stat(partial).st_dev != os.stat(destination.parent).st_dev:
        needs[destination.parent] = size
    for folder, needed in needs.items():
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise QuernError(
                f"{destination}: {needed / 1e9:.2f} GB are needed in {folder}, "
                f"{free / 1e9:.2f} GB are free; make room"
            )


def _move(partial: Path, destination: Path) -> None:
    """Give a synced file its final name, on another file system by way of a copy beside it."""
    try:
        os.replace(partial, destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = destination.with_name(f".{destination.name}.partial")
        try:
            shutil.copyfile(partial, beside)
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, destination)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        partial.unlink()
    sync_directory(destination.parent)
