"""Fetch: bring each model's checkpoint from where training writes it to `weights/<model>/`."""

import glob
import hashlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tasks.core.action import announce, progress
from tasks.core.atomic import write_atomically
from tasks.core.configuration import CheckpointSource, load_configuration
from tasks.core.digest import canonical_json
from tasks.core.errors import QuernError, TryAgainLater
from tasks.core.recipe import Recipe
from tasks.models.layout import artifact, cycle_of


def task_fetch() -> Iterator[dict[str, Any]]:
    """Bring each model's checkpoint from where training writes it."""
    for name, model in load_configuration().classifiers().items():
        source = model.checkpoint
        yield Recipe(
            name="fetch",
            version=1,
            function="tasks.fetch:fetch",
            inputs=partial(current_source, name, source),
            outputs={
                "checkpoint": artifact(name, "checkpoint.pth"),
                "origin": artifact(name, "checkpoint.json"),
            },
        ).task(name, f"Bring the checkpoint of {name} from {source.path}.")


def current_source(model: str, source: CheckpointSource) -> dict[str, str]:
    """The recipe's input, found when the task's turn comes: training writes when it likes."""
    return {"source": pick_checkpoint(model, source)}


def pick_checkpoint(model: str, source: CheckpointSource) -> str:
    """The one checkpoint that `source` means now; one still being written is passed over.

    Raises QuernError when nothing matches, TryAgainLater when all that match are unfinished.
    """
    from tasks.models.archive import is_complete_zip

    matches = glob.glob(os.path.expanduser(source.path))
    if not matches:
        raise QuernError(
            f"models.yaml: models.{model}.checkpoint.path: no file matches {source.path}; "
            "train one (the example: doit train_example) or correct the path"
        )
    if source.pick == "newest":
        matches.sort(key=lambda path: os.stat(path).st_mtime_ns)
    else:
        matches.sort(key=lambda path: (cycle_of(path) or 0, path))
    for path in reversed(matches):
        unfinished = is_complete_zip(Path(path))
        if unfinished is None:
            return path
    raise TryAgainLater(f"{path}: {unfinished}; left until its writer is done")


def fetch(source: str, checkpoint: str, origin: str) -> None:
    """Copy `source` to `checkpoint`, and write its path, cycle, size and SHA-256 to `origin`."""
    digest, done = hashlib.sha256(), 0
    with open(source, "rb") as reader, open(checkpoint, "wb") as writer:
        total = os.fstat(reader.fileno()).st_size
        while block := reader.read(4 << 20):
            digest.update(block)
            writer.write(block)
            done += len(block)
            progress("copying", done, total)
    details = {
        "path": source,
        "cycle": cycle_of(source),
        "size": done,
        "sha256": digest.hexdigest(),
    }
    write_atomically(Path(origin), canonical_json(details) + b"\n")
    announce("new checkpoint", source)
