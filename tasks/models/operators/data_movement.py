"""What computes nothing: other shapes and orders of the same numbers, parts, joins, padding."""

from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.models.registry import evaluates, lowers
from tasks.models.translation import Translation, View, identity, op_name, shape_of, with_first_1

# --- the same numbers ------------------------------------------------------------------------


@lowers(
    "aten.alias.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
    "aten.lift_fresh_copy.default",
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.type_as.default",
)
def lower_identity(t: Translation, given: dict[str, Any]) -> View:
    """Nothing to compute; a change of type is refused by translate()."""
    return t.broadcastable(given["self"])


@lowers("aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default")
def lower_dropout(t: Translation, given: dict[str, Any]) -> View:
    """Nothing to compute in eval mode."""
    if given["train"]:
        t.refuse(f"{op_name(t.node)} that is on in eval mode (pass training=self.training)")
    argument: Any = t.node.args[0]
    # It gives back its very input, and is traced as if it made a copy.
    t.node.meta["val"] = argument.meta["val"]
    return t.broadcastable(argument)


# --- other shapes and orders -----------------------------------------------------------------


@lowers(
    "aten.view.default",
    "aten._unsafe_view.default",
    "aten.view_as.default",
    "aten.reshape.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.unsqueeze.default",
)
def lower_reshape(t: Translation, given: dict[str, Any]) -> View:
    """The shape that torch found."""
    return replace(t.view(given["self"]), shape=shape_of(t.node))


# Only here the node's shape is told as well: nothing else says it.
evaluates("reshape")(lambda x, shape: x.reshape(shape))


@lowers(
    "aten.permute.default",
    "aten.transpose.int",
    "aten.swapaxes.default",
    "aten.movedim.int",
    "aten.movedim.intlist",
    "aten.t.default",
    "aten.mT.default",
)
def lower_permute(t: Translation, given: dict[str, Any]) -> View:
    """What became of the axes is asked of torch: each has another stride."""
    view = t.view(given["self"])
    strides = [2**axis for axis in range(len(view.shape))]
    probe = torch.empty_strided([2] * len(strides), strides, device="meta")
    target: Any = t.node.target
    moved = target(probe, *t.node.args[1:], **t.node.kwargs).stride()
    return t.permuted(view, [strides.index(stride) for stride in moved])


evaluates("permute")(lambda x, order: x.permute(order))


@lowers("aten.channel_shuffle.default")
def lower_channel_shuffle(t: Translation, given: dict[str, Any]) -> View:
    """Written as view, transpose and view it is recognised too (Translation.settle)."""
    attributes = {"groups": given["groups"]}
    return t.result(t.emit("channel_shuffle", [t.image(given["self"])], attributes=attributes))


@evaluates("channel_shuffle")
def evaluate_channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel i * C / groups + j becomes channel j * groups + i."""
    return F.channel_shuffle(x, groups)


@lowers("aten.pixel_unshuffle.default")
def lower_pixel_unshuffle(t: Translation, given: dict[str, Any]) -> View:
    """Each square of pixels becomes channels."""
    value, factor = t.image(given["self"]), given["downscale_factor"]
    _, channels, height, width = t.shape(value)
    squares = (1, channels, height // factor, factor, width // factor, factor)
    moved = t.permuted(View(value, identity(4), squares), (0, 1, 3, 5, 2, 4))
    return replace(moved, shape=shape_of(t.node))


# --- parts -----------------------------------------------------------------------------------


def part(t: Translation, view: View, dimension: int, start: int, end: int) -> View:
    """From `start` up to, not including, `end` along a dimension."""
    size = view.shape[dimension]
    if (start, end) == (0, size):
        return view
    if not 0 <= start < end <= size:
        t.refuse(f"{op_name(t.node)} from {start} to {end} of {size}")
    attributes = {"axis": view.axis(dimension), "start": start, "end": end}
    shape = list(view.shape)
    shape[dimension] = end - start
    return View(t.emit("slice", [view.value], {}, attributes), view.order, tuple(shape))


evaluates("slice")(lambda x, axis, start, end: x.narrow(axis, start, end - start))


@lowers("aten.slice.Tensor")
def lower_slice(t: Translation, given: dict[str, Any]) -> View:
    """As Python slices; of an image also every n-th row or column, by a window of one pixel."""
    view, dimension = t.permuted_value(given["self"]), given["dim"] % len(shape_of(t.node))
    limits = slice(given["start"], given["end"], given["step"])
    start, end, step = limits.indices(view.shape[dimension])
    found = part(t, view, dimension, start, end)
    if step == 1:
        return found
    if len(view.shape) != 4 or view.shape[0] != 1 or dimension < 2:
        t.refuse(f"aten.slice with step {step} of dimension {dimension}")
    stride = [step if axis == dimension else 1 for axis in (2, 3)]
    window: dict[str, Any] = {"kernel": [1, 1], "stride": stride, "padding": [0, 0]}
    window |= {"dilation": [1, 1], "ceil_mode": 0}
    return t.result(t.emit("max_pool2d", [t.settle(found)], attributes=window))


@lowers("aten.narrow.default")
def lower_narrow(t: Translation, given: dict[str, Any]) -> View:
    """`length` numbers from `start` on."""
    view = t.permuted_value(given["self"])
    dimension = given["dim"] % len(view.shape)
    start = given["start"] % view.shape[dimension]
    return part(t, view, dimension, start, start + given["length"])


@lowers("aten.select.int")
def lower_select(t: Translation, given: dict[str, Any]) -> View:
    """One index; the dimension goes."""
    view = t.permuted_value(given["self"])
    dimension = given["dim"] % len(view.shape)
    index = given["index"] % view.shape[dimension]
    return replace(part(t, view, dimension, index, index + 1), shape=shape_of(t.node))


@lowers(
    "aten.chunk.default",
    "aten.split.Tensor",
    "aten.split_with_sizes.default",
    "aten.tensor_split.sections",
    "aten.tensor_split.indices",
)
def lower_split(t: Translation, given: dict[str, Any]) -> list[View]:
    """The pieces that torch found."""
    view = t.permuted_value(given["self"])
    dimension = given["dim"] % len(view.shape)
    sizes = [piece.shape[dimension] for piece in t.node.meta["val"]]
    ends = accumulate(sizes)
    return [part(t, view, dimension, e - n, e) for n, e in zip(sizes, ends, strict=True)]


# --- joins and padding -----------------------------------------------------------------------


@lowers("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def lower_concat(t: Translation, given: dict[str, Any]) -> View:
    """The axes stay in the order they have in the first tensor."""
    views = [t.view(tensor) for tensor in given["tensors"]]
    rank = len(with_first_1(shape_of(t.node)))
    ordered = [v for v in views if t.is_permuted_value(v) and len(v.order) == rank]
    order = ordered[0].order if ordered else identity(rank)
    axis = order[given["dim"] % len(views[0].shape) - len(views[0].shape)]
    values = [t.aligned(view, order) for view in views]
    return t.result(t.emit("concat", values, attributes={"axis": axis}), order)


evaluates("concat")(lambda *x, axis: torch.cat(x, axis))


@lowers("aten.pad.default", "aten.constant_pad_nd.default")
def lower_pad(t: Translation, given: dict[str, Any]) -> View:
    """A number around each image and, for more channels, before and after the channels."""
    if given.get("mode", "constant") != "constant":
        t.refuse(f"aten.pad with mode {given['mode']}")
    left, right, top, bottom, *channels = [*given["pad"], 0, 0, 0, 0][: max(4, len(given["pad"]))]
    if min(given["pad"]) < 0 or len(channels) > 2:
        t.refuse(f"aten.pad by {given['pad']}")
    number = float(given["value"] or 0)
    value = t.image(given["self"])
    if any(channels):
        values = [value]
        for count, at in zip(channels, (0, 2), strict=True):
            if count:
                shape = (1, count, *t.shape(value)[2:])
                values.insert(at, t.settle(replace(t.number(number), shape=shape)))
        value = t.emit("concat", values, attributes={"axis": 1})
    if any((top, left, bottom, right)):
        attributes = {"padding": [top, left, bottom, right], "value": number}
        value = t.emit("pad", [value], attributes=attributes)
    return t.result(value)


@evaluates("pad")
def evaluate_pad(x: Tensor, padding: list[int], value: float) -> Tensor:
    """[top, left, bottom, right]."""
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value)
