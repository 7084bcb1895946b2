"""Random chains of views, operations along axes and changes in place, held against torch.

Lowering leaves permutations and reshapes undone for as long as it can; here nothing of that shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.core.errors import QuernError
from tasks.models.interpreter import relative_difference, run
from tests.lowered import Own, encoded, lower_model

IMAGE = (1, 4, 6, 5)
Step = Callable[[random.Random, Tensor, list[Tensor]], "Tensor | None"]


def reshaped(r: random.Random, x: Tensor, _: list[Tensor]) -> Tensor:
    left, sizes = x.numel(), []
    for _ in range(r.randrange(4)):
        sizes.append(r.choice([size for size in range(1, left + 1) if left % size == 0]))
        left //= sizes[-1]
    return x.reshape([1] * r.randrange(2) + [*sizes, left])


def permuted(r: random.Random, x: Tensor, _: list[Tensor]) -> Tensor:
    order = list(range(x.dim()))
    r.shuffle(order)
    return x.permute(order)


def squeezed(r: random.Random, x: Tensor, _: list[Tensor]) -> Tensor:
    return x.unsqueeze(r.randrange(x.dim() + 1)) if x.dim() < 5 else x.squeeze()


def activated(r: random.Random, x: Tensor, _: list[Tensor]) -> Tensor:
    return r.choice([torch.relu, torch.tanh, F.silu])(x)


def along_an_axis(r: random.Random, x: Tensor, tensors: list[Tensor]) -> Tensor | None:
    if x.dim() == 0:
        return None
    axis = r.randrange(x.dim())
    start = r.randrange(x.shape[axis])
    beside = [y for y in tensors if y.dim() == x.dim()]
    beside = [y for y in beside if y[(slice(None),) * axis + (0,)].shape == x.select(axis, 0).shape]
    return r.choice(
        [
            lambda: x.softmax(axis),
            lambda: x.mean(axis, keepdim=r.random() < 0.5),
            lambda: x.narrow(axis, start, r.randrange(1, x.shape[axis] - start + 1)),
            lambda: r.choice(x.chunk(2, axis)),
            lambda: torch.cat([x, r.choice(beside)], axis),
            lambda: F.layer_norm(x, x.shape[-r.randrange(1, x.dim() + 1) :]),
        ]
    )()


def combined(r: random.Random, x: Tensor, tensors: list[Tensor]) -> Tensor:
    for y in r.sample(tensors, len(tensors)):
        try:
            shape = torch.broadcast_shapes(x.shape, y.shape)
        except RuntimeError:
            continue
        if prod(shape) < 5000:
            return r.choice([torch.add, torch.sub, torch.mul])(x, y)
    return x / 1.5


def expanded(r: random.Random, x: Tensor, _: list[Tensor]) -> Tensor | None:
    axes = [axis for axis in range(x.dim()) if x.shape[axis] == 1]
    if not axes or x.numel() > 3000:
        return None
    axis = r.choice(axes)
    return x.expand([3 if i == axis else -1 for i in range(x.dim())])


def pooled(r: random.Random, x: Tensor, _: list[Tensor]) -> Tensor | None:
    is_image = x.dim() == 4 and x.shape[0] == 1
    return F.max_pool2d(x, 2, 1, 1) if is_image else None


def changed(r: random.Random, x: Tensor, _: list[Tensor]) -> None:
    if 0 not in x.stride():  # of an expanded tensor several elements are one
        r.choice([torch.relu_, torch.tanh_, lambda t: t.mul_(0.7), lambda t: t.sub_(1)])(x)


STEPS: list[Step] = [
    *[reshaped, permuted, squeezed, activated, along_an_axis, along_an_axis],
    *[combined, expanded, pooled, changed],
]


@pytest.mark.parametrize("seed", range(40))
def test_a_random_chain(seed: int) -> None:
    def forward(m: Own, x: Tensor) -> Tensor:
        r, tensors = random.Random(seed), [x * 1.1, m.convolution(x)]
        for _ in range(r.randrange(4, 12)):
            made = r.choice(STEPS)(r, r.choice(tensors), tensors)
            tensors += [] if made is None else [made]
        return torch.cat([tensor.flatten() for tensor in tensors[-4:]])[None]

    torch.manual_seed(seed)
    model = Own(forward, convolution=nn.Conv2d(4, 6, 1)).eval()
    x = torch.randn(IMAGE)
    with torch.no_grad():
        wanted = model(x.clone())
    try:
        weights = encoded(lower_model(model, IMAGE))
    except QuernError as error:
        assert "read after its memory was changed in place" in str(error) or " 7 dim" in str(error)
        return
    assert relative_difference(run(weights, x), wanted) < 1e-5
    for node in weights.header["nodes"]:
        assert len(node["shape"]) <= 6
        assert node["shape"][0] == 1 or node["op"] == "constant"
