"""Fetch: bring each model's checkpoint or adapter from where training writes it to
`weights/<model>/`; its digest is known before a byte moves (docs/sources.md)."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.core.action import announce, progress
from tasks.core.atomic import write_atomically
from tasks.core.choice import OPTIONS, Wish, keep_choice, read_choice
from tasks.core.configuration import LanguageModel, Source, load_configuration
from tasks.core.digest import canonical_json
from tasks.core.errors import LeftForLater, QuernError
from tasks.core.project import Project
from tasks.core.recipe import Found, Recipe
from tasks.hosts.looking import Look, Match
from tasks.hosts.source import Place, Verdict, bring, bring_directory, look_at, place_of
from tasks.models.layout import artifact, cycle_of
from tasks.models.picking import Picked, pick, ranking_path
from tasks.models.whole import fault_of

PARTIALS = Path(".quern/transfers")
Fields = dict[str, Any]  # host (of another machine), path, cycle, size, sha256


def task_fetch() -> Iterator[dict[str, Any]]:
    """Bring each model's checkpoint or adapter from where training writes it."""
    configuration = load_configuration()
    yield {"name": None, "doc": task_fetch.__doc__, "params": OPTIONS}
    for name, source in configuration.sources().items():
        is_adapter = isinstance(configuration.models[name], LanguageModel)
        if is_adapter:
            outputs = {
                "adapter": artifact(name, "adapter"),
                "origin": artifact(name, "adapter.json"),
            }
        else:
            outputs = {
                "checkpoint": artifact(name, "checkpoint.pth"),
                "origin": artifact(name, "checkpoint.json"),
            }
        yield Recipe(
            name="fetch",
            version=2,
            function="tasks.fetch:fetch_adapter" if is_adapter else "tasks.fetch:fetch_checkpoint",
            watch=SourceWatch(name, source, outputs),
            outputs=outputs,
            large=is_adapter,
        ).task(
            name,
            f"Bring the {'adapter' if is_adapter else 'checkpoint'} of {name} from {source}.",
            params=OPTIONS,
        )


class SourceWatch:
    """Says what a model's source means now: which checkpoint or adapter, and its digest.

    What was taken stays while the pick is unfinished, or of a lower cycle; what was chosen on the
    command line stays until training writes something newer.
    """

    def __init__(self, model: str, source: Source, outputs: Mapping[str, str]) -> None:
        self.model, self.source, self.outputs = model, source, outputs
        self.is_adapter = "adapter" in outputs

    def __call__(self, project: Project, recorded: Mapping[str, str]) -> Found:
        """Look, in one round trip if nothing has changed. Raises LeftForLater when there is nothing
        whole and nothing was taken before; QuernError, OutOfReach."""
        taken, choice = self._taken(recorded), read_choice(project, self.model)
        if choice is not None and choice["machine"] != self.source.machine:
            choice = None
        place = place_of(self.source, load_configuration(), project)
        patterns = [self.source.path] + ([glob.escape(choice["path"])] if choice else [])
        look = place.look(patterns, self.is_adapter, ranking_path(self.source))
        picked = self._picked(look, needed=choice is None)
        decision = _Decision(self, place, look, taken, picked)
        found = decision.chosen(choice) if choice else decision.automatic()
        remark = "; ".join(filter(None, [picked.remark, _left_alone(look)]))
        if not remark:
            return found
        before = project.state.rows("select told from look where name=?", f"fetch:{self.model}")
        is_news = not before or remark not in before[0][0]
        return Found(
            found.parameters,
            found.means,
            f"{found.told}; {remark}",
            found.aloud or is_news,
            found.settle,
        )

    def choose(self, project: Project, wish: Wish) -> None:
        """Hold to a path or a cycle until training writes something newer, or no longer.

        Raises QuernError when it isn't there or not whole; OutOfReach. Nothing has changed then.
        """
        if wish.automatic:
            keep_choice(project, self.model, None)
            return
        place = place_of(self.source, load_configuration(), project)
        patterns = [self.source.path] + ([glob.escape(wish.checkpoint)] if wish.checkpoint else [])
        look = place.look(patterns, self.is_adapter, ranking_path(self.source))
        if wish.checkpoint:
            matches = look.matches[1]
            missing = f"{self._at(wish.checkpoint)}: not there, or not a " + (
                "directory" if self.is_adapter else "file"
            )
        else:
            cycles = [(cycle_of(match.path), match) for match in look.matches[0]]
            matches = [match for cycle, match in cycles if cycle == wish.cycle]
            known = ", ".join(str(c) for c in sorted({c for c, _ in cycles if c is not None}))
            missing = f"{self.source}: no cycle {wish.cycle} there; cycles are {known or 'none'}"
        if not matches:
            raise QuernError(missing)
        match = max(matches, key=lambda match: match.path)
        verdict = self.examine(place, look, match)
        if verdict.fault:
            raise QuernError(f"{self._at(match.path)}: still being written: {verdict.fault}")
        picked = self._picked(look, needed=False)
        answer = _answer(*picked.order[0]) if picked.order else None
        choice = {"path": match.path, "machine": self.source.machine, "answer": answer}
        keep_choice(project, self.model, choice)

    def examine(self, place: Place, look: Look, match: Match) -> Verdict:
        """Whether a match is whole, and its digests."""
        names = {file.name for file in match.files}
        if self.is_adapter and "adapter_config.json" not in names:
            return Verdict({}, "it has no adapter_config.json")

        def fault(name: str, size: int, head: bytes, tail: bytes) -> str:
            return fault_of(name, size, head, tail, checkpoint=not self.is_adapter)

        return place.examine(match, look.now, fault)

    def _picked(self, look: Look, needed: bool) -> Picked:
        if not look.matches[0]:
            if not needed:
                return Picked()
            what = "directory" if self.is_adapter else "file"
            key = "adapter" if self.is_adapter else "checkpoint"
            hint = "" if self.source.machine else "train one (the example: doit train_example) or "
            parts = [
                f"models.yaml: models.{self.model}.{key}.path: no {what} matches {self.source}",
                f"{hint}correct the path",
                _left_alone(look),
            ]
            raise QuernError("; ".join(filter(None, parts)))
        base = os.getcwd() if self.source.machine is None else look.home
        return pick(self.source, look.matches[0], look.ranking, look.home, base)

    def _taken(self, recorded: Mapping[str, str]) -> Fields | None:
        """What was brought last: by the task's record, or where that is lost, by the file beside
        what was brought."""
        prefix = "source "
        fields = {
            name.removeprefix(prefix): json.loads(value)
            for name, value in recorded.items()
            if name.startswith(prefix)
        }
        if not fields:
            try:
                fields = json.loads(Path(self.outputs["origin"]).read_bytes())
                fields.pop("files", None)
            except (OSError, ValueError, AttributeError):
                return None
        known = {"path", "cycle", "size", "sha256"}
        return fields if known <= fields.keys() <= known | {"host"} else None

    def _at(self, path: str) -> str:
        return f"{self.source.machine}:{path}" if self.source.machine else path


class _Decision:
    """What is made of one look."""

    def __init__(
        self, watch: SourceWatch, place: Place, look: Look, taken: Fields | None, picked: Picked
    ) -> None:
        self.watch, self.place, self.look, self.taken = watch, place, look, taken
        self.order = picked.order

    def automatic(self) -> Found:
        """The source's own pick."""
        unfinished: list[str] = []
        for _, match in self.order:
            if self._is_lower(match):
                assert self.taken is not None
                return self._stay(
                    f"{_brief(match.path)} is the highest there now; {_brief(self.taken['path'])} "
                    "was taken before and stays"
                )
            verdict = self._examine(match)
            if not verdict.fault:
                return self._take(match, verdict, "; ".join(unfinished))
            unfinished.append(
                f"{self.watch._at(match.path)}: still being written ({verdict.fault}): "
                "left for the next run"
            )
            if self.taken is not None and self._is_ours(self.taken):
                return self._stay(unfinished[0], aloud=True)
        raise LeftForLater(unfinished[0])

    def chosen(self, choice: dict[str, Any]) -> Found:
        """What was chosen on the command line, or what training has written since."""
        remark = ""
        if self.order and _is_newer(self.order[0], choice["answer"]):
            _, match = self.order[0]
            verdict = self._examine(match)
            if not verdict.fault:
                found = self._take(match, verdict)
                return Found(
                    found.parameters,
                    found.means,
                    f"{found.told}; it came after {_brief(choice['path'])} was chosen",
                    settle=lambda: keep_choice(self.place.project, self.watch.model, None),
                )
            remark = (
                f"{self.watch._at(match.path)}: still being written ({verdict.fault}): "
                "left for the next run"
            )
        is_taken = self.taken is not None and self.taken["path"] == choice["path"]
        there = self.look.matches[1]
        verdict = self._examine(there[0]) if there else Verdict({}, "it is gone")
        if not verdict.fault:
            found = self._take(there[0], verdict, remark)
            words = f"{_brief(choice['path'])} was chosen"
            unchanged = found.parameters == {"source": self.taken}
            told = f"{words} and stays" if unchanged else f"{words}: {found.told}"
            parts = "; ".join(filter(None, [told, remark if unchanged else ""]))
            return Found(found.parameters, found.means, parts, aloud=bool(remark))
        told = f"{self.watch._at(choice['path'])}, which was chosen: {verdict.fault}"
        if is_taken:
            return self._stay(f"{told}; what was taken of it stays")
        if not there:
            raise QuernError(f"{told}; doit fetch:{self.watch.model} --automatic ends the choice")
        raise LeftForLater(f"{told}: left for the next run")

    def _examine(self, match: Match) -> Verdict:
        return self.watch.examine(self.place, self.look, match)

    def _is_ours(self, taken: Fields) -> bool:
        """Whether what was taken came from this source as models.yaml has it now."""
        pattern = self.watch.source.path
        if self.place.connect is not None:
            relative = pattern.removeprefix("~/")
            pattern = relative if relative.startswith("/") else f"{self.look.home}/{relative}"
        else:
            pattern = os.path.expanduser(pattern)
        same_machine = taken.get("host") == self.watch.source.machine
        return same_machine and PurePosixPath(taken["path"]).match(pattern)

    def _is_lower(self, match: Match) -> bool:
        if self.watch.source.pick != "highest-cycle" or self.taken is None:
            return False
        cycle, before = cycle_of(match.path), self.taken["cycle"]
        if cycle is None or before is None or cycle >= before:
            return False
        return self._is_ours(self.taken)

    def _take(self, match: Match, verdict: Verdict, remark: str = "") -> Found:
        fields: Fields = {
            **({"host": self.watch.source.machine} if self.watch.source.machine else {}),
            "path": match.path,
            "cycle": cycle_of(match.path),
            "size": match.size,
            "sha256": verdict.digests.get("") or _digest_of_files(match, verdict),
        }
        told = _outcome(self.taken, fields, self.watch._at(match.path))
        told = "; ".join(filter(None, [told, remark]))
        return Found(
            {"source": fields}, self._means(match, fields, verdict), told, aloud=bool(remark)
        )

    def _stay(self, told: str, aloud: bool = False) -> Found:
        """What was taken before goes on counting; it is only brought again if it was lost here."""
        assert self.taken is not None
        return Found({"source": self.taken}, self._means(None, self.taken, None), told, aloud)

    def _means(self, match: Match | None, fields: Fields, verdict: Verdict | None) -> Fields:
        watch, taken = self.watch, self.taken or {}
        here = watch.outputs["adapter" if watch.is_adapter else "checkpoint"]
        same = taken.get("sha256") == fields["sha256"]
        means: Fields = {
            "connect": self.place.connect,
            "signature": _signature(match) if match else "",
        }
        if watch.is_adapter:
            files = _listed(match, verdict) if match and verdict else []
            return {**means, "files": files, "here": here}
        return {**means, "here": here if same else ""}


def _outcome(taken: Fields | None, fields: Fields, at: str) -> str:
    """What a look came to, in one line."""
    size = f"{fields['size'] / 1e6:.1f} MB"
    cycle = fields["cycle"]
    name = f"{at} ({size})" if cycle is None else f"cycle {cycle} ({at}, {size})"
    if taken is None:
        return f"{name} is the first: taken"
    if taken == fields:
        return f"{_brief(fields['path'])} is unchanged: nothing to do"
    before = _brief(taken["path"])
    if taken["sha256"] == fields["sha256"]:
        return f"{name} has the bytes of {before}: taken, nothing has to move"
    if (taken.get("host"), taken["path"]) == (fields.get("host"), fields["path"]):
        return f"{name} has changed: taken"
    return f"{name} is new: taken; {before} was before"


def _brief(path: str) -> str:
    cycle = cycle_of(path)
    return path if cycle is None else f"cycle {cycle}"


def _left_alone(look: Look) -> str:
    names = look.left_alone
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"left alone, for its name can't be shown: {names[0][:200]}{more}"


def _answer(rank: float, match: Match) -> dict[str, Any]:
    return {"rank": rank, "path": match.path, "size": match.size, "modified": match.modified}


def _is_newer(best: tuple[float, Match], before: dict[str, Any] | None) -> bool:
    """Whether the pick's answer was written after the answer `before`."""
    now = _answer(*best)
    if before is None or now["path"] == before["path"]:
        return now != before
    return bool(now["rank"] > before["rank"])


def _signature(match: Match) -> str:
    return "\n".join(f"{file.name} {file.signature}" for file in match.files)


def _digest_of_files(match: Match, verdict: Verdict) -> str:
    """The SHA-256 of a directory: of its files' names, sizes and digests as canonical JSON."""
    listed = _listed(match, verdict)
    for file in listed:
        del file["modified"]
    return hashlib.sha256(canonical_json(listed)).hexdigest()


def _listed(match: Match, verdict: Verdict) -> list[dict[str, Any]]:
    return [
        {
            "name": file.name,
            "size": file.size,
            "sha256": verdict.digests[file.name],
            "modified": file.modified,
        }
        for file in match.files
    ]


# -- what runs in the child process ----------------------------------------------------------------


def fetch_checkpoint(
    source: Fields,
    connect: dict[str, Any] | None,
    signature: str,
    here: str,
    checkpoint: str,
    origin: str,
) -> None:
    """Bring a checkpoint whose digest is known to `checkpoint`, and write its path, cycle, size and
    SHA-256 to `origin`; from `here` if that has the bytes.

    Raises LeftForLater when it has changed since it was looked at, OutOfReach, QuernError.
    """
    if not (here and _copied(Path(here), source["sha256"], Path(checkpoint))):
        _bring_file(connect, source["path"], source["size"], source["sha256"], Path(checkpoint))
        _refuse_changed(connect, source["path"], signature, directory=False)
    write_atomically(Path(origin), canonical_json(source) + b"\n")
    _announce("new checkpoint", source)


def fetch_adapter(
    source: Fields,
    connect: dict[str, Any] | None,
    signature: str,
    files: Sequence[dict[str, Any]],
    here: str,
    adapter: str,
    origin: str,
) -> None:
    """Bring an adapter's files to the directory `adapter`, and write where they are from, their
    times, sizes and SHA-256 to `origin`; those that `here` has are not moved.

    Raises LeftForLater when one has changed since it was looked at, OutOfReach, QuernError.
    """
    if not files:
        raise QuernError(f"{source['path']}: it is lost here, and not to be had there now")
    known = {_digest(path): path for path in Path(here).rglob("*") if path.is_file()}
    missing = []
    for file in files:
        destination = Path(adapter, file["name"])
        destination.parent.mkdir(parents=True, exist_ok=True)
        have = known.get(file["sha256"])
        if have is None or not _copied(have, file["sha256"], destination):
            missing.append((file["name"], file["size"], file["sha256"]))
    if missing:
        _bring_files(connect, source, missing, Path(adapter))
        _refuse_changed(connect, source["path"], signature, directory=True)
    write_atomically(Path(origin), canonical_json({**source, "files": files}) + b"\n")
    _announce("new adapter", source)


def _announce(kind: str, source: Fields) -> None:
    at = f"{source['host']}:{source['path']}" if "host" in source else source["path"]
    announce(kind, at if source["cycle"] is None else f"cycle {source['cycle']} ({at})")


def _bring_file(
    connect: dict[str, Any] | None, path: str, size: int, sha256: str, destination: Path
) -> None:
    label = os.path.basename(path)
    if connect is None:
        came = _copied(Path(path), sha256, destination)
    else:
        came = bring(
            connect,
            path,
            size,
            sha256,
            destination,
            PARTIALS,
            lambda done, total: progress(label, done, total),
        )
    if not came:
        raise LeftForLater(f"{path}: changed while it was brought: left for the next run")


def _bring_files(
    connect: dict[str, Any] | None,
    source: Fields,
    files: Sequence[tuple[str, int, str]],
    directory: Path,
) -> None:
    """Bring files (name, bytes, SHA-256 in hex) of the source's directory into `directory`."""
    path = source["path"]
    if connect is None:
        for name, size, sha256 in files:
            _bring_file(None, f"{path}/{name}", size, sha256, directory / name)
        return
    # They gather beside the other transfers: a run that was cut is gone on with.
    brought, label = PARTIALS / source["sha256"], os.path.basename(path)
    shutil.rmtree(brought, ignore_errors=True)
    came = bring_directory(
        connect, path, files, brought, PARTIALS, lambda done, total: progress(label, done, total)
    )
    if not came:
        raise LeftForLater(f"{path}: changed while it was brought: left for the next run")
    for name, _, _ in files:
        os.replace(brought / name, directory / name)
    shutil.rmtree(brought)


def _copied(source: Path, sha256: str, destination: Path) -> bool:
    """Copy a file of this machine; returns whether it has the digest."""
    digest, done = hashlib.sha256(), 0
    try:
        with open(source, "rb") as reader, open(destination, "wb") as writer:
            total = os.fstat(reader.fileno()).st_size
            while block := reader.read(4 << 20):
                digest.update(block)
                writer.write(block)
                done += len(block)
                progress(source.name, done, total)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == sha256


def _refuse_changed(
    connect: dict[str, Any] | None, path: str, signature: str, directory: bool
) -> None:
    if not signature:
        return
    matches = look_at(connect, [glob.escape(path)], directory).matches[0]
    if not matches or _signature(matches[0]) != signature:
        raise LeftForLater(f"{path}: changed while it was brought: left for the next run")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
