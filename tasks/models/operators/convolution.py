"""conv2d, linear, and the batch norm that is folded into them."""

from dataclasses import replace
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tasks.models.graph import Reference
from tasks.models.registry import evaluates, lowers
from tasks.models.translation import Translation, View

POINTWISE = {"stride": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1}


@lowers("aten.conv2d.default", "aten.conv2d.padding")
def lower_conv2d(t: Translation, given: dict[str, Any]) -> View:
    """A padding with zeros before it becomes its own, which may differ from side to side."""
    value, weight = t.image(given["input"]), t.stored(given["weight"])
    dilation = pair(given["dilation"])
    padding = conv2d_padding(given["padding"], dilation, weight.shape[2:])
    while (pad := t.producer(value)) and pad.op == "pad" and pad.attributes["value"] == 0:
        padding = [a + b for a, b in zip(padding, pad.attributes["padding"], strict=True)]
        value = pad.inputs[0]
    attributes = {
        "stride": pair(given["stride"]),
        "padding": padding,
        "dilation": dilation,
        "groups": given["groups"],
    }
    tensors = {"weight": weight, "bias": bias(t, given, weight)}
    return t.result(t.emit("conv2d", [value], tensors, attributes))


def conv2d_padding(padding: Any, dilation: list[int], kernel: tuple[int, ...]) -> list[int]:
    """[top, left, bottom, right]; "same" puts the odd pixel at the end, as torch does."""
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [n // 2 for n in total] + [n - n // 2 for n in total]
    return pair(0 if padding == "valid" else padding) * 2


@evaluates("conv2d")
def evaluate_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Pads by hand, since the four paddings may differ."""
    top, left, bottom, right = padding
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, weight, bias, stride, 0, dilation, groups)


@lowers("aten.linear.default")
def lower_linear(t: Translation, given: dict[str, Any]) -> View:
    """A vector as it is; several, along the last axis, as the channels of a 1x1 conv2d."""
    view, weight = t.view(given["input"]), t.stored(given["weight"])
    tensors = {"weight": weight, "bias": bias(t, given, weight)}
    *rows, inputs = view.shape
    if prod(rows) == 1:
        vector = t.settle(replace(view, shape=(1, inputs)))
        return t.result(t.emit("linear", [vector], tensors))
    if len(view.shape) != 4 or view.shape[0] != 1:
        view = replace(view, shape=(1, 1, prod(rows), inputs))
    image = t.settle(t.permuted(view, (0, 3, 1, 2)))
    tensors["weight"] = replace(weight, shape=(*weight.shape, 1, 1))
    return t.result(t.emit("conv2d", [image], tensors, POINTWISE), (0, 2, 3, 1))


@evaluates("linear")
def evaluate_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[1, in] -> [1, out]."""
    return F.linear(x, weight, bias)


# No op of the file: passes.fold_batch_norms turns it into the weights before it, or into a conv2d.
@lowers("aten.batch_norm.default")
def lower_batch_norm(t: Translation, given: dict[str, Any]) -> View:
    """By the running statistics, as in eval mode, on [1, C, H, W] or [1, C]."""
    if given["training"] or given["running_mean"] is None:
        t.refuse("aten.batch_norm by the batch's own statistics")
    view = t.view(given["input"])
    if view.shape[0] != 1:
        t.refuse(f"aten.batch_norm of {list(view.shape)}, which are several images,")
    if len(view.shape) not in (2, 4):
        view = replace(view, shape=(1, view.shape[1], prod(view.shape[2:]), 1))
    roles = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
    tensors = {role: t.stored(given[key]) for role, key in roles.items() if given[key] is not None}
    value = t.settle(view)
    attributes = {"epsilon": given["eps"]}
    return t.result(t.emit("batch_norm", [value], tensors, attributes, t.shape(value)))


def bias(t: Translation, given: dict[str, Any], weight: Reference) -> Reference:
    """The bias, which is always written: zeros where there is none."""
    found = given["bias"]
    return Reference(None, weight.shape[:1]) if found is None else t.stored(found)


def pair(value: Any) -> list[int]:
    """[v, v] for v or [v]; two numbers as they are."""
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * 2 if len(numbers) == 1 else numbers
