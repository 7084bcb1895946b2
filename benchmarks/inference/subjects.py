"""What is measured: a torch network at one size, written in the form each engine reads."""

import contextlib
import io
import json
import logging
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.networks import calibrated, images
from tasks.models.graph import Graph
from tasks.models.passes import bind
from tasks.models.preprocess import parse_preprocess
from tasks.models.tracing import trace_model
from tasks.models.weights_file import encode


@dataclass
class Subject:
    """A network that the engines run, and what torch answers for inputs.npy in `folder`."""

    name: str
    size: int  # images are [1, 3, size, size]
    folder: Path
    parameters: int
    multiply_adds: int
    logits: Tensor  # [2, classes]


def prepare(
    name: str, make: Callable[[], nn.Module], size: int, folder: Path, peers: list[str]
) -> Subject:
    """Write the network for Quern and for `peers` to `folder`, with two inputs.

    Raises QuernError where Quern cannot lower it.
    """
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network = calibrated(make(), size)
    inputs = images(2, size, seed=7)
    np.save(folder / "inputs.npy", inputs.numpy())
    with torch.no_grad():
        logits = torch.cat([network(inputs[:1]), network(inputs[1:])])
    graph = write_weights(network, size, folder)
    if {"openvino", "onnxruntime"} & set(peers):
        write_onnx(network, inputs[:1], folder)
    if "ncnn" in peers:
        write_ncnn(network, inputs[:1], folder)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Subject(name, size, folder, parameters, multiply_adds(graph), logits)


def write_weights(network: nn.Module, size: int, folder: Path) -> Graph:
    """model_weights.bin, with the preprocessing usual for ImageNet, and classes.json."""
    settings = {
        "resize": round(size * 256 / 224),
        "crop": size,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    graph = trace_model(network, (1, 3, size, size))
    bind(graph, network)
    classes = [f"class {number}" for number in range(graph.nodes[-1].shape[1])]
    data = encode(graph, parse_preprocess(settings).as_json(), classes)
    (folder / "model_weights.bin").write_bytes(data)
    (folder / "classes.json").write_text(json.dumps(classes))
    return graph


def multiply_adds(graph: Graph) -> int:
    """Of all convolutions and linear layers; those on padding count, as is usual."""
    return sum(
        math.prod(node.shape) * node.tensors["weight"][0].size
        for node in graph.nodes
        if node.op in ("conv2d", "linear")
    )


def write_onnx(network: nn.Module, image: Tensor, folder: Path) -> None:
    """model.onnx, for OpenVINO and ONNX Runtime."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        path = str(folder / "model.onnx")
        torch.onnx.export(network, (image,), path, dynamo=True, external_data=False, verbose=False)


def write_ncnn(network: nn.Module, image: Tensor, folder: Path) -> None:
    """model.ncnn.param and model.ncnn.bin in float32, through pnnx."""
    import pnnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and what pnnx reads
        traced = torch.jit.trace(network, image)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, folder / "model.pt")
    shape = ",".join(str(size) for size in image.shape)
    # The program, not pnnx.export(), which then imports Python that it wrote.
    done = subprocess.run(
        [pnnx.EXEC_PATH, "model.pt", f"inputshape=[{shape}]", "fp16=0"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode or not os.path.exists(folder / "model.ncnn.bin"):
        sys.exit(f"pnnx: {(done.stderr or done.stdout)[-300:]}")
