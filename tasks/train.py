"""Train: the examples' training runs. Yours runs elsewhere, and `fetch` brings what it writes."""

import glob
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.core.action import progress
from tasks.core.atomic import write_atomically
from tasks.core.child import call_in_child
from tasks.core.digest import canonical_json
from tasks.core.errors import QuernError
from tasks.core.project import Project
from tasks.core.recipe import FunctionAction
from tasks.models.layout import cycle_of

FOLDER = "examples/digits"
LANGUAGE = "examples/pydoc"
OF_BASE = ["text.py", "tokenizer.py", "train_base.py"]
OF_ADAPTER = ["questions.py", "questions.jsonl", "train_adapter.py", "folder.py"]


def task_train_example() -> dict[str, Any]:
    """Train LiteCNNPro on handwritten digits; another --seed makes the next cycle."""
    return {
        "actions": [FunctionAction(train_example)],
        "params": [
            {
                "name": "seed",
                "long": "seed",
                "type": int,
                "default": 0,
                "help": "random seed of the training run",
            }
        ],
        "file_dep": [f"{FOLDER}/litecnn.py", f"{FOLDER}/train.py"],
        "uptodate": [TrainedWithSeed()],
    }


class TrainedWithSeed:
    """Whether a cycle was trained with the seed that is asked for."""

    reason = "no cycle was trained with this seed"

    def __call__(self, task: Any) -> bool:
        """Asked by doit."""
        task.init_options()
        return cycle_with_seed(task.options["seed"]) is not None


def recorded_runs() -> dict[int, dict[str, Any]]:
    """Cycle → what its training run recorded of itself."""
    runs = {}
    for path in glob.glob(f"{FOLDER}/checkpoints_cycle*/training.json"):
        cycle = cycle_of(path)
        if cycle is not None and Path(path).with_name("best_model.pth").exists():
            runs[cycle] = json.loads(Path(path).read_bytes())
    return runs


def cycle_with_seed(seed: int) -> int | None:
    """The cycle that was trained with `seed`."""
    return next((cycle for cycle, run in recorded_runs().items() if run["seed"] == seed), None)


def train_example(project: Project, task: str, seed: int) -> None:
    """Train in a child process and leave `checkpoints_cycleN/best_model.pth`."""
    cycle = cycle_with_seed(seed) or max(recorded_runs(), default=0) + 1
    if seed < 0:
        raise QuernError(f"--seed {seed}: must not be negative")
    call_in_child(
        "tasks.train:train_cycle",
        {"folder": FOLDER, "cycle": cycle, "seed": seed},
        project.open_log(task),
        lambda event: project.event(task, event),
    )


def train_cycle(folder: str, cycle: int, seed: int) -> None:
    """Train and save `checkpoints_cycleN/best_model.pth`, and beside it what seed it was."""
    from examples.digits.train import train

    def tell(text: str) -> None:
        print(text, flush=True)
        epoch = re.match(r"epoch (\d+)/(\d+)", text)
        if epoch:
            progress("training", int(epoch[1]), int(epoch[2]), "epochs")

    output = Path(folder) / f"checkpoints_cycle{cycle}" / "best_model.pth"
    train(output, seed=seed, progress=tell)
    write_atomically(output.with_name("training.json"), canonical_json({"seed": seed}) + b"\n")


def task_train_language_example() -> dict[str, Any]:
    """Train a small language model and its adapter; another --seed trains the adapter anew."""
    return {
        "actions": [FunctionAction(train_language_example)],
        "params": [
            {
                "name": "seed",
                "long": "seed",
                "type": int,
                "default": 0,
                "help": "random seed of the adapter's training run",
            }
        ],
        "file_dep": [f"{LANGUAGE}/{name}" for name in [*OF_BASE, *OF_ADAPTER]],
        "uptodate": [AdapterTrainedWithSeed()],
    }


class AdapterTrainedWithSeed:
    """Whether base and adapter are there, the adapter trained with the seed that is asked for."""

    reason = "no adapter was trained with this seed"

    def __call__(self, task: Any) -> bool:
        """Asked by doit."""
        task.init_options()
        trained = recorded_training(f"{LANGUAGE}/adapter")
        return trained == {"seed": task.options["seed"]} and bool(
            recorded_training(f"{LANGUAGE}/base")
        )


def recorded_training(folder: str) -> dict[str, Any]:
    """What the training run that wrote `folder` recorded of itself, last of all."""
    path = Path(folder) / "training.json"
    return dict(json.loads(path.read_bytes())) if path.exists() else {}


def train_language_example(project: Project, task: str, seed: int) -> None:
    """Train in a child process: the base if it isn't there as its sources are, and the adapter."""
    if seed < 0:
        raise QuernError(f"--seed {seed}: must not be negative")
    if not all(importlib.util.find_spec(name) for name in ("transformers", "peft", "safetensors")):
        raise QuernError("the language example needs packages: ./setup llm")
    call_in_child(
        "tasks.train:train_language_model",
        {
            "folder": LANGUAGE,
            "seed": seed,
            "sources": {name: project.index.digest(f"{LANGUAGE}/{name}") for name in OF_BASE},
        },
        project.open_log(task),
        lambda event: project.event(task, event),
    )


def train_language_model(folder: str, seed: int, sources: Mapping[str, str]) -> None:
    """Train and save `base` and `adapter`, and in each what it was trained from."""
    from examples.pydoc.train_adapter import train_adapter
    from examples.pydoc.train_base import train_base

    def tell(text: str) -> None:
        print(text, flush=True)
        step = re.match(r"(base|adapter) step (\d+)/(\d+)", text)
        if step:
            progress(f"training {step[1]}", int(step[2]), int(step[3]), "steps")

    def record(trained: Path, what: dict[str, Any]) -> None:
        write_atomically(trained / "training.json", canonical_json(what) + b"\n")

    base, adapter = Path(folder) / "base", Path(folder) / "adapter"
    if recorded_training(str(base)) != {"sources": sources}:
        train_base(base, progress=tell)
        record(base, {"sources": sources})
    train_adapter(base, adapter, seed=seed, progress=tell)
    record(adapter, {"seed": seed})
