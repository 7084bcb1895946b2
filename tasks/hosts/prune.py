"""Old releases removed from a host, with what of its store no release names any more."""

from collections.abc import Container, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tasks.core.digest import digest_of_bytes
from tasks.hosts.history import went_live
from tasks.hosts.holder import Holder, Server
from tasks.hosts.host import Host
from tasks.hosts.pins import Pins
from tasks.hosts.releases import Release, live_releases
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


def collect(host: Host, keep: Mapping[str, int], dry_run: bool) -> Pruned:
    """Remove the old releases of the models in `keep` (see old_releases), and from the host's store
    every file that no release names, whatever model it was of. Nothing is removed while a deployer
    is at work there. Raises Busy."""
    with ExitStack() as locks:
        for model in host.directories(host.root):
            if model != "store":
                locks.enter_context(host.lock(host.root / model / "lock"))
        old = [
            host.root / model / "releases" / name
            for model, count in keep.items()
            for name in old_releases(host, model, count)
        ]
        used, files = needed(host, set(old)), host.files_below(host.root / "store")
        gone = {path: size for path, size in files.items() if path.replace("/", "") not in used}
        if not dry_run:
            for directory in old:
                host.remove_directory(directory)
            for path in gone:
                host.remove_file(host.root / "store" / path)
            host.remove_stale_partials(host.root / "store")
        return Pruned([directory.name for directory in old], len(gone), sum(gone.values()))


def needed(host: Host, without: Container[Path] = ()) -> set[str]:
    """The digests of all files of the releases on the host, and of their manifests, but those in
    the directories `without`. Raises QuernError for a damaged manifest."""
    directories = [
        host.root / model / "releases" / name
        for model in host.directories(host.root)
        for name in host.directories(host.root / model / "releases")
    ]
    return {d for path in directories if path not in without for d in _digests(host, path)}


def _running(host: Host, channels: list[Path]) -> set[str]:
    """The releases that servers have, live or draining: one may have gone on to another than it
    was started with."""
    found = set()
    for channel in channels:
        try:
            for server in Holder(host, channel).servers():
                found.add(_release_of(server))
        except (Unreachable, Refused):
            continue
    return found


def _release_of(server: Server) -> str:
    try:
        return str(server.ask("GET", "/status", timeout=5)["release"])
    except (Unreachable, Refused, KeyError):
        return server.release.name


def _digests(host: Host, directory: Path) -> set[str]:
    path = directory / "manifest.json"
    data = host.read(path)
    if data is None:
        return set()
    release = Release.of(data, f"{host.name}: {path}")
    return {digest_of_bytes(data), *(release.digest(role) for role in release.manifest["roles"])}
