"""`doit list`: the tasks; with --status, what would run, looked at through to the end."""

from typing import Any

from doit.cmd_list import List as DoitList

from tasks.core.commands.project_command import ProjectCommand
from tasks.core.plan import CANNOT_RUN, UP_TO_DATE, Planned, plan


class List(ProjectCommand, DoitList):  # type: ignore[misc]
    """doit's list command; a task below one that would run is not shown as up to date."""

    name = "list"

    def _print_task(
        self, template: str, task: Any, status: bool, list_deps: bool, tasks: dict[str, Any]
    ) -> None:
        if task.has_subtask and not task.task_dep:
            return  # a stage of models that this project has none of
        letter = self._letter(task, tasks) if status else ""
        self.outstream.write(template.format(name=task.name, doc=task.doc, status=letter))
        if list_deps:
            for path in sorted(task.file_dep):
                self.outstream.write(f" -  {path}\n")
            self.outstream.write("\n")

    def _letter(self, task: Any, tasks: dict[str, Any]) -> str:
        outcome = self._planned(tasks)[task.name].outcome
        return {UP_TO_DATE: "U", "ignored": "I", CANNOT_RUN: "E"}.get(outcome, "R")

    def _planned(self, tasks: dict[str, Any]) -> dict[str, Planned]:
        if not hasattr(self, "_plan"):
            from doit.control import TaskControl

            TaskControl(self.task_list)  # connects tasks by their files
            self._plan = plan(tasks, list(tasks), self.dep_manager)
        return self._plan
