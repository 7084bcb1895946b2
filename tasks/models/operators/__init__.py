"""Every operation of the native engine: read from ATen, and run again by torch. One file a family,
as in native/engine/operators.

To add one: a function under @lowers that emits it, and one under @evaluates that runs it (then its
row in docs/weight-format.md, and the engine's shape rule and kernel). reduction.py's softmax is an
example. The first sees what torch.export wrote; the second sees only what the file holds, so that
interpreter.py checks the whole way from the user's model to the bytes.
"""

from tasks.models.operators import (
    convolution,
    data_movement,
    elementwise,
    pooling,
    reduction,
)
from tasks.models.registry import EVALUATIONS, LOWERINGS

__all__ = [
    "EVALUATIONS",
    "LOWERINGS",
    "convolution",
    "data_movement",
    "elementwise",
    "pooling",
    "reduction",
]
