"""From the traced graph to the file's: the model's numbers put in, only its operations left."""

import numpy as np
import torch
from torch import Tensor, nn

from tasks.core.errors import QuernError
from tasks.models.graph import Array, Graph, Node, Reference, float64
from tasks.models.operators.convolution import POINTWISE

TRACE_AGAIN = (
    "if a file that the architecture imports was changed, doit run --always-execute graph"
    " traces it again"
)


def bind(graph: Graph, model: nn.Module) -> None:
    """Put the numbers of `model` in the place of each reference, then remove what is no operation
    of the file.

    Raises QuernError where the model is another than was traced, or the graph cannot be the file's.
    """
    name = type(model).__name__
    stored: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }

    def numbers(reference: Reference) -> Array:
        if reference.name is None:
            found = torch.full(reference.shape, reference.fill, dtype=torch.float64)
        elif reference.name in stored and stored[reference.name].shape == reference.held:
            found = stored[reference.name].detach().reshape(reference.shape)
        else:
            raise QuernError(
                f"{name}: was traced with {reference.name} of {list(reference.held)}, which it has"
                f" not now; {TRACE_AGAIN}"
            )
        return np.asarray((1 / found.double() if reference.reciprocal else found).numpy())

    for node in graph.nodes:
        node.tensors = {role: numbers(tensor) for role, tensor in node.tensors.items()}
    fold_batch_norms(graph, name)
    graph.prune()
    graph.renumber()


def fold_batch_norms(graph: Graph, model_name: str) -> None:
    """Fold each batch norm, in float64, into the conv2d or linear that alone feeds it; where there
    is none it becomes a conv2d of its own, which scales each channel.

    y = (Wx + b - mean) * weight / sqrt(variance + epsilon) + bias (Ioffe and Szegedy 2015, section
    3.1). Raises QuernError where a variance is negative.
    """
    for norm in [node for node in graph.nodes if node.op == "batch_norm"]:
        mean, variance = float64(norm.tensors["mean"]), float64(norm.tensors["variance"])
        if np.min(variance) + norm.attributes["epsilon"] <= 0:
            raise QuernError(
                f"{where(norm, model_name)}: running_var is negative; the checkpoint is damaged"
            )
        scale = 1 / np.sqrt(variance + norm.attributes["epsilon"])
        scale = scale * float64(norm.tensors.get("weight", np.ones_like(mean)))
        shift = float64(norm.tensors.get("bias", np.zeros_like(mean))) - mean * scale

        layer = graph.producer(norm.inputs[0])
        if layer and layer.op in ("conv2d", "linear") and graph.uses(layer.output) == 1:
            weight = float64(layer.tensors["weight"])
            layer.tensors = {
                "weight": weight * scale.reshape(-1, *[1] * (weight.ndim - 1)),
                "bias": float64(layer.tensors["bias"]) * scale + shift,
            }
            graph.nodes.remove(norm)
            graph.replace(norm.output, layer.output)
        else:
            become_depthwise(graph, norm, scale, shift)


def become_depthwise(graph: Graph, norm: Node, scale: Array, shift: Array) -> None:
    """Make `norm` a depthwise 1x1 conv2d, between two reshapes if it is of a vector."""
    norm.op = "conv2d"
    norm.tensors = {"weight": scale.reshape(-1, 1, 1, 1), "bias": shift}
    norm.attributes = POINTWISE | {"groups": len(scale)}
    if len(norm.shape) == 2:
        image, at = (*norm.shape, 1, 1), graph.nodes.index(norm)
        before = Node("reshape", norm.name, norm.inputs, f"{norm.output} before", image)
        after = Node("reshape", norm.name, [f"{norm.output} scaled"], norm.output, norm.shape)
        norm.inputs, norm.output, norm.shape = [before.output], after.inputs[0], image
        graph.nodes[at : at + 1] = [before, norm, after]


def where(node: Node, model_name: str) -> str:
    """Class and module path; what forward() of the class itself computes is named by the class."""
    return node.name if node.name == model_name else f"{model_name}.{node.name}"
