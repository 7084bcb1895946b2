"""Train: the example's training run. Yours runs elsewhere, and `fetch` brings what it writes."""

import glob
import json
import re
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
