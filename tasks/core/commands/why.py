"""`doit why TASK`: why it ran, or didn't, last time; which input changed, from what to what."""

import json as json_format
import time
from typing import Any

from doit.cmd_base import DoitCmdBase, subtasks_iter
from doit.control import TaskControl
from doit.exceptions import InvalidCommand

from tasks.core.commands.plan import in_words, option_json
from tasks.core.commands.project_command import ProjectCommand
from tasks.core.plan import plan
from tasks.core.reasons import Reason, sentence

OUTCOMES = {
    "ran": "ran for {seconds:.1f} s",
    "restored": "was restored from the store in {seconds:.1f} s",
    "failed": "failed: {message}",
    "left": "was left for the next run: {message}",
}


class Why(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Reads what was recorded when it was decided, and adds what would happen now. A task may say
    more of itself (`lineage` in its `meta`): a deploy tells from what the live release came."""

    name = "why"
    doc_purpose = "say why a task ran, or didn't, last time"
    doc_usage = "TASK ..."
    doc_description = None
    cmd_options = (option_json,)

    def _execute(self, pos_args: list[str], json: bool) -> int:
        control = TaskControl(self.task_list)
        if not pos_args:
            raise InvalidCommand("why: name a task; `doit list --all` shows them")
        for name in pos_args:
            if name not in control.tasks:
                raise InvalidCommand(not_found=name)
        tasks = []
        for name in pos_args:
            subtasks = list(subtasks_iter(control.tasks, control.tasks[name]))
            tasks.extend(subtasks or [control.tasks[name]])
        control.process([task.name for task in tasks])
        planned = plan(control.tasks, control.selected_tasks, self.dep_manager)
        told = []
        for task in tasks:
            last = self._last(task.name)
            lineage = task.meta["lineage"](self.project) if "lineage" in (task.meta or {}) else []
            told.append(
                {"task": task.name, **last, "now": in_words(planned[task.name]), "lineage": lineage}
            )
        if json:
            self.outstream.write(json_format.dumps(told, indent=1, ensure_ascii=False) + "\n")
        else:
            for item in told:
                self.outstream.write("\n".join(_lines(item)) + "\n")
        return 0

    def _last(self, name: str) -> dict[str, Any]:
        state = self.project.state
        runs = state.rows("select id, started, up_to_date from run order by id desc limit 1")
        decisions = state.rows(
            "select run, at, outcome, seconds, message, reasons from decision where name=?", name
        )
        looks = state.rows("select at, told from look where name=?", name)
        last: dict[str, Any] = {
            "look": {"at": looks[0][0], "told": looks[0][1]} if looks else None,
            "decision": None,
            "up_to_date_at": None,
        }
        if decisions:
            run, at, outcome, seconds, message, reasons = decisions[0]
            last["decision"] = {
                "run": run,
                "at": at,
                "outcome": outcome,
                "seconds": seconds,
                "message": message,
                "reasons": json_format.loads(reasons),
            }
        if runs and name in json_format.loads(runs[0][2] or "[]"):
            last["up_to_date_at"] = runs[0][1]
        return last


def _lines(item: dict[str, Any]) -> list[str]:
    lines = [f"{item['task']}:"]
    if item["look"]:
        lines.append(f"  {_moment(item['look']['at'])}: looked: {item['look']['told']}")
    if item["up_to_date_at"]:
        lines.append(
            f"  {_moment(item['up_to_date_at'])}: did not run: nothing it depends on had changed"
        )
    decision = item["decision"]
    if decision:
        what = OUTCOMES[decision["outcome"]].format(**decision)
        reasons = [Reason(**reason) for reason in decision["reasons"]]
        because = f", because {sentence(reasons, most=20)}" if reasons else ""
        lines.append(f"  {_moment(decision['at'])}: {what}{because}")
    if len(lines) == 1:
        lines.append("  it has not run here yet")
    lines.append(f"  now: {item['now']}")
    return [*lines, *(f"  {line}" for line in item["lineage"])]


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
