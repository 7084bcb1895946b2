"""Weights: each checkpoint put into its architecture's graph, with a golden set to prove it."""

import gc
import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tasks.core.action import note
from tasks.core.atomic import write_atomically
from tasks.core.configuration import Classifier, load_configuration
from tasks.core.recipe import Recipe
from tasks.core.tools import package_version
from tasks.models.layout import artifact

PROBES = 8


def task_graph() -> Iterator[dict[str, Any]]:
    """Trace each model's architecture: the graph that every checkpoint of it is put into."""
    for name, model in load_configuration().classifiers().items():
        yield Recipe(
            name="graph",
            version=2,
            function="tasks.weights:trace",
            inputs={"architecture": model.architecture.file},
            outputs={"graph": artifact(name, "graph.json")},
            parameters=network(model),
            tools={"torch": package_version("torch")},
        ).task(name, f"Trace the architecture of {name} to its graph.")


def task_weights() -> Iterator[dict[str, Any]]:
    """Lower each model's checkpoint to model_weights.bin, with a golden set by PyTorch."""
    for name, model in load_configuration().classifiers().items():
        yield Recipe(
            name="weights",
            version=2,
            function="tasks.weights:lower",
            inputs={
                "checkpoint": artifact(name, "checkpoint.pth"),
                "architecture": model.architecture.file,
                "classes": model.classes,
                "probes": probe_images(model),
                "graph": artifact(name, "graph.json"),
            },
            outputs={
                "weights": artifact(name, "model_weights.bin"),
                "golden": artifact(name, "golden.json"),
                "details": artifact(name, "details.json"),
            },
            parameters=network(model),
            tools={"torch": package_version("torch"), "pillow": package_version("pillow")},
        ).task(name, f"Lower the checkpoint of {name} to model_weights.bin and its golden set.")


def network(model: Classifier) -> dict[str, Any]:
    """The parameters that say which network it is, and what it is given."""
    return {
        "class_name": model.architecture.class_name,
        "arguments": model.architecture.arguments,
        "preprocess": msgspec.to_builtins(model.preprocess),
    }


def probe_images(model: Classifier) -> list[str]:
    """Up to eight of the model's probe images, spread over those that match."""
    if model.probes is None:
        return []
    matches = sorted(glob.glob(model.probes))
    step = max(1, len(matches) // PROBES)
    return matches[::step][:PROBES]


def trace(architecture: str, graph: str, **settings: Any) -> None:
    """Trace the model as its class makes it, with whatever weights."""
    gc.disable()  # this process is short-lived, and collecting costs torch's import a fifth
    from tasks.models.graph import encode
    from tasks.models.tracing import trace as trace_architecture

    traced = trace_architecture(Path(architecture), **settings)
    write_atomically(Path(graph), encode(traced))


def lower(
    checkpoint: str,
    architecture: str,
    classes: str,
    graph: str,
    weights: str,
    golden: str,
    details: str,
    **settings: Any,
) -> None:
    """Lower a checkpoint; what was done differently than one may expect is told as notes."""
    gc.disable()
    from tasks.models.lower import lower as lower_checkpoint

    notes = lower_checkpoint(
        Path(checkpoint),
        Path(architecture),
        Path(classes),
        Path(graph),
        Path(weights),
        Path(golden),
        details=Path(details),
        **settings,
    )
    for text in notes:
        note(text)
