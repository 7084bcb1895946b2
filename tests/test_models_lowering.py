"""Lowering: what torch computes, the file's graph computes; all else is refused by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.core.errors import QuernError
from tasks.models.graph import Graph
from tasks.models.graph import decode as decode_graph
from tasks.models.graph import encode as encode_graph
from tasks.models.interpreter import relative_difference, run
from tasks.models.operators import EVALUATIONS
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


def lower_model(model: nn.Module, shape: tuple[int, int, int, int]) -> Graph:
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
    with pytest.raises(QuernError) as caught:
        lower_model(model.eval(), shape)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def head(channels: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(3, 8, 3, bias=False),
        nn.Conv2d(3, 8, (3, 5), stride=(1, 2), padding=(2, 0)),
        nn.Conv2d(3, 8, 3, padding=2, dilation=2),
        nn.Conv2d(3, 8, 4, padding="same"),
        nn.Conv2d(3, 8, (2, 3), padding="same", dilation=(1, 2)),
        nn.Conv2d(3, 8, 3, padding="valid"),
        nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 3, groups=4)),
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1, groups=8)),
    ],
)
def test_convolutions(layer: nn.Module) -> None:
    assert "conv2d" in assert_same(trained(nn.Sequential(layer, nn.ReLU(), head())))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("activation", "op"),
    [(nn.ReLU, "relu"), (nn.ReLU6, "relu6"), (nn.Hardtanh, "relu6")],
)
def test_activations(activation: type[nn.Module], op: str, inplace: bool) -> None:
    limits = (0.0, 6.0) if activation is nn.Hardtanh else ()
    layer = activation(*limits, inplace=inplace)
    assert op in assert_same(trained(nn.Sequential(nn.Conv2d(3, 8, 3), layer, head())))


def test_other_spellings_of_activations() -> None:
    body = nn.Conv2d(3, 8, 3)
    spellings: list[Callable[[Tensor], Tensor]] = [
        torch.relu,
        F.relu6,
        torch.sigmoid,
        lambda x: x.clamp(0, 6),
        lambda x: x.clamp(min=0),
        lambda x: x.clamp_min(0),
        lambda x: x.clamp_(0, 6),
        lambda x: x.sigmoid_(),
    ]
    for spelling in spellings:
        model = Own(lambda m, x, f=spelling: m.head(f(m.body(x))), body=body, head=head())
        assert len(assert_same(trained(model))) == 5


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)).view(x.size(0), -1),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean([-1, -2]),
        lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1),
        lambda x: x.mean((2, 3), keepdim=True).reshape(x.shape[0], x.shape[1]),
        lambda x: F.adaptive_avg_pool2d(x, 1)[:, :].flatten(2).squeeze(2),
    ],
)
def test_spellings_of_pooling(pool: Callable[[Tensor], Tensor]) -> None:
    model = Own(lambda m, x: m.last(pool(m.body(x))), body=nn.Conv2d(3, 8, 3), last=nn.Linear(8, 5))
    assert assert_same(trained(model)) == ["conv2d", "global_average_pool", "flatten", "linear"]


def test_flatten_keeps_the_order_of_channels_rows_and_columns() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3, 2), nn.Flatten(), nn.ReLU(), nn.Linear(40, 5))
    assert assert_same(trained(model)) == ["conv2d", "flatten", "relu", "linear"]


def test_what_computes_nothing_is_erased() -> None:
    model = nn.Sequential(
        nn.Identity(),
        nn.Conv2d(3, 8, 3),
        nn.Dropout(inplace=True),
        nn.Dropout2d(),
        Own(lambda m, x: x.contiguous().float().clone().detach()),
        head(),
        nn.AlphaDropout(),
    )
    assert assert_same(trained(model)) == ["conv2d", "global_average_pool", "flatten", "linear"]


def test_unused_branches_are_not_asked_for() -> None:
    model = Own(
        lambda m, x: (m.auxiliary(x), m.used(x))[1],
        auxiliary=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.GELU()),
        used=nn.Sequential(nn.Conv2d(3, 8, 3), head()),
    )
    assert assert_same(trained(model)) == ["conv2d", "global_average_pool", "flatten", "linear"]


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


@pytest.mark.parametrize("spelling", ["conv", "view", "unsqueeze", "none", "expand", "norm"])
def test_squeeze_and_excitation(spelling: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Excitation(spelling), nn.ReLU6(True), head())
    assert assert_same(trained(model)) == [
        *["conv2d", "global_average_pool", "conv2d", "relu", "conv2d", "sigmoid", "mul"],
        *["relu6", "global_average_pool", "flatten", "linear"],
    ]


def test_residuals_in_place_and_not() -> None:
    for join in (lambda x, y: x + y, lambda x, y: x.add_(y), lambda x, y: torch.add(x, y)):
        model = Own(
            lambda m, x, join=join: m.head(join(m.b(y := m.a(x)), y)),
            a=nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
            b=nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)),
            head=head(),
        )
        assert assert_same(trained(model))[:4] == ["conv2d", "relu", "conv2d", "add"]


def test_a_change_in_place_is_seen_through_every_name_but_not_through_a_copy() -> None:
    def seen(m: Any, x: Tensor) -> Tensor:
        y = m.body(x)
        same, copy = y.detach(), y.clone()
        y.relu_()
        return m.head(same + copy)

    model = trained(Own(seen, body=nn.Conv2d(3, 8, 3), head=head()))
    assert "relu" in assert_same(model)

    def stale(m: Any, x: Tensor) -> Tensor:
        y = m.body(x)
        flat = y.flatten(1)
        y.relu_()
        return m.last(flat)

    model = Own(stale, body=nn.Conv2d(3, 2, 3), last=nn.Linear(160, 5))
    assert "aten.flatten to [1, 160] is not supported" in refusal(model)

    def through_view(m: Any, x: Tensor) -> Tensor:
        y = m.body(x)
        y.flatten(1).relu_()
        return m.head(y)

    model = Own(through_view, body=nn.Conv2d(3, 8, 3), head=head())
    assert "is not supported" in refusal(model)


def test_one_module_called_twice_gives_tensors_of_two_names() -> None:
    model = trained(
        Own(
            lambda m, x: m.head(m.b(m.b(m.a(x)))),
            a=nn.Conv2d(3, 8, 3),
            b=nn.Conv2d(8, 8, 1),
            head=head(),
        )
    )
    assert_same(model)
    weights = encoded(lower_model(model, SHAPE))
    assert {"b.weight", "b.weight#2", "b.bias", "b.bias#2"} <= weights.tensors.keys()


# --- batch norm ------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_is_folded_in_float64(affine: bool, bias: bool) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=bias),
        nn.BatchNorm2d(8, affine=affine),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, bias=bias),
        nn.Dropout(),
        nn.BatchNorm2d(8, eps=1e-3, affine=affine),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 6, bias=bias),
        nn.BatchNorm1d(6, affine=affine),
        nn.Linear(6, 5),
    )
    ops = assert_same(trained(model))
    assert ops == ["conv2d", "relu", "conv2d", "global_average_pool", "flatten", *["linear"] * 2]
    # Against the same network in float64, the folded one is nearer than float32 rounding errors.
    x = torch.randn(SHAPE)
    with torch.no_grad():
        exact = model.double()(x.double())
    model.float()
    assert relative_difference(run(encoded(lower_model(model, SHAPE)), x), exact) < 1e-6


def test_folded_weights_are_the_float64_ones_rounded_once() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), head(4)))
    weights = encoded(lower_model(model, SHAPE))
    convolution, norm = model[0].double(), model[1].double()
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    folded = convolution.weight.detach().numpy() * scale[:, None, None, None]
    assert np.array_equal(weights.tensors["0.weight"], folded.astype(np.float32))


def test_batch_norm_that_cannot_be_folded_is_refused_by_name() -> None:
    text = refusal(
        Own(
            lambda m, x: m.rest(m.norm(x)),
            norm=nn.BatchNorm2d(3),
            rest=nn.Sequential(nn.Conv2d(3, 8, 3), head()),
        )
    )
    assert text.startswith("Own.norm: aten.batch_norm is supported only where it can be folded")
    assert text.endswith("it follows the input")
    text = refusal(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), head()))
    assert text.startswith("Sequential.2: aten.batch_norm") and text.endswith("follows relu")
    model = Own(
        lambda m, x: m.head(m.norm(y := m.body(x)) + y),
        body=nn.Conv2d(3, 8, 3),
        norm=nn.BatchNorm2d(8),
        head=head(),
    )
    assert refusal(model).endswith("follows body, whose result is used elsewhere too")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), head())
    assert "Sequential.1: aten.batch_norm by the batch's own statistics" in refusal(model)


def test_a_negative_variance_is_damage() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), head(4)))
    model[1].running_var[2] = -1
    assert "Sequential.1: running_var is negative" in refusal(model)


def test_a_folded_weight_too_large_for_float32_is_refused() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), head(4)))
    model[0].weight.data.fill_(1e38)
    model[1].weight.data.fill_(1e5)
    with pytest.raises(QuernError, match=r"0\.weight: .* too large for float32"):
        encode(lower_model(model, SHAPE), {}, [])


# --- refusals --------------------------------------------------------------------------------


class Deep(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential() for _ in range(4)))
        self.blocks[3].add_module("conv", nn.Conv2d(3, 8, 3))
        self.blocks[3].add_module("act", activation)
        self.head = head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


def test_an_unsupported_operation_is_named_with_its_module() -> None:
    assert refusal(Deep(nn.GELU())) == (
        "Deep.blocks.3.act: aten.gelu is not supported by the native engine; supported are add,"
        " conv2d, flatten, global_average_pool, linear, mul, relu, relu6, sigmoid, and batch_norm"
        " after conv2d or linear"
    )
    # The sentence tells the truth.
    assert all(op in refusal(Deep(nn.GELU())) for op in EVALUATIONS)


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        (nn.SiLU(), "Deep.blocks.3.act: aten.silu"),
        (nn.MaxPool2d(2), "Deep.blocks.3.act: aten.max_pool2d"),
        (nn.Hardtanh(), "Deep.blocks.3.act: aten.hardtanh from -1.0 to 1.0"),
        (nn.AdaptiveAvgPool2d(2), "Deep.blocks.3.act: aten.adaptive_avg_pool2d to [2, 2]"),
        (nn.ConvTranspose2d(8, 8, 3), "Deep.blocks.3.act: aten.conv_transpose2d"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "Deep.blocks.3.act: aten.pad"),
        (nn.GroupNorm(2, 8), "Deep.blocks.3.act: aten.group_norm"),
        (nn.PReLU(), "Deep.blocks.3.act: aten.prelu"),
        (Own(lambda m, x: x * 2), "Deep.blocks.3.act: aten.mul with the number 2"),
        (Own(lambda m, x: torch.add(x, x, alpha=2)), "aten.add with alpha=2"),
        (Own(lambda m, x: x * x[:, :1]), "Deep.blocks.3.act: aten.slice to [1, 1, 10, 8]"),
        (Own(lambda m, x: x * x.mean((2, 3), True).mean(1, True)), "aten.mean over [1]"),
        (
            Own(lambda m, x: x.mean(1, True).expand(-1, 8, -1, -1)),
            "aten.mean over [1] of [1, 8, 10, 8]",
        ),
        (Own(lambda m, x: F.dropout(x)), "aten.dropout that is on in eval mode"),
        (Own(lambda m, x: x.permute(0, 1, 3, 2)), "Deep.blocks.3.act: aten.permute"),
        (Own(lambda m, x: x.double().float()), "aten.to to [1, 8, 10, 8], torch.float64"),
        (Own(lambda m, x: x.relu().view(1, 8, 8, 10)), "aten.view to [1, 8, 8, 10]"),
        (Own(lambda m, x: m.l(x), l=nn.Linear(8, 8)), "aten.linear on [1, 8, 10, 8]"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)), "Deep.blocks.3.act"),
        (nn.Unflatten(1, (2, 4)), "Deep"),
    ],
)
def test_refusals(layer: nn.Module, part: str) -> None:
    text = refusal(Deep(layer))
    assert part in text and text.startswith("Deep")


def test_a_stored_tensor_beside_a_value_is_refused() -> None:
    model = Own(lambda m, x: m.head(m.body(x) * m.scale), body=nn.Conv2d(3, 8, 3), head=head())
    model.register_buffer("scale", torch.ones(1, 8, 1, 1))
    assert refusal(model).startswith("Own: aten.mul with the stored tensor b_scale is not")


def test_a_tensor_that_no_checkpoint_holds_is_refused() -> None:
    model = Own(lambda m, x: m.head(F.conv2d(m.body(x), m.kernel)), body=nn.Conv2d(3, 8, 3))
    model.add_module("head", head())
    model.kernel = torch.ones(8, 8, 1, 1)
    assert refusal(model).startswith(
        "Own: aten.conv2d with the stored tensor c_kernel, which is no parameter or buffer"
        " (register_buffer makes it one), is not supported"
    )
    for persistent in (True, False):
        del model.kernel
        model.register_buffer("kernel", torch.randn(8, 8, 1, 1), persistent)
        assert "conv2d" in assert_same(trained(model))


# --- another checkpoint in the same graph ----------------------------------------------------


def test_a_graph_holds_no_weights_and_takes_those_of_any_model_of_its_class() -> None:
    def network() -> nn.Module:
        excitation = Excitation("norm")
        layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), excitation, head()]
        return nn.Sequential(*layers)

    first, second = network().eval(), trained(network())
    traced = encode_graph(trace_model(first, SHAPE))
    assert traced == encode_graph(trace_model(second, SHAPE))
    graph = decode_graph(traced)
    assert encode_graph(graph) == traced
    bind(graph, second)
    assert encode(graph, {}, []) == encode(lower_model(second, SHAPE), {}, [])
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert relative_difference(run(encoded(graph), x), second(x)) < 1e-5
        assert relative_difference(run(encoded(graph), x), first(x)) > 1e-2


def test_tied_weights_are_found_under_either_name() -> None:
    model = Own(
        lambda m, x: m.head(m.b(m.a(x))), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1), head=head(3)
    )
    model.b.weight = model.a.weight
    assert_same(trained(model))


def test_a_graph_of_another_network_is_refused() -> None:
    graph = trace_model(nn.Sequential(nn.Conv2d(3, 8, 3), head()).eval(), SHAPE)
    others = {
        "0.bias of [8]": nn.Sequential(nn.Conv2d(3, 4, 3), head(4)),
        "1.2.bias of [5]": nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1)),
    }
    for name, other in others.items():
        with pytest.raises(QuernError) as caught:
            bind(decode_graph(encode_graph(graph)), other)
        assert str(caught.value) == (
            f"Sequential: was traced with {name}, which it has not now; if a file that the"
            " architecture imports was changed, doit run --always-execute graph traces it again"
        )


def test_a_view_back_that_is_no_excitation_is_refused() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.body(x)
        return m.head(y * m.gate(y.flatten(1)).view(1, 8, 1, 1))

    model = Own(forward, body=nn.Conv2d(3, 8, 3), gate=nn.Linear(640, 8), head=head())
    assert refusal(model).startswith("Own: a view to [1, 8, 1, 1] is supported by the native")


def test_control_flow_that_depends_on_the_image_is_refused() -> None:
    model = Own(
        lambda m, x: m.head(m.body(x) if x.sum() > 0 else m.body(-x)),
        body=nn.Conv2d(3, 8, 3),
        head=head(),
    )
    assert refusal(model).startswith("Own: forward() cannot be traced by torch.export: ")


def test_outputs_that_are_no_logits_are_refused() -> None:
    text = refusal(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1)))
    assert text == "Sequential: forward() returns [1, 8, 1, 1]; it must return [1, classes]"
    model = Own(lambda m, x: (m.a(x), m.b(x)), a=head(3), b=head(3))
    assert "must return one tensor" in refusal(model)
    assert "forward() returns [1, 3, 12, 10]" in refusal(nn.Sequential(nn.Identity()))
    assert "aten.softmax" in refusal(nn.Sequential(nn.Conv2d(3, 8, 3), head(), nn.Softmax(1)))
