"""Old releases removed from a host, with what of its store no release names any more."""

import json
from pathlib import Path

from tasks.hosts.history import went_live
from tasks.hosts.host import Host
from tasks.hosts.releases import live_releases


def prune(host: Host, model: str, keep: int) -> list[str]:
    """Keep the releases that channels have, and `keep` others: those that were live last, then
    the newest of those that never were. Returns the ids of the removed ones.
    """
    folder = host.root / model
    live = live_releases(host, model)
    lived = {release: position for position, release in enumerate(went_live(host, model))}
    others = [name for name in host.directories(folder / "releases") if name not in live]
    others.sort(key=lambda name: lived.get(name, -1))  # stable: the oldest first
    removed = others[: max(0, len(others) - keep)]
    gone = {digest for name in removed for digest in _digests(host, folder / "releases" / name)}
    for name in removed:
        host.remove_directory(folder / "releases" / name)
    if removed:
        for other in host.directories(host.root):
            for name in host.directories(host.root / other / "releases"):
                gone -= _digests(host, host.root / other / "releases" / name)
    for digest in gone:
        host.remove_file(host.root / "store" / digest[:2] / digest[2:])
    host.remove_stale_partials(host.root / "store")
    return removed


def _digests(host: Host, directory: Path) -> set[str]:
    data = host.read(directory / "manifest.json")
    if data is None:
        return set()
    return {entry["xxh3_128"] for entry in json.loads(data)["roles"].values()}
