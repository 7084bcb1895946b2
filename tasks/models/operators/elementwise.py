"""What computes each number from one number of each input: activations, add, sub, mul, constants.

On one input it passes the view through: the axes' order doesn't matter to it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tasks.models.graph import Reference
from tasks.models.operators.reduction import normalised_by_hand
from tasks.models.registry import evaluates, lowers
from tasks.models.translation import Translation, View, identity, op_name, shape_of, with_first_1

# --- one input -------------------------------------------------------------------------------


def unary(t: Translation, argument: fx.Node, op: str, **attributes: Any) -> View:
    """An op of the file on one tensor, whichever way that is held."""
    view = t.broadcastable(argument)
    if isinstance(view.source, Reference):
        value = t.settle(view)
        view = View(value, identity(len(t.shape(value))), view.shape)
    return replace(view, source=t.emit(op, [view.value], {}, attributes))


def activation(op: str, function: Callable[[Tensor], Tensor]) -> None:
    """An op of one input and nothing else, called the same in ATen and in the file."""
    lowers(f"aten.{op}.default")(lambda t, given: unary(t, given["self"], op))
    evaluates(op)(function)


activation("relu", F.relu)
activation("relu6", F.relu6)
activation("silu", F.silu)
activation("hardswish", F.hardswish)
activation("hardsigmoid", F.hardsigmoid)
activation("sigmoid", torch.sigmoid)
activation("tanh", torch.tanh)


@lowers("aten.leaky_relu.default")
def lower_leaky_relu(t: Translation, given: dict[str, Any]) -> View:
    """x where positive, else negative_slope * x."""
    return unary(t, given["self"], "leaky_relu", negative_slope=float(given["negative_slope"]))


evaluates("leaky_relu")(F.leaky_relu)


@lowers("aten.gelu.default")
def lower_gelu(t: Translation, given: dict[str, Any]) -> View:
    """By the error function, or its approximation by tanh."""
    return unary(t, given["self"], "gelu", tanh=int(given["approximate"] == "tanh"))


evaluates("gelu")(lambda x, tanh: F.gelu(x, approximate="tanh" if tanh else "none"))


@lowers(
    "aten.hardtanh.default", "aten.clamp.default", "aten.clamp_min.default", "aten.clip.default"
)
def lower_clamp(t: Translation, given: dict[str, Any]) -> View:
    """Only the two clamps that have a name: from 0, and from 0 to 6."""
    low = given.get("min_val", given.get("min"))
    high = given.get("max_val", given.get("max"))
    named: dict[tuple[Any, Any], str] = {(0, 6): "relu6", (0, None): "relu"}
    op = named.get((low, high))
    if op is None:
        t.refuse(f"{op_name(t.node)} from {low} to {high}")
    return unary(t, given["self"], op)


# --- two inputs ------------------------------------------------------------------------------


def binary(t: Translation, op: str, first: View, second: View) -> View:
    """`op` of two views, which broadcasts them; the axes stay in the order of the larger one."""
    shape = tuple(np.broadcast_shapes(first.shape, second.shape))
    whole = [v for v in (first, second) if v.shape == shape and t.is_permuted_value(v)]
    order = whole[0].order if whole else identity(len(with_first_1(shape)))
    return View(t.emit(op, [t.aligned(v, order) for v in (first, second)]), order, shape)


evaluates("add")(torch.add)
evaluates("sub")(torch.sub)
evaluates("mul")(torch.mul)


@lowers("aten.mul.Tensor")
def lower_mul(t: Translation, given: dict[str, Any]) -> View:
    """Of tensors, stored ones and numbers, as for all operations below."""
    return binary(t, "mul", t.broadcastable(given["self"]), t.broadcastable(given["other"]))


@lowers("aten.add.Tensor")
def lower_add(t: Translation, given: dict[str, Any]) -> View:
    """self + alpha * other."""
    return binary(t, "add", t.broadcastable(given["self"]), multiple(t, "other", given))


@lowers("aten.sub.Tensor")
def lower_sub(t: Translation, given: dict[str, Any]) -> View:
    """self - alpha * other."""
    return binary(t, "sub", t.broadcastable(given["self"]), multiple(t, "other", given))


@lowers("aten.rsub.Scalar", "aten.rsub.Tensor")
def lower_rsub(t: Translation, given: dict[str, Any]) -> View:
    """other - alpha * self."""
    return binary(t, "sub", t.broadcastable(given["other"]), multiple(t, "self", given))


def multiple(t: Translation, key: str, given: dict[str, Any]) -> View:
    """The argument `key` times `alpha`."""
    view = t.broadcastable(given[key])
    return view if given["alpha"] == 1 else binary(t, "mul", view, t.number(given["alpha"]))


@lowers("aten.neg.default")
def lower_neg(t: Translation, given: dict[str, Any]) -> View:
    """-x is -1 * x."""
    return binary(t, "mul", t.broadcastable(given["self"]), t.number(-1))


@lowers("aten.pow.Tensor_Scalar", "aten.square.default")
def lower_square(t: Translation, given: dict[str, Any]) -> View:
    """x * x; other powers are refused."""
    if given.get("exponent", 2) != 2:
        t.refuse(f"aten.pow with exponent {given['exponent']}")
    return binary(t, "mul", *[t.broadcastable(given["self"])] * 2)


@lowers("aten.div.Tensor")
def lower_div(t: Translation, given: dict[str, Any]) -> View:
    """By a number or a stored tensor, whose reciprocal is multiplied by; or in a layer norm."""
    layer_norm = normalised_by_hand(t, given["self"], given["other"])
    if layer_norm is not None:
        return layer_norm
    divisor = t.broadcastable(given["other"])
    if not isinstance(divisor.source, Reference):
        t.refuse("aten.div by what forward() computes")
    factor = replace(divisor.source, reciprocal=not divisor.source.reciprocal)
    return binary(t, "mul", t.broadcastable(given["self"]), replace(divisor, source=factor))


@lowers("aten.expand.default", "aten.expand_as.default")
def lower_expand(t: Translation, given: dict[str, Any]) -> View:
    """What reads it broadcasts by itself, or has it done (Translation.view)."""
    view = t.broadcastable(given["self"])
    return replace(view, shape=(1,) * (len(shape_of(t.node)) - len(view.shape)) + view.shape)


# --- no input --------------------------------------------------------------------------------

# A number or a stored tensor becomes a constant where it is read as a value (Translation.settle).
evaluates("constant")(lambda value: value)
