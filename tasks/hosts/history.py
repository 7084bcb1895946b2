"""The history of one model on one host: `<root>/<model>/history.jsonl`, append-only."""

import json
import time
from pathlib import Path
from typing import Any

from tasks.hosts.host import Host
from tasks.hosts.marks import who
from tasks.hosts.releases import Release


def record(
    host: Host,
    release: Release,
    channel: str,
    outcome: str,
    previous: Path | None,
    seconds: dict[str, float],
    **more: Any,
) -> None:
    """Append what became of `release` in `channel`: who, when, what from, how long, outcome."""
    host.append_line(
        host.root / release.model / "history.jsonl",
        {
            "at": time.time(),
            "who": who(),
            "channel": channel,
            "release": release.id,
            "label": release.label,
            "previous": previous.name if previous else None,
            "outcome": outcome,
            "error": "",
            "checkpoint": release.manifest["checkpoint"],
            "digests": {role: e["xxh3_128"] for role, e in release.manifest["roles"].items()},
            "seconds": {step: round(taken, 4) for step, taken in seconds.items()},
            **more,
        },
    )


def went_live(host: Host, model: str, channel: str = "") -> list[str]:
    """Ids of the releases that were live in `channel`, by default in any, the oldest first, as
    often as they were."""
    lines = (host.read(host.root / model / "history.jsonl") or b"").splitlines()
    records = [json.loads(line) for line in lines]
    return [
        record["release"]
        for record in records
        if record["outcome"] == "live" and channel in ("", record["channel"])
    ]
