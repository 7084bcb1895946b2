"""Runs the graph of a model_weights.bin by torch, to prove that it is the user's model."""

import numpy as np
import torch
from torch import Tensor

from tasks.core.errors import QuernError
from tasks.models.operators import EVALUATIONS
from tasks.models.weights_file import WeightsFile


def run(weights: WeightsFile, network_input: Tensor) -> Tensor:
    """The logits, float32 [1, classes], for one input of the file's own input shape.

    Raises QuernError where a node's result hasn't the shape the file says.
    """
    header = weights.header
    values = {header["input"]["name"]: network_input}
    for node in header["nodes"]:
        tensors = {
            role: torch.from_numpy(weights.tensors[name].astype(np.float32))
            for role, name in node["tensors"].items()
        }
        given = tensors | node["attributes"]
        if node["op"] == "reshape":
            given["shape"] = node["shape"]
        inputs = [values[name] for name in node["inputs"]]
        with torch.no_grad():
            result = EVALUATIONS[node["op"]](*inputs, **given)
        if list(result.shape) != node["shape"]:
            raise QuernError(
                f"{node['name']}: {node['op']} gives {list(result.shape)}, and"
                f" model_weights.bin says {node['shape']}"
            )
        values[node["output"]] = result
    return values[header["output"]]


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """max|found - wanted| / max(1, max|wanted|): the measure of the golden set too."""
    difference = (found.double() - wanted.double()).abs().max()
    return float(difference / max(1.0, float(wanted.abs().max())))
