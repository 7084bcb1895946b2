"""Drop: remove the intermediates that models.yaml says to, once all that is made of them is there.

They count with the digests they had: nothing is rebuilt for their sake, and what something new
needs of them is made again.
"""

import os
from collections.abc import Iterator
from typing import Any

from tasks.core.configuration import LanguageModel, load_configuration
from tasks.core.project import Project
from tasks.core.recipe import FunctionAction
from tasks.models.layout import model_files, unquantized


def task_drop() -> Iterator[dict[str, Any]]:
    """Remove the merged and unquantized models that are not to be kept."""
    for name, model in load_configuration().language_models().items():
        paths = intermediates(name, model)
        if not paths:
            continue
        formats = model.quantize.formats
        yield {
            "name": name,
            "doc": f"Remove the intermediates of {name} that are not to be kept.",
            "actions": [FunctionAction(drop, paths=paths)],
            "task_dep": [f"reference:{name}", *(f"quantize:{name}:{f}" for f in formats)],
            "uptodate": [Gone(paths)],
        }


def intermediates(name: str, model: LanguageModel) -> list[str]:
    """Paths of a model's files that are dropped."""
    dropped = model.merge.drop and model.adapter is not None
    merged = model_files(name, model) if dropped else []
    return [*merged, *([unquantized(name, model)] if model.convert.drop else [])]


def drop(project: Project, task: str, paths: list[str]) -> None:
    """Remove the files, here and in the store."""
    project.intermediates.drop(paths)


class Gone:
    """Whether none of the files is there."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self.reason = ""

    def __call__(self) -> bool:
        """Asked by doit when all that is made of them has been made."""
        there = [path for path in self.paths if os.path.exists(path)]
        self.reason = f"{there[0]} is no longer needed" if there else ""
        return not there
