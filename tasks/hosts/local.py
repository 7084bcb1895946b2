"""The local host: the folder that releases live in, and what is done there."""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.core.atomic import sync_directory, write_atomically
from tasks.core.digest import read_digests
from tasks.core.errors import QuernError
from tasks.core.memory import available_memory
from tasks.hosts.deployer import Deployer, HostBusy
from tasks.hosts.host import LOG_BYTES, Entry, Platform
from tasks.hosts.kept_alive import KeptAlive
from tasks.hosts.unix_http import ask_port, ask_socket

PARTIALS_SECONDS = 14 * 86400


def read_digest(path: str) -> str:
    """The xxh3_128 of a file, read anew."""
    return read_digests(Path(path))[1]


class LocalHost:
    """This machine, as a Host (tasks/hosts/host.py); `digest` is the xxh3_128 of a path."""

    def __init__(
        self, root: Path, name: str = "local", digest: Callable[[str], str] = read_digest
    ) -> None:
        self.root, self.name = root.expanduser().absolute(), name
        self._digest = digest

    def platform(self) -> Platform:
        """What programs it runs."""
        system = os.uname()
        name, version = platform.libc_ver()
        libc = tuple(int(part) for part in version.split(".")) if name == "glibc" else ()
        return Platform(system.sysname, system.machine, libc)

    def expand(self, path: str) -> Path:
        """`path` with `~` as the user has it, absolute."""
        return Path(path).expanduser().absolute()

    def holds(self, path: Path, entry: Entry) -> bool:
        """Whether `path` has the entry's bytes."""
        try:
            if path.stat().st_size != entry["size"]:
                return False
            return bool(self._digest(str(path)) == entry["xxh3_128"])
        except FileNotFoundError:
            return False

    def sha256(self, paths: list[Path]) -> dict[Path, str]:
        """SHA-256 in hex of each of the files that is there, read anew."""
        return {path: read_digests(path, sha256=True)[2] or "" for path in paths if path.is_file()}

    def signature(self, path: Path) -> str | None:
        """Device, inode, size and times of a file, None if there is none."""
        try:
            found = path.stat()
        except OSError:
            return None
        return ":".join(
            map(
                str,
                (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns),
            )
        )

    def put_file(
        self,
        source: Path,
        destination: Path,
        entry: Entry,
        executable: bool,
        progress: Callable[[int, int], None],
    ) -> None:
        """Copy `source` to `destination` (read-only there), verified by digest, by rename.

        Raises QuernError when the bytes that arrived are not those of the digest.
        """
        xxh3 = entry["xxh3_128"]
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = destination.with_name(f".{destination.name}.partial")
        temporary.unlink(missing_ok=True)
        try:
            if not self._link_read_only(source, temporary):
                shutil.copyfile(source, temporary)
            arrived = read_digest(str(temporary))
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

    def place(self, source: Path, target: Path, by: str) -> str:
        """Put `source` at `target` by rename; returns how. Raises OSError."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.partial")
        temporary.unlink(missing_ok=True)
        try:
            if by == "symbolic-link":
                temporary.symlink_to(source)
                os.replace(temporary, target)
                return by
            if by in ("automatic", "hard-link"):
                with (
                    contextlib.suppress(OSError) if by == "automatic" else contextlib.nullcontext()
                ):
                    os.link(source, temporary)
                    if target.exists() and target.samefile(temporary):
                        temporary.unlink()  # rename() does nothing between two names of one file
                    else:
                        os.replace(temporary, target)
                    return "hard-link"
            shutil.copyfile(source, temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
            return "copy"
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def write(self, path: Path, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        write_atomically(path, data)

    def read(self, path: Path, first: int | None = None, last: int | None = None) -> bytes | None:
        """A file's bytes, or its `first` or `last` ones; None if there is none."""
        try:
            with open(path, "rb") as file:
                if last is not None:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - last))
                return file.read(first)
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
        """Remove a file or symbolic link, if it is there."""
        path.unlink(missing_ok=True)

    def directories(self, path: Path) -> list[str]:
        """Names of the directories in `path`, the oldest first; temporary ones are left out."""
        if not path.exists():
            return []
        found = [
            entry
            for entry in os.scandir(path)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        ]
        return [entry.name for entry in sorted(found, key=lambda entry: entry.stat().st_mtime_ns)]

    def remove_stale_partials(self, folder: Path) -> None:
        """Remove what was left by deploys that were killed two weeks ago."""
        for partial in folder.rglob("*.partial"):
            with contextlib.suppress(FileNotFoundError):
                if partial.lstat().st_mtime < time.time() - PARTIALS_SECONDS:
                    partial.unlink()

    def files_below(self, folder: Path) -> dict[str, int]:
        """Relative path → bytes of every file below `folder`."""
        return {
            str(path.relative_to(folder)): path.lstat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.endswith(".partial")
        }

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

    def run(self, command: list[str], cwd: Path, timeout: float) -> tuple[int, str]:
        """Run a program to its end; returns its status and what it printed."""
        try:
            done = subprocess.run(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise QuernError(f"{command[0]}: took longer than {timeout:.0f} s") from None
        return done.returncode, done.stdout

    def has_program(self, name: str) -> bool:
        """Whether a program of this name is on the PATH."""
        return shutil.which(name) is not None

    def ask_through(self, holder: Path) -> None:
        """Servers of this machine are asked directly."""

    def ask_socket(
        self, path: Path, method: str, target: str, body: Any = None, timeout: float = 10.0
    ) -> dict[str, Any]:
        """One request over a Unix socket. Raises Unreachable, Refused."""
        return ask_socket(path, method, target, body, timeout)

    def ask_port(
        self, address: str, target: str, timeout: float = 5.0, method: str = "GET", body: Any = None
    ) -> dict[str, Any]:
        """One request to "address:port". Raises Unreachable, Refused."""
        return ask_port(address, target, timeout, method, body)

    def kept_alive(self, address: str, timeout: float) -> KeptAlive:
        """A connection to "address:port" for many requests."""
        return KeptAlive(address, timeout, os.environ.get("QUERN_READ_KEY"))

    def free_disk(self) -> int | None:
        """Bytes free below `root`."""
        folder = next(p for p in (self.root, *self.root.parents) if p.exists())
        return shutil.disk_usage(folder).free

    def free_memory(self) -> int | None:
        """Bytes of memory available."""
        return available_memory()

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """One deployer at a time. Raises HostBusy."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise HostBusy(self.name, path, file.read()) from None
            file.truncate(0)
            file.write(Deployer.here().as_line())
            file.flush()
            yield
