"""The state of one lowering: which node of torch's graph became which value of ours."""

from typing import Any, NoReturn

from torch import Tensor, fx

from tasks.core.errors import QuernError
from tasks.models.graph import INPUT, Graph, Node, Reference


class Translation:
    """A graph under construction from an exported one, asked and told by operators.py.

    `model_name` is the user's class; `stored` is the name in the model of each parameter and buffer
    by placeholder name.
    """

    def __init__(self, model_name: str, network_input: fx.Node, stored: dict[str, str]) -> None:
        self.model_name = model_name
        shape = shape_of(network_input)
        self.graph = Graph((shape[0], shape[1], shape[2], shape[3]), [], INPUT)
        self._stored = stored
        self._values: dict[fx.Node, str] = {network_input: INPUT}
        self._shapes = {INPUT: shape}
        self._views: dict[fx.Node, fx.Node] = {}
        # Nodes that share memory have one owner: what is changed in place changes for all.
        self._owners: dict[fx.Node, fx.Node] = {network_input: network_input}

    def value(self, node: fx.Node, argument: Any, expanded: bool = False) -> str:
        """The value that `argument` of `node` is; `expanded` if the reader broadcasts it itself."""
        if not isinstance(argument, fx.Node):
            self.refuse(node, f"{op_name(node)} with the number {argument!r}")
        if argument.op != "call_function" and argument not in self._values:
            self.refuse(node, f"{op_name(node)} with the stored tensor {argument.name}")
        found = self._values.get(argument)
        if found is None or not (expanded or self._shapes[found] == shape_of(argument)):
            self.refuse(argument, f"{op_name(argument)} to {list(shape_of(argument))}")
        return found

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape of a value of our graph."""
        return self._shapes[value]

    def stored(self, node: fx.Node, argument: fx.Node | None) -> Reference | None:
        """The parameter or buffer that `node` takes, None for None."""
        if argument is None:
            return None
        if argument.op == "call_function":
            self.refuse(node, f"{op_name(node)} with a weight that forward() computes")
        if argument.name not in self._stored:
            self.refuse(
                node,
                f"{op_name(node)} with the stored tensor {argument.name}, which is no parameter or"
                " buffer (register_buffer makes it one),",
            )
        return Reference(self._stored[argument.name], shape_of(argument))

    def emit(
        self,
        node: fx.Node,
        op: str,
        inputs: list[str],
        tensors: dict[str, Reference] | None = None,
        attributes: dict[str, Any] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> str:
        """Append an operation that computes `node`; its shape is `node`'s unless given."""
        output = f"v{len(self.graph.nodes)}"
        shape = shape_of(node) if shape is None else shape
        name = module_path(node) or self.model_name
        self.graph.nodes.append(
            Node(op, name, inputs, output, shape, tensors or {}, attributes or {})
        )
        self._values[node] = output
        self._shapes[output] = shape
        self._owners[node] = node
        return output

    def alias(self, node: fx.Node, argument: fx.Node) -> None:
        """`node` is the very value of `argument`: identity, or broadcasting left to the reader."""
        if argument in self._values:
            self._values[node] = self._values[argument]
        if argument in self._views:
            self._views[node] = self._views[argument]
        self.share_memory(node, argument)

    def view(self, node: fx.Node, argument: fx.Node) -> None:
        """`node` has a shape that we have no value for; a later view may bring it back."""
        self._views[node] = argument
        self.share_memory(node, argument)

    def viewed(self, argument: fx.Node) -> fx.Node:
        """The node whose numbers `argument` shows in another shape, else `argument` itself."""
        return self._views.get(argument, argument)

    def share_memory(self, node: fx.Node, argument: fx.Node) -> None:
        """`node` and `argument` are one memory to torch."""
        self._owners[node] = self._owners.get(argument, argument)

    def own_memory(self, node: fx.Node) -> None:
        """`node` is a copy: what is changed in place elsewhere doesn't change it."""
        self._owners[node] = node

    def changed_in_place(self, node: fx.Node, argument: fx.Node) -> None:
        """`node` was emitted as the new content of `argument`'s memory.

        Every other name of the same value now has the new one; other views of that memory are
        forgotten, so that reading one is refused.
        """
        old = self._values.get(argument)
        self.share_memory(node, argument)
        for other, owner in self._owners.items():
            if owner is self._owners[node] and other in self._values and other is not node:
                if self._values[other] == old:
                    self._values[other] = self._values[node]
                else:
                    del self._values[other]

    def refuse(self, node: fx.Node, what: str) -> NoReturn:
        """Raise the QuernError that says which module of the user's model holds the trouble."""
        raise QuernError(f"{self.where(node)}: {what} {SUPPORT}")

    def where(self, node: fx.Node) -> str:
        """Class and module path, as the user would write it: LiteCNNPro.blocks.3.act."""
        return ".".join(filter(None, (self.model_name, module_path(node))))


SUPPORT = (
    "is not supported by the native engine; supported are add, conv2d, flatten,"
    " global_average_pool, linear, mul, relu, relu6, sigmoid, and batch_norm after conv2d or linear"
)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape torch found for a node's tensor, () where the node is no single tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def module_path(node: fx.Node) -> str:
    """Where in the user's model the node was computed, "" for its own forward()."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(stack.values())), "")


def op_name(node: fx.Node) -> str:
    """The operation without its overload: aten.gelu for aten.gelu.default."""
    return ".".join(str(node.target).split(".")[:2])
