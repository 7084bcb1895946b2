"""A choice made on the command line: `doit deploy:dogs --cycle 10`. It holds until training writes
something newer than was there when it was made, or until `--automatic`.

It is kept in `.quern/choices/<model>.json`, whole or absent.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.atomic import write_atomically
from tasks.core.digest import canonical_json
from tasks.core.errors import QuernError
from tasks.core.project import Project, file_name
from tasks.core.records import recipe_action

# The options of every task that ends in a source's being fetched.
OPTIONS: list[dict[str, Any]] = [
    {
        "name": "checkpoint",
        "long": "checkpoint",
        "type": str,
        "default": "",
        "help": "take this path on the source's machine, until training writes something newer",
    },
    {
        "name": "cycle",
        "long": "cycle",
        "type": int,
        "default": -1,
        "help": "take the match of this cycle, until training writes something newer",
    },
    {
        "name": "automatic",
        "long": "automatic",
        "type": bool,
        "default": False,
        "help": "end such a choice: the source's pick holds again",
    },
]


@dataclass(frozen=True)
class Wish:
    """What was asked for on the command line: a path, a cycle, or an end of it."""

    checkpoint: str = ""
    cycle: int | None = None
    automatic: bool = False


def settle_choices(project: Project, control: Any) -> None:
    """Have each selected task's wish seen to by its model's fetch, before anything runs.

    Raises QuernError when it is not clear which model is meant, or nothing there is what is
    asked for; nothing has changed then.
    """
    for name in control.selected_tasks:
        task = control.tasks[name]
        wish = _wish(task.options or {})
        if wish is None:
            continue
        subtasks = task.task_dep if task.has_subtask else [name]
        models = sorted({_model(subtask) for subtask in subtasks if ":" in subtask})
        actions = {
            model: recipe_action(control.tasks[f"fetch:{model}"])
            for model in models
            if f"fetch:{model}" in control.tasks
        }
        if len(actions) != 1:
            known = ", ".join(f"{name.partition(':')[0]}:{model}" for model in actions or models)
            raise QuernError(
                f"{name}: name the model whose checkpoint it is ({known})"
                if actions
                else f"{name}: it has no source to choose from"
            )
        (action,) = actions.values()
        if action is not None and action.recipe.watch is not None:
            action.recipe.watch.choose(project, wish)


def _wish(options: dict[str, Any]) -> Wish | None:
    checkpoint, cycle = options.get("checkpoint", ""), options.get("cycle", -1)
    automatic = options.get("automatic", False)
    given = [bool(checkpoint), cycle != -1, automatic]
    if not any(given):
        return None
    if sum(given) > 1:
        raise QuernError("--checkpoint, --cycle and --automatic: one of them at a time")
    return Wish(checkpoint, None if cycle == -1 else cycle, automatic)


def choice_path(project: Project, model: str) -> Path:
    """Where a model's choice is kept."""
    return project.private / "choices" / f"{file_name(model)}.json"


def read_choice(project: Project, model: str) -> dict[str, Any] | None:
    """The choice made for a model, or None. Raises QuernError for a damaged file."""
    path = choice_path(project, model)
    try:
        choice = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise QuernError(
            f"{path}: can't be read ({error}); doit fetch:{model} --automatic"
        ) from None
    if not isinstance(choice, dict) or not {"path", "machine", "answer"} <= choice.keys():
        raise QuernError(f"{path}: not a choice; doit fetch:{model} --automatic removes it")
    return choice


def keep_choice(project: Project, model: str, choice: dict[str, Any] | None) -> None:
    """Keep a model's choice; None ends it."""
    path = choice_path(project, model)
    if choice is None:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, canonical_json(choice) + b"\n")


def _model(task: str) -> str:
    """The model a task is of: `deploy:dogs@edge` → dogs."""
    return task.partition(":")[2].partition("@")[0]
