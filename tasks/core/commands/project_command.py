"""What every command on the build shares: the project opened, its tasks loaded, faults told.

Mixed in before doit's own command class (doit 0.37, `doit.cmd_base.DoitCmdBase`).
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from getopt import GetoptError, gnu_getopt
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from doit.action import CmdAction
from doit.cmdparse import CmdParseError
from doit.exceptions import InvalidCommand, InvalidDodoFile, InvalidTask
from doit.globals import Globals

from tasks.core.environment import FILE, load_environment
from tasks.core.errors import QuernError, TryAgainLater, in_one_line
from tasks.core.project import Project
from tasks.core.records import Records, recipe_action

T = TypeVar("T")

A_TASK_BROKE = 2
COULD_NOT_START = 3
DOITS_OWN = (InvalidCommand, InvalidDodoFile, InvalidTask)
TASKS_HAVE_OPTIONS = ("run", "plan")  # behind their names
TRY_AGAIN_LATER = 75  # EX_TEMPFAIL, sysexits.h


class ProjectCommand:
    """`takes_lock` says whether the command changes the project."""

    # doit's options for its own databases have no meaning here.
    base_options = ()
    takes_lock = False
    wait_seconds = 0.0

    name: str
    loader: Any
    outstream: Any
    cmdparser: Any
    project: Project
    dep_manager: Any
    task_list: list[Any]
    arguments: list[str]

    def parse_execute(self, in_args: list[str]) -> int:
        """doit's parsing, whose complaints become one line; options may come after what they are
        about (`doit history dogs --json`), where doit's own parser would stop looking for them."""
        try:
            if self.name not in TASKS_HAVE_OPTIONS:
                in_args = self._options_first(in_args)
            return super().parse_execute(in_args)  # type: ignore[misc, no-any-return]
        except CmdParseError as error:
            text = re.sub(r" \(parsing options: .*?\]\)", "", " ".join(str(error).split()))
            sys.stderr.write(f"{text}; see: doit help {self.name}\n")
            return COULD_NOT_START

    def _options_first(self, in_args: list[str]) -> list[str]:
        """The arguments in the order that doit's parser wants."""
        short, long = self.cmdparser.get_short(), self.cmdparser.get_long()
        try:
            options, rest = gnu_getopt(in_args, short, long)
        except GetoptError:  # told by doit's parser, when it comes to it
            return sorted(in_args, key=lambda argument: not argument.startswith("-"))
        found = [f"{n}={v}" if f"{n[2:]}=" in long else f"{n}{v}" for n, v in options]
        return [*found, "--", *rest] if rest else found

    def get_backends(self) -> dict[str, Any]:
        """None: the records are Quern's own, and the search for others costs every run 5 ms."""
        return {}

    def execute(self, params: Any, args: list[str]) -> int:
        """Load dodo.py and run the command; a fault a user can mend is one line."""
        try:
            load_environment(Path(params.get("cwdPath") or "") / FILE)  # dodo.py may look at it
            self.loader.setup(params)
            config = self.loader.load_doit_config()
            params.update_defaults(config)
            # str.format's braces are rare in shell commands, % (date +%Y, printf) is not.
            CmdAction.STRING_FORMAT = config.get("action_string_formatting", "new")
            self.sel_default_tasks = not args
            self.sel_tasks = args or params.get("default_tasks")
            return self._with_project(params, args)
        except TryAgainLater as error:
            sys.stderr.write(f"{error}\n")
            return TRY_AGAIN_LATER
        except (QuernError, *DOITS_OWN) as error:
            if isinstance(error, InvalidCommand):
                error.cmd_used = None if self.name == "run" else self.name
            sys.stderr.write(f"{' '.join(str(error).split())}\n")
            return COULD_NOT_START
        except BrokenPipeError:  # `doit list | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return COULD_NOT_START
        except Exception as error:
            sys.stderr.write(f"{self._unforeseen(error)}\n")
            return COULD_NOT_START

    def _unforeseen(self, error: Exception) -> str:
        """The error in one line, with its place in the project's own code; in full in a log."""
        frames = [f for f in traceback.extract_tb(error.__traceback__) if is_own(f.filename)]
        where = f"{os.path.relpath(frames[-1].filename)}:{frames[-1].lineno}: " if frames else ""
        if isinstance(error, SyntaxError):
            where = f"{os.path.relpath(error.filename or 'dodo.py')}:{error.lineno}: "
        log = Path(".quern/logs/doit.log")
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc(), encoding="utf-8")
        except OSError:
            return f"{where}{in_one_line(error)}"
        return f"{where}{in_one_line(error)} (in full: {log})"

    def _with_project(self, params: Any, args: list[str]) -> int:
        self.project = Project(Path.cwd())
        if self.takes_lock:
            self.project.lock.acquire(self.wait_seconds)
            self.project.remove_leftovers()
        self.project.open()
        try:
            self.dep_manager = Globals.dep_manager = Records(self.project)
            self.load_tasks(args)
            params["pos_args"] = args
            params["continue_"] = params.get("continue")
            params["force_verbosity"] = "verbosity" in params._non_default_keys
            names = signature(self._execute).parameters  # type: ignore[attr-defined]
            status = self._execute(**{n: params[n] for n in names})  # type: ignore[attr-defined]
            return status or 0
        finally:
            self.project.close()
            self.project.lock.release()

    def one_by_one(self, places: Iterable[T], act: Callable[[T], str]) -> int:
        """Print what `act` says of each place; where it fails, the others don't wait for it.
        Returns the exit status."""
        faults = []
        for place in places:
            try:
                self.outstream.write(f"{act(place)}\n")
            except QuernError as error:
                sys.stderr.write(f"{error}\n")
                faults.append(error)
        return status_of(faults)

    def load_tasks(self, args: list[str]) -> None:
        """Make the tasks of what lies in the project now."""
        self.arguments = args
        self.task_list = self.loader.load_tasks(cmd=self, pos_args=args)
        for task in self.task_list:
            self._adopt(task)

    def _adopt(self, task: Any) -> None:
        # One file is one node, however it is spelled.
        task.file_dep = {self._spelled_once(path) for path in task.file_dep}
        task.targets = [self._spelled_once(path) for path in task.targets]
        action = recipe_action(task)
        if action:
            action.task = task
        if action and action.recipe.drop:
            self.project.intermediates.adopt(action, self.dep_manager.recorded(task.name))

    def _spelled_once(self, path: str) -> str:
        if path.startswith("/"):
            relative = os.path.relpath(path, self.project.root)
            return path if relative.startswith("..") else relative
        return os.path.normpath(path)


def status_of(faults: list[QuernError]) -> int:
    """The exit status of a command that met these: 75 if all are likely to pass, else 1; 0 without
    any."""
    if faults and all(isinstance(fault, TryAgainLater) for fault in faults):
        return TRY_AGAIN_LATER
    return 1 if faults else 0


def is_own(file: str) -> bool:
    """Whether a source file is the project's and no library's."""
    return file.startswith(os.getcwd()) and "/site-packages/" not in file
