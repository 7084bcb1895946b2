"""What takes sums along axes: mean, softmax, layer norm."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

from tasks.models.graph import Reference
from tasks.models.registry import evaluates, lowers
from tasks.models.translation import Translation, View, arguments_of


@lowers("aten.softmax.int")
def lower_softmax(t: Translation, given: dict[str, Any]) -> View:
    """Along one axis, wherever that lies in the value."""
    view = t.permuted_value(given["self"])
    value = t.emit("softmax", [view.value], attributes={"axis": view.axis(given["dim"])})
    return t.result(value, view.order)


@evaluates("softmax")
def evaluate_softmax(x: Tensor, axis: int) -> Tensor:
    """Any shape."""
    return x.softmax(axis)


@lowers("aten.mean.dim", "aten.mean.default")
def lower_mean(t: Translation, given: dict[str, Any]) -> View:
    """Over height and width it is the pooling that it is also written as."""
    view = t.permuted_value(given["self"])
    axes = sorted(view.axis(d) for d in given.get("dim") or range(len(view.shape)))
    if axes == [2, 3] and len(view.order) == 4:
        value = t.emit("adaptive_average_pool2d", [view.value], attributes={"size": [1, 1]})
    else:
        value = t.emit("mean", [view.value], attributes={"axes": axes})
    return t.result(value, view.order)


evaluates("mean")(lambda x, axes: x.mean(axes, keepdim=True))


@lowers("aten.layer_norm.default")
def lower_layer_norm(t: Translation, given: dict[str, Any]) -> View:
    """Over the last axes of torch's tensor, wherever they lie in the value."""
    shape = tuple(given["normalized_shape"])
    view = t.permuted_value(given["input"])
    axes = list(view.order[-len(shape) :])
    if axes != sorted(axes):  # the weights have torch's order
        view = t.result(t.value(given["input"]))
        axes = list(view.order[-len(shape) :])
    ones = {"weight": Reference(None, shape, fill=1), "bias": Reference(None, shape)}
    tensors = {role: t.stored(given[role]) if given[role] else ones[role] for role in ones}
    attributes = {"axes": axes, "epsilon": float(given["eps"])}
    return t.result(t.emit("layer_norm", [view.value], tensors, attributes), view.order)


@evaluates("layer_norm")
def evaluate_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, axes: list[int], epsilon: float
) -> Tensor:
    """Moves the axes to the end, where torch takes them, and back."""
    last = list(range(-len(axes), 0))
    moved = F.layer_norm(x.movedim(axes, last), weight.shape, weight, bias, epsilon)
    return moved.movedim(last, axes)


def normalised_by_hand(t: Translation, dividend: fx.Node, divisor: Any) -> View | None:
    """layer_norm for (x - mean(x)) / sqrt(variance(x) + epsilon), None for another division.

    ConvNeXt's own code (Liu et al. 2022) normalises channels first in this way. That x was changed
    in place in between goes unnoticed here; lower.prove() notices it.
    """
    root = called(divisor, "aten.sqrt.default")
    total = root and called(root["self"], "aten.add.Tensor")
    deviates = deviation(dividend)
    if not total or not deviates or variance(total["self"]) != deviates:
        return None
    epsilon = total["other"]
    if not isinstance(epsilon, int | float) or total["alpha"] != 1:
        return None
    tensor, dimensions = deviates
    view = t.permuted_value(tensor)
    axes = sorted(view.axis(dimension) for dimension in dimensions)
    shape = tuple(t.shape(view.value)[axis] for axis in axes)
    tensors = {"weight": Reference(None, shape, fill=1), "bias": Reference(None, shape)}
    attributes = {"axes": axes, "epsilon": float(epsilon)}
    return t.result(t.emit("layer_norm", [view.value], tensors, attributes), view.order)


def deviation(node: Any) -> tuple[fx.Node, list[int]] | None:
    """(x, dimensions) where `node` is x - x.mean(dimensions, keepdim=True)."""
    difference = called(node, "aten.sub.Tensor")
    mean = difference and called(difference["other"], "aten.mean.dim")
    if not difference or not mean or mean["self"] is not difference["self"]:
        return None
    if not mean["keepdim"] or difference["alpha"] != 1:
        return None
    return mean["self"], dimensions_of(mean)


def variance(node: Any) -> tuple[fx.Node, list[int]] | None:
    """(x, dimensions) where `node` is the biased variance of x, its dimensions kept."""
    given = called(node, "aten.var.correction") or called(node, "aten.var.dim")
    if given and given["keepdim"] and (given.get("correction", given.get("unbiased")) == 0):
        return given["self"], dimensions_of(given)
    mean = called(node, "aten.mean.dim")
    square = mean and called(mean["self"], "aten.pow.Tensor_Scalar")
    if not mean or not mean["keepdim"] or not square or square["exponent"] != 2:
        return None
    deviates = deviation(square["self"])
    return deviates if deviates and deviates[1] == dimensions_of(mean) else None


def called(node: Any, target: str) -> dict[str, Any] | None:
    """The arguments of `node` by name, if it calls `target`."""
    return arguments_of(node) if isinstance(node, fx.Node) and str(node.target) == target else None


def dimensions_of(given: dict[str, Any]) -> list[int]:
    """The argument `dim` as ascending dimensions."""
    rank = given["self"].meta["val"].ndim
    return sorted(dimension % rank for dimension in given["dim"] or range(rank))
