"""The native engine against torch float32 eager, operator by operator and as a whole network."""

from __future__ import annotations

import threading
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

CONV2D = {"stride": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1}


def random_array(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(actual: Array, expected: torch.Tensor) -> None:
    """Ten times nearer than the golden set asks for (relative 1e-4)."""
    wanted = expected.detach().numpy().ravel()
    assert actual.dtype == np.float32 and actual.shape == wanted.shape
    difference = np.abs(actual - wanted).max() / max(1.0, np.abs(wanted).max())
    assert difference <= 1e-5, difference


def run(
    native: Any,
    tmp_path: Path,
    x: Array,
    nodes: list[dict[str, Any]],
    tensors: dict[str, Array] | None = None,
) -> Array:
    """The flattened output of the network `nodes` on x, [1, C, H, W]."""
    last = nodes[-1]
    if len(last["shape"]) == 4:
        count = int(np.prod(last["shape"]))
        nodes = [*nodes, node("reshape", [last["output"]], "flat", (1, count))]
    path = tmp_path / "model_weights.bin"
    write_weights(path, x.shape, nodes, tensors or {})
    result: Array = native.Model(str(path)).logits(x)
    return result


def pool_node(source: str, output: str, shape: tuple[int, ...]) -> dict[str, Any]:
    attributes = {"size": list(shape[2:])}
    return node("adaptive_average_pool2d", [source], output, shape, attributes=attributes)


CONVOLUTIONS = [
    # in, out, kernel, stride, padding (top, left, bottom, right), dilation, groups, H, W
    (3, 8, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 9, 11),
    (3, 8, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1, 9, 11),
    (3, 5, (3, 3), (2, 1), (0, 1, 2, 3), (1, 1), 1, 8, 7),
    (3, 6, (2, 5), (1, 3), (3, 0, 0, 2), (2, 1), 3, 10, 12),
    (3, 3, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 3, 12, 12),
    (3, 9, (5, 5), (3, 2), (4, 4, 4, 4), (1, 3), 3, 17, 13),
    (3, 7, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, 5, 7),
    (3, 16, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, 8, 8),
    (3, 6, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 3, 4, 5),
    (3, 4, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1, 7, 7),
    (3, 4, (1, 1), (1, 1), (1, 1, 1, 1), (1, 1), 1, 6, 6),
    (3, 4, (1, 1), (1, 1), (0, 0, 1, 0), (1, 1), 1, 6, 6),
    (1, 4, (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1, 1, 1),
    (1, 2, (3, 3), (5, 5), (9, 9, 9, 9), (1, 1), 1, 3, 3),
    (1, 1, (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1, 3, 3),
    (1, 3, (1, 9), (1, 1), (0, 8, 0, 8), (1, 1), 1, 4, 2),
]


def conv2d_node(
    x: torch.Tensor, weight: Array, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[torch.Tensor, dict[str, Any], dict[str, Array]]:
    """The same convolution in torch, as a node and as its tensors."""
    bias = random_array(2, weight.shape[0])
    top, left, bottom, right = padding
    expected = F.conv2d(
        F.pad(x, (left, right, top, bottom)),
        torch.from_numpy(weight),
        torch.from_numpy(bias),
        stride,
        0,
        dilation,
        groups,
    )
    attributes = {
        "stride": list(stride),
        "padding": list(padding),
        "dilation": list(dilation),
        "groups": groups,
    }
    names = {"weight": "conv.weight", "bias": "conv.bias"}
    entry = node("conv2d", ["input"], "conv", tuple(expected.shape), names, attributes)
    return expected, entry, {"conv.weight": weight, "conv.bias": bias}


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_conv2d(native: Any, tmp_path: Path, case: Any) -> None:
    inputs, outputs, kernel, stride, padding, dilation, groups, height, width = case
    x = random_array(1, 1, inputs, height, width)
    weight = random_array(3, outputs, inputs // groups, *kernel)
    expected, entry, tensors = conv2d_node(
        torch.from_numpy(x), weight, stride, padding, dilation, groups
    )
    assert_close(run(native, tmp_path, x, [entry], tensors), expected)


@pytest.mark.parametrize("seed", range(40))
def test_conv2d_with_random_parameters(native: Any, tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    groups = int(random.choice([1, 3]))
    kernel = tuple(int(k) for k in random.integers(1, 6, 2))
    stride = tuple(int(s) for s in random.integers(1, 4, 2))
    dilation = tuple(int(d) for d in random.integers(1, 4, 2))
    padding = tuple(int(p) for p in random.integers(0, 6, 4))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    height, width = (int(r + random.integers(0, 20)) for r in reach)
    x = random_array(seed, 1, 3, height, width)
    weight = random_array(seed + 1, 3 * int(random.integers(1, 7)), 3 // groups, *kernel)
    expected, entry, tensors = conv2d_node(
        torch.from_numpy(x), weight, stride, padding, dilation, groups
    )
    assert_close(run(native, tmp_path, x, [entry], tensors), expected)


@pytest.mark.parametrize("inputs", [1, 15, 16, 17, 4800])
def test_linear(native: Any, tmp_path: Path, inputs: int) -> None:
    x = random_array(1, 1, 1, 1, inputs)
    weight, bias = random_array(2, 10, inputs), random_array(3, 10)
    names = {"weight": "w", "bias": "b"}
    nodes = [
        node("reshape", ["input"], "flat", (1, inputs)),
        node("linear", ["flat"], "logits", (1, 10), names),
    ]
    expected = F.linear(torch.from_numpy(x).flatten(1), *map(torch.from_numpy, (weight, bias)))
    assert_close(run(native, tmp_path, x, nodes, {"w": weight, "b": bias}), expected)


@pytest.mark.parametrize(
    ("op", "function"), [("relu", F.relu), ("relu6", F.relu6), ("sigmoid", torch.sigmoid)]
)
def test_unary(native: Any, tmp_path: Path, op: str, function: Any) -> None:
    x = random_array(1, 1, 3, 5, 7) * 8
    x.ravel()[:8] = [0.0, -0.0, 6.0, 1e9, -1e9, np.inf, -np.inf, np.nan]
    actual = run(native, tmp_path, x, [node(op, ["input"], "v", x.shape)])
    expected = function(torch.from_numpy(x)).numpy().ravel()
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("op", "function"), [("add", torch.add), ("mul", torch.mul)])
@pytest.mark.parametrize(
    "form", ["equal", "per channel", "per channel, first", "both small", "flat"]
)
def test_binary(native: Any, tmp_path: Path, op: str, function: Any, form: str) -> None:
    x = random_array(1, 1, 3, 4, 5)
    whole = torch.from_numpy(x)
    squared = whole * whole
    pooled = whole.mean((2, 3), keepdim=True)
    nodes = [
        node("mul", ["input", "input"], "squared", (1, 3, 4, 5)),
        pool_node("input", "pooled", (1, 3, 1, 1)),
        node("reshape", ["input"], "flat a", (1, 60)),
        node("reshape", ["squared"], "flat b", (1, 60)),
    ]
    names, a, b = {
        "equal": (["squared", "input"], squared, whole),
        "per channel": (["squared", "pooled"], squared, pooled),
        "per channel, first": (["pooled", "squared"], pooled, squared),
        "both small": (["pooled", "pooled"], pooled, pooled),
        "flat": (["flat a", "flat b"], whole.flatten(1), squared.flatten(1)),
    }[form]
    expected = function(a, b)
    nodes.append(node(op, names, "result", tuple(expected.shape)))
    assert_close(run(native, tmp_path, x, nodes), expected)


def test_adaptive_average_pool(native: Any, tmp_path: Path) -> None:
    x = random_array(1, 1, 3, 50, 70) + 100
    nodes = [pool_node("input", "pooled", (1, 3, 1, 1))]
    expected = F.adaptive_avg_pool2d(torch.from_numpy(x), 1)
    assert_close(run(native, tmp_path, x, nodes), expected)


def test_reshape_is_in_nchw_order(native: Any, tmp_path: Path) -> None:
    x = random_array(1, 1, 3, 4, 5)
    actual = run(native, tmp_path, x, [node("reshape", ["input"], "flat", (1, 60))])
    np.testing.assert_array_equal(actual, x.ravel())


class Network(torch.nn.Module):
    """A stem, a depthwise-separable block with squeeze and excitation, a residual, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, 2, 1)
        self.depthwise = torch.nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.squeeze = torch.nn.Conv2d(16, 4, 1)
        self.excite = torch.nn.Conv2d(4, 16, 1)
        self.pointwise = torch.nn.Conv2d(16, 16, 1)
        self.head = torch.nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = F.relu6(self.stem(x))
        y = F.relu6(self.depthwise(stem))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        y = self.pointwise(y * scale) + stem
        result: torch.Tensor = self.head(y.mean((2, 3)))
        return result


def write_network(path: Path, network: Network) -> str:
    """The file of `network` for inputs [1, 3, 32, 32]."""

    def conv(name: str, source: str, output: str, shape: tuple[int, ...], **changes: Any) -> Any:
        names = {"weight": f"{name}.weight", "bias": f"{name}.bias"}
        return node("conv2d", [source], output, shape, names, CONV2D | changes)

    large, small = (1, 16, 16, 16), (1, 16, 1, 1)
    nodes = [
        conv("stem", "input", "v0", large, stride=[2, 2], padding=[1, 1, 1, 1]),
        node("relu6", ["v0"], "v1", large),
        conv("depthwise", "v1", "v2", large, padding=[1, 1, 1, 1], groups=16),
        node("relu6", ["v2"], "v3", large),
        pool_node("v3", "v4", small),
        conv("squeeze", "v4", "v5", (1, 4, 1, 1)),
        node("relu", ["v5"], "v6", (1, 4, 1, 1)),
        conv("excite", "v6", "v7", small),
        node("sigmoid", ["v7"], "v8", small),
        node("mul", ["v3", "v8"], "v9", large),
        conv("pointwise", "v9", "v10", large),
        node("add", ["v10", "v1"], "v11", large),
        pool_node("v11", "v12", small),
        node("reshape", ["v12"], "v13", (1, 16)),
        node("linear", ["v13"], "v14", (1, 10), {"weight": "head.weight", "bias": "head.bias"}),
    ]
    tensors = {name: value.numpy() for name, value in network.state_dict().items()}
    return write_weights(path, (1, 3, 32, 32), nodes, tensors)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def test_a_whole_network(native: Any, tmp_path: Path, network: Network) -> None:
    digest = write_network(tmp_path / "model_weights.bin", network)
    model = native.Model(str(tmp_path / "model_weights.bin"))
    assert model.input_shape == [1, 3, 32, 32]
    assert model.classes == [str(i) for i in range(10)]
    assert model.weights_digest == digest
    for seed in range(5):
        x = random_array(seed, 1, 3, 32, 32)
        assert_close(model.logits(x), network(torch.from_numpy(x)))
        assert_close(model.logits(x[0]), network(torch.from_numpy(x)))


def test_inputs_of_another_layout_or_type(native: Any, tmp_path: Path, network: Network) -> None:
    write_network(tmp_path / "model_weights.bin", network)
    model = native.Model(str(tmp_path / "model_weights.bin"))
    x = random_array(1, 3, 32, 32)
    expected = model.logits(x)
    transposed = np.ascontiguousarray(x.transpose(1, 2, 0)).transpose(2, 0, 1)
    np.testing.assert_array_equal(model.logits(transposed), expected)
    misaligned = np.frombuffer(b"\0" + x.tobytes(), np.float32, x.size, 1).reshape(x.shape)
    np.testing.assert_array_equal(model.logits(misaligned), expected)
    with pytest.raises(ValueError, match="dtype is float64, not float32"):
        model.logits(x.astype(np.float64))
    with pytest.raises(ValueError, match="dtype is >f4"):
        model.logits(x.astype(">f4"))
    with pytest.raises(ValueError, match=r"shape is \[1,3,32,31\]"):
        model.logits(x[:, :, :31])
    with pytest.raises(ValueError, match="shape"):
        model.logits(np.zeros((), np.float32))


def test_one_model_in_several_threads(native: Any, tmp_path: Path, network: Network) -> None:
    write_network(tmp_path / "model_weights.bin", network)
    model = native.Model(str(tmp_path / "model_weights.bin"))
    inputs = [random_array(seed, 3, 32, 32) for seed in range(4)]
    expected = [model.logits(x) for x in inputs]
    wrong: list[int] = []

    def ask(index: int) -> None:
        for _ in range(50):
            if not np.array_equal(model.logits(inputs[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_bad_file_is_a_value_error(native: Any, tmp_path: Path, network: Network) -> None:
    path = tmp_path / "model_weights.bin"
    write_network(path, network)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{path}: the file has {len(content) - 1} bytes"):
        native.Model(str(path))
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="does not match its digest"):
        native.Model(str(path))
    with pytest.raises(ValueError, match="cannot be opened"):
        native.Model(str(tmp_path / "nothing"))
