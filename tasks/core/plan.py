"""What would run, through to the end, and why: the dry run behind `plan`, `list` and `why`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tasks.core.reasons import Reason
from tasks.core.records import Records, recipe_action

UP_TO_DATE = "up to date"
WOULD_RUN = "would run"
WOULD_RESTORE = "would be restored from the store"
CANNOT_RUN = "can't run"


@dataclass(frozen=True, slots=True)
class Planned:
    """What would become of one task, and the reasons."""

    outcome: str
    reasons: list[Reason]
    error: str = ""


def plan(tasks: dict[str, Any], selected: list[str], records: Records) -> dict[str, Planned]:
    """What would become of the selected tasks and all they depend on, in running order.

    Nothing is run and nothing recorded. A task below one that would run is said to run because
    of it, although it stays as it is if the upper one comes to the same bytes.
    """
    planned: dict[str, Planned] = {}
    for name in _in_order(tasks, selected):
        task = tasks[name]
        if records.status_is_ignore(task):
            planned[name] = Planned("ignored", [])
            continue
        upstream = [
            dependency
            for dependency in [*task.task_dep, *task.setup_tasks]
            if planned[dependency].outcome not in (UP_TO_DATE, "ignored")
        ]
        because = [Reason("upstream", dependency) for dependency in upstream]
        if task.has_subtask or not task._actions:
            planned[name] = Planned(WOULD_RUN if because else UP_TO_DATE, because)
            continue
        judgement = records.judge(task, tasks)
        if judgement.error and not because:
            planned[name] = Planned(CANNOT_RUN, [], judgement.error)
        elif because:
            own = [r for r in judgement.reasons if not judgement.error]
            planned[name] = Planned(WOULD_RUN, [*own, *because])
        elif judgement.reasons:
            action = recipe_action(task)
            known = action is not None and records.project.store.has_result(action.key)
            planned[name] = Planned(WOULD_RESTORE if known else WOULD_RUN, judgement.reasons)
        else:
            planned[name] = Planned(UP_TO_DATE, [])
    return planned


def _in_order(tasks: dict[str, Any], selected: list[str]) -> Iterator[str]:
    """Task names, dependencies first, each once."""
    seen: set[str] = set()
    stack = [(name, False) for name in reversed(selected)]
    while stack:
        name, ready = stack.pop()
        if ready:
            yield name
        elif name not in seen:
            seen.add(name)
            stack.append((name, True))
            dependencies = [*tasks[name].task_dep, *tasks[name].setup_tasks]
            stack.extend((d, False) for d in reversed(dependencies) if d not in seen)
