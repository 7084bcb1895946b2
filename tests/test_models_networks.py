"""Networks of the shapes people train are lowered whole; the file's graph gives torch's logits."""

import pytest
import torch

from tasks.models.interpreter import relative_difference, run
from tests.lowered import encoded, lower_model
from tests.networks import NETWORKS, drawings, input_shape, trained

# What is not simply the layers as written: squeeze-and-excitation, shuffles, permutations, norms.
EXPECTED = {
    "LiteCNNPro": {"reshape": 15},  # to [1, C] and back around each gate, which costs nothing
    "ShuffleNetV2": {"channel_shuffle": 5, "slice": 6, "concat": 5, "reshape": 1},
    "DenseNet": {"conv2d": 22, "concat": 6},  # seven batch norms follow no convolution
    "ConvNeXt": {"conv2d": 11, "layer_norm": 6, "linear": 1, "reshape": 1},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_depends_on_its_input(name: str) -> None:
    images, labels = drawings(64, NETWORKS[name][1], 1000)
    with torch.no_grad():
        logits = trained(name)(images)
    assert logits.std(0).mean() > 0.5 * logits.abs().mean()
    assert (logits.argmax(1) == labels).float().mean() > 0.3  # a guess is right one time in five
    assert len(logits.argmax(1).unique()) >= 3


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_lowered(name: str) -> None:
    network = trained(name)
    weights = encoded(lower_model(network, input_shape(name)))
    for image in drawings(4, NETWORKS[name][1], 1000)[0]:
        with torch.no_grad():
            wanted = network(image[None])
        assert relative_difference(run(weights, image[None]), wanted) < 1e-5
    ops = [node["op"] for node in weights.header["nodes"]]
    assert "permute" not in ops
    found = EXPECTED.get(name, {"reshape": 1})
    assert {op: ops.count(op) for op in found} == found
