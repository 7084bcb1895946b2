"""What the tests of lowering share: a model lowered as a build does it, and held against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.core.errors import QuernError
from tasks.models.graph import Graph
from tasks.models.graph import decode as decode_graph
from tasks.models.graph import encode as encode_graph
from tasks.models.interpreter import relative_difference, run
from tasks.models.passes import bind
from tasks.models.tracing import trace_model
from tasks.models.weights_file import WeightsFile, decode, encode

SHAPE = (1, 3, 12, 10)


class Own(nn.Module):
    """A network whose forward() is the given function of itself and its input."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.own_forward = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.own_forward(self, x)


class Excitation(nn.Module):
    """Squeeze-and-excitation in each of its common spellings."""

    def __init__(self, spelling: str, channels: int = 8) -> None:
        super().__init__()
        self.spelling = spelling
        layer: Any = (lambda i, o: nn.Conv2d(i, o, 1)) if spelling == "conv" else nn.Linear
        self.gate = nn.Sequential(
            layer(channels, 2), nn.ReLU(inplace=True), layer(2, channels), nn.Sigmoid()
        )
        if spelling == "norm":
            self.gate.insert(1, nn.BatchNorm1d(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, _, _ = x.shape
        if self.spelling == "conv":
            return self.gate(F.adaptive_avg_pool2d(x, 1)) * x
        gate = self.gate(F.adaptive_avg_pool2d(x, 1).view(batch, channels))
        if self.spelling == "unsqueeze":
            return x.mul_(gate.unsqueeze(-1).unsqueeze(-1))
        if self.spelling == "none":
            return x * gate[:, :, None, None]
        if self.spelling == "expand":
            return x * gate.view(batch, channels, 1, 1).expand_as(x)
        return x * gate.reshape(batch, channels, 1, 1)


def head(channels: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def trained(model: nn.Module, shape: tuple[int, int, int, int] = SHAPE) -> nn.Module:
    """Batch norm has seen images, and no weight is at its initial value."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn(8, *shape[1:]) * 2 + 1)
    return model.eval()


def lower_model(model: nn.Module, shape: tuple[int, int, int, int] = SHAPE) -> Graph:
    """The model's own numbers in a graph that went through graph.json, as a build does it."""
    graph = decode_graph(encode_graph(trace_model(model, shape)))
    bind(graph, model)
    return graph


def encoded(graph: Graph) -> WeightsFile:
    return decode(encode(graph, {}, []), "test")


def assert_same(
    model: nn.Module,
    shape: tuple[int, int, int, int] = SHAPE,
    tolerance: float = 1e-5,
) -> list[str]:
    """Lower, write, read, run and compare on inputs that the output depends on; returns the ops."""
    weights = encoded(lower_model(model, shape))
    outputs = []
    for seed in range(3):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3
        with torch.no_grad():
            wanted = model(x.clone())
        assert relative_difference(run(weights, x), wanted) < tolerance
        outputs.append(wanted)
    assert not torch.allclose(outputs[0], outputs[1])
    return [node["op"] for node in weights.header["nodes"]]


def refusal(model: nn.Module, shape: tuple[int, int, int, int] = SHAPE) -> str:
    """The one line."""
    with pytest.raises(QuernError) as caught:
        lower_model(model.eval(), shape)
    assert "\n" not in str(caught.value)
    return str(caught.value)
