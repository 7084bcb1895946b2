"""The engines, each in a process of its own that takes turns: one thread, float32, batch 1.

    python -m benchmarks.inference.engines ENGINE FOLDER SECONDS

A word in, a line of JSON out: "logits" of both inputs in FOLDER, a "turn" of forwards for about
SECONDS (CPU ms of each), "resident_mb" beyond the interpreter's own.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

Array = npt.NDArray[np.float32]
Forward = Callable[[Array], Any]  # [1, 3, H, W] -> [classes] or [1, classes]

# What must be installed to measure a peer.
PEERS = {
    "openvino": ("openvino", "onnx", "onnxscript"),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "ncnn": ("ncnn", "pnnx"),
}


def open_quern(folder: Path) -> Forward:
    import quern_native

    forward: Forward = quern_native.Model(str(folder / "model_weights.bin")).logits
    return forward


def open_openvino(folder: Path) -> Forward:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = core.compile_model(core.read_model(folder / "model.onnx"), "CPU", settings)
    request = model.create_infer_request()

    def forward(image: Array) -> Any:
        request.infer([openvino.Tensor(image, shared_memory=True)], share_inputs=True)
        return request.get_output_tensor().data

    return forward


def open_onnxruntime(folder: Path) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


def open_ncnn(folder: Path) -> Forward:
    import ncnn

    # As ncnn's own benchmark sets it: Winograd, sgemm and packing are on by default.
    pools = [ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator()]
    network = ncnn.Net()
    option = network.opt
    option.num_threads = 1
    option.use_vulkan_compute = False
    for kind in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
        if hasattr(option, f"use_{kind}"):  # which depends on ncnn's version
            setattr(option, f"use_{kind}", False)
    option.blob_allocator, option.workspace_allocator = pools
    network.load_param(str(folder / "model.ncnn.param"))
    network.load_model(str(folder / "model.ncnn.bin"))

    def forward(image: Array, pools: Any = pools) -> Any:
        extractor = network.create_extractor()
        extractor.input("in0", ncnn.Mat(image[0]))
        return np.array(extractor.extract("out0")[1])

    return forward


OPEN = {
    "quern": open_quern,
    "openvino": open_openvino,
    "onnxruntime": open_onnxruntime,
    "ncnn": open_ncnn,
}


def resident_mb() -> float:
    return float(psutil.Process().memory_info().rss / 1e6)


def main() -> None:
    engine, folder, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print is no answer
    before = resident_mb()
    forward = OPEN[engine](folder)
    inputs = np.load(folder / "inputs.npy")
    image = inputs[:1]

    def logits() -> list[list[float]]:
        return [np.ravel(forward(one[None])).tolist() for one in inputs]

    def turn() -> list[float]:
        forward(image)  # what ran in between has taken the caches
        times: list[float] = []
        end = time.process_time() + seconds
        while not times or time.process_time() < end:
            start = time.process_time()
            forward(image)
            times.append(1000 * (time.process_time() - start))
        return times

    commands: dict[str, Callable[[], Any]] = {
        "logits": logits,
        "turn": turn,
        "resident_mb": lambda: resident_mb() - before,
    }
    for line in sys.stdin:
        print(json.dumps(commands[line.strip()]()), file=answers, flush=True)


if __name__ == "__main__":
    main()
