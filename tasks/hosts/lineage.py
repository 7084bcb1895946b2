"""The lineage of what is live: from the server back to the checkpoint, in words."""

import time
from typing import Any

from tasks.core.errors import QuernError, in_one_line
from tasks.core.explanation import explain
from tasks.core.lineage import Lineage
from tasks.core.project import Project
from tasks.hosts.channels import Channel, host_of, in_words
from tasks.hosts.history import LIVE, Record, by, on_host


def lineage_in_words(model: str, channels: list[Channel], project: Project) -> list[str]:
    """For each channel: what serves, how it came there, from which checkpoint, and what is other
    than in the release before it, down to the file or setting that changed."""
    lineage, told = Lineage(project.store), []
    for channel in channels:
        try:
            records = on_host(host_of(project.root, channel), model)
        except (QuernError, OSError) as error:
            told.append(f"{in_words(channel)}: {in_one_line(error)}")
            continue
        lived = [r for r in records if (r["outcome"], r["channel"]) == (LIVE, channel["channel"])]
        if not lived:
            told.append(f"{in_words(channel)} serves nothing yet")
            continue
        live = lived[-1]
        told.append(f"{in_words(channel)} serves {live['label']} ({live['release']}):")
        told += [f"  {line}" for line in how_it_came_there(lineage, live, lived[:-1])]
    return told


def how_it_came_there(lineage: Lineage, live: Record, earlier: list[Record]) -> list[str]:
    """Of a release that is live, by its record and those of the ones before it."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(live["at"]))
    lines = [f"since {at}, by {by(live)}", f"from {origin_in_words(live['checkpoint'])}"]
    before = next((r for r in reversed(earlier) if r["release"] != live["release"]), None)
    if before is None:
        return [*lines, "it is the first that was live there"]
    lines.append(f"before it served {before['label']} ({before['release']}); it is another")
    ids = [lineage.beginning(record["release"]) for record in (before, live)]
    causes = explain(lineage, *ids) if None not in ids else []  # type: ignore[arg-type]
    if not causes:  # made elsewhere, or no longer in the store
        causes = [
            f"because {role} changed from {old[:12]} to {new[:12]}"
            for role, new in live["digests"].items()
            if (old := before["digests"].get(role, "none")) != new
        ]
    return [*lines, *(f"  {cause}" for cause in causes)]


def origin_in_words(checkpoint: dict[str, Any]) -> str:
    """`gpu:~/runs/cycle13/best_model.pth (SHA-256 0123456789ab)`, of a manifest's checkpoint."""
    source = checkpoint if "path" in checkpoint else checkpoint.get("adapter")
    if not isinstance(source, dict) or "path" not in source:
        return f"base {checkpoint.get('base')}" + (f", adapter {source}" if source else "")
    machine = f"{source['host']}:" if source.get("host") else ""
    digest = f" (SHA-256 {source['sha256'][:12]})" if source.get("sha256") else ""
    return f"{machine}{source['path']}{digest}"
