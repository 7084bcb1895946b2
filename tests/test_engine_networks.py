"""The native engine against torch float32 eager, on whole networks and on every kernel path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.models.golden import TOLERANCE
from tasks.models.interpreter import relative_difference
from tasks.models.weights_file import encode
from tests.lowered import lower_model
from tests.native_module import native
from tests.networks import CLASSES, NETWORKS, drawings, input_shape, trained

__all__ = ["native"]

PATHS = ["scalar", "avx2", "avx512", "avx512-pairs", "neon"]
PREPROCESS = {
    "mode": "RGB",
    "resize": None,
    "crop": None,
    "interpolation": "bilinear",
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
}


def test_every_kernel_path_of_this_machine_is_tested_here(native: Any) -> None:
    runnable = native.instruction_sets()
    assert "scalar" in runnable and set(runnable) <= set(PATHS)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", NETWORKS)
def test_logits(native: Any, tmp_path: Path, name: str, path: str) -> None:
    if path not in native.instruction_sets():
        pytest.skip(f"this CPU has no {path}: the engine's {path} kernels are not tested here")
    network = trained(name)
    file = tmp_path / "model_weights.bin"
    classes = [str(label) for label in range(CLASSES)]
    file.write_bytes(encode(lower_model(network, input_shape(name)), PREPROCESS, classes))
    model = native.Model(str(file), instructions=path)
    assert model.instructions == path
    for image in drawings(4, NETWORKS[name][1], 1000)[0]:
        with torch.no_grad():
            wanted = network(image[None])
        logits = torch.from_numpy(model.logits(image.numpy()))[None]
        assert relative_difference(logits, wanted) <= TOLERANCE
