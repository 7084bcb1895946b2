"""Each operation: what torch computes, the file's own graph computes, in as few operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.models.operators import EVALUATIONS
from tasks.models.weights_file import encode
from tests.lowered import (
    SHAPE,
    Excitation,
    Own,
    assert_same,
    encoded,
    head,
    lower_model,
    refusal,
    trained,
)

IMAGE = (1, 6, 12, 10)
Function = Callable[[Any, Tensor], Tensor]


def ops(function: Function, shape: tuple[int, int, int, int] = IMAGE, **layers: Any) -> list[str]:
    """The operations that compute `function`, all of whose results are compared; the reshape to
    [1, n] at the end is left out. Layers that are tensors are parameters of the model.
    """
    modules = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Module)}
    model = Own(lambda m, x: function(m, x).flatten().unsqueeze(0), **modules)
    for name, tensor in layers.items():
        if isinstance(tensor, Tensor):
            setattr(model, name, nn.Parameter(tensor))
    found = assert_same(model.eval(), shape)
    return found[:-1] if found[-1] == "reshape" else found


def attributes_of(model: nn.Module, op: str, shape: Any = IMAGE) -> dict[str, Any]:
    """Those of the first such operation."""
    nodes = encoded(lower_model(model.eval(), shape)).header["nodes"]
    return next(node["attributes"] for node in nodes if node["op"] == op)


# --- convolution and linear layers -----------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.Conv2d(6, 8, (3, 5), stride=(1, 2), padding=(2, 0)),
        nn.Conv2d(6, 8, 3, padding=2, dilation=2),
        nn.Conv2d(6, 8, 4, padding="same"),
        nn.Conv2d(6, 8, (2, 3), padding="same", dilation=(1, 2)),
        nn.Conv2d(6, 8, 3, padding="valid"),
        nn.Conv2d(6, 9, 3, groups=3),
        nn.Conv2d(6, 18, 3, 2, 1, groups=6),
        nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), nn.Conv2d(6, 8, 3, 2)),
        nn.Sequential(nn.ZeroPad2d(1), nn.ConstantPad2d((0, 2, 0, 0), 0.0), nn.Conv2d(6, 8, 3)),
        Own(lambda m, x: m.conv(F.pad(x, (1, 2))), conv=nn.Conv2d(6, 7, 3, padding=(2, 1))),
    ],
)
def test_conv2d(layer: nn.Module) -> None:
    assert ops(lambda m, x: m.layer(x), layer=layer) == ["conv2d"]


def test_a_padding_before_a_convolution_becomes_its_own() -> None:
    model = nn.Sequential(nn.ZeroPad2d((1, 2, 3, 4)), nn.Conv2d(6, 8, 3, padding=1), head())
    assert attributes_of(model, "conv2d")["padding"] == [4, 2, 5, 3]
    layers = nn.ConstantPad2d(1, 0.5), nn.Conv2d(6, 8, 3)
    assert ops(lambda m, x: m.layer(x), layer=nn.Sequential(*layers)) == ["pad", "conv2d"]

    def twice(m: Any, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 1, 0, 1))
        return m.conv(padded) + padded

    assert sorted(ops(twice, conv=nn.Conv2d(6, 6, 1))) == ["add", "conv2d", "pad"]


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda m, x: m.linear(x.flatten(1)), ["reshape", "linear"]),
        (lambda m, x: m.linear(x.view(-1)), ["reshape", "linear"]),  # without a batch dimension
        (lambda m, x: m.linear(x.view(1, 1, 1, -1)), ["reshape", "linear"]),
    ],
)
def test_linear_on_one_vector(function: Function, found: list[str]) -> None:
    assert ops(function, linear=nn.Linear(720, 7)) == found
    assert ops(function, linear=nn.Linear(720, 7, bias=False)) == found


def test_linear_along_the_last_axis_is_a_convolution() -> None:
    linear, wide = nn.Linear(6, 7), nn.Linear(10, 7)
    last = (0, 2, 3, 1)
    assert ops(lambda m, x: m.l(x.permute(last)).permute(0, 3, 1, 2), l=linear) == ["conv2d"]
    assert ops(lambda m, x: m.l(x), l=wide) == ["permute", "conv2d", "permute"]
    tokens = ops(lambda m, x: m.l(x.flatten(2).transpose(1, 2)), l=linear)
    assert "conv2d" in tokens and "linear" not in tokens
    assert ops(lambda m, x: m.l(x.unflatten(1, (2, 3))), l=wide).count("conv2d") == 1


# --- activations -----------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("layer", "op"),
    [
        (nn.ReLU, "relu"),
        (nn.ReLU6, "relu6"),
        (lambda inplace: nn.Hardtanh(0, 6, inplace=inplace), "relu6"),
        (lambda inplace: nn.LeakyReLU(inplace=inplace), "leaky_relu"),
        (lambda inplace: nn.LeakyReLU(0.3, inplace=inplace), "leaky_relu"),
        (nn.SiLU, "silu"),
        (nn.Hardswish, "hardswish"),
        (nn.Hardsigmoid, "hardsigmoid"),
    ],
)
def test_activations(layer: Any, op: str, inplace: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer(inplace=inplace), head())
    assert assert_same(trained(model))[:2] == ["conv2d", op]


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (torch.relu, ["relu"]),
        (F.relu6, ["relu6"]),
        (torch.sigmoid, ["sigmoid"]),
        (nn.Sigmoid(), ["sigmoid"]),
        (torch.tanh, ["tanh"]),
        (nn.Tanh(), ["tanh"]),
        (nn.GELU(), ["gelu"]),
        (nn.GELU("tanh"), ["gelu"]),
        (F.gelu, ["gelu"]),
        (lambda x: x.clamp(0, 6), ["relu6"]),
        (lambda x: x.clamp(min=0), ["relu"]),
        (lambda x: x.clamp_min(0), ["relu"]),
        (lambda x: (x + 1).clamp_(0, 6), ["constant", "add", "relu6"]),
        (lambda x: x.clone().sigmoid_(), ["sigmoid"]),
        (lambda x: F.leaky_relu(x, 0), ["leaky_relu"]),
        (lambda x: x * torch.sigmoid(x), ["sigmoid", "mul"]),
        (
            lambda x: x * F.relu6(x + 3) / 6,
            ["constant", "add", "relu6", "mul", "constant", "mul"],
        ),
    ],
)
def test_spellings_of_activations(function: Any, found: list[str]) -> None:
    assert ops(lambda m, x: function(x)) == found


def test_gelu_in_both_forms_is_told_apart() -> None:
    for form, flag in (("none", 0), ("tanh", 1)):
        model = nn.Sequential(nn.GELU(form), head(6))
        assert attributes_of(model, "gelu") == {"tanh": flag}


def test_activations_pass_permutations_and_views_through() -> None:
    assert ops(lambda m, x: F.silu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)) == ["silu"]
    assert ops(lambda m, x: F.gelu(x.view(1, 2, 3, -1)).view(1, 6, 12, 10)) == ["gelu"]


@pytest.mark.parametrize("dimension", [1, 2, 3, -1, -3])
def test_softmax(dimension: int) -> None:
    assert ops(lambda m, x: x.softmax(dimension)) == ["softmax"]
    assert ops(lambda m, x: x.permute(0, 2, 3, 1).softmax(dimension).permute(0, 3, 1, 2)) == [
        "softmax"
    ]


# --- pooling and means -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d((2, 3), (1, 2), (0, 1), (2, 1)),
        nn.MaxPool2d(3, 4, 1, ceil_mode=True),  # whose last window would lie outside
    ],
)
def test_max_pool2d(layer: nn.Module) -> None:
    assert ops(lambda m, x: m.layer(x), layer=layer) == ["max_pool2d"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d((3, 4), 3, 1, ceil_mode=True),
        nn.AvgPool2d(5, 3, 2, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AvgPool2d((12, 10)),
    ],
)
def test_average_pool2d(layer: nn.Module) -> None:
    assert ops(lambda m, x: m.layer(x), layer=layer) == ["average_pool2d"]


@pytest.mark.parametrize("size", [1, 3, (5, None), (12, 10), (13, 4)])
def test_adaptive_pooling(size: Any) -> None:
    average, largest = nn.AdaptiveAvgPool2d(size), nn.AdaptiveMaxPool2d(size)
    assert ops(lambda m, x: m.layer(x), layer=average) == ["adaptive_average_pool2d"]
    assert ops(lambda m, x: m.layer(x), layer=largest) == ["adaptive_max_pool2d"]


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)).view(x.size(0), -1),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean([-1, -2]),
        lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
        lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1),
        lambda x: x.mean((2, 3), keepdim=True).squeeze((2, 3)),
        lambda x: x.mean((2, 3), keepdim=True).reshape(x.shape[0], x.shape[1]),
        lambda x: x.mean((2, 3), keepdim=True).squeeze().unsqueeze(0),
        lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0],
        lambda x: F.adaptive_avg_pool2d(x, 1)[:, :].flatten(2).squeeze(2),
    ],
)
def test_spellings_of_global_pooling(pool: Callable[[Tensor], Tensor]) -> None:
    model = Own(lambda m, x: m.last(pool(x)), last=nn.Linear(3, 5))
    assert assert_same(model.eval()) == ["adaptive_average_pool2d", "reshape", "linear"]


def test_mean() -> None:
    assert ops(lambda m, x: x.mean(1)) == ["mean"]
    assert ops(lambda m, x: x.mean((1, -1), keepdim=True)) == ["mean"]
    assert ops(lambda m, x: x.mean()) == ["mean"]
    assert ops(lambda m, x: x.permute(0, 2, 3, 1).mean(-1, True)) == ["mean"]
    assert ops(lambda m, x: x.flatten(2).mean(2)) == ["reshape", "mean"]


# --- arithmetic ------------------------------------------------------------------------------

SCALE = torch.linspace(-1, 2, 6)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda m, x: x + x * x, ["mul", "add"]),
        (lambda m, x: torch.sub(x, x.relu(), alpha=3), ["relu", "constant", "mul", "sub"]),
        (
            lambda m, x: torch.add(x, m.s[:, None, None], alpha=-2),
            ["constant"] * 2 + ["mul", "add"],
        ),
        (lambda m, x: x - x.mean((2, 3), True), ["adaptive_average_pool2d", "sub"]),
        (lambda m, x: x.mean(1, True) - x, ["mean", "sub"]),
        (lambda m, x: x.mean(2, True) * x.mean((1, 3), True), ["mean", "mean", "mul"]),
        (lambda m, x: x * 2, ["constant", "mul"]),
        (lambda m, x: 1 - x, ["constant", "sub"]),
        (lambda m, x: torch.rsub(x, 1, alpha=2), ["constant", "mul", "constant", "sub"]),
        (lambda m, x: 2.5 + x, ["constant", "add"]),
        (lambda m, x: x / 3, ["constant", "mul"]),
        (lambda m, x: -x, ["constant", "mul"]),
        (lambda m, x: x**2, ["mul"]),
        (lambda m, x: x.square(), ["mul"]),
        (lambda m, x: x.clone().div_(7), ["constant", "mul"]),
        (lambda m, x: x.clone().sub_(1).mul_(x).add_(x), ["constant", "sub", "mul", "add"]),
        (lambda m, x: x * m.s.view(1, -1, 1, 1), ["constant", "mul"]),
        (lambda m, x: m.s[:, None, None] * x, ["constant", "mul"]),
        (lambda m, x: x - m.s.reshape(6, 1, 1), ["constant", "sub"]),
        (lambda m, x: (x - 0.5) / m.s.view(-1, 1, 1), ["constant", "sub", "constant", "mul"]),
        (lambda m, x: (m.s * x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), ["constant", "mul"]),
        (lambda m, x: m.s[2] * x, ["constant", "slice", "reshape", "mul"]),
        (lambda m, x: x * m.s.sigmoid().view(6, 1, 1), ["constant", "sigmoid", "reshape", "mul"]),
        (lambda m, x: x + m.whole, ["constant", "add"]),
        (lambda m, x: x.permute(0, 2, 3, 1) + m.whole.permute(1, 2, 0), None),
        (lambda m, x: x * (m.s.view(1, 6, 1, 1) * m.whole), ["constant"] * 2 + ["mul", "mul"]),
        (lambda m, x: x.permute(0, 3, 1, 2) + m.other, None),
        (lambda m, x: x + x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2), ["relu", "add"]),
        (lambda m, x: x.permute(0, 1, 3, 2) * x.reshape(1, 6, 10, 12), None),
        (lambda m, x: x.mean((2, 3), True).expand(-1, -1, 12, 10) * x, None),
        (lambda m, x: x.mean((2, 3), True).expand_as(x).relu() * x, None),
        (lambda m, x: x.mean((2, 3), True).expand(1, 6, 2, 3).flatten(1), None),
        (lambda m, x: x.mean(1).expand(4, 12, 10).softmax(1), None),
        (lambda m, x: m.s.view(6, 1, 1).expand(6, 12, 10) + x, ["constant", "add"]),
    ],
)
def test_arithmetic(function: Function, found: list[str] | None) -> None:
    random = torch.Generator().manual_seed(0)
    tensors = {
        "s": SCALE,
        "whole": torch.randn(6, 12, 10, generator=random),
        "other": torch.randn(10, 6, 12, generator=random),
    }
    used = ops(function, **tensors)
    assert found is None or used == found


def test_a_reciprocal_is_rounded_once() -> None:
    model = Own(lambda m, x: m.head(x / 3 + x / m.by), head=head(6))
    model.by = nn.Parameter(torch.tensor(7.0))
    weights = encoded(lower_model(model.eval(), IMAGE))
    constants = [n["tensors"]["value"] for n in weights.header["nodes"] if n["op"] == "constant"]
    found = [weights.tensors[name].item() for name in constants]
    assert found == [torch.tensor(1 / by, dtype=torch.float64).float().item() for by in (3, 7)]


def test_an_expanded_tensor_is_repeated_only_where_it_must_be() -> None:
    assert ops(lambda m, x: x.mean((2, 3), True).expand_as(x) * x) == [
        *["adaptive_average_pool2d", "mul"]
    ]
    repeated = ops(lambda m, x: F.conv2d(x.mean(1, True).expand(-1, 6, -1, -1), m.w), w=WEIGHT)
    assert repeated == ["mean", "constant", "add", "conv2d"]


WEIGHT = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(3))


# --- shapes, parts and joins -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda m, x: x.flatten(1).view(1, 6, 12, 10).relu(), ["relu"]),
        (lambda m, x: x.unsqueeze(2).squeeze(2).relu(), ["relu"]),
        (lambda m, x: x.view(1, 12, 6, 10).softmax(1), ["reshape", "softmax"]),
        (lambda m, x: x[..., None].squeeze(), []),
        (lambda m, x: x.permute(0, 2, 3, 1), ["permute"]),
        (lambda m, x: x.permute(0, 2, 3, 1).transpose(1, 3).swapaxes(2, 3).mT.mT, []),
        (lambda m, x: x.movedim(1, -1).movedim((3, 1), (1, 3)), ["permute"]),
        (lambda m, x: x.flatten(1).t().t(), []),
        (lambda m, x: x.flatten(1).t().relu(), ["relu"]),
        (lambda m, x: x.permute(0, 2, 3, 1).reshape(1, -1), ["permute"]),
        (lambda m, x: x.permute(0, 2, 3, 1).contiguous().view(1, 60, 12).softmax(2), None),
        (lambda m, x: x.mean((2, 3), True).permute(0, 2, 3, 1).relu(), None),
        (lambda m, x: x.squeeze(0).permute(2, 0, 1).softmax(0), None),
        (lambda m, x: F.pixel_unshuffle(x, 2), ["reshape", "permute"]),
        (lambda m, x: x.view(1, 2, 3, 4, 3, 10).permute(0, 5, 1, 3, 2, 4).relu(), None),
    ],
)
def test_shapes_and_orders(function: Function, found: list[str] | None) -> None:
    used = ops(function)
    assert found is None or used == found


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize(
    "spelling",
    [
        lambda x, g: F.channel_shuffle(x, g),
        lambda x, g: nn.ChannelShuffle(g)(x),
        lambda x, g: x.view(1, g, -1, 12, 10).transpose(1, 2).contiguous().view(1, 6, 12, 10),
        lambda x, g: x.reshape(1, g, -1, 120).permute(0, 2, 1, 3).reshape(x.shape),
        lambda x, g: x.unflatten(1, (g, 6 // g)).transpose(2, 1).flatten(1, 2),
        lambda x, g: x.view(g, -1, 120).transpose(0, 1).reshape(x.shape),
    ],
)
def test_channel_shuffle(spelling: Any, groups: int) -> None:
    assert ops(lambda m, x: spelling(x, groups)) == ["channel_shuffle"]


def test_what_only_looks_like_a_channel_shuffle() -> None:
    assert ops(lambda m, x: x.view(1, 2, 3, 12, 10).transpose(2, 3)) == ["reshape", "permute"]
    assert "permute" in ops(lambda m, x: x.view(1, 12, 6, 10).transpose(1, 2))
    assert ops(lambda m, x: x.view(1, 1, 6, 12, 10).transpose(1, 2).flatten(1, 2)) == []


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda m, x: torch.cat([x, x.relu()], 1), ["relu", "concat"]),
        (lambda m, x: torch.concat((x, x[:, :, :5]), -2), ["slice", "concat"]),
        (lambda m, x: torch.cat([x], 1), ["concat"]),
        (lambda m, x: torch.cat([x.permute(0, 2, 3, 1).relu()] * 2, 3).mean((1, 2)), None),
        (lambda m, x: torch.cat([x[0, 0], x[0, 1]], 0), None),
        (lambda m, x: torch.cat([x, m.s.view(1, 6, 1, 1).expand(-1, -1, 12, 1)], 3), None),
        (lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1), ["slice", "slice", "concat"]),
        (lambda m, x: torch.cat(x.split(4, 1)[::-1], 1), ["slice", "slice", "concat"]),
        (lambda m, x: torch.cat(x.split([1, 2, 3], -3)[::-1], 1), ["slice"] * 3 + ["concat"]),
        (lambda m, x: x.tensor_split(4, 2)[1], ["slice"]),
        (lambda m, x: x.chunk(3, 3)[2], ["slice"]),
        (lambda m, x: x.permute(0, 2, 3, 1).chunk(2, 3)[0].permute(0, 3, 1, 2), ["slice"]),
        (lambda m, x: x[:, 1:-1, 2:, :-3], ["slice", "slice", "slice"]),
        (lambda m, x: x[:, :100].relu(), ["relu"]),
        (lambda m, x: x.view(6, 1, 12, 10).expand(6, 3, 12, 10)[:, :1], None),
        (lambda m, x: x.narrow(1, -2, 2), ["slice"]),
        (lambda m, x: x.select(1, -1), ["slice"]),
        (lambda m, x: x[0, 2:4, 1], None),
        (lambda m, x: x[:, :, ::2, 1::3], ["max_pool2d", "slice", "max_pool2d"]),
        (lambda m, x: F.pad(x, (1, 2, 3, 4), value=-2.5), ["pad"]),
        (lambda m, x: F.pad(x, (0, 3)), ["pad"]),
        (lambda m, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3)), None),
        (lambda m, x: F.pad(x, (0, 1, 0, 0, 2, 0), value=1.0), ["constant", "concat", "pad"]),
    ],
)
def test_parts_joins_and_padding(function: Function, found: list[str] | None) -> None:
    used = ops(function, s=SCALE)
    assert found is None or used == found


def test_the_split_of_shufflenet_v2_s_own_code() -> None:
    def halves(x: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = x.shape
        x = x.reshape(batch * channels // 2, 2, height * width).permute(1, 0, 2)
        x = x.reshape(2, -1, channels // 2, height, width)
        return x[0], x[1]

    used = ops(lambda m, x: torch.cat((halves(x)[1], m.c(halves(x)[0])), 1), c=nn.Conv2d(3, 3, 1))
    assert "channel_shuffle" in used and "permute" not in used


# --- layer norm ------------------------------------------------------------------------------


def by_square(x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    return (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-3)


def by_variance(x: Tensor) -> Tensor:
    variance = x.var(1, keepdim=True, unbiased=False)
    return (x - x.mean(1, keepdim=True)) / (variance + 1e-3).sqrt()


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), ["layer_norm"]),
        (lambda m, x: m.norm(x.mean((2, 3))), ["adaptive_average_pool2d", "reshape", "layer_norm"]),
        (lambda m, x: F.layer_norm(x, (12, 10)), ["layer_norm"]),
        (lambda m, x: F.layer_norm(x, (6, 12, 10), m.whole, eps=0.1), ["layer_norm"]),
        (lambda m, x: F.layer_norm(x.transpose(2, 3), (10, 12), m.other), None),
        (lambda m, x: F.layer_norm(x[0], (10,)), ["layer_norm"]),
        (lambda m, x: by_square(x), ["layer_norm"]),
        (lambda m, x: by_variance(x), ["layer_norm"]),
        (lambda m, x: by_square(x.transpose(1, 3)).transpose(1, 3), ["layer_norm"]),
    ],
)
def test_layer_norm(function: Function, found: list[str] | None) -> None:
    random = torch.Generator().manual_seed(0)
    norm = nn.LayerNorm(6, eps=1e-6)
    norm.weight.data, norm.bias.data = SCALE, torch.randn(6, generator=random)
    tensors = {
        "whole": torch.randn(6, 12, 10, generator=random),
        "other": torch.randn(10, 12, generator=random),
    }
    used = ops(function, norm=norm, **tensors)
    assert found is None or used == found


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x - x.mean(1, True)) / torch.sqrt(x.var(1, keepdim=True) + 1e-3),  # unbiased
        lambda x: (x - x.mean(2, True)) / torch.sqrt(x.var(1, False, keepdim=True) + 1e-3),
        lambda x: (x - x.mean(1, True)) / torch.sqrt(x.mean(1, True) + 1e-3),
        lambda x: x / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-3),
        lambda x: (x - x.mean(1, True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-3),
    ],
)
def test_what_only_looks_like_a_layer_norm_is_refused(function: Any) -> None:
    text = refusal(Own(lambda m, x: m.head(function(x)), head=head(3)))
    assert text.startswith(("Own: aten.sqrt is not supported", "Own: aten.var is not supported"))


# --- the whole -------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["conv", "view", "unsqueeze", "none", "expand", "norm"])
def test_squeeze_and_excitation(spelling: str) -> None:
    """Reshapes between [1, C] and [1, C, 1, 1] cost the engine nothing."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Excitation(spelling), nn.ReLU6(True), head())
    found = assert_same(trained(model))
    layer = "conv2d" if spelling == "conv" else "linear"
    assert [op for op in found if op != "reshape"] == [
        *["conv2d", "adaptive_average_pool2d", layer, "relu", layer, "sigmoid", "mul"],
        *["relu6", "adaptive_average_pool2d", "linear"],
    ]
    assert found.count("reshape") == (1 if spelling == "conv" else 3)


def test_every_operation_of_the_file_is_reached_here() -> None:
    """One network of them all."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.cat([m.conv(x), F.max_pool2d(x, 3, 1, 1), F.avg_pool2d(x, 3, 1, 1)], 1)
        for function in (F.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.hardsigmoid, F.leaky_relu):
            y = y + function(y - 1)
        y = F.pad(F.channel_shuffle(y, 2), (1, 1), value=1.0)[:, 1:]
        y = F.layer_norm(y, y.shape[-2:]) * y.mean(1, True) * F.adaptive_max_pool2d(y, 1)
        y = F.adaptive_avg_pool2d(y.permute(0, 2, 3, 1), 2).softmax(1).flatten(1)
        return m.last(torch.tanh(y) * torch.sigmoid(y))

    model = Own(forward, conv=nn.Conv2d(6, 8, 3, padding=1), last=nn.Linear(48, 5)).eval()
    assert set(assert_same(model, IMAGE)) == EVALUATIONS.keys()


def test_a_number_too_large_for_float32_is_refused() -> None:
    for function in (lambda x: x * 1e39, lambda x: F.pad(x, (1, 1), value=-math.inf)):
        text = refusal(Own(lambda m, x, f=function: m.head(f(x)), head=head(3)))
        assert " with the number " in text
    model = Own(lambda m, x: m.head(x / m.by), head=head(3))
    model.by = nn.Parameter(torch.tensor(0.0))
    graph = lower_model(model.eval(), SHAPE)
    with pytest.raises(Exception, match=r"Own\.value: is too large for float32, as a batch norm"):
        encode(graph, {}, [])
