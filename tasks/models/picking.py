"""Which of several checkpoints is taken: the newest, the highest cycle, or the best of a ranking
that training keeps (docs/sources.md)."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from tasks.core.configuration import Best, Ranking, Source
from tasks.core.errors import QuernError
from tasks.models.layout import cycle_of

NAMES = ("checkpoint", "path", "checkpoint_path", "model_path", "file")
WILDCARDS = "*?["


class Written(Protocol):
    """Something that training wrote."""

    @property
    def path(self) -> str:
        """Where it is."""

    @property
    def modified(self) -> float:
        """When it was written, seconds."""


T = TypeVar("T", bound=Written)


@dataclass
class Picked:
    """Matches with their ranks, the best first; `remark` is what is to be told of the ranking."""

    order: list[tuple[float, Any]] = field(default_factory=list)
    remark: str = ""


def pick(
    source: Source, matches: Sequence[T], ranking: bytes | None, home: str, base: str
) -> Picked:
    """Order the matches of a source by its pick. `ranking` is the ranking's content, `home` what
    `~` is on the source's machine, `base` the folder that relative paths are relative to there.

    Raises QuernError for a ranking that is missing, can't be read or names none of the matches.
    """
    remark = ""
    if source.pick == "newest":
        ranks = {match.path: match.modified for match in matches}
    elif isinstance(source.pick, Best):
        ranks, remark = _scores(source, source.pick.best, matches, ranking, home, base)
    else:
        ranks = {match.path: float(_cycle(match.path)) for match in matches}
    usable = [match for match in matches if match.path in ranks]
    usable.sort(key=lambda m: (ranks[m.path], _cycle(m.path), m.path), reverse=True)
    return Picked([(ranks[match.path], match) for match in usable], remark)


def ranking_path(source: Source) -> str:
    """Where the source's ranking is, as its path is written; "" if it has none."""
    if not isinstance(source.pick, Best):
        return ""
    file = source.pick.best.file
    if file.startswith(("/", "~/")):
        return file
    return os.path.join(fixed_folder(source.path), file)


def fixed_folder(pattern: str) -> str:
    """What a pattern has before the name of its first wildcard, or else before its last name."""
    names = pattern.split("/")
    wild = [i for i, name in enumerate(names) if any(c in name for c in WILDCARDS)]
    return "/".join(names[: wild[0] if wild else -1]) or ("/" if pattern.startswith("/") else "")


def _cycle(path: str) -> int:
    cycle = cycle_of(path)
    return -1 if cycle is None else cycle


def _scores(
    source: Source,
    best: Ranking,
    matches: Sequence[Written],
    content: bytes | None,
    home: str,
    base: str,
) -> tuple[dict[str, float], str]:
    path = ranking_path(source)
    where = f"{source.machine}:{path}" if source.machine else path
    if content is None:
        raise QuernError(
            f"{where}: no such ranking; correct pick.best.file, or let training write it"
        )
    try:
        entries = _entries(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise QuernError(f"{where}: not a ranking: {error}") from None

    def absolute(path: str, folder: str = base) -> str:
        if path.startswith("~/"):
            path = os.path.join(home, path.removeprefix("~/"))
        return os.path.normpath(os.path.join(folder, path))

    folders = [absolute(fixed_folder(source.path)), absolute(os.path.dirname(path))]
    there = {absolute(match.path): match.path for match in matches}
    scores: dict[str, float] = {}
    absent, unranked = 0, 0
    for name, entry in entries:
        named = next((entry[key] for key in NAMES if isinstance(entry.get(key), str)), name)
        score = entry.get(best.by)
        if (
            isinstance(score, bool)
            or not isinstance(score, int | float)
            or not math.isfinite(score)
        ):
            unranked += 1
            continue
        places = [absolute(named, folder) for folder in folders] if named else []
        found = next((there[place] for place in places if place in there), None)
        if found is None:
            absent += 1
            continue
        value = -float(score) if best.lowest else float(score)
        scores[found] = max(value, scores.get(found, value))
    if not scores:
        raise QuernError(
            f"{where}: of its {len(entries)} entries {absent} name a checkpoint that is not there "
            f"(by {source.path}), {unranked} have no number under {best.by!r}: none can be taken"
        )
    passed = [
        *([f"{absent} name no checkpoint that is there"] if absent else []),
        *([f"{unranked} have no number under {best.by!r}"] if unranked else []),
    ]
    return scores, f"of the ranking's entries {' and '.join(passed)}: passed over" if passed else ""


def _entries(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """(name or "", entry): of a list of objects, an object with one such list, or name → object."""
    if isinstance(value, dict):
        lists = {k: v for k, v in value.items() if isinstance(v, list) and _all_objects(v)}
        if len(lists) > 1:
            raise ValueError(f"it holds several lists: {', '.join(lists)}")
        if not lists:
            return [(name, entry) for name, entry in value.items() if isinstance(entry, dict)]
        (value,) = lists.values()
    if not isinstance(value, list) or not _all_objects(value):
        raise ValueError("a list of objects is needed, an object with one, or name → object")
    return [("", entry) for entry in value]


def _all_objects(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)
