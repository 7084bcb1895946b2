"""The history of releases, append-only: on each host `<root>/<model>/history.jsonl`, with what
every deployer did there; in each project `.quern/history.jsonl`, with what it did on every host.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.hosts.host import Host
from tasks.hosts.marks import who
from tasks.hosts.releases import Release

Record = dict[str, Any]
LIVE, FAILED = "live", "failed"
COMPARED = "compared"  # with another release, `against`; nothing went live by that


@dataclass(frozen=True)
class Journal:
    """Writes records: on the host, and to `path` here if there is one. `run` is the run's own
    part of them (tasks.core.provenance)."""

    path: Path | None = None
    run: Mapping[str, Any] = field(default_factory=dict)

    def record(
        self,
        host: Host,
        release: Release,
        channel: str,
        outcome: str,
        previous: Path | None,
        seconds: Mapping[str, float],
        **more: Any,
    ) -> None:
        """Append what became of `release` in `channel`: who, when, what from, how long, outcome.

        Raises OSError, QuernError.
        """
        written = {
            "at": time.time(),
            "who": who(),
            "host": host.name,
            "model": release.model,
            "channel": channel,
            "release": release.id,
            "label": release.label,
            "previous": previous.name if previous else None,
            "outcome": outcome,
            "error": "",
            "checkpoint": release.manifest["checkpoint"],
            "digests": {role: e["xxh3_128"] for role, e in release.manifest["roles"].items()},
            "seconds": {step: round(taken, 4) for step, taken in seconds.items()},
            "run": dict(self.run),
            **more,
        }
        if self.path is not None:
            with open(self.path, "ab") as file:
                file.write(json.dumps(written, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        host.append_line(host.root / release.model / "history.jsonl", written)


def on_host(host: Host, model: str) -> list[Record]:
    """The records of a model on a host, the oldest first."""
    return _records(host.read(host.root / model / "history.jsonl") or b"")


def in_project(path: Path, model: str, host: str) -> list[Record]:
    """The records of a model on a host that the project of `path` wrote, the oldest first."""
    return [r for r in every_record(path) if (r.get("model"), r.get("host")) == (model, host)]


def every_record(path: Path) -> list[Record]:
    """All that the project of `path` wrote, the oldest first."""
    return _records(path.read_bytes() if path.exists() else b"")


def _records(data: bytes) -> list[Record]:
    """The lines that are whole: after a full disk or a power cut one may not be."""
    found = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            found.append(dict(json.loads(line)))
    return found


def live_since(host: Host, release: Release, channel: str) -> float | None:
    """When the release last became live in the channel, by its deployer's clock."""
    times = [
        record["at"]
        for record in on_host(host, release.model)
        if (record["outcome"], record["release"], record["channel"]) == (LIVE, release.id, channel)
    ]
    return float(times[-1]) if times else None


def went_live(host: Host, model: str, channel: str = "") -> list[str]:
    """Ids of the releases that were live in `channel`, by default in any, the oldest first, as
    often as they were."""
    return [
        record["release"]
        for record in on_host(host, model)
        if record["outcome"] == LIVE and channel in ("", record["channel"])
    ]


def by(record: Record) -> str:
    """Who or what started it, at which commit, and why, if they said it."""
    run = record.get("run") or {}
    command = f", {run['command']}" if run.get("command") else ""
    commit = f", commit {run['commit'][:12]}" if run.get("commit") else ""
    changes = " with changes" if run.get("dirty") else ""
    reason = f": {run['reason']}" if run.get("reason") else ""
    return f"{record['who']}{command}{commit}{changes}{reason}"
