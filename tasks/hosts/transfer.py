"""Files from and to a host: resumed where they stopped, verified by SHA-256, whole or absent.

A partial file has the SHA-256 of what it shall be in its name: the same bytes go on where they
stopped, whatever happened in between; other bytes begin anew.

Bytes go by OpenSSH's `ssh` program (ssh_stream) when it is here, the round trip is below 5 ms and
64 MiB or more are missing; else by SFTP through paramiko (sftp_stream). Why, in seconds, ours with
its SHA-256 and synced, on two cores that the sshd shares (all but the third by
`python -m benchmarks.transfer`):
  1 GB, loopback     the program 2.1, paramiko 2.2, rsync 2.7 (with --fsync 2.6), scp 2.0
  the same, again    the program 2.3, paramiko 2.9, rsync 2.9 (with --fsync 3.1), scp 2.1
  200 MB, 5 ms       the program 1.5, paramiko 1.1, scp 1.2
  200 MB, 50 ms      the program 5.8, paramiko 1.1, scp 6.3; upwards 6.7, 2.5, 6.2
OpenSSH has 2 MiB on the way, whatever the line; and its handshake costs 0.2 s and a few round
trips. rsync isn't used: it takes no SHA-256, and of a fine-tuned checkpoint its delta finds nothing
that is still the same.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
LOOK_SECONDS = 0.05
BLOCK_BYTES = 1 << 20
# How much is hashed before the next look, and written before it is synced: the disk works while
# the rest comes, and a power cut costs little of it.
STRETCH_BYTES = 64 << 20
WORTH_A_PROGRAM_BYTES = 64 << 20
TOO_FULL = (errno.ENOSPC, errno.EDQUOT)


class Changed(QuernError):
    """The bytes that came are not those that were asked for: the file changed meanwhile."""


class Stream(Protocol):
    """Bytes that move beside us: a program of ssh_stream or a thread of sftp_stream."""

    def ended_within(self, seconds: float) -> bool:
        """Whether it has ended, well or not; waits so long for it."""

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

    `progress` is called in this thread; what it raises ends the download. Raises Changed when
    other bytes came, OutOfReach when the link was cut (what came is kept), QuernError when the
    disk is too full or the host refuses, OSError.
    """
    partial = partial_of(sha256, partials)
    partials.mkdir(parents=True, exist_ok=True)
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(partial) as descriptor:
            if os.fstat(descriptor).st_size > size:
                os.ftruncate(descriptor, 0)
            have = os.fstat(descriptor).st_size
            need_space(destination, partials, size, size - have)
            program = _worth_a_program(connection, size - have)
            while True:
                try:
                    found = _receive(connection, source, descriptor, size, program, progress)
                except ssh_stream.NoConnection:
                    if not (program and connection.is_alive):
                        raise
                    program = False  # ours still stands, and goes on
                    continue
                if found == sha256:
                    break
                if not have:
                    partial.unlink()
                    raise Changed(
                        f"{connection.name}:{source}: what came has another SHA-256 than "
                        f"{sha256}: the file changed meanwhile"
                    )
                # What an earlier attempt left was damaged, or the file has changed since.
                os.ftruncate(descriptor, 0)
                have = 0
            os.fsync(descriptor)
            _move(partial, destination)
    except OSError as error:
        if error.errno in TOO_FULL:
            raise QuernError(
                f"{destination}: the disk is full; what came is kept: make room and run again"
            ) from None
        raise


def partial_of(sha256: str, partials: Path) -> Path:
    """Where a download of these bytes is kept until it is whole."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise QuernError(f"{sha256!r}: not a SHA-256 in hex")
    return partials / f"{sha256}.partial"


def remove_old_partials(partials: Path) -> None:
    """Remove what was left by downloads that nobody went on with for two weeks."""
    for partial in partials.glob("*.partial"):
        with suppress(FileNotFoundError):
            if partial.stat().st_mtime >= time.time() - KEPT_SECONDS:
                continue
            if partial.is_dir():  # of tasks.hosts.transfer_directory
                shutil.rmtree(partial)
            else:
                with _locked(partial):
                    partial.unlink()


def _receive(
    connection: Connection,
    source: str,
    descriptor: int,
    size: int,
    program: bool,
    progress: Progress | None,
) -> str:
    """Append what is missing to an open partial file; returns the SHA-256 of the whole.

    The bytes come beside us; here they are hashed, synced and watched as the file grows.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    have = done = synced = os.fstat(descriptor).st_size
    hashed, wait = 0, 0.0
    os.lseek(descriptor, have, os.SEEK_SET)
    stream = _pull(connection, source, have, size, descriptor, program) if have < size else None
    disk = ThreadPoolExecutor(1, "disk")
    syncing: Future[None] | None = None
    try:
        moved = time.monotonic()
        while True:
            # Asked in this order: what was written before the end is seen.
            over = stream is None or stream.ended_within(wait)
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
                digest.update(buffer[:count])
                hashed += count
            if hashed - synced >= STRETCH_BYTES and (syncing is None or syncing.done()):
                if syncing is not None:
                    syncing.result()  # the kernel tells of a bad disk once
                syncing, synced = disk.submit(os.fsync, descriptor), hashed
            if hashed == there and (over or there == size):
                break
            wait = LOOK_SECONDS if hashed == there else 0.0
        if stream is not None and done < size:
            _check(stream, descriptor)
        if syncing is not None:
            syncing.result()
    finally:
        if stream is not None:
            stream.stop()
        disk.shutdown()
    os.ftruncate(descriptor, done)  # a file that grew meanwhile: the digest decides
    return digest.hexdigest()


def _worth_a_program(connection: Connection, count: int) -> bool:
    """Whether `count` bytes go faster by the ssh program; see the figures above."""
    return (
        count >= WORTH_A_PROGRAM_BYTES
        and connection.settings.openssh() is not None
        and connection.round_trip < sftp_stream.LONG_LINE_SECONDS
    )


def _pull(
    connection: Connection, source: str, have: int, size: int, descriptor: int, program: bool
) -> Stream:
    if not program:
        try:
            return sftp_stream.Pull(connection, source, have, size, descriptor, SILENCE_SECONDS)
        except sftp_stream.NoSftp:
            if connection.settings.openssh() is None:
                raise
    return ssh_stream.Pull(connection, source, have, descriptor)


def _check(stream: Stream, descriptor: int) -> None:
    """Raise why a stream ended early, if it says so."""
    # The ssh program can't tell of a full disk, and ends well: is there room for more?
    end = os.fstat(descriptor).st_size
    try:
        os.pwrite(descriptor, bytes(BLOCK_BYTES), end)
    finally:
        os.ftruncate(descriptor, end)
    stream.check()


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
chmod "$mode" "$partial" && { sync -- "$partial" 2>/dev/null || sync; } &&
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
    if not destination.startswith("/"):
        raise QuernError(f"{connection.name}:{destination}: not an absolute path")
    partial = f"{destination}.{sha256[:16]}.partial"
    mode = "0555" if executable else "0444"
    with open(source, "rb") as file:
        have = _prepared(connection, destination, partial, size)
        program = _worth_a_program(connection, size - have)
        while True:
            try:
                _send(connection, file.fileno(), partial, have, size, program, progress)
            except ssh_stream.NoConnection:
                if not (program and connection.is_alive):
                    raise
                program = False  # ours still stands, and goes on
                have = _prepared(connection, destination, partial, size)
                continue
            printed = connection.run(FINISH, partial, destination, sha256, mode).decode()
            if the_digest_in(printed) == sha256:
                return
            if not have:
                raise Changed(
                    f"{connection.name}:{destination}: what arrived has another SHA-256 than "
                    f"{sha256}: {source} changed meanwhile"
                )
            have = 0  # the host has removed what was damaged


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
    program: bool,
    progress: Progress | None,
) -> None:
    """Write what is missing of an open file to the partial file on the host."""
    stream = _push(connection, partial, have, size, descriptor, program)
    try:
        done, moved = have, time.monotonic()
        while not stream.ended_within(LOOK_SECONDS):
            if stream.done > done:
                done, moved = stream.done, time.monotonic()
            elif time.monotonic() - moved > SILENCE_SECONDS:
                raise _silent(connection)
            if progress:
                progress(done, size)
        stream.check()
        if progress:
            progress(stream.done, size)
    finally:
        stream.stop()


def _push(
    connection: Connection, partial: str, have: int, size: int, descriptor: int, program: bool
) -> ssh_stream.Push | sftp_stream.Push:
    if not program:
        try:
            sure = max(0, have - sftp_stream.UNSURE_BYTES)
            return sftp_stream.Push(connection, partial, sure, size, descriptor, SILENCE_SECONDS)
        except sftp_stream.NoSftp:
            if connection.settings.openssh() is None:
                raise
    return ssh_stream.Push(connection, partial, have, size, descriptor)


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


def need_space(destination: Path, partials: Path, size: int, missing: int) -> None:
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
