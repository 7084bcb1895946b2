"""A directory from a host, several files side by side: whole or absent, as each of its files."""

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from tasks.core.atomic import sync_directory
from tasks.core.errors import QuernError
from tasks.hosts.ssh import Connection
from tasks.hosts.transfer import Progress, download, need_space, partial_of

SIDE_BY_SIDE = 4


class _Stopped(Exception):
    """Another file has failed."""


def download_directory(
    connection: Connection,
    manifest: list[tuple[str, int, str]],
    source: str,
    destination: Path,
    partials: Path,
    progress: Progress | None = None,
) -> None:
    """Bring the files of `manifest` (relative name, bytes, SHA-256 in hex) below the remote
    directory `source` (absolute) to the directory `destination`, which isn't there yet.

    They gather in .<destination>.partial beside it, which a later call goes on with. Raises as
    download() does, and QuernError for a name that leads out of the directory.
    """
    for name, _, _ in manifest:
        _check_name(connection, name)
    if os.path.lexists(destination) and not _is_empty_directory(destination):
        raise QuernError(f"{destination}: is there already; nothing is brought over it")
    gathered = destination.with_name(f".{destination.name}.partial")
    gathered.mkdir(parents=True, exist_ok=True)
    partials.mkdir(parents=True, exist_ok=True)
    _remove_others(gathered, {name for name, _, _ in manifest})
    missing = [file for file in manifest if not _is_whole(gathered / file[0], *file[1:])]
    need_space(destination, partials, *_bytes(missing, partials))

    total = sum(size for _, size, _ in manifest)
    there = total - sum(size for _, size, _ in missing)
    done, lock, stop = dict.fromkeys(missing, 0), threading.Lock(), threading.Event()

    def bring(file: tuple[str, int, str]) -> None:
        def note(count: int, _: int) -> None:
            if stop.is_set():
                raise _Stopped
            with lock:
                done[file] = count
                if progress:
                    progress(there + sum(done.values()), total)

        name, size, sha256 = file
        if not stop.is_set():
            try:
                download(
                    connection, f"{source}/{name}", size, sha256, gathered / name, partials, note
                )
            except BaseException:
                stop.set()
                raise

    _all_of(bring, missing, stop)
    for folder, _, _ in os.walk(gathered):
        sync_directory(Path(folder))
    os.replace(gathered, destination)
    sync_directory(destination.parent)


def _all_of(
    bring: Callable[[tuple[str, int, str]], None],
    files: list[tuple[str, int, str]],
    stop: threading.Event,
) -> None:
    """Bring all, side by side; raises the first fault when the others have stopped."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        try:
            faults = [future.exception() for future in [pool.submit(bring, f) for f in files]]
        except BaseException:
            stop.set()
            raise
    for fault in faults:
        if fault is not None and not isinstance(fault, _Stopped):
            raise fault


def _check_name(connection: Connection, name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise QuernError(f"{connection.name}: {name!r}: not a name within the directory; refused")


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _remove_others(folder: Path, wanted: set[str]) -> None:
    """Remove what an earlier attempt brought for another manifest."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(root, name)
            if path.relative_to(folder).as_posix() not in wanted:
                path.unlink()
        if Path(root) != folder and not os.listdir(root):
            os.rmdir(root)


def _is_whole(path: Path, size: int, sha256: str) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _bytes(files: list[tuple[str, int, str]], partials: Path) -> tuple[int, int]:
    """Bytes of these files, and those of them that no partial has yet."""
    size = sum(size for _, size, _ in files)
    parts = {partial_of(sha256, partials) for _, _, sha256 in files}
    return size, max(0, size - sum(part.stat().st_size for part in parts if part.exists()))
