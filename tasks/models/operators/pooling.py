"""Pooling of images, [1, C, H, W] -> [1, C, H', W']."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tasks.models.operators.convolution import pair
from tasks.models.registry import evaluates, lowers
from tasks.models.translation import Translation, View


def window(given: dict[str, Any]) -> dict[str, Any]:
    """The attributes that both poolings have; the stride is the kernel where none is given."""
    return {
        "kernel": pair(given["kernel_size"]),
        "stride": pair(given["stride"] or given["kernel_size"]),
        "padding": pair(given["padding"]),
        "ceil_mode": int(given["ceil_mode"]),
    }


@lowers("aten.max_pool2d.default")
def lower_max_pool2d(t: Translation, given: dict[str, Any]) -> View:
    """What lies outside is no candidate."""
    attributes = window(given) | {"dilation": pair(given["dilation"])}
    return t.result(t.emit("max_pool2d", [t.image(given["self"])], attributes=attributes))


@evaluates("max_pool2d")
def evaluate_max_pool2d(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: int,
) -> Tensor:
    """As in torch."""
    return F.max_pool2d(x, kernel, stride, padding, dilation, bool(ceil_mode))


@lowers("aten.avg_pool2d.default")
def lower_average_pool2d(t: Translation, given: dict[str, Any]) -> View:
    """Divided by the number of pixels, those of the padding counted or not, or by `divisor`."""
    divisor = given["divisor_override"] or 0
    if divisor < 0:
        t.refuse(f"aten.avg_pool2d with divisor_override={divisor}")
    attributes = window(given) | {
        "count_include_pad": int(given["count_include_pad"]),
        "divisor": divisor,
    }
    return t.result(t.emit("average_pool2d", [t.image(given["self"])], attributes=attributes))


@evaluates("average_pool2d")
def evaluate_average_pool2d(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: int,
    count_include_pad: int,
    divisor: int,
) -> Tensor:
    """As in torch."""
    flags = bool(ceil_mode), bool(count_include_pad)
    return F.avg_pool2d(x, kernel, stride, padding, *flags, divisor or None)


@lowers("aten.adaptive_avg_pool2d.default")
def lower_adaptive_average_pool2d(t: Translation, given: dict[str, Any]) -> View:
    """To any size."""
    attributes = {"size": pair(given["output_size"])}
    value = t.emit("adaptive_average_pool2d", [t.image(given["self"])], attributes=attributes)
    return t.result(value)


evaluates("adaptive_average_pool2d")(lambda x, size: F.adaptive_avg_pool2d(x, size))


@lowers("aten.adaptive_max_pool2d.default")
def lower_adaptive_max_pool2d(t: Translation, given: dict[str, Any]) -> list[View]:
    """The first of torch's two results; the other, the indices, is refused where it is read."""
    attributes = {"size": pair(given["output_size"])}
    value = t.emit("adaptive_max_pool2d", [t.image(given["self"])], attributes=attributes)
    return [View(value, (0, 1, 2, 3), t.shape(value))]


evaluates("adaptive_max_pool2d")(lambda x, size: F.adaptive_max_pool2d(x, size))
