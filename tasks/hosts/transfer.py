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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tasks.core.atomic import sync_directory
from tasks.core.errors import QuernError
from tasks.hosts import sftp_stream, ssh_stream
from tasks.hosts.remote_digest import FUNCTIONS, the_digest_in
from tasks.hosts.ssh import Connection, OutOfReach

Progress = Callable[[int, int], None]  # bytes done, bytes in all

SILENCE_SECONDS = 30.0
KEPT_SECONDS = 14 * 86400.0
LOOK_SECONDS = 0.02
BLOCK_BYTES = 256 << 10
# How much is hashed before the next look, and written before it is synced: the disk works while
# the rest comes, and a power cut costs little of it.
STRETCH_BYTES = 64 << 20
# The ssh program takes a handshake of its own, and its window is 2 MiB a round trip.
WORTH_A_PROGRAM_BYTES = 32 << 20
NEAR_SECONDS = 0.008
TOO_FULL = (errno.ENOSPC, errno.EDQUOT)


class Changed(QuernError):
    """The bytes that came are not those that were asked for: the file changed meanwhile."""


class Stream(Protocol):
    """Bytes that move beside us: a program of ssh_stream or a thread of sftp_stream."""

    def is_over(self) -> bool:
        """Whether it has ended, well or not."""

    def stop(self) -> None:
        """End it, if it still runs."""

    def check(self) -> None:
        """Raise the fault it ended with."""


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
    partial = partial_of(sha256, partials)
    partials.mkdir(parents=True, exist_ok=True)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with _locked(partial) as descriptor:
        have = os.fstat(descriptor).st_size
        if have > size:
            os.ftruncate(descriptor, 0)
            have = 0
        _need_space(destination, partials, size, size - have)
        while (
            _received(connection, source, descriptor, have, size, destination, progress) != sha256
        ):
            if not have:
                partial.unlink()
                raise Changed(
                    f"{connection.name}:{source}: what came has another SHA-256 than {sha256}: "
                    "the file changed meanwhile"
                )
            # What an earlier attempt left was damaged, or the file has changed since.
            os.ftruncate(descriptor, 0)
            have = 0
        os.fsync(descriptor)
        _move(partial, destination)


def partial_of(sha256: str, partials: Path) -> Path:
    """Where a download of these bytes is kept until it is whole."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise QuernError(f"{sha256!r}: not a SHA-256 in hex")
    return partials / f"{sha256}.partial"


def remove_old_partials(partials: Path) -> None:
    """Remove what was left by downloads that nobody went on with for two weeks."""
    for partial in partials.glob("*.partial"):
        if partial.stat().st_mtime < time.time() - KEPT_SECONDS:
            with _locked(partial):
                partial.unlink()


def _received(
    connection: Connection,
    source: str,
    descriptor: int,
    have: int,
    size: int,
    destination: Path,
    progress: Progress | None,
) -> str:
    """Append what is missing to an open partial file; returns the SHA-256 of the whole.

    The bytes come beside us; here they are hashed, synced and watched as the file grows.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    done, hashed, synced = have, 0, have
    os.lseek(descriptor, have, os.SEEK_SET)
    stream = None if have == size else _pull(connection, source, have, size, descriptor)
    try:
        moved = time.monotonic()
        while True:
            # Asked in this order: what was written before the end is seen.
            over = stream is None or stream.is_over()
            there = min(os.fstat(descriptor).st_size, size)
            if there > done:
                done, moved = there, time.monotonic()
            elif not over and time.monotonic() - moved > SILENCE_SECONDS:
                raise _silent(connection)
            if progress:
                progress(done, size)
            stop = min(there, hashed + STRETCH_BYTES)
            while hashed < stop:
                count = os.preadv(descriptor, [buffer[: stop - hashed]], hashed)
                if not count:
                    break
                digest.update(buffer[:count])
                hashed += count
            if hashed - synced >= STRETCH_BYTES:
                os.fsync(descriptor)
                synced = hashed
            if hashed == there and (over or there == size):
                break
            if hashed == there:
                time.sleep(LOOK_SECONDS)
        if stream is not None and done < size:
            _check(stream, descriptor, destination)
    finally:
        if stream is not None:
            stream.stop()
    os.ftruncate(descriptor, done)  # a file that grew meanwhile: the digest decides
    return digest.hexdigest()


def _pull(connection: Connection, source: str, have: int, size: int, descriptor: int) -> Stream:
    if _by_program(connection, size - have):
        return ssh_stream.Pull(connection, source, have, descriptor)
    try:
        return sftp_stream.Pull(connection, source, have, size, descriptor, SILENCE_SECONDS)
    except sftp_stream.NoSftp:
        if connection.settings.openssh() is None:
            raise
        return ssh_stream.Pull(connection, source, have, descriptor)


def _by_program(connection: Connection, count: int) -> bool:
    return (
        count >= WORTH_A_PROGRAM_BYTES
        and connection.settings.openssh() is not None
        and connection.round_trip < NEAR_SECONDS
    )


def _check(stream: Stream, descriptor: int, destination: Path) -> None:
    """Raise why a stream ended early, if it says so."""
    full = QuernError(f"{destination}: the disk is full; what came is kept: make room, run again")
    try:
        stream.check()
    except OSError as error:
        if error.errno in TOO_FULL:
            raise full from None
        raise
    except QuernError:
        # The ssh program can't tell: is there room for more?
        end = os.fstat(descriptor).st_size
        try:
            os.pwrite(descriptor, bytes(BLOCK_BYTES), end)
        except OSError as error:
            if error.errno in TOO_FULL:
                raise full from None
        finally:
            os.ftruncate(descriptor, end)
        raise


def _silent(connection: Connection) -> OutOfReach:
    return OutOfReach(
        f"{connection.name}: not a byte for {SILENCE_SECONDS:.0f} s; the link may be cut"
    )


PREPARE = r"""
mkdir -p -- "$1" && cd -- "$1" && shift || exit
if [ -e "$1" ]; then wc -c <"$1"; else echo 0; fi
df -Pk .
"""
FINISH = (
    FUNCTIONS
    + r"""
partial=$1 destination=$2 sha256=$3 mode=$4
found=$(digest <"$partial") || exit
echo "$found"
case $found in
*"$sha256"*) ;;
*) rm -f -- "$partial"; exit ;;
esac
if [ -d "$destination" ]; then echo "$destination: is a directory" >&2; exit 1; fi
chmod "$mode" -- "$partial" && { sync -- "$partial" 2>/dev/null || sync; } &&
    mv -f -- "$partial" "$destination" && { sync -- "${destination%/*}/" 2>/dev/null || sync; }
"""
)


def upload(
    connection: Connection,
    source: Path,
    size: int,
    sha256: str,
    destination: str,
    executable: bool = False,
    progress: Progress | None = None,
) -> None:
    """Bring the file `source` of `size` bytes and digest `sha256` (hex) to the remote path
    `destination` (absolute), read-only, by way of <destination>.<sha256>.partial beside it, from
    where an earlier attempt stopped. The host verifies the whole before it gets its name.

    Raises Changed when other bytes arrived, OutOfReach when the link was cut (what arrived is
    kept), QuernError when the host's disk is too full or the host refuses.
    """
    partial = f"{destination}.{sha256[:16]}.partial"
    mode = "0555" if executable else "0444"
    with open(source, "rb") as file:
        while True:
            have = _prepared(connection, destination, partial, size)
            _send(connection, file.fileno(), partial, have, size, progress)
            printed = connection.run(FINISH, partial, destination, sha256, mode).decode()
            if the_digest_in(printed) == sha256:
                return
            if not have:
                raise Changed(
                    f"{connection.name}:{destination}: what arrived has another SHA-256 than "
                    f"{sha256}: {source} changed meanwhile"
                )


def _prepared(connection: Connection, destination: str, partial: str, size: int) -> int:
    """How many bytes an earlier attempt left on the host. Raises QuernError if the rest doesn't
    fit there."""
    folder = os.path.dirname(destination)
    printed = connection.run(PREPARE, folder, partial).decode(errors="replace")
    have, _, table = printed.partition("\n")
    found = int(have)
    # POSIX df -P: blocks, used, available, capacity.
    columns = re.search(r"\s(\d+)\s+(\d+)\s+(-?\d+)\s+\d+%", table)
    if found > size:
        connection.run('rm -f -- "$1"', partial)
        found = 0
    if columns and int(columns[3]) * 1024 < size - found:
        raise _no_room(
            f"{connection.name}:{destination}", size - found, folder, int(columns[3]) * 1024
        )
    return found


def _send(
    connection: Connection,
    descriptor: int,
    partial: str,
    have: int,
    size: int,
    progress: Progress | None,
) -> None:
    stream: ssh_stream.Push | sftp_stream.Push
    if _by_program(connection, size - have):
        stream = ssh_stream.Push(connection, partial, have, size, descriptor)
    else:
        stream = sftp_stream.Push(connection, partial, have, size, descriptor, SILENCE_SECONDS)
    try:
        done, moved = have, time.monotonic()
        while not stream.is_over():
            if stream.done > done:
                done, moved = stream.done, time.monotonic()
            elif time.monotonic() - moved > SILENCE_SECONDS:
                raise _silent(connection)
            if progress:
                progress(done, size)
            time.sleep(LOOK_SECONDS)
        stream.check()
        if progress:
            progress(stream.done, size)
    finally:
        stream.stop()


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """An open file, made if it isn't there, that nobody else writes meanwhile: not even what a
    run that was killed has left behind."""
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


def _need_space(destination: Path, partials: Path, size: int, missing: int) -> None:
    """Raise QuernError unless there is room where the bytes go."""
    needs = {partials: missing}
    if os.stat(partials).st_dev != os.stat(destination.parent).st_dev:
        needs[destination.parent] = size
    for folder, needed in needs.items():
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise _no_room(str(destination), needed, str(folder), free)


def _no_room(name: str, needed: int, folder: str, free: int) -> QuernError:
    return QuernError(
        f"{name}: {needed / 1e6:,.1f} MB are needed in {folder}, {free / 1e6:,.1f} MB are free; "
        "make room"
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
