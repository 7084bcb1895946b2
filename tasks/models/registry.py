"""Which operations are known: by ATen's name how to read one, by the file's name how to run it.

The entries are made in operators/, one function each; operators/__init__.py tells how to add one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from tasks.models.translation import Translation, View

# (translation, the ATen operation's arguments by name) -> its result, or its results
Lowering = Callable[["Translation", dict[str, Any]], "View | list[View]"]
# (inputs…, tensors and attributes by name) -> output
Evaluation = Callable[..., Tensor]

LOWERINGS: dict[str, Lowering] = {}  # by ATen operation and overload
EVALUATIONS: dict[str, Evaluation] = {}  # by op of the file


def lowers(*targets: str) -> Callable[[Lowering], Lowering]:
    """Register the function that reads these ATen operations, and their in-place forms."""

    def register(function: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(targets, function))
        return function

    return register


def evaluates(op: str) -> Callable[[Evaluation], Evaluation]:
    """Register the meaning of an op of the file."""

    def register(function: Evaluation) -> Evaluation:
        EVALUATIONS[op] = function
        return function

    return register


def supported() -> str:
    """Every ATen operation that can be read, for messages: "adaptive_avg_pool2d, add, …"."""
    names = {target.split(".")[1] for target in LOWERINGS}
    return ", ".join(sorted(name for name in names if not name.startswith("_")))
