"""What a machine must offer to be deployed to: the one interface that deploys, rollbacks and
health checks know machines by. `LocalHost` and `RemoteHost` offer it.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tasks.hosts.kept_alive import KeptAlive

# What a manifest says of one role's file: {"file", "size", "xxh3_128", "sha256"}.
Entry = Mapping[str, Any]

LOG_BYTES = 10 << 20


@dataclass(frozen=True)
class Platform:
    """`system` and `machine` as uname(1) has them; `libc` is glibc's version, () where there is
    another C library."""

    system: str
    machine: str
    libc: tuple[int, ...]

    def runs_programs_of(self, other: "Platform") -> bool:
        """Whether programs linked on `other` run here: a newer glibc runs older programs."""
        same = (self.system, self.machine) == (other.system, other.machine)
        return same and bool(self.libc) == bool(other.libc) and self.libc >= other.libc

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Platform":
        """From what as_data() gave."""
        return cls(data["system"], data["machine"], tuple(data["libc"]))

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {"system": self.system, "machine": self.machine, "libc": list(self.libc)}

    def __str__(self) -> str:
        libc = f", glibc {'.'.join(map(str, self.libc))}" if self.libc else ""
        return f"{self.system} {self.machine}{libc}"


def glibc_needed(*programs: Path | str) -> tuple[int, ...]:
    """The newest glibc version that the programs' dynamic symbols name; () without glibc."""
    versions = {
        tuple(map(int, version.split(b".")))
        for program in programs
        for version in re.findall(rb"\0GLIBC_(\d+\.\d+)", Path(program).read_bytes())
    }
    return max(versions, default=())


class Program(Protocol):
    """A program that was started and outlives us."""

    def poll(self) -> int | None:
        """None while it runs."""


class Host(Protocol):
    """Operations on one machine, most of them below `root`. They raise QuernError, OSError;
    OutOfReach when the machine can't be asked."""

    name: str

    @property
    def root(self) -> Path:
        """The folder for releases, absolute."""

    def platform(self) -> Platform:
        """What programs it runs."""

    def expand(self, path: str) -> Path:
        """`path` with `~` as the host's user has it, absolute; relative ones are below the home
        there, here below the project."""

    # -- files ---------------------------------------------------------------------------------

    def holds(self, path: Path, entry: Entry) -> bool:
        """Whether `path` is a file with the entry's bytes; they are read."""

    def sha256(self, paths: list[Path]) -> dict[Path, str]:
        """SHA-256 in hex of each of the files that is there; they are read."""

    def signature(self, path: Path) -> str | None:
        """The file's identity, size and times in one string that changes when it is written to;
        None if there is none."""

    def put_file(
        self,
        source: Path,
        destination: Path,
        entry: Entry,
        executable: bool,
        progress: Callable[[int, int], None],
    ) -> None:
        """Bring `source` (of this machine) to `destination`, read-only, verified by digest, by
        rename; `progress` is told bytes done and in all. Raises QuernError when the bytes that
        arrived are not the entry's."""

    def link_file(self, source: Path, destination: Path) -> None:
        """A second name for a file that never changes."""

    def place(self, source: Path, target: Path, by: str) -> str:
        """Put the host's file `source` at `target` by rename; returns how: copy, hard-link or
        symbolic-link. `automatic` is a hard link where one file system holds both, else a copy."""

    def read(self, path: Path, first: int | None = None, last: int | None = None) -> bytes | None:
        """A file's bytes, or its `first` or `last` ones; None if there is none."""

    def write(self, path: Path, data: bytes) -> None:
        """Write a small file, whole or not at all."""

    def append_line(self, path: Path, record: dict[str, Any]) -> None:
        """Append one JSON line."""

    def remove_file(self, path: Path) -> None:
        """Remove a file or symbolic link, if it is there."""

    def remove_stale_partials(self, folder: Path) -> None:
        """Remove files below `folder` that came in part, and that nobody went on with for two
        weeks."""

    def files_below(self, folder: Path) -> dict[str, int]:
        """Relative path → bytes of every file below `folder`, none if it isn't there; files that
        came in part are left out."""

    # -- directories and links -------------------------------------------------------------------

    def make_directory(self, path: Path) -> None:
        """Make a directory and its parents."""

    def directories(self, path: Path) -> list[str]:
        """Names of the directories in `path`, the oldest first; temporary ones are left out."""

    def rename_directory(self, source: Path, destination: Path) -> None:
        """Give a finished directory its name."""

    def remove_directory(self, path: Path) -> None:
        """Remove a directory and what is in it, if it is there."""

    def link_target(self, link: Path) -> Path | None:
        """Where a symbolic link points, None if there is none."""

    def point(self, link: Path, target: Path) -> None:
        """Make `link` point at `target`, by rename: a reader sees the old or the new."""

    # -- programs --------------------------------------------------------------------------------

    def spawn(self, command: list[str], log: Path) -> Program:
        """Start a program that outlives us, in the log's folder; its output goes to `log`."""

    def run(self, command: list[str], cwd: Path, timeout: float) -> tuple[int, str]:
        """Run a program to its end; returns its status and what it printed. Raises QuernError
        when it takes longer than `timeout` seconds."""

    def has_program(self, name: str) -> bool:
        """Whether a program of this name is on the host's PATH."""

    def ask_through(self, holder: Path) -> None:
        """From now on ask servers through this copy of quern-holder, where that is needed."""

    def ask_socket(
        self, path: Path, method: str, target: str, body: Any = None, timeout: float = 10.0
    ) -> dict[str, Any]:
        """One HTTP request over a Unix socket of the host. Raises Unreachable, Refused."""

    def ask_port(
        self, address: str, target: str, timeout: float = 5.0, method: str = "GET", body: Any = None
    ) -> dict[str, Any]:
        """One HTTP request, asked on the host itself, to "address:port"."""

    def kept_alive(self, address: str, timeout: float) -> KeptAlive:
        """A connection from the host itself to "address:port", for many requests."""

    # -- the machine -----------------------------------------------------------------------------

    def free_disk(self) -> int | None:
        """Bytes free below `root`, None if unknown."""

    def free_memory(self) -> int | None:
        """Bytes of memory available, None if unknown."""

    def lock(self, path: Path) -> AbstractContextManager[None]:
        """One deployer at a time. Raises TryAgainLater, saying who."""
