"""What is kept of a comparison of two releases, with both: a file on each one's host, and a line in
its history.

<root>/<model>/comparisons/<candidate id>-<stable id>.json
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.hosts.history import COMPARED, Journal
from tasks.hosts.host import Host
from tasks.hosts.releases import Release

FORMAT = 1
IN_HISTORY = ("accuracy", "difference", "interval", "p", "set")


def stands(difference: float, margin: float) -> bool:
    """Whether a candidate that differs so from the stable release may be promoted."""
    return difference >= -margin


def read_comparison(host: Host, model: str, candidate: str, stable: str) -> dict[str, Any] | None:
    """The last comparison of two releases (ids) that is kept on a host; None if there is none.
    Raises QuernError, OSError."""
    data = host.read(_path(host, model, candidate, stable))
    try:
        found = dict(json.loads(data or b""))
    except (ValueError, TypeError):
        return None
    return found if found.get("format") == FORMAT else None


def keep_comparison(
    host: Host, channel: str, candidate: Release, comparison: Mapping[str, Any], journal: Journal
) -> None:
    """Write a comparison of `candidate` to a host, whose `channel` had one of the two, and to its
    history. Raises QuernError, OSError."""
    model, stable = candidate.model, comparison["stable"]
    text = json.dumps(comparison, indent=1, ensure_ascii=False)
    host.write(_path(host, model, candidate.id, stable), text.encode() + b"\n")
    journal.record(
        host,
        candidate,
        channel,
        COMPARED,
        None,
        {"compare": comparison["seconds"]},
        at=comparison["at"],
        against={"release": stable, "label": comparison["labels"]["stable"]},
        comparison={key: comparison[key] for key in IN_HISTORY},
    )


def _path(host: Host, model: str, candidate: str, stable: str) -> Path:
    return host.root / model / "comparisons" / f"{candidate}-{stable}.json"
