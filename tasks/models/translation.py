"""The state of one lowering: which tensor of torch's graph is which value of ours."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, fx

from tasks.core.errors import QuernError
from tasks.models.graph import INPUT, Graph, Node, Reference
from tasks.models.registry import EVALUATIONS, supported

MOST_DIMENSIONS = 6


@dataclass(frozen=True)
class View:
    """How we hold a tensor of torch: source.permute(order).reshape(shape).

    Permutations and reshapes wait here until an operation needs them done; many never are. A tensor
    that torch has expanded is held before that: `shape` has 1 where the tensor repeats itself.
    The source is a value of our graph or, in no order, what the model stores.
    """

    source: str | Reference
    order: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def value(self) -> str:
        """The source where that is a value, as in what Translation.permuted_value gives."""
        assert isinstance(self.source, str)
        return self.source

    def axis(self, dimension: int) -> int:
        """The axis of `value` that is this dimension of torch's tensor, if `order` alone waits."""
        return self.order[dimension % len(self.shape) - len(self.shape)]


class Translation:
    """A graph under construction from an exported one, asked and told by operators/.

    `model_name` is the user's class; `stored` is the name in the model of each parameter and buffer
    by placeholder name. `node` is the operation of torch that is being lowered.

    The first dimension of a value is always 1. A tensor of torch for which it isn't is read with a
    dimension of 1 put before the others.
    """

    def __init__(self, model_name: str, network_input: fx.Node, stored: dict[str, str]) -> None:
        self.model_name = model_name
        self.node = network_input
        shape = shape_of(network_input)
        self.graph = Graph((shape[0], shape[1], shape[2], shape[3]), [], INPUT)
        self._stored = stored
        self._shapes = {INPUT: shape}
        self._producers: dict[str, Node] = {}
        self._views = {network_input: View(INPUT, identity(4), shape)}
        self._results: dict[fx.Node, list[View]] = {}  # of operations that give several
        self._refusals: dict[fx.Node, QuernError] = {}
        self._settled: dict[View, str] = {}

    # --- what a lowering reads ---------------------------------------------------------------

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape of a value of our graph."""
        return self._shapes[value]

    def producer(self, value: str) -> Node | None:
        """The node that makes `value`, None for the graph's input."""
        return self._producers.get(value)

    def broadcastable(self, argument: Any) -> View:
        """A number, a stored tensor or a computed one, for an operation that broadcasts."""
        if not isinstance(argument, fx.Node):
            return self.number(argument)
        if argument in self._views:
            return self._views[argument]
        if argument in self._refusals:
            raise self._refusals[argument]
        if argument.name not in self._stored or argument.meta["val"].dtype != torch.float32:
            self.refuse(
                f"{op_name(self.node)} with the stored tensor {argument.name}, which is no float32"
                " parameter or buffer (register_buffer makes it one),"
            )
        shape = shape_of(argument)
        return View(Reference(self._stored[argument.name], shape, held=shape), (), shape)

    def number(self, number: float) -> View:
        """A number as a tensor without dimensions."""
        with np.errstate(over="ignore"):
            if not np.isfinite(np.float32(number)):
                self.refuse(f"{op_name(self.node)} with the number {number}")
        return View(Reference(None, (), fill=float(number)), (), ())

    def view(self, argument: fx.Node) -> View:
        """A tensor, expanded if torch has expanded it."""
        view, shape = self.broadcastable(argument), shape_of(argument)
        if view.shape == shape:
            return view
        zeros, order = replace(self.number(0), shape=shape), identity(len(with_first_1(shape)))
        value = self.emit("add", [self.aligned(view, order), self.settle(zeros)])
        return View(value, order, shape)

    def permuted_value(self, argument: fx.Node) -> View:
        """A tensor as a value whose axes are at most permuted: for operations along axes."""
        view = self.view(argument)
        if self.is_permuted_value(view):
            return view
        value = self.settle(view)
        return View(value, identity(len(self.shape(value))), view.shape)

    def value(self, argument: fx.Node) -> str:
        """A tensor as a value of just its shape."""
        return self.settle(self.view(argument))

    def image(self, argument: fx.Node) -> str:
        """A tensor as a value [1, C, H, W]; all else is refused."""
        shape = shape_of(argument)
        if len(shape) != 4 or shape[0] != 1:
            self.refuse(f"{op_name(self.node)} of {list(shape)}, which is not [1, C, H, W],")
        return self.value(argument)

    def stored(self, argument: fx.Node) -> Reference:
        """The parameter or buffer that is an operation's weight."""
        view = self.broadcastable(argument)
        if not isinstance(view.source, Reference):
            self.refuse(f"{op_name(self.node)} with a weight that forward() computes")
        return replace(view.source, shape=view.shape)

    # --- what a lowering does ----------------------------------------------------------------

    def emit(
        self,
        op: str,
        inputs: list[str],
        tensors: dict[str, Reference] | None = None,
        attributes: dict[str, Any] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> str:
        """Append an operation and return its value; `shape` only where torch cannot tell it."""
        tensors, attributes = tensors or {}, attributes or {}
        for attribute in attributes.values():
            if isinstance(attribute, float):
                self.number(attribute)
        if shape is None:
            given = [torch.empty(self._shapes[value], device="meta") for value in inputs]
            roles = {
                role: torch.empty(tensor.shape, device="meta") for role, tensor in tensors.items()
            }
            shape = tuple(EVALUATIONS[op](*given, **roles, **attributes).shape)
        if len(shape) > MOST_DIMENSIONS:
            self.refuse(f"{op_name(self.node)} with {len(shape)} dimensions")
        output = f"v{len(self.graph.nodes)}"
        name = module_path(self.node) or self.model_name
        node = Node(op, name, inputs, output, shape, tensors, attributes)
        self.graph.nodes.append(node)
        self._producers[output], self._shapes[output] = node, shape
        return output

    def result(self, value: str, order: tuple[int, ...] | None = None) -> View:
        """`value`, its axes in `order`, as what torch's operation gives."""
        order = identity(len(self.shape(value))) if order is None else order
        return View(value, order, shape_of(self.node))

    def permuted(self, view: View, axes: Sequence[int]) -> View:
        """torch.permute of a view."""
        shape = tuple(view.shape[axis] for axis in axes)
        if not self.is_permuted_value(view):
            if keeps_order(view.shape, axes):
                return replace(view, shape=shape)
            value = self.settle(view)
            view = View(value, identity(len(self.shape(value))), view.shape)
        lead = len(view.order) - len(axes)
        order = view.order[:lead] + tuple(view.order[lead + axis] for axis in axes)
        return View(view.value, order, shape)

    def aligned(self, view: View, order: tuple[int, ...]) -> str:
        """The value whose axes in `order` are the view."""
        shape = (1,) * (len(order) - len(view.shape)) + view.shape
        return self.settle(self.permuted(replace(view, shape=shape), np.argsort(order).tolist()))

    def settle(self, view: View) -> str:
        """A view as a value of just its shape: what has waited is done now, and only once."""
        view = replace(view, shape=with_first_1(view.shape))
        if view not in self._settled:
            self._settled[view] = self._settle(view)
        return self._settled[view]

    def _settle(self, view: View) -> str:
        if isinstance(view.source, Reference):
            return self.emit("constant", [], {"value": replace(view.source, shape=view.shape)})
        value, source = view.value, self.producer(view.value)
        if keeps_order(self.shape(value), view.order):
            if source and source.op == "reshape" and source.shape != view.shape:
                value = source.inputs[0]
        elif source and (groups := shuffled_groups(source, self._shapes, view.order)):
            value = self.emit("channel_shuffle", source.inputs, {}, {"groups": groups})
        else:
            moved = [axis for axis in view.order if axis > 0]  # the first, of size 1, stays
            value = self.emit("permute", [value], {}, {"order": [0, *moved]})
        if self.shape(value) != view.shape:
            value = self.emit("reshape", [value], shape=view.shape)
        return value

    def is_permuted_value(self, view: View) -> bool:
        """Whether nothing but a permutation waits in a view."""
        if isinstance(view.source, Reference):
            return False
        shape = self.shape(view.value)
        return tuple(shape[axis] for axis in view.order) == with_first_1(view.shape)

    # --- what translate() tells of each operation --------------------------------------------

    def define(self, found: View | list[View]) -> None:
        """`self.node` is `found`."""
        if isinstance(found, list):
            self._results[self.node] = found
        else:
            self._views[self.node] = found

    def take(self, source: fx.Node, index: int) -> None:
        """`self.node` is the result number `index` of an operation that gives several."""
        if source in self._refusals:
            raise self._refusals[source]
        if index >= len(self._results[source]):
            self.refuse(op_name(self.node))
        self._views[self.node] = self._results[source][index]

    def defer(self, refusal: QuernError) -> None:
        """`self.node` is refused where it is read, if ever: in the logits, or in a layer norm."""
        self._refusals[self.node] = refusal

    def changed_in_place(self, argument: fx.Node) -> None:
        """`self.node` is the new content of `argument`'s memory.

        Every other view of the same value now shows the new one; other values in that memory are
        forgotten, so that reading one is refused.
        """
        new, old = self._views[self.node], self._views.get(argument)
        if old is None or isinstance(new.source, Reference) or isinstance(old.source, Reference):
            self.refuse(f"{op_name(self.node)} that changes a parameter or buffer")
        same_layout = new.order == old.order and self.shape(new.value) == self.shape(old.value)
        for node, view in list(self._views.items()):
            if storage(node) is not storage(argument) or view.source == new.source:
                continue
            if view == old:
                self._views[node] = new
            elif view.source == old.source and same_layout:
                self._views[node] = replace(view, source=new.source)
            else:
                del self._views[node]
                stale = f"{op_name(node)}, read after its memory was changed in place,"
                self._refusals[node] = self.refusal(stale, node)

    def refuse(self, what: str) -> NoReturn:
        """Raise the QuernError that says which module of the user's model holds the trouble."""
        raise self.refusal(what, self.node)

    def refusal(self, what: str, node: fx.Node) -> QuernError:
        """One line: class and module path as the user would write it, what is not supported."""
        where = ".".join(filter(None, (self.model_name, module_path(node))))
        return QuernError(
            f"{where}: {what} is not supported by the native engine; supported are {supported()}"
        )


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape torch found for a node's tensor, () where the node is no single tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def storage(node: fx.Node) -> object:
    """The memory of a node's tensor as torch traced it: one object for all that share it."""
    return node.meta["val"].untyped_storage()


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen operation by name, defaults filled in."""
    schema: Any = node.target._schema  # type: ignore[union-attr]
    names = [argument.name for argument in schema.arguments]
    given = {argument.name: argument.default_value for argument in schema.arguments}
    return given | dict(zip(names, node.args, strict=False)) | node.kwargs


def module_path(node: fx.Node) -> str:
    """Where in the user's model the node was computed, "" for its own forward()."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(stack.values())), "")


def op_name(node: fx.Node) -> str:
    """The operation without its overload: aten.gelu for aten.gelu.default, aten.max_pool2d[1] for
    the second of its results."""
    if node.target is operator.getitem:
        source, index = node.args
        return f"{op_name(source)}[{index}]"  # type: ignore[arg-type]
    return ".".join(str(node.target).split(".")[:2])


def identity(dimensions: int) -> tuple[int, ...]:
    """The order that changes nothing."""
    return tuple(range(dimensions))


def with_first_1(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the value that holds a tensor of `shape`."""
    return shape if shape[:1] == (1,) else (1, *shape)


def keeps_order(shape: tuple[int, ...], order: Sequence[int]) -> bool:
    """Whether a permutation leaves every number where it is, as it moves only dimensions of 1."""
    moved = [axis for axis in order if shape[axis] != 1]
    return moved == sorted(moved)


def shuffled_groups(
    source: Node, shapes: dict[str, tuple[int, ...]], order: tuple[int, ...]
) -> int | None:
    """The groups of the channel shuffle that `source` in `order` is, None if it is none.

    [1, C, H, W] reshaped to [1, groups, C / groups, …] with axes 1 and 2 swapped, as in ShuffleNet
    (Zhang et al. 2018, section 3.1).
    """
    if source.op != "reshape" or order != (0, 2, 1, *range(3, len(order))):
        return None
    image, (_, groups, channels, *_) = shapes[source.inputs[0]], source.shape
    return groups if len(image) == 4 and image[1] == groups * channels else None
