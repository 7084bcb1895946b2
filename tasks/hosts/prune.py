"""Old releases removed from a host, with what of its store no release names any more."""

import json
from dataclasses import dataclass
from pathlib import Path

from tasks.hosts.history import went_live
from tasks.hosts.holder import Holder
from tasks.hosts.host import Host
from tasks.hosts.pins import Pins
from tasks.hosts.releases import live_releases
from tasks.hosts.unix_http import Refused, Unreachable


@dataclass(frozen=True)
class Pruned:
    """What was removed from a host, or would be: ids of releases, and the store's files with their
    bytes in all."""

    releases: list[str]
    files: int = 0
    bytes: int = 0


def prune(host: Host, model: str, keep: int) -> list[str]:
    """Remove the old releases of `model` (see old_releases), and of the store what only they had.
    For the holder of the model's lock. Returns their ids."""
    removed = old_releases(host, model, keep)
    folder = host.root / model / "releases"
    gone = {digest for name in removed for digest in _digests(host, folder / name)}
    for name in removed:
        host.remove_directory(folder / name)
    if removed:
        gone -= needed(host)
    for digest in gone:
        host.remove_file(host.root / "store" / digest[:2] / digest[2:])
    host.remove_stale_partials(host.root / "store")
    return removed


def old_releases(host: Host, model: str, keep: int) -> list[str]:
    """The releases that are neither pinned, nor in a channel, nor read by a running server, nor
    among `keep` others: those that were live last, then the newest of those that never were."""
    folder = host.root / model
    stays = live_releases(host, model) | Pins(host, model).read().keys()
    lived = {release: position for position, release in enumerate(went_live(host, model))}
    others = [name for name in host.directories(folder / "releases") if name not in stays]
    others.sort(key=lambda name: lived.get(name, -1))  # stable: the oldest first
    old = others[: max(0, len(others) - keep)]
    if old:
        running = _running(host, [folder / name for name in host.directories(folder)])
        old = [name for name in old if name not in running]
    return old


def collect(host: Host, dry_run: bool) -> Pruned:
    """Remove from the host's store every file that no release names, whatever model it was of.
    For the holder of all models' locks there."""
    store, used = host.root / "store", needed(host)
    files = host.files_below(store)
    gone = {path: size for path, size in files.items() if path.replace("/", "") not in used}
    if not dry_run:
        for path in gone:
            host.remove_file(store / path)
    return Pruned([], len(gone), sum(gone.values()))


def needed(host: Host) -> set[str]:
    """The digests of all files of all releases on the host."""
    return {
        digest
        for model in host.directories(host.root)
        for name in host.directories(host.root / model / "releases")
        for digest in _digests(host, host.root / model / "releases" / name)
    }


def _running(host: Host, channels: list[Path]) -> set[str]:
    """The releases that servers have, live or draining."""
    found = set()
    for channel in channels:
        try:
            found |= {server.release.name for server in Holder(host, channel).servers()}
        except (Unreachable, Refused):
            continue
    return found


def _digests(host: Host, directory: Path) -> set[str]:
    data = host.read(directory / "manifest.json")
    if data is None:
        return set()
    return {entry["xxh3_128"] for entry in json.loads(data)["roles"].values()}
