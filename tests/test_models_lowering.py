"""Lowering as a whole: what is erased, what changes in place, batch norm, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.core.errors import QuernError
from tasks.models.graph import decode as decode_graph
from tasks.models.graph import encode as encode_graph
from tasks.models.interpreter import relative_difference, run
from tasks.models.operators import LOWERINGS
from tasks.models.passes import bind
from tasks.models.tracing import trace_model
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

POOLED = ["adaptive_average_pool2d", "reshape"]


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
    assert assert_same(trained(model)) == ["conv2d", *POOLED, "linear"]


def test_unused_branches_are_not_asked_for() -> None:
    model = Own(
        lambda m, x: (m.auxiliary(x), m.used(x))[1],
        auxiliary=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.ELU()),
        used=nn.Sequential(nn.Conv2d(3, 8, 3), head()),
    )
    assert assert_same(trained(model)) == ["conv2d", *POOLED, "linear"]


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

    def through_view(m: Any, x: Tensor) -> Tensor:
        y = m.body(x)
        flat, last = y.flatten(1), y.permute(0, 2, 3, 1)
        last.relu_()
        return torch.cat([m.last(flat), m.head(y)], 1)

    model = Own(through_view, body=nn.Conv2d(3, 2, 3), last=nn.Linear(160, 5), head=head(2))
    assert assert_same(trained(model)).count("relu") == 1

    def through_copy(m: Any, x: Tensor) -> Tensor:
        y = m.body(x)
        y.permute(0, 2, 3, 1).contiguous().relu_()
        return m.head(y + y.permute(0, 1, 3, 2).reshape(y.shape).relu_())

    model = trained(Own(through_copy, body=nn.Conv2d(3, 8, 3), head=head()))
    assert assert_same(model).count("relu") == 1

    def after_dropout(m: Any, x: Tensor) -> Tensor:
        y = m.body(x)
        F.dropout(y, 0.5, m.training).relu_()
        return m.head(y)

    model = trained(Own(after_dropout, body=nn.Conv2d(3, 8, 3), head=head()))
    assert assert_same(model) == ["conv2d", "relu", *POOLED, "linear"]


def test_a_part_that_is_read_after_the_whole_was_changed_is_refused() -> None:
    def whole(m: Any, x: Tensor) -> Tensor:
        y = m.body(x)
        part = y[:, :4]
        y.mul_(2)
        return m.head(part)

    model = Own(whole, body=nn.Conv2d(3, 8, 3), head=head(4))
    assert refusal(model).startswith(
        "Own: aten.slice, read after its memory was changed in place, is not supported"
    )

    def part(m: Any, x: Tensor) -> Tensor:
        y = m.body(x)
        y.chunk(2, 1)[1].relu_()
        return m.head(y)

    text = refusal(Own(part, body=nn.Conv2d(3, 8, 3), head=head()))
    assert text.startswith("Own.body: aten.conv2d, read after its memory was changed in place,")


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
    weights = encoded(lower_model(model))
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
    assert ops == ["conv2d", "relu", "conv2d", *POOLED, *["linear"] * 2]
    # Against the same network in float64, the folded one is nearer than float32 rounding errors.
    x = torch.randn(SHAPE)
    with torch.no_grad():
        exact = model.double()(x.double())
    model.float()
    assert relative_difference(run(encoded(lower_model(model)), x), exact) < 1e-6


def test_folded_weights_are_the_float64_ones_rounded_once() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), head(4)))
    weights = encoded(lower_model(model))
    convolution, norm = model[0].double(), model[1].double()
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    folded = convolution.weight.detach().numpy() * scale[:, None, None, None]
    assert np.array_equal(weights.tensors["0.weight"], folded.astype(np.float32))


def test_batch_norm_that_cannot_be_folded_is_a_depthwise_convolution() -> None:
    def first(m: Any, x: Tensor) -> Tensor:
        return m.head(m.body(m.norm(x)))

    model = Own(first, norm=nn.BatchNorm2d(3), body=nn.Conv2d(3, 8, 3), head=head())
    assert assert_same(trained(model))[:2] == ["conv2d", "conv2d"]
    node = encoded(lower_model(model)).header["nodes"][0]
    assert node["name"] == "norm" and node["attributes"]["groups"] == 3
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.BatchNorm2d(8), head()]
    model = trained(nn.Sequential(*layers))
    assert assert_same(model)[:4] == ["conv2d", "relu", "conv2d", "adaptive_average_pool2d"]
    model = Own(
        lambda m, x: m.head(m.norm(y := m.body(x)) + y),
        body=nn.Conv2d(3, 8, 3),
        norm=nn.BatchNorm2d(8),
        head=head(),
    )
    assert assert_same(trained(model))[:3] == ["conv2d", "conv2d", "add"]
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(360), nn.ReLU(), nn.Linear(360, 5))
    assert "conv2d" in assert_same(trained(model))
    model = nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(360, 5))
    assert assert_same(trained(model)) == ["reshape", "conv2d", "reshape", "linear"]


def test_batch_norm_in_training_is_refused() -> None:
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
        encode(lower_model(model), {}, [])


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
    text = refusal(Deep(nn.PReLU()))
    start = "Deep.blocks.3.act: aten.prelu is not supported by the native engine; supported are "
    assert text.startswith(f"{start}adaptive_avg_pool2d, adaptive_max_pool2d, add, ")
    named = set(text.removeprefix(start).split(", "))
    assert named == {name.split(".")[1] for name in LOWERINGS} - {"_unsafe_view"}


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        (nn.ELU(), "aten.elu"),
        (nn.ELU(inplace=True), "aten.elu_"),
        (nn.Softplus(), "aten.softplus"),
        (nn.Hardtanh(), "aten.hardtanh from -1.0 to 1.0"),
        (nn.LogSoftmax(1), "aten.log_softmax"),
        (nn.MaxPool2d(2, return_indices=True), "aten.max_pool2d_with_indices"),
        (nn.AdaptiveMaxPool2d(2, return_indices=True), "aten.adaptive_max_pool2d[1]"),
        (nn.AvgPool2d(2, divisor_override=-1), "aten.avg_pool2d with divisor_override=-1"),
        (nn.LPPool2d(2, 2), "aten.pow"),
        (nn.ConvTranspose2d(8, 8, 3), "aten.conv_transpose2d"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "aten.pad with mode reflect"),
        (nn.ReplicationPad2d(1), "aten.pad with mode replicate"),
        (nn.ZeroPad2d(-1), "aten.pad by [-1, -1, -1, -1]"),
        (nn.Upsample(scale_factor=2), "aten.upsample_nearest2d"),
        (nn.GroupNorm(2, 8), "aten.group_norm"),
        (nn.InstanceNorm2d(8), "aten.instance_norm"),
        (Own(lambda m, x: x / x.mean()), "aten.div by what forward() computes"),
        (Own(lambda m, x: x**3), "aten.pow with exponent 3"),
        (Own(lambda m, x: x @ x.mT @ x), "aten.matmul"),
        (Own(lambda m, x: x[:, ::2]), "aten.slice with step 2 of dimension 1"),
        (Own(lambda m, x: x[:, :0].sum() + x), "aten.sum"),
        (Own(lambda m, x: F.relu(x[:, 8:]).mean() + x), "aten.slice from 8 to 8 of 8"),
        (Own(lambda m, x: F.dropout(x)), "aten.dropout that is on in eval mode"),
        (Own(lambda m, x: x.double().float()), "aten.to to torch.float64"),
        (Own(lambda m, x: x * (x > 0)), "aten.gt"),
        (Own(lambda m, x: x * torch.tensor(2.0)), "aten.lift_fresh_copy with the stored tensor c_"),
        (
            Own(lambda m, x: F.conv2d(x[0], m.l.weight)[None], l=nn.Conv2d(8, 8, 1)),
            "aten.conv2d of [8, 10, 8], which is not [1, C, H, W],",
        ),
        (
            Own(lambda m, x: m.l(x.view(8, 1, 10, 8)).mean(0, True), l=nn.Conv2d(1, 8, 1)),
            "aten.conv2d of [8, 1, 10, 8], which is not [1, C, H, W],",
        ),
        (
            Own(lambda m, x: x.view(1, 2, 2, 2, 2, 5, 8).softmax(1)),
            "aten.softmax with 7 dimensions",
        ),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)), "aten._weight_norm"),
    ],
)
def test_refusals(layer: nn.Module, part: str) -> None:
    """What ends up in the logits is refused where it stands."""
    model = Deep(layer)
    model.head = Own(lambda m, x: sum(x).flatten(1) if isinstance(x, tuple) else x.flatten(1))
    text = refusal(model)
    assert text.startswith("Deep.blocks.3.act") and f": {part}" in text


def test_what_is_refused_but_never_read_does_not_matter() -> None:
    model = nn.Sequential(nn.AdaptiveMaxPool2d(4, return_indices=True), Own(lambda m, x: x[0]))
    assert assert_same(nn.Sequential(model, nn.Flatten())) == ["adaptive_max_pool2d", "reshape"]


def test_a_tensor_that_no_checkpoint_holds_is_refused() -> None:
    model = Own(lambda m, x: m.head(F.conv2d(m.body(x), m.kernel)), body=nn.Conv2d(3, 8, 3))
    model.add_module("head", head())
    model.kernel = torch.ones(8, 8, 1, 1)
    assert refusal(model).startswith(
        "Own: aten.conv2d with the stored tensor c_kernel, which is no float32 parameter or buffer"
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
    assert encode(graph, {}, []) == encode(lower_model(second), {}, [])
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
    assert refusal(nn.Sequential(nn.Conv2d(3, 8, 3), head(), nn.Softmax(1))) == (
        "Sequential: forward() ends in a softmax; it must return logits, of which the server takes"
        " the softmax itself"
    )
