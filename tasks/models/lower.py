"""The action of the `weights` recipe: a checkpoint becomes model_weights.bin and golden.json."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.core.atomic import write_atomically
from tasks.core.digest import canonical_json
from tasks.core.errors import QuernError
from tasks.models import graph as graphs
from tasks.models.architecture import build, eager, fit
from tasks.models.checkpoint import read_checkpoint
from tasks.models.classes import read_classes
from tasks.models.golden import TOLERANCE, encode_golden, network_inputs
from tasks.models.interpreter import relative_difference, run
from tasks.models.passes import TRACE_AGAIN, bind
from tasks.models.preprocess import parse_preprocess
from tasks.models.probes import probe_files
from tasks.models.threads import one_thread
from tasks.models.weights_file import decode, encode


@one_thread()
def lower(
    checkpoint: Path,
    architecture: Path,
    classes: Path,
    graph: Path,
    weights: Path,
    golden: Path,
    *,
    class_name: str,
    arguments: dict[str, Any],
    preprocess: dict[str, Any],
    probes: list[str],
    details: Path | None = None,
) -> list[str]:
    """Write `weights`, `golden` and, if asked, `details`; returns notes for the user.

    `graph` is what was traced of the same class, arguments and input shape (tracing.py).
    `probes` are files, directories or globs of PNG and JPEG images; [] synthesises some.
    `details` is JSON: epoch, val_acc (as training wrote it), notes, parameters (a count).
    Raises QuernError in one line; nothing is written then.
    """
    settings = parse_preprocess(preprocess)
    labels = read_classes(classes)
    found = read_checkpoint(checkpoint)
    model = build(architecture, class_name, arguments)
    fit(model, found.state_dict, str(checkpoint))

    images = probe_files(probes, settings.input_shape()[2:])
    inputs = network_inputs(images, settings)
    logits = [finite_logits(model, network_input) for network_input in inputs]
    if logits[0].shape != (1, len(labels)):
        raise QuernError(
            f"{classes}: has {len(labels)} classes, and {class_name} returns"
            f" {list(logits[0].shape)}; it must return [1, {len(labels)}], one logit a class"
        )

    bound = graphs.decode(graph.read_bytes())
    bind(bound, model)
    data = encode(bound, settings.as_json(), labels)
    prove(data, model, inputs, logits)

    write_atomically(weights, data)
    write_atomically(golden, encode_golden(data, images, logits))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if details is not None:
        known = {"epoch": found.epoch, "val_acc": found.val_acc, "notes": found.notes}
        write_atomically(details, canonical_json(known | {"parameters": parameters}) + b"\n")
    print(f"{parameters:,} parameters, {len(bound.nodes)} operations, {len(images)} probes")
    return found.notes


def finite_logits(model: nn.Module, network_input: Tensor) -> Tensor:
    """The logits of the user's model. Raises QuernError where they are no numbers."""
    logits = eager(model, network_input)
    if not torch.isfinite(logits).all():
        raise QuernError(f"{type(model).__name__}: gives NaN or infinite logits for a probe")
    return logits


def prove(data: bytes, model: nn.Module, inputs: list[Tensor], logits: list[Tensor]) -> None:
    """Run the file's bytes and compare with eager, on the probes and on noise.

    Raises QuernError: what was lowered is not the user's model.
    """
    weights = decode(data, "model_weights.bin")
    noise = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(0))
    cases = [*zip(inputs, logits, strict=True), (noise, finite_logits(model, noise))]
    worst = max(relative_difference(run(weights, given), wanted) for given, wanted in cases)
    if not worst <= TOLERANCE:
        raise QuernError(
            f"{type(model).__name__}: lowered for the native engine it differs from PyTorch by"
            f" {worst:.2g} (allowed {TOLERANCE:g}); forward() must depend on its input alone;"
            f" {TRACE_AGAIN}"
        )
