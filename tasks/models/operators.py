"""Every operation of the native engine, in one place: read from ATen, and run again by torch.

To add one: a function under @lowers that emits it, and one under @evaluates that runs it (then
the engine's kernel, and a row in docs/weight-format.md). `evaluates` sees only what the file
holds, so that interpreter.py checks the whole way from the user's model to the bytes.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tasks.models.graph import Reference
from tasks.models.translation import Translation, op_name, shape_of

Lowering = Callable[[Translation, fx.Node, dict[str, Any]], None]
# (inputs, tensors by role, attributes) -> output
Evaluation = Callable[[list[Tensor], dict[str, Tensor], dict[str, Any]], Tensor]

LOWERINGS: dict[str, Lowering] = {}  # by ATen operation and overload
EVALUATIONS: dict[str, Evaluation] = {}  # by op of the file


def lowers(*targets: str) -> Callable[[Lowering], Lowering]:
    """Register a function (translation, node, the node's arguments by name) for ATen operations."""

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


# --- convolution and linear layers -----------------------------------------------------------


@lowers("aten.conv2d.default", "aten.conv2d.padding")
def lower_conv2d(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
    """Weights OIHW as stored; a bias of zeros where there is none."""
    weight = t.stored(node, given["weight"])
    if weight is None or len(shape_of(given["input"])) != 4:
        t.refuse(node, "aten.conv2d without a batch dimension")
    stride, dilation = pair(given["stride"]), pair(given["dilation"])
    attributes = {
        "stride": stride,
        "dilation": dilation,
        "groups": given["groups"],
        "padding": conv2d_padding(given["padding"], dilation, weight.shape[2:]),
    }
    bias = t.stored(node, given["bias"])
    tensors = {"weight": weight, "bias": zeros(weight) if bias is None else bias}
    t.emit(node, "conv2d", [t.value(node, given["input"])], tensors, attributes)


def conv2d_padding(padding: Any, dilation: list[int], kernel: tuple[int, ...]) -> list[int]:
    """[top, left, bottom, right]; "same" puts the odd pixel at the end, as torch does."""
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [n // 2 for n in total] + [n - n // 2 for n in total]
    return pair(0 if padding == "valid" else padding) * 2


@evaluates("conv2d")
def evaluate_conv2d(x: list[Tensor], tensors: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    """Pads by hand, since the four paddings may differ."""
    top, left, bottom, right = a["padding"]
    padded = F.pad(x[0], (left, right, top, bottom))
    stride, dilation, groups = a["stride"], a["dilation"], a["groups"]
    return F.conv2d(padded, tensors["weight"], tensors["bias"], stride, 0, dilation, groups)


@lowers("aten.linear.default")
def lower_linear(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
    """On one vector [1, in] only."""
    weight, bias = t.stored(node, given["weight"]), t.stored(node, given["bias"])
    shape = shape_of(given["input"])
    if weight is None or len(shape) != 2:
        t.refuse(node, f"aten.linear on {list(shape)}, which is not one vector,")
    tensors = {"weight": weight, "bias": zeros(weight) if bias is None else bias}
    t.emit(node, "linear", [t.value(node, given["input"])], tensors)


@evaluates("linear")
def evaluate_linear(x: list[Tensor], tensors: dict[str, Tensor], _: dict[str, Any]) -> Tensor:
    """[1, in] -> [1, out]."""
    return F.linear(x[0], tensors["weight"], tensors["bias"])


# No op of the file: passes.fold_batch_norms turns it into the weights before it, or refuses.
@lowers("aten.batch_norm.default")
def lower_batch_norm(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
    """By the running statistics, as in eval mode."""
    if given["training"] or given["running_mean"] is None:
        t.refuse(node, "aten.batch_norm by the batch's own statistics")
    roles = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
    found = {role: t.stored(node, given[argument]) for role, argument in roles.items()}
    tensors = {role: tensor for role, tensor in found.items() if tensor is not None}
    attributes = {"epsilon": given["eps"]}
    t.emit(node, "batch_norm", [t.value(node, given["input"])], tensors, attributes)


# --- activations -----------------------------------------------------------------------------


def activation(op: str, function: Callable[[Tensor], Tensor], *targets: str) -> None:
    """An op of one input and nothing else."""

    def lower(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
        t.emit(node, op, [t.value(node, node.args[0])])

    lowers(*targets)(lower)
    evaluates(op)(lambda x, _tensors, _attributes: function(x[0]))


activation("relu", F.relu, "aten.relu.default")
activation("relu6", F.relu6, "aten.relu6.default")
activation("sigmoid", torch.sigmoid, "aten.sigmoid.default")


@lowers("aten.hardtanh.default", "aten.clamp.default", "aten.clamp_min.default")
def lower_clamp(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
    """Only the two clamps that have a name: from 0, and from 0 to 6."""
    low = given.get("min_val", given.get("min"))
    high = given.get("max_val", given.get("max"))
    named: dict[tuple[Any, Any], str] = {(0, 6): "relu6", (0, None): "relu"}
    op = named.get((low, high))
    if op is None:
        t.refuse(node, f"{op_name(node)} from {low} to {high}")
    t.emit(node, op, [t.value(node, node.args[0])])


# --- two inputs ------------------------------------------------------------------------------


@lowers("aten.add.Tensor", "aten.mul.Tensor")
def lower_binary(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
    """Equal shapes, or a scale a channel: what the engine broadcasts."""
    if given.get("alpha", 1) != 1:
        t.refuse(node, f"aten.add with alpha={given['alpha']}")
    inputs = [t.value(node, given[key], expanded=True) for key in ("self", "other")]
    shapes = [t.shape(value) for value in inputs]
    wide, narrow = sorted(shapes, key=lambda shape: shape[2:], reverse=True)
    scales = len(wide) == 4 and narrow == (*wide[:2], 1, 1)
    if wide != shape_of(node) or not (wide == narrow or scales):
        t.refuse(node, f"{op_name(node)} of {list(shapes[0])} and {list(shapes[1])}")
    t.emit(node, op_name(node).removeprefix("aten.").removesuffix("_"), inputs)


evaluates("add")(lambda x, _tensors, _attributes: x[0] + x[1])
evaluates("mul")(lambda x, _tensors, _attributes: x[0] * x[1])


@lowers("aten.expand.default", "aten.expand_as.default")
def lower_expand(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
    """The add or mul that reads it broadcasts by itself."""
    t.alias(node, given["self"])


# --- pooling and reshaping -------------------------------------------------------------------


@lowers("aten.adaptive_avg_pool2d.default")
def lower_adaptive_avg_pool2d(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
    """To one number a channel only."""
    if pair(given["output_size"]) != [1, 1] or len(shape_of(given["self"])) != 4:
        t.refuse(node, f"aten.adaptive_avg_pool2d to {given['output_size']} (not 1)")
    t.emit(node, "global_average_pool", [t.value(node, given["self"])])


@lowers("aten.mean.dim")
def lower_mean(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
    """Over height and width of [1, C, H, W]; without keepdim it is flattened as well."""
    shape = shape_of(given["self"])
    dimensions = sorted(d % max(1, len(shape)) for d in given["dim"] or [])
    if len(shape) != 4 or dimensions != [2, 3]:
        t.refuse(node, f"aten.mean over {given['dim']} of {list(shape)}")
    pooled = (*shape[:2], 1, 1)
    value = t.emit(node, "global_average_pool", [t.value(node, given["self"])], shape=pooled)
    if not given["keepdim"]:
        t.emit(node, "flatten", [value])


evaluates("global_average_pool")(lambda x, _tensors, _attributes: x[0].mean((2, 3), keepdim=True))


@lowers(
    "aten.view.default",
    "aten._unsafe_view.default",
    "aten.reshape.default",
    "aten.flatten.using_ints",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.unsqueeze.default",
)
def lower_reshape(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
    """[1, C, H, W] to a vector, or a pooled vector back to [1, C, 1, 1]."""
    source = t.viewed(given["self"])
    before, after = shape_of(source), shape_of(node)
    if before == after:
        t.alias(node, source)
    elif len(before) == 4 and len(after) == 2:
        t.emit(node, "flatten", [t.value(node, source)])
        t.share_memory(node, source)
    elif len(before) == 2 and after == (*before, 1, 1):
        # No op of the file: passes.keep_pooled_shape removes it, or refuses.
        t.emit(node, "unflatten", [t.value(node, source)])
        t.share_memory(node, source)
    else:
        t.view(node, source)


evaluates("flatten")(lambda x, _tensors, _attributes: x[0].flatten(1))


@lowers(
    "aten.alias.default",
    "aten.contiguous.default",
    "aten.detach.default",
    "aten.slice.Tensor",
    "aten.to.dtype",
)
def lower_identity(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
    """Nothing to compute, as long as neither shape nor type changes."""
    source = given["self"]
    if source.meta["val"].dtype != node.meta["val"].dtype or shape_of(source) != shape_of(node):
        t.refuse(node, f"{op_name(node)} to {list(shape_of(node))}, {node.meta['val'].dtype}")
    t.alias(node, source)


@lowers("aten.clone.default")
def lower_clone(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
    """The same value in memory of its own."""
    lower_identity(t, node, given)
    t.own_memory(node)


@lowers("aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default")
def lower_dropout(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
    """Nothing to compute in eval mode."""
    if given["train"]:
        t.refuse(node, f"{op_name(node)} that is on in eval mode (pass training=self.training)")
    t.alias(node, node.args[0])  # type: ignore[arg-type]


@lowers("aten._assert_tensor_metadata.default")
def lower_assertion(t: Translation, node: fx.Node, given: dict[str, Any]) -> None:
    """Says only what was true while tracing; it computes nothing."""


def pair(value: Any) -> list[int]:
    """[v, v] for v or [v]; two numbers as they are."""
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * 2 if len(numbers) == 1 else numbers


def zeros(weight: Reference) -> Reference:
    """The bias that is always written: one zero an output."""
    return Reference(None, weight.shape[:1])
