"""Intermediates: artifacts that may be dropped once all that is made of them is there.

A dropped one still counts with the digest it had, so that nothing is rebuilt for its sake; it is
made again, bit for bit, when a task needs its bytes.
"""

import os
import threading
from typing import TYPE_CHECKING, Any

from tasks.core.errors import QuernError

if TYPE_CHECKING:
    from tasks.core.project import Project
    from tasks.core.recipe import RecipeAction


class Intermediates:
    """The project's droppable targets: the digests they had, and the recipes that make them."""

    def __init__(self, project: "Project") -> None:
        self._project = project
        self._makers: dict[str, RecipeAction] = {}
        self._digests: dict[str, str] = {}
        self._making = threading.RLock()

    def adopt(self, action: "RecipeAction", record: dict[str, Any] | None) -> None:
        """Know the targets of a recipe that may be dropped, and their recorded digests."""
        for target in action.recipe.outputs.values():
            self._makers[target] = action
        self.remember(action, record["targets"] if record else {})

    def remember(self, action: "RecipeAction", targets: dict[str, str]) -> None:
        """The digests that the recipe's targets came to."""
        if action.recipe.drop:
            self._digests.update(targets)

    def digest(self, path: str) -> str:
        """xxh3_128 of the file's bytes, or the one it had when it was dropped.

        Raises FileNotFoundError for any other file that is not there.
        """
        try:
            return self._project.index.digest(path)
        except FileNotFoundError:
            if path not in self._digests:
                raise
            return self._digests[path]

    def bring_back(self, paths: list[str], task: str) -> None:
        """See that the files of `paths` are there for `task`: make again those that were dropped.

        Raises QuernError when one comes out differently than before.
        """
        with self._making:
            for path in paths:
                if os.path.exists(path) or path not in self._digests:
                    continue
                maker, before = self._makers[path], self._digests[path]
                self._project.event(task, {"note": f"{path} was dropped: made again"})
                maker.judge(self._project)
                failure = maker.execute()
                if failure is not None:
                    raise QuernError(failure.get_msg().strip())
                if self._project.index.digest(path) != before:
                    raise QuernError(
                        f"{path} came out differently than before it was dropped; "
                        f"run doit {maker.task.name}"
                    )

    def drop(self, paths: list[str]) -> None:
        """Remove the files, here and in the store."""
        for path in paths:
            if path not in self._digests:
                raise QuernError(f"{path}: nothing is known of how to make it again")
            self._project.store.discard(self._digests[path])
            if os.path.exists(path):
                os.remove(path)
