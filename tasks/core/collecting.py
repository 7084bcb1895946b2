"""The local store collected: what nothing needs any more goes.

What is needed is a set of digests, from the records of tasks, from releases, from anywhere; a
directory's digest stands for its files too. A result stays, small as it is, if it is on the way to
something needed: it tells the lineage, and is made anew where its objects are gone.
"""

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tasks.core.lineage import Lineage
from tasks.core.project import Project
from tasks.core.store import Artifact, Store

Result = tuple[Path, dict[str, Artifact] | None]
ABANDONED_SECONDS = 14 * 86400.0


@dataclass(frozen=True)
class Collected:
    """What went, or would: objects of the store, recorded results, leftovers of runs that were
    killed; and the bytes that objects and leftovers had."""

    objects: int = 0
    results: int = 0
    leftovers: int = 0
    bytes: int = 0


def collect(store: Store, needed: set[str], dry_run: bool = False) -> Collected:
    """Remove the objects that aren't `needed`, and the results that led to none that is; for the
    holder of the project's lock. With `dry_run` nothing changes."""
    results = list(store.results())
    kept = _with_files(store, results, needed)
    lineage = _lineage(store, needed)
    useless = [
        path
        for path, outputs in results
        if path not in lineage and not _objects(store, outputs) <= kept
    ]
    gone = {digest: status for digest, status in store.objects() if digest not in kept}
    if not dry_run:
        for path in useless:
            path.unlink()
        for digest in gone:
            store.discard(digest)
    return Collected(len(gone), len(useless), bytes=sum(s.st_size for s in gone.values()))


def keep_to_limit(project: Project, tasks: Iterable[str], limit_gb: float) -> str:
    """Remove results and their objects until the store is within the limit: the least recently
    used first, those that went to a host last, those that tasks made last never. Of what is
    released the lineage stays. Returns a line if it can't be done."""
    store, limit = project.store, limit_gb * 1e9
    sizes = {digest: status.st_size for digest, status in store.objects()}
    total = sum(sizes.values())
    if total <= limit:
        return ""
    results = list(store.results())
    kept = _with_files(store, results, of_tasks(project, tasks))
    released = of_history(project)
    lineage = _lineage(store, kept | released)
    objects = {path: _objects(store, outputs) for path, outputs in results}
    uses = Counter(digest for digests in objects.values() for digest in digests)
    turns = sorted(
        (path for path in objects if not objects[path] <= kept),
        key=lambda path: (bool(objects[path] & released), path.stat().st_mtime_ns),
    )
    going = sizes.keys() - kept - uses.keys()  # of no result: a run was killed
    for path in [None, *turns]:
        if path is not None:
            if path not in lineage:
                path.unlink()
            uses.subtract(objects[path])
            going = {digest for digest in objects[path] - kept if not uses[digest]}
        for digest in going:
            store.discard(digest)
            total -= sizes.get(digest, 0)
        if total <= limit:
            return ""
    return (
        f"store.limit_gb: what is up to date takes {total / 1e9:.3g} GB, more than {limit_gb:g}; "
        "raise the limit"
    )


def _with_files(store: Store, results: list[Result], needed: set[str]) -> set[str]:
    """`needed`, and for the directories among it the digests of their files."""
    artifacts = [artifact for _, outputs in results for artifact in (outputs or {}).values()]
    return needed.union(*(store.digests_of(a) for a in artifacts if a.digest in needed))


def _lineage(store: Store, digests: set[str]) -> set[Path]:
    """The results on the way to artifacts."""
    return {store.result_path(step.key) for step in Lineage(store).steps(digests)}


def _objects(store: Store, outputs: dict[str, Artifact] | None) -> set[str]:
    """The objects of a result; one that can't be read stands for one that nobody needs."""
    if outputs is None:
        return {""}
    return {digest for a in outputs.values() for digest in store.digests_of(a)}


# -- what is needed ------------------------------------------------------------------------------


def of_tasks(project: Project, tasks: Iterable[str]) -> set[str]:
    """Digests of what tasks made last: of those that exist, and of those whose files are still
    there (another models.yaml's)."""
    existing, digests = set(tasks), set()
    for name, record in project.state.rows("select name, record from task"):
        targets = json.loads(record)["targets"]
        if name in existing or any(os.path.lexists(project.root / target) for target in targets):
            digests.update(targets.values())
    return digests


def of_history(project: Project, host: str | None = None) -> set[str]:
    """Digests of every release that this project has brought to a host, by default to any: of its
    files, and of its manifest."""
    path = project.private / "history.jsonl"
    lineage, digests = Lineage(project.store), set[str]()
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            record = json.loads(line)
            if host in (None, record["host"]):
                digests.update(record["digests"].values())
                manifest = lineage.beginning(record["release"])
                digests.update([manifest] if manifest else [])
    return digests


# -- leftovers -----------------------------------------------------------------------------------


def remove_leftovers(project: Project, dry_run: bool = False) -> Collected:
    """Remove what runs that were killed have left: unfinished files in the store and beside
    targets, and what was brought in part and not gone on with for two weeks."""
    found = set(project.store.root.glob("*/??/.*"))
    for _, record in project.state.rows("select name, record from task"):
        for target in json.loads(record)["targets"]:
            beside = project.root / target
            found.add(beside.with_name(f".{beside.name}.partial"))
    for partial in (project.private / "transfers").glob("*.partial"):
        if partial.stat().st_mtime < time.time() - ABANDONED_SECONDS:
            found.add(partial)
    found = {path for path in found if os.path.lexists(path)}
    size = sum(_size(path) for path in found)
    for path in found if not dry_run else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return Collected(leftovers=len(found), bytes=size)


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(p.lstat().st_size for p in path.rglob("*") if p.is_file())
    return path.lstat().st_size
