"""The golden set: images with PyTorch's own logits, against which every server is proved."""

import base64

import numpy as np
import torch
from torch import Tensor

from tasks.core.digest import canonical_json, digest_of_bytes
from tasks.core.errors import QuernError
from tasks.models.preprocess import Preprocess, decode, preprocess

TOLERANCE = 1e-4  # max|a - b| / max(1, max|b|) between a server's logits and these


def network_inputs(probes: list[tuple[str, bytes]], settings: Preprocess) -> list[Tensor]:
    """Each probe as the network's input, float32 [1, C, H, W].

    Raises QuernError where an image cannot be decoded or doesn't come out in the input's shape.
    """
    shape = settings.input_shape()
    inputs = []
    for name, data in probes:
        pixels = preprocess(decode(data, name), settings)
        if pixels.shape != shape:
            raise QuernError(
                f"probes: {name}: preprocess makes it {list(pixels.shape)} and the network takes"
                f" {list(shape)}; give preprocess.crop, or resize as [height, width]"
            )
        inputs.append(torch.from_numpy(pixels))
    return inputs


def encode_golden(weights: bytes, probes: list[tuple[str, bytes]], logits: list[Tensor]) -> bytes:
    """golden.json for the bytes of a model_weights.bin, canonical JSON and a newline."""
    entries = [
        {
            "name": name,
            "image": base64.b64encode(image).decode("ascii"),
            "logits": [shortest(value) for value in row[0].numpy()],
            "class_id": int(row[0].argmax()),
        }
        for (name, image), row in zip(probes, logits, strict=True)
    ]
    golden = {
        "format": 1,
        "weights": digest_of_bytes(weights),
        "tolerance": {"relative": TOLERANCE},
        "probes": entries,
    }
    return canonical_json(golden) + b"\n"


def shortest(value: np.float32) -> float:
    """The float whose text is the shortest that reads back as this float32."""
    return float(str(value))
