"""`doit info TASK`: what a task is, and whether it is up to date, in Quern's words."""

from typing import Any

from doit.cmd_info import Info as DoitInfo
from doit.control import TaskControl
from doit.exceptions import InvalidCommand

from tasks.core.commands.project_command import ProjectCommand


class Info(ProjectCommand, DoitInfo):  # type: ignore[misc]
    """doit's info command on Quern's records."""

    name = "info"

    def _execute(self, pos_args: list[str], hide_status: bool = False) -> int:
        tasks = TaskControl(self.task_list).tasks
        for name in pos_args:
            if name not in tasks:
                raise InvalidCommand(not_found=name)
        status: int = super()._execute(pos_args, hide_status)
        return status

    def get_reasons(self, reasons: Any) -> str:
        """The reasons as bullet lines."""
        return "\n".join(f" * {reason}" for reason in reasons.get("quern", []))
