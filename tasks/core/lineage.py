"""Lineage: of what an artifact was made, read from the results that the store keeps by recipe key.

A recipe's inputs are named with their digests, so the way down from an artifact is a walk from
digest to digest, to the files that no recipe made.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.store import Store

# The first word of a component's name (Recipe.components); a recipe's watch found all others.
KINDS = ("recipe", "function", "code", "parameter", "tool", "input")


@dataclass(frozen=True)
class Material:
    """A file that no recipe made: the user's own. `digest` is xxh3_128."""

    path: str
    digest: str


@dataclass(frozen=True)
class Made:
    """An `output` of a recipe's run, by the recipe's `key`; `components` are as
    Recipe.components gave them."""

    recipe: str
    key: str
    output: str
    components: Mapping[str, str]

    @property
    def inputs(self) -> list[Material]:
        """The files it was made from."""
        return [Material(path, digest) for path, digest in self._named("input ")]

    @property
    def tools(self) -> dict[str, str]:
        """The versions of what did the work."""
        return {n: version for n, version in self._named("tool ") if not n.startswith("file ")}

    @property
    def tool_files(self) -> list[Material]:
        """The programs, libraries and modules that did the work."""
        return [Material(path, digest) for path, digest in self._named("tool file ")]

    @property
    def parameters(self) -> dict[str, Any]:
        """Name → value."""
        return {name: json.loads(value) for name, value in self._named("parameter ")}

    @property
    def found(self) -> dict[str, dict[str, Any]]:
        """What its watch found: {"source": {"host", "path", "sha256", …}} of a fetch."""
        found: dict[str, dict[str, Any]] = {}
        for component, value in self.components.items():
            name, _, field = component.partition(" ")
            if name not in KINDS:
                found.setdefault(name, {})[field] = json.loads(value)
        return found

    def _named(self, prefix: str) -> Iterator[tuple[str, str]]:
        for component, value in self.components.items():
            if component.startswith(prefix):
                yield component.removeprefix(prefix), value


class Lineage:
    """The results of a store as they were when this was made."""

    def __init__(self, store: Store) -> None:
        self._made: dict[str, list[Made]] = {}
        files = (store.root / "results").glob("??/*.json")
        for file in sorted(files, key=_age):
            for digest, made in _outputs(file):
                self._made.setdefault(digest, []).append(made)

    def made(self, digest: str) -> list[Made]:
        """What made an artifact, the newest run first: several keys may give the same bytes. Of
        what no recipe made, none."""
        return self._made.get(digest, [])

    def beginning(self, digits: str) -> str | None:
        """The digest of the artifact whose digest begins with `digits`; None if there is no one."""
        found = [digest for digest in self._made if digest.startswith(digits)]
        return found[0] if len(found) == 1 else None

    def steps(self, digests: Iterable[str]) -> list[Made]:
        """All that was run on the way to the artifacts, each step once, theirs first.

        Where several runs gave the same bytes it is the newest one.
        """
        steps: dict[str, Made] = {}
        ahead, seen = list(digests), set[str]()
        while ahead:
            digest = ahead.pop(0)
            if digest in seen:
                continue
            seen.add(digest)
            for made in (*self.made(digest)[:1], *self._makers(digest)[:1]):
                steps.setdefault(made.key, made)
                ahead += [material.digest for material in made.inputs]
        return list(steps.values())

    def materials(self, digests: Iterable[str]) -> list[Material]:
        """The files of the user that the artifacts came from, by path; what a fetch brought from
        elsewhere is in its step's `found`."""
        found = {
            material
            for step in self.steps(digests)
            for material in step.inputs
            if self._is_the_users(material.digest, step)
        }
        return sorted(found, key=lambda material: (material.path, material.digest))

    def _is_the_users(self, digest: str, taken_by: Made) -> bool:
        made = self.made(digest)
        return not made or (not self._makers(digest) and taken_by in made)

    def _makers(self, digest: str) -> list[Made]:
        """What made the bytes, and did not only pass them on."""
        return [
            made
            for made in self.made(digest)
            if digest not in (material.digest for material in made.inputs)
        ]


def _age(file: Path) -> float:
    """The newest first; one that goes away meanwhile is the oldest."""
    try:
        return -file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0.0


def _outputs(file: Path) -> Iterator[tuple[str, Made]]:
    """Digest and maker of each output of a recorded result; of a damaged file nothing."""
    try:
        result = json.loads(file.read_bytes())
        recipe, components = str(result["recipe"]), dict(result["components"])
        outputs = [(name, str(output["digest"])) for name, output in result["outputs"].items()]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return
    key = file.parent.name + file.stem
    for name, digest in outputs:
        yield digest, Made(recipe, key, name, components)
