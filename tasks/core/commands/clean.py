"""`doit clean`: remove targets; the store keeps what they held. Running servers are left alone."""

import os
import sys
from typing import Any

from doit.cmd_clean import Clean as DoitClean
from doit.exceptions import BaseFail

from tasks.core.commands.project_command import ProjectCommand
from tasks.core.reporter import failure_in_one_line
from tasks.core.store import remove_directory


class Clean(ProjectCommand, DoitClean):  # type: ignore[misc]
    """doit's clean command, which fails when a clean action fails."""

    name = "clean"
    takes_lock = True

    def _execute(
        self,
        dryrun: bool,
        cleandep: bool,
        cleanall: bool,
        cleanforget: bool,
        pos_args: list[str] | None = None,
    ) -> int:
        self.failed = False
        super()._execute(dryrun, cleandep, cleanall, cleanforget, pos_args)
        return 1 if self.failed else 0

    def clean_tasks(self, tasks: list[Any], dryrun: bool, cleanforget: bool) -> None:
        """Clean each task once."""
        for task in {task.name: task for task in tasks}.values():
            task.init_options()
            try:
                if task._remove_targets:
                    self._remove_targets(task, dryrun)
                for action in task.clean_actions:
                    self.outstream.write(f"{task.name} - executing '{action}'\n")
                    if not dryrun:
                        self._told(task, action.execute(out=self.outstream))
            except OSError as error:
                self._told(task, BaseFail(f"{error.filename}: {error.strerror}"))
            if cleanforget and not dryrun:
                self.dep_manager.remove(task.name)

    def _remove_targets(self, task: Any, dryrun: bool) -> None:
        for target in sorted(task.targets, reverse=True):
            if os.path.isfile(target):
                self.outstream.write(f"{task.name} - removing file '{target}'\n")
                if not dryrun:
                    os.remove(target)
            elif os.path.islink(target):
                self.outstream.write(f"{task.name} - removing directory '{target}'\n")
                if not dryrun:
                    remove_directory(target)
            elif os.path.isdir(target) and not os.listdir(target):
                self.outstream.write(f"{task.name} - removing directory '{target}'\n")
                if not dryrun:
                    os.rmdir(target)

    def _told(self, task: Any, result: Any) -> None:
        if isinstance(result, BaseFail):
            self.failed = True
            sys.stderr.write(f"{task.name}: clean failed: {failure_in_one_line(result)}\n")
