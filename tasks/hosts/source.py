"""The machine that a source is on, and what is known of its files: each is read there once, as long
as its stat stays the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.configuration import Configuration, Source
from tasks.core.project import Project
from tasks.hosts import looking, looking_here
from tasks.hosts.looking import Look, Match, Read
from tasks.hosts.vastai import address_of

FaultOf = Callable[[str, int, bytes, bytes], str]  # name, size, head, tail (see looking.Read)


@dataclass(frozen=True)
class Verdict:
    """SHA-256 by file name, or why the match is not whole (`fault`)."""

    digests: dict[str, str]
    fault: str = ""


class Place:
    """This machine, or with `connect` (destination and SSH configuration) another."""

    def __init__(self, project: Project, machine: str | None, connect: dict[str, Any] | None):
        self.project, self.machine, self.connect = project, machine, connect

    def look(self, patterns: Sequence[str], directories: bool, ranking: str = "") -> Look:
        """See tasks.hosts.looking.look."""
        return look_at(self.connect, patterns, directories, ranking)

    def examine(self, match: Match, now: float | None, fault_of: FaultOf) -> Verdict:
        """Whether the match is whole, and its digests. Files are read only if their stat is not
        the one they had when they were last found whole, or cut short and at rest."""
        if any(file.is_young(now) for file in match.files):
            return Verdict({}, "it changed a moment ago")
        known = self._known(match) if self.connect else {}
        unread = [file.name for file in match.files if file.name not in known]
        if unread:
            reads = self._read(match, unread)
            for name in unread:
                before = next(file for file in match.files if file.name == name)
                read = reads.get(name)
                if (
                    read is None
                    or not read.steady
                    or read.seen.signature != before.signature
                    or read.seen.is_young(read.now)
                ):
                    return Verdict({}, "it changes while it is read")
                path = name or match.path
                fault = fault_of(path, read.seen.size, read.head, read.tail)
                known[name] = (read.sha256, f"{name} {fault}" if name and fault else fault)
            if self.connect:
                self._remember(match, {name: known[name] for name in unread})
        fault = next((fault for _, fault in known.values() if fault), "")
        return Verdict({name: sha256 for name, (sha256, _) in known.items()}, fault)

    def _read(self, match: Match, names: list[str]) -> dict[str, Read]:
        if self.connect is None:
            return looking_here.read(self.project.index, match, names)
        return looking.read(_connection(self.connect), match, names)

    def _known(self, match: Match) -> dict[str, tuple[str, str]]:
        found = {}
        for file in match.files:
            rows = self.project.state.rows(
                "select signature, sha256, fault from remote_file where machine=? and path=?",
                self.machine,
                f"{match.path}/{file.name}" if file.name else match.path,
            )
            if rows and rows[0][0] == file.signature:
                found[file.name] = rows[0][1:]
        return found

    def _remember(self, match: Match, verdicts: dict[str, tuple[str, str]]) -> None:
        signatures = {file.name: file.signature for file in match.files}
        rows = [
            (
                self.machine,
                f"{match.path}/{name}" if name else match.path,
                signatures[name],
                sha256,
                fault,
            )
            for name, (sha256, fault) in verdicts.items()
        ]
        with self.project.state.transaction() as connection:
            connection.executemany("replace into remote_file values (?,?,?,?,?)", rows)


def place_of(source: Source, configuration: Configuration, project: Project) -> Place:
    """The machine of a source. Raises QuernError when vast.ai doesn't say where it is."""
    if source.vastai is not None:
        destination: str | None = address_of(source.vastai)
    elif source.host is not None:
        destination = configuration.hosts[source.host].ssh
    else:
        return Place(project, None, None)
    connect = {"destination": destination, "config": configuration.ssh_config}
    return Place(project, source.machine, connect)


def look_at(
    connect: dict[str, Any] | None, patterns: Sequence[str], directories: bool, ranking: str = ""
) -> Look:
    """Look on this machine, or on the one that `connect` leads to: tasks.hosts.looking.look."""
    if connect is None:
        return looking_here.look(patterns, directories, ranking)
    return looking.look(_connection(connect), patterns, directories, ranking)


def _connection(connect: dict[str, Any]) -> Any:
    from tasks.hosts.ssh import config_path, connections

    return connections.to(connect["destination"], config_path(connect["config"]))


def bring(
    connect: dict[str, Any],
    path: str,
    size: int,
    sha256: str,
    destination: Path,
    partials: Path,
    progress: Callable[[int, int], None],
) -> bool:
    """Download a file; returns whether it came: not if it has changed since it was looked at.

    Raises OutOfReach, QuernError.
    """
    from tasks.hosts.transfer import Changed, download, remove_old_partials

    remove_old_partials(partials)
    try:
        download(_connection(connect), path, size, sha256, destination, partials, progress)
    except Changed:
        return False
    return True


def bring_directory(
    connect: dict[str, Any],
    path: str,
    files: Sequence[tuple[str, int, str]],
    destination: Path,
    partials: Path,
    progress: Callable[[int, int], None],
) -> bool:
    """Download some files of a directory, side by side, into `destination`, which isn't there yet;
    `files` are (name, bytes, SHA-256 in hex). Returns and raises as bring() does."""
    from tasks.hosts.transfer import Changed, remove_old_partials
    from tasks.hosts.transfer_directory import download_directory

    remove_old_partials(partials)
    try:
        connection = _connection(connect)
        download_directory(connection, list(files), path, destination, partials, progress)
    except Changed:
        return False
    return True
