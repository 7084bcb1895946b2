"""`doit plan [TASK ...]`: the dry run: what would run, and why, through to the end."""

import json as json_format
from typing import Any

from doit.cmd_base import DoitCmdBase
from doit.control import TaskControl

from tasks.core.commands.project_command import ProjectCommand
from tasks.core.plan import CANNOT_RUN, UP_TO_DATE, WOULD_RUN, Planned, plan
from tasks.core.reasons import sentence

option_json = {
    "name": "json",
    "long": "json",
    "type": bool,
    "default": False,
    "help": "print JSON",
}


class Plan(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Says what `doit` would do, and does nothing. Exit status 0."""

    name = "plan"
    doc_purpose = "say what would run, and why, without running it"
    doc_usage = "[TASK ...]"
    doc_description = None
    cmd_options = (option_json,)

    def _execute(self, json: bool) -> int:
        control = TaskControl(self.task_list)
        control.process(self.sel_tasks)
        planned = plan(control.tasks, control.selected_tasks, self.dep_manager)
        shown = {name: p for name, p in planned.items() if control.tasks[name]._actions}
        if json:
            self.outstream.write(json_format.dumps(_as_data(shown), indent=1) + "\n")
            return 0
        for name, item in shown.items():
            if item.outcome != UP_TO_DATE:
                self.outstream.write(f"{name} {in_words(item)}\n")
        if all(item.outcome == UP_TO_DATE for item in shown.values()):
            self.outstream.write("nothing would run: everything is up to date\n")
        return 0


def in_words(item: Planned) -> str:
    """`would run because …`."""
    if item.outcome == CANNOT_RUN:
        return f"can't run: {item.error}"
    if not item.reasons:
        return item.outcome
    return f"{item.outcome} because {sentence(item.reasons)}"


def _as_data(planned: dict[str, Planned]) -> list[dict[str, Any]]:
    return [
        {
            "task": name,
            "outcome": item.outcome,
            "runs": item.outcome == WOULD_RUN,
            "reasons": [{**r.as_data(), "text": str(r)} for r in item.reasons],
            "error": item.error,
        }
        for name, item in planned.items()
    ]
