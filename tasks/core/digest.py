"""The digest of a file's bytes, read once per content however many tasks depend on it.

xxh3_128 is identity inside Quern; SHA-256 is taken in the same read where bytes leave the
machine or enter provenance. The index remembers a digest under the file's stat signature
(device, inode, size, mtime, ctime): an edit that keeps size and mtime still moves ctime.
"""

import hashlib
import json
import mmap
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import xxhash

from tasks.core.errors import QuernError
from tasks.core.state import State

BUFFER_BYTES = 1 << 20
# A file changed within this time of being read may change again without its stat showing it
# (timestamps of some file systems are this coarse): such a row is checked anew in the next run.
SETTLE_NS = 2_000_000_000
# Within one run the kernel's own clock tick (10 ms at most) is what counts.
TICK_NS = 20_000_000
SHOW_PROGRESS_BYTES = 64 << 20

Signature = tuple[int, int, int, int, int]
Progress = Callable[[str, int, int], None]  # label, bytes done, bytes in all


@dataclass(slots=True)
class Entry:
    """What is known of one file: its stat signature when read, and its digests."""

    signature: Signature
    settled: bool
    xxh3: str
    sha256: str | None


_buffers = threading.local()


def signature_of(status: os.stat_result) -> Signature:
    """(device, inode, size, mtime_ns, ctime_ns)."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def digest_of_bytes(data: bytes) -> str:
    """xxh3_128 of `data` as 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def read_digests(
    path: str | os.PathLike[str], sha256: bool = False, progress: Progress | None = None
) -> tuple[Signature, str, str | None]:
    """Read a regular file once: its signature, xxh3_128 and, if asked, SHA-256 (hex).

    Raises OSError, and QuernError if the file changes while it is read.
    """
    buffer = getattr(_buffers, "buffer", None)
    if buffer is None:
        # A page's start, where the kernel copies twice as fast as to where a bytearray starts.
        buffer = _buffers.buffer = memoryview(mmap.mmap(-1, BUFFER_BYTES))
    for _ in range(3):
        fast, strong, done = xxhash.xxh3_128(), hashlib.sha256() if sha256 else None, 0
        with open(path, "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            show = progress if before.st_size >= SHOW_PROGRESS_BYTES else None
            while count := file.readinto(buffer):
                fast.update(buffer[:count])
                if strong:
                    strong.update(buffer[:count])
                done += count
                if show and (done % SHOW_PROGRESS_BYTES == 0 or done == before.st_size):
                    show(os.fspath(path), done, before.st_size)
            after = os.fstat(file.fileno())
        if signature_of(before) == signature_of(after):
            return signature_of(before), fast.hexdigest(), strong.hexdigest() if strong else None
    raise QuernError(f"{path}: changes while it is read; wait until its writer is done")


class DigestIndex:
    """Stat signature → digest, for the paths of one project, kept in its state database."""

    def __init__(self, state: State, progress: Progress | None = None) -> None:
        self._state = state
        self._entries = state.load(self._load)
        self._changed: set[str] = set()
        self._read_this_run: set[str] = set()
        self._lock = threading.Lock()
        self.progress = progress
        self.files_read = 0

    def _load(self) -> dict[str, Entry]:
        rows = self._state.rows(
            "select path, device, inode, size, mtime_ns, ctime_ns, settled, xxh3, sha256"
            " from digest"
        )
        return {row[0]: Entry(row[1:6], bool(row[6]), row[7], row[8]) for row in rows}

    def digest(self, path: str) -> str:
        """xxh3_128 of a file's bytes, or of a directory's listing (names and digests below it).

        Raises FileNotFoundError and other OSError.
        """
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return self._directory_digest(path)
        if not stat.S_ISREG(status.st_mode):
            raise QuernError(f"{path}: is neither a file nor a directory")
        return self._entry(path, status, sha256=False).xxh3

    def digests(self, path: str) -> tuple[str, str]:
        """(xxh3_128, SHA-256) of a file's bytes, both from one read."""
        entry = self._entry(path, os.stat(path), sha256=True)
        assert entry.sha256 is not None
        return entry.xxh3, entry.sha256

    def remember(self, path: str, xxh3: str, sha256: str | None = None) -> None:
        """Record the digest of a file just written from content whose digest is known."""
        self._record(path, signature_of(os.stat(path)), xxh3, sha256, known=True)

    def _entry(self, path: str, status: os.stat_result, sha256: bool) -> Entry:
        entry = self._entries.get(path)
        if (
            entry is not None
            and entry.signature == signature_of(status)
            and (entry.settled or path in self._read_this_run)
            and (entry.sha256 is not None or not sha256)
        ):
            return entry
        signature, fast, strong = read_digests(path, sha256, self.progress)
        self.files_read += 1
        return self._record(path, signature, fast, strong)

    def _record(
        self,
        path: str,
        signature: Signature,
        xxh3: str,
        sha256: str | None,
        known: bool = False,
    ) -> Entry:
        age = time.time_ns() - signature[4]
        entry = Entry(signature, age > SETTLE_NS, xxh3, sha256)
        with self._lock:
            self._entries[path] = entry
            self._changed.add(path)
            if known or age > TICK_NS:
                self._read_this_run.add(path)
            else:
                self._read_this_run.discard(path)
        return entry

    def _directory_digest(self, directory: str) -> str:
        names = {os.path.relpath(path, directory): path for path in files_below(directory)}
        return digest_of_bytes(listing_of({n: self.digest(path) for n, path in names.items()}))

    def save(self) -> None:
        """Write what changed since the last save to the state database."""
        with self._lock:
            changed, self._changed = self._changed, set()
        if not changed:
            return
        rows = [
            (path, *entry.signature, entry.settled, entry.xxh3, entry.sha256)
            for path, entry in ((path, self._entries[path]) for path in changed)
        ]
        with self._state.transaction() as connection:
            connection.executemany("replace into digest values (?,?,?,?,?,?,?,?,?)", rows)


def files_below(directory: str | os.PathLike[str]) -> Iterable[str]:
    """Every file under `directory`, sorted, without hidden ones and byte-compiled Python."""
    for root, folders, files in os.walk(directory):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__pycache__")
        for name in sorted(files):
            if not name.startswith("."):
                yield os.path.join(root, name)


def listing_of(digests: Mapping[str, str]) -> bytes:
    """A directory as bytes, whose digest is the directory's: relative names and digests."""
    return b"".join(f"{name}\0{digest}\n".encode() for name, digest in digests.items())


def canonical_json(value: object) -> bytes:
    """The one JSON form of `value`: sorted keys, no spaces, UTF-8, so that its digest repeats."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()
