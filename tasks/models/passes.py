"""From the traced graph to the file's: the model's numbers put in, only its operations left."""

import numpy as np
from torch import Tensor, nn

from tasks.core.errors import QuernError
from tasks.models.graph import Array, Graph, Node, Reference, float64

ACTIVATIONS = ("relu", "relu6", "sigmoid")
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
            return np.zeros(reference.shape, np.float32)
        found = stored.get(reference.name)
        if found is None or found.shape != reference.shape:
            raise QuernError(
                f"{name}: was traced with {reference.name} of {list(reference.shape)}, which it"
                f" has not now; {TRACE_AGAIN}"
            )
        return np.asarray(found.detach().numpy())

    for node in graph.nodes:
        node.tensors = {role: numbers(tensor) for role, tensor in node.tensors.items()}
    fold_batch_norms(graph, name)
    keep_pooled_shape(graph, name)
    graph.prune()
    graph.renumber()


def fold_batch_norms(graph: Graph, model_name: str) -> None:
    """Fold each batch norm, in float64, into the conv2d or linear that alone feeds it.

    y = (Wx + b - mean) * weight / sqrt(variance + epsilon) + bias (Ioffe and Szegedy 2015, section
    3.1). Raises QuernError where it follows something else, or what it follows is used elsewhere.
    """
    for norm in [node for node in graph.nodes if node.op == "batch_norm"]:
        layer = graph.producer(norm.inputs[0])
        if layer is None or layer.op not in ("conv2d", "linear") or graph.uses(layer.output) > 1:
            follows = "the input" if layer is None else layer.op
            if layer is not None and layer.op in ("conv2d", "linear"):
                follows = f"{layer.name}, whose result is used elsewhere too"
            raise QuernError(
                f"{where(norm, model_name)}: aten.batch_norm is supported only where it can be"
                f" folded into a conv2d or linear right before it; here it follows {follows}"
            )
        mean, variance = float64(norm.tensors["mean"]), float64(norm.tensors["variance"])
        if np.min(variance) + norm.attributes["epsilon"] <= 0:
            raise QuernError(
                f"{where(norm, model_name)}: running_var is negative; the checkpoint is damaged"
            )
        scale = 1 / np.sqrt(variance + norm.attributes["epsilon"])
        scale = scale * float64(norm.tensors.get("weight", np.ones_like(mean)))
        weight = float64(layer.tensors["weight"])
        layer.tensors = {
            "weight": weight * scale.reshape(-1, *[1] * (weight.ndim - 1)),
            "bias": (float64(layer.tensors["bias"]) - mean) * scale
            + float64(norm.tensors.get("bias", np.zeros_like(mean))),
        }
        graph.nodes.remove(norm)
        graph.replace(norm.output, layer.output)


def keep_pooled_shape(graph: Graph, model_name: str) -> None:
    """Remove each view of a vector back to [1, C, 1, 1], as squeeze-and-excitation writes it.

    pool → flatten → linear → activation → view becomes pool → 1×1 conv2d → activation, which is
    the same sum (Hu et al. 2018, figure 3). Raises QuernError where other steps lie between.
    """
    for view in [node for node in graph.nodes if node.op == "unflatten"]:
        steps: list[Node] = []
        value = view.inputs[0]
        while (step := graph.producer(value)) and step.op in ("linear", *ACTIVATIONS):
            if graph.uses(value) > 1:
                break
            steps.append(step)
            value = step.inputs[0]
        start = graph.producer(value)
        pooled = start.inputs[0] if start and start.op == "flatten" else None
        source = graph.producer(pooled) if pooled else None
        if start is None or source is None or source.shape[2:] != (1, 1):
            raise QuernError(
                f"{where(view, model_name)}: a view to {list(view.shape)} is supported by the"
                " native engine only where linear layers and activations follow a pooled value"
            )
        if steps:
            steps[-1].inputs = [source.output]
            graph.replace(view.output, steps[0].output)
        else:
            graph.replace(view.output, source.output)
        graph.nodes.remove(view)
        for step in steps:
            step.shape = (*step.shape, 1, 1)
            if step.op == "linear":
                step.op = "conv2d"
                step.tensors["weight"] = step.tensors["weight"][:, :, None, None]
                step.attributes = {
                    "stride": [1, 1],
                    "padding": [0, 0, 0, 0],
                    "dilation": [1, 1],
                    "groups": 1,
                }


def where(node: Node, model_name: str) -> str:
    """Class and module path; what forward() of the class itself computes is named by the class."""
    return node.name if node.name == model_name else f"{model_name}.{node.name}"
