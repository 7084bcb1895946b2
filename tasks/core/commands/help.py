"""`doit help [TASK]`: doit's own, which for a task would open a database of doit's."""

from typing import Any

from doit.cmd_help import Help as DoitHelp

from tasks.core.commands.project_command import ProjectCommand


class Help(ProjectCommand, DoitHelp):  # type: ignore[misc]
    """doit's help command on Quern's records."""

    name = "help"

    def execute(self, params: Any, args: list[str]) -> int:
        """Help on a task loads the project; all else is doit's."""
        if len(args) == 1 and args[0] != "task" and args[0] not in self.cmds:
            return ProjectCommand.execute(self, params, args)
        status: int = DoitHelp.execute(self, params, args)
        return status

    def _execute(self, pos_args: list[str]) -> int:
        if not super()._execute(pos_args):
            self.print_usage(self.cmds)
        return 0
