"""The graph that the native engine runs, while it is being made: what model_weights.bin holds."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.core.digest import canonical_json

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Reference:
    """A parameter or buffer that the user's model holds as `name` in the shape `held`, put in
    `shape` here; or, if `name` is None, a tensor of `shape` that is `fill` everywhere.
    """

    name: str | None
    shape: tuple[int, ...]
    held: tuple[int, ...] = ()
    fill: float = 0.0
    reciprocal: bool = False  # 1 / each of its numbers


@dataclass(eq=False)
class Node:
    """One operation; docs/weight-format.md says what each `op` means.

    `tensors` maps a role ("weight", "bias", "value") to a Reference, until passes.bind puts an
    Array in its place: float32 or float64, which is kept until the file is written, so that folding
    rounds once.
    """

    op: str
    name: str  # module path in the user's model; the class for its own forward()
    inputs: list[str]
    output: str
    shape: tuple[int, ...]
    tensors: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """Nodes in topological order, from the value named INPUT to the value `output`."""

    input_shape: tuple[int, int, int, int]  # NCHW, batch 1
    nodes: list[Node]
    output: str

    def producer(self, value: str) -> Node | None:
        """The node that makes `value`, None for the graph's input."""
        return next((node for node in self.nodes if node.output == value), None)

    def uses(self, value: str) -> int:
        """How often `value` is read, the graph's own output counted."""
        readings = sum(node.inputs.count(value) for node in self.nodes)
        return readings + (value == self.output)

    def replace(self, old: str, new: str) -> None:
        """Let every reader of `old` read `new`."""
        for node in self.nodes:
            node.inputs = [new if value == old else value for value in node.inputs]
        self.output = new if self.output == old else self.output

    def prune(self) -> None:
        """Remove what the output doesn't depend on, an auxiliary head's last steps for instance."""
        for node in reversed(list(self.nodes)):
            if self.uses(node.output) == 0:
                self.nodes.remove(node)

    def renumber(self) -> None:
        """Name the values v0, v1, … in order, so that the file doesn't show what was erased."""
        names = {INPUT: INPUT} | {node.output: f"v{i}" for i, node in enumerate(self.nodes)}
        for node in self.nodes:
            node.inputs = [names[value] for value in node.inputs]
            node.output = names[node.output]
        self.output = names[self.output]


INPUT = "input"


def encode(graph: Graph) -> bytes:
    """graph.json of a graph whose tensors are all references, canonical JSON and a newline."""
    return canonical_json(asdict(graph)) + b"\n"


def decode(data: bytes) -> Graph:
    """The graph that `encode` wrote."""
    found = json.loads(data)
    nodes = [Node(**node) for node in found["nodes"]]
    for node in nodes:
        node.shape = tuple(node.shape)
        for role, tensor in node.tensors.items():
            shapes = {key: tuple(tensor[key]) for key in ("shape", "held")}
            node.tensors[role] = Reference(**tensor | shapes)
    return Graph(tuple(found["input_shape"]), nodes, found["output"])


def float64(array: Array) -> Array:
    """The same numbers in float64."""
    return array.astype(np.float64)
