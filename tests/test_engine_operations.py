"""Every operation of the weights format against torch, on every instruction set of this CPU.

Each network is a 1x1 convolution, which gives the operation any number of channels, and the
operation; what it is computed from is what torch's convolution gives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from tests.native_module import native, node, write_weights

__all__ = ["native"]

Array = npt.NDArray[np.float32]
Tensors = dict[str, Array]

CHANNELS = [1, 3, 16, 17, 40]
SIZES = [(1, 1), (5, 7), (12, 9)]
IMAGES = [(c, *size) for c, size in itertools.product(CHANNELS, SIZES)]
BIG = (40, 90, 70)  # computed in turns of rows


def random_array(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass
class Network:
    """Nodes after a convolution that gives [1, channels, height, width], called "x"."""

    channels: int
    height: int
    width: int
    nodes: list[dict[str, Any]] = field(init=False)
    tensors: Tensors = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.input = random_array(0, 1, 3, self.height, self.width)
        self.tensors["w"] = random_array(1, self.channels, 3, 1, 1)
        self.tensors["b"] = random_array(2, self.channels)
        self.shape = (1, self.channels, self.height, self.width)
        attributes = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
        names = {"weight": "w", "bias": "b"}
        self.nodes = [node("conv2d", ["input"], "x", self.shape, names, attributes)]

    @property
    def x(self) -> torch.Tensor:
        weight, bias = (torch.from_numpy(self.tensors[name]) for name in "wb")
        return F.conv2d(torch.from_numpy(self.input), weight, bias)

    def add(self, op: str, inputs: list[str], output: str, like: torch.Tensor, **more: Any) -> None:
        """A node whose output has the shape of `like`; `more` are its attributes."""
        self.nodes.append(node(op, inputs, output, tuple(like.shape), None, more))

    def constant(self, name: str, value: torch.Tensor) -> None:
        self.tensors[name] = value.numpy()
        self.nodes.append(node("constant", [], name, tuple(value.shape), {"value": name}))

    def check(
        self, native: Any, folder: Path, expected: torch.Tensor, tolerance: float = 1e-5
    ) -> None:
        """The last node's output, on every instruction set; `tolerance` is relative."""
        nodes = list(self.nodes)
        last = nodes[-1]
        assert last["shape"] == list(expected.shape)
        if len(last["shape"]) != 2:
            nodes.append(node("reshape", [last["output"]], "flat", (1, expected.numel())))
        path = folder / "model_weights.bin"
        write_weights(path, self.input.shape, nodes, self.tensors)
        wanted = expected.detach().numpy().ravel()
        for instructions in native.instruction_sets():
            actual = native.Model(str(path), instructions=instructions).logits(self.input)
            assert actual.dtype == np.float32 and actual.shape == wanted.shape
            np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(wanted))
            scale = max(1.0, float(np.abs(wanted).max()))
            difference = float(np.abs(actual - wanted).max()) / scale
            assert difference <= tolerance, (instructions, difference)


ACTIVATIONS: dict[str, tuple[str, dict[str, Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "relu": ("relu", {}, F.relu),
    "relu6": ("relu6", {}, F.relu6),
    "leaky relu": ("leaky_relu", {"negative_slope": 0.125}, lambda x: F.leaky_relu(x, 0.125)),
    "silu": ("silu", {}, F.silu),
    "gelu": ("gelu", {"tanh": 0}, F.gelu),
    "gelu by tanh": ("gelu", {"tanh": 1}, lambda x: F.gelu(x, approximate="tanh")),
    "hardswish": ("hardswish", {}, F.hardswish),
    "hardsigmoid": ("hardsigmoid", {}, F.hardsigmoid),
    "sigmoid": ("sigmoid", {}, torch.sigmoid),
    "tanh": ("tanh", {}, torch.tanh),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("image", [*IMAGES, BIG], ids=str)
def test_an_activation(native: Any, tmp_path: Path, name: str, image: Any) -> None:
    """Twice: the first joins the convolution, the second stands by itself."""
    op, attributes, function = ACTIVATIONS[name]
    network = Network(*image)
    network.add(op, ["x"], "y", network.x, **attributes)
    network.add(op, ["y"], "z", network.x, **attributes)
    network.check(native, tmp_path, function(function(network.x)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_over_its_whole_range(native: Any, tmp_path: Path, name: str) -> None:
    op, attributes, function = ACTIVATIONS[name]
    network = Network(3, 64, 64)
    values = torch.cat([torch.linspace(-120, 120, 6000), torch.linspace(-1, 1, 6288)])
    network.input = values.reshape(1, 3, 64, 64).numpy()
    network.nodes = [node(op, ["input"], "y", network.shape, None, attributes)]
    path = tmp_path / "model_weights.bin"
    expected = function(values).numpy()
    nodes = [*network.nodes, node("reshape", ["y"], "flat", (1, values.numel()))]
    write_weights(path, network.shape, nodes, {})
    for instructions in native.instruction_sets():
        actual = native.Model(str(path), instructions=instructions).logits(network.input)
        # The greatest difference is gelu's, 8e-7 near x = -3, where 1 + erf cancels.
        np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)


ARITHMETIC: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
}
# The shape of the other operand of a [1, C, H, W], -1 where it has the same dimension.
OTHERS = [
    (1, -1, -1, -1),
    (1, -1, 1, 1),
    (1, 1, -1, -1),
    (1, 1, 1, 1),
    (1, -1, 1, -1),
    (1, 1, -1, 1),
]


def dimensions(form: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(s if f == -1 else f for f, s in zip(form, shape, strict=True))


@pytest.mark.parametrize("op", ARITHMETIC)
@pytest.mark.parametrize("form", OTHERS, ids=str)
@pytest.mark.parametrize("first", [False, True], ids=["second", "first"])
@pytest.mark.parametrize("image", [(16, 1, 1), (17, 5, 7), (40, 12, 9), BIG], ids=str)
def test_arithmetic(
    native: Any, tmp_path: Path, op: str, form: Any, first: bool, image: Any
) -> None:
    network = Network(*image)
    other = torch.from_numpy(random_array(3, *dimensions(form, network.shape)))
    network.constant("other", other)
    operands, names = [network.x, other], ["x", "other"]
    if first:
        operands, names = operands[::-1], names[::-1]
    expected = ARITHMETIC[op](*operands)
    network.add(op, names, "y", expected)
    network.check(native, tmp_path, expected)


@pytest.mark.parametrize("op", ARITHMETIC)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("form", OTHERS[1:3], ids=str)
def test_arithmetic_and_an_activation(
    native: Any, tmp_path: Path, op: str, name: str, form: Any
) -> None:
    activation, attributes, function = ACTIVATIONS[name]
    network = Network(17, 6, 5)
    other = torch.from_numpy(random_array(3, *dimensions(form, network.shape)))
    network.constant("other", other)
    network.add(op, ["x", "other"], "y", network.x)
    network.add(activation, ["y"], "z", network.x, **attributes)
    network.check(native, tmp_path, function(ARITHMETIC[op](network.x, other)))


@pytest.mark.parametrize("op", ARITHMETIC)
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((1, 17, 1, 7), (1, 1, 5, 1)),
        ((1, 21), (1, 21)),
        ((1, 21), (1, 1)),
        ((1, 1), (1, 21)),
        ((1, 3, 5), (1, 3, 1)),
        ((1, 1, 5), (1, 3, 1)),
        ((1, 2, 3, 4, 5), (1, 2, 1, 4, 1)),
        ((1, 2, 1, 4, 1, 3), (1, 1, 3, 4, 2, 3)),
        ((1,), (1,)),
    ],
    ids=str,
)
def test_arithmetic_of_any_ranks(native: Any, tmp_path: Path, op: str, a: Any, b: Any) -> None:
    network = Network(1, 1, 1)
    left, right = (torch.from_numpy(random_array(i, *shape)) for i, shape in ((3, a), (4, b)))
    network.constant("left", left)
    network.constant("right", right)
    expected = ARITHMETIC[op](left, right)
    network.add(op, ["left", "right"], "y", expected)
    network.check(native, tmp_path, expected)


def test_the_graph_input_is_any_operand(native: Any, tmp_path: Path) -> None:
    network = Network(3, 6, 5)
    x = torch.from_numpy(network.input)
    network.add("mul", ["x", "input"], "y", x)
    network.add("sub", ["input", "y"], "z", x)
    network.check(native, tmp_path, x - network.x * x)


POOLS = [
    # kernel, stride, padding, dilation
    ((2, 2), (2, 2), (0, 0), (1, 1)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((3, 2), (1, 3), (1, 0), (1, 1)),
    ((5, 5), (1, 1), (2, 2), (1, 1)),
    ((5, 3), (4, 2), (2, 1), (1, 1)),
    ((3, 3), (1, 2), (1, 1), (2, 2)),
    ((2, 3), (2, 1), (1, 0), (3, 1)),
    ((1, 1), (2, 3), (0, 0), (1, 1)),
]


@pytest.mark.parametrize("case", POOLS, ids=str)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("image", [(1, 5, 5), (17, 12, 9), (16, 11, 14), BIG], ids=str)
def test_max_pool2d(native: Any, tmp_path: Path, case: Any, ceil_mode: bool, image: Any) -> None:
    kernel, stride, padding, dilation = case
    network = Network(*image)
    expected = F.max_pool2d(network.x, kernel, stride, padding, dilation, ceil_mode)
    network.add(
        "max_pool2d",
        ["x"],
        "y",
        expected,
        kernel=list(kernel),
        stride=list(stride),
        padding=list(padding),
        dilation=list(dilation),
        ceil_mode=int(ceil_mode),
    )
    network.check(native, tmp_path, expected)


@pytest.mark.parametrize("case", [case[:3] for case in POOLS if case[3] == (1, 1)], ids=str)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("divisor", [None, 5])
@pytest.mark.parametrize("image", [(1, 5, 5), (17, 12, 9), BIG], ids=str)
def test_average_pool2d(
    native: Any,
    tmp_path: Path,
    case: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
    image: Any,
) -> None:
    kernel, stride, padding = case
    network = Network(*image)
    expected = F.avg_pool2d(
        network.x, kernel, stride, padding, ceil_mode, count_include_pad, divisor
    )
    network.add(
        "average_pool2d",
        ["x"],
        "y",
        expected,
        kernel=list(kernel),
        stride=list(stride),
        padding=list(padding),
        ceil_mode=int(ceil_mode),
        count_include_pad=int(count_include_pad),
        divisor=divisor or 0,
    )
    network.check(native, tmp_path, expected)


@pytest.mark.parametrize("maximum", [False, True], ids=["average", "maximum"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (5, 1), (13, 20)], ids=str)
@pytest.mark.parametrize("image", [(1, 1, 1), (17, 7, 7), (40, 12, 9), BIG], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_adaptive_pool2d(
    native: Any, tmp_path: Path, maximum: bool, size: Any, image: Any, fused: bool
) -> None:
    """After the convolution, and after a softmax, along with which no mean is taken."""
    network = Network(*image)
    x, name = network.x, "x"
    if not fused:
        network.add("softmax", ["x"], "s", x, axis=1)
        x, name = x.softmax(1), "s"
    function = F.adaptive_max_pool2d if maximum else F.adaptive_avg_pool2d
    expected: torch.Tensor = function(x, size)
    op = "adaptive_max_pool2d" if maximum else "adaptive_average_pool2d"
    network.add(op, [name], "y", expected, size=list(size))
    network.check(native, tmp_path, expected)


def test_the_greatest_of_numbers_and_nan_is_nan(native: Any, tmp_path: Path) -> None:
    x = random_array(0, 1, 1, 6, 6)
    x[0, 0, ::2, 1::2] = np.nan
    x[0, 0, 1, 0] = np.nan
    attributes = {"kernel": [2, 2], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}
    nodes = [
        node("max_pool2d", ["input"], "y", (1, 1, 5, 5), None, attributes | {"ceil_mode": 0}),
        node("reshape", ["y"], "z", (1, 25)),
    ]
    path = tmp_path / "model_weights.bin"
    write_weights(path, x.shape, nodes, {})
    expected = F.max_pool2d(torch.from_numpy(x), 2, 1).numpy().ravel()
    for instructions in native.instruction_sets():
        actual = native.Model(str(path), instructions=instructions).logits(x)
        np.testing.assert_array_equal(actual, expected)


RANKS = [(1, 40), (1, 17, 5), (1, 17, 5, 7), (1, 2, 3, 4, 5), (1, 2, 3, 2, 3, 4)]


def subsets(count: int) -> list[tuple[int, ...]]:
    return [
        axes
        for length in range(1, count + 1)
        for axes in itertools.combinations(range(count), length)
    ]


AXES = [(shape, axes) for shape in RANKS for axes in subsets(len(shape))]


@pytest.mark.parametrize(("shape", "axes"), AXES, ids=str)
def test_mean(native: Any, tmp_path: Path, shape: Any, axes: Any) -> None:
    network = Network(1, 1, 1)
    value = torch.from_numpy(random_array(3, *shape)) + 3
    network.constant("value", value)
    expected = value.mean(axes, keepdim=True)
    network.add("mean", ["value"], "y", expected, axes=list(axes))
    network.check(native, tmp_path, expected)


@pytest.mark.parametrize("axes", subsets(4), ids=str)
@pytest.mark.parametrize("image", [(17, 12, 9), BIG], ids=str)
def test_mean_of_an_image(native: Any, tmp_path: Path, image: Any, axes: Any) -> None:
    network = Network(*image)
    expected = network.x.mean(axes, keepdim=True)
    network.add("mean", ["x"], "y", expected, axes=list(axes))
    network.check(native, tmp_path, expected)


@pytest.mark.parametrize("shape", RANKS, ids=str)
def test_softmax(native: Any, tmp_path: Path, shape: Any) -> None:
    for axis in range(len(shape)):
        network = Network(1, 1, 1)
        value = torch.from_numpy(random_array(3, *shape)) * 30
        network.constant("value", value)
        network.add("softmax", ["value"], "y", value, axis=axis)
        network.check(native, tmp_path, value.softmax(axis), 1e-6)


def layer_norm(x: torch.Tensor, axes: Any, weight: Any, bias: Any, epsilon: float) -> torch.Tensor:
    """By F.layer_norm, with the axes moved to the end and back."""
    order = [i for i in range(x.dim()) if i not in axes] + list(axes)
    sizes = [x.shape[i] for i in axes]
    y = F.layer_norm(x.permute(order), sizes, weight, bias, epsilon)
    return y.permute([order.index(i) for i in range(x.dim())])


def add_layer_norm(network: Network, name: str, x: torch.Tensor, axes: Any) -> torch.Tensor:
    """Adds the node; torch's result."""
    sizes = [x.shape[i] for i in axes]
    weight, bias = random_array(5, *sizes), random_array(6, *sizes)
    network.tensors |= {"weight": weight, "bias": bias}
    names = {"weight": "weight", "bias": "bias"}
    attributes = {"axes": list(axes), "epsilon": 1e-3}
    network.nodes.append(node("layer_norm", [name], "y", tuple(x.shape), names, attributes))
    return layer_norm(x, axes, torch.from_numpy(weight), torch.from_numpy(bias), 1e-3)


@pytest.mark.parametrize(("shape", "axes"), AXES, ids=str)
def test_layer_norm(native: Any, tmp_path: Path, shape: Any, axes: Any) -> None:
    network = Network(1, 1, 1)
    value = torch.from_numpy(random_array(3, *shape)) + 2
    network.constant("value", value)
    expected = add_layer_norm(network, "value", value, axes)
    network.check(native, tmp_path, expected)


@pytest.mark.parametrize("axes", subsets(4)[1:], ids=str)
@pytest.mark.parametrize("image", [(17, 12, 9), (96, 7, 7), BIG], ids=str)
def test_layer_norm_of_an_image(native: Any, tmp_path: Path, image: Any, axes: Any) -> None:
    network = Network(*image)
    expected = add_layer_norm(network, "x", network.x, axes)
    network.check(native, tmp_path, expected)


@pytest.mark.parametrize("channels", [5, 32, 50])
@pytest.mark.parametrize("size", [(5, 7), (90, 70)], ids=str)
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_slices_of_an_image(
    native: Any, tmp_path: Path, channels: int, size: Any, axis: int
) -> None:
    network = Network(channels, *size)
    x = network.x
    length = x.shape[axis]
    for start, end in {(0, length), (0, 1), (length - 1, length), (2, length), (0, length // 2)} | (
        {(16, length), (16, 32), (5, 32)} if length >= 32 else set()
    ):
        part = Network(channels, *size)
        expected = x.narrow(axis, start, end - start)
        part.add("slice", ["x"], "y", expected, axis=axis, start=start, end=end)
        part.check(native, tmp_path, expected)


@pytest.mark.parametrize("parts", [(3,), (16, 16), (5, 16, 1), (32, 7), (1,) * 20], ids=str)
@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("size", [3, 70])
def test_concat_of_images(native: Any, tmp_path: Path, parts: Any, axis: int, size: int) -> None:
    """Parts of one image, in the opposite order."""
    shape = [1, 17, size, size]
    shape[axis] = sum(parts)
    network = Network(*shape[1:])
    x = network.x
    pieces: list[torch.Tensor] = []
    names: list[str] = []
    start = 0
    for i, length in enumerate(parts):
        piece = x.narrow(axis, start, length)
        network.add("slice", ["x"], f"p{i}", piece, axis=axis, start=start, end=start + length)
        start += length
        pieces.insert(0, piece)
        names.insert(0, f"p{i}")
    expected = torch.cat(pieces, axis)
    network.add("concat", names, "y", expected, axis=axis)
    network.check(native, tmp_path, expected)


@pytest.mark.parametrize("shape", RANKS, ids=str)
def test_slice_and_concat_of_any_rank(native: Any, tmp_path: Path, shape: Any) -> None:
    for axis in range(1, len(shape)):
        network = Network(1, 1, 1)
        value = torch.from_numpy(random_array(3, *shape))
        network.constant("value", value)
        head, tail = value.narrow(axis, 0, 1), value.narrow(axis, 1, shape[axis] - 1)
        network.add("slice", ["value"], "head", head, axis=axis, start=0, end=1)
        network.add("slice", ["value"], "tail", tail, axis=axis, start=1, end=shape[axis])
        expected = torch.cat([tail, head, value], axis)
        network.add("concat", ["tail", "head", "value"], "y", expected, axis=axis)
        network.check(native, tmp_path, expected)


@pytest.mark.parametrize("shape", [(3, 4), (3, 17, 2), (3, 17, 2, 4)], ids=str)
def test_a_slice_of_a_constant_of_several(native: Any, tmp_path: Path, shape: Any) -> None:
    network = Network(1, 1, 1)
    value = torch.from_numpy(random_array(3, *shape))
    network.constant("value", value)
    network.add("slice", ["value"], "y", value[1:2], axis=0, start=1, end=2)
    network.check(native, tmp_path, value[1:2])


@pytest.mark.parametrize(("channels", "groups"), [(6, 3), (32, 2), (116, 2), (48, 3), (17, 1)])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (60, 50)], ids=str)
def test_channel_shuffle(
    native: Any, tmp_path: Path, channels: int, groups: int, size: Any
) -> None:
    network = Network(channels, *size)
    expected = F.channel_shuffle(network.x, groups)
    network.add("channel_shuffle", ["x"], "y", expected, groups=groups)
    network.check(native, tmp_path, expected)


@pytest.mark.parametrize("padding", [(1, 2, 3, 4), (0, 0, 0, 5), (7, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("image", [(1, 1, 1), (17, 5, 7), BIG], ids=str)
def test_pad(native: Any, tmp_path: Path, padding: Any, image: Any) -> None:
    top, left, bottom, right = padding
    network = Network(*image)
    expected = F.pad(network.x, (left, right, top, bottom), value=-1.5)
    network.add("pad", ["x"], "y", expected, padding=list(padding), value=-1.5)
    network.check(native, tmp_path, expected)


@pytest.mark.parametrize("shape", [(1, 40), (1, 17, 5), (1, 17, 5, 7), (1, 2, 3, 4, 5)], ids=str)
def test_permute(native: Any, tmp_path: Path, shape: Any) -> None:
    for order in itertools.permutations(range(len(shape))):
        if shape[order[0]] != 1:
            continue
        network = Network(1, 1, 1)
        value = torch.from_numpy(random_array(3, *shape))
        network.constant("value", value)
        expected = value.permute(order)
        network.add("permute", ["value"], "y", expected, order=list(order))
        network.check(native, tmp_path, expected)


@pytest.mark.parametrize("image", [(1, 4, 6), (16, 3, 4), (24, 1, 1), (18, 5, 4)], ids=str)
def test_reshape(native: Any, tmp_path: Path, image: Any) -> None:
    channels, height, width = image
    count = channels * height * width
    shapes = [
        (1, count),
        (1, channels, height * width),
        (1, height, width, channels),
        (1, count, 1, 1),
        (1, 1, 1, count),
        (1, 2, count // 2, 1),
        (1, 1, channels, height, width),
        (1, 2, count // 4, 2, 1, 1),
    ]
    for first, second in itertools.permutations(shapes, 2):
        network = Network(*image)
        network.add("reshape", ["x"], "y", network.x.reshape(first))
        expected = network.x.reshape(second)
        network.add("reshape", ["y"], "z", expected)
        # Something that reads the value as it lies.
        network.add("mul", ["z", "z"], "squared", expected)
        network.check(native, tmp_path, expected * expected)


def pointwise(
    network: Network, x: torch.Tensor, source: str, output: str, channels: int, seed: int
) -> torch.Tensor:
    """A 1x1 convolution of `source`, whose value is `x`."""
    inputs = x.shape[1]
    weight = random_array(seed, channels, inputs, 1, 1) / np.float32(inputs**0.5)
    bias = random_array(seed + 1, channels)
    network.tensors |= {f"{output}.w": weight, f"{output}.b": bias}
    y = F.conv2d(x, torch.from_numpy(weight), torch.from_numpy(bias))
    attributes = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
    names = {"weight": f"{output}.w", "bias": f"{output}.b"}
    network.nodes.append(node("conv2d", [source], output, tuple(y.shape), names, attributes))
    return y


# Strassen's algorithm takes at least 128 channels and 40 pixels; the last has fewer.
@pytest.mark.parametrize("size", [(40, 1), (7, 7), (9, 5), (14, 17), (39, 1)], ids=str)
@pytest.mark.parametrize("channels", [(128, 128), (145, 160), (160, 350), (250, 129)], ids=str)
@pytest.mark.parametrize("more", ["", "relu6", "silu", "sum", "sum, relu", "mean"])
def test_a_wide_1x1_convolution(
    native: Any, tmp_path: Path, size: Any, channels: Any, more: str
) -> None:
    network = Network(channels[0], *size)
    y = pointwise(network, network.x, "x", "y", channels[1], 5)
    last = "y"
    if "sum" in more:
        other = torch.from_numpy(random_array(7, *y.shape))
        network.constant("other", other)
        y = y + other
        network.add("add", ["y", "other"], "sum", y)
        last = "sum"
    for name in ("relu6", "relu", "silu"):
        if more.endswith(name):
            y = ACTIVATIONS[name][2](y)
            network.add(name, [last], "activated", y)
            break
    if more == "mean":
        y = y.mean((2, 3), keepdim=True)
        network.add("adaptive_average_pool2d", [last], "means", y, size=[1, 1])
    network.check(native, tmp_path, y)


@pytest.mark.parametrize("image", [(17, 5, 7), (40, 50, 60), (128, 8, 9)], ids=str)
@pytest.mark.parametrize("outputs", [20, 40, 150])
@pytest.mark.parametrize("activation", ["", "relu6", "silu"])
@pytest.mark.parametrize("again", ["", "image", "means"])
def test_squeeze_and_excitation(
    native: Any, tmp_path: Path, image: Any, outputs: int, activation: str, again: str
) -> None:
    """After a 1x1 convolution; `again`: another operation reads what the gate is computed from."""
    network = Network(*image)
    y = pointwise(network, network.x, "x", "y", outputs, 5)
    means = y.mean((2, 3), keepdim=True)
    network.add("adaptive_average_pool2d", ["y"], "means", means, size=[1, 1])
    flat = means.reshape(1, outputs)
    network.add("reshape", ["means"], "flat means", flat)
    names = {"weight": "reduce.w", "bias": "reduce.b"}
    weight, bias = random_array(8, 9, outputs), random_array(9, 9)
    network.tensors |= {"reduce.w": weight, "reduce.b": bias}
    hidden = F.linear(flat, torch.from_numpy(weight), torch.from_numpy(bias))
    network.nodes.append(node("linear", ["flat means"], "linear", (1, 9), names))
    hidden = F.relu(hidden)
    network.add("relu", ["linear"], "hidden", hidden)
    hidden = hidden.reshape(1, 9, 1, 1)
    network.add("reshape", ["hidden"], "hidden image", hidden)
    gate = pointwise(network, hidden, "hidden image", "gate", outputs, 10)
    gate = torch.sigmoid(gate)
    network.add("sigmoid", ["gate"], "scale", gate)
    result = y * gate
    network.add("mul", ["y", "scale"], "scaled", result)
    last = "scaled"
    if activation:
        result = ACTIVATIONS[activation][2](result)
        network.add(activation, [last], "activated", result)
        last = "activated"
    if again:
        result = result + (y if again == "image" else means)
        network.add("add", [last, "y" if again == "image" else "means"], "sum", result)
    network.check(native, tmp_path, result)
