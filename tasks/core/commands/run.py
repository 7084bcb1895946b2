"""`doit`, `doit run`: bring what is asked for up to date, one run at a time."""

import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from doit import reporter as doit_reporters
from doit.cmd_run import Run as DoitRun
from doit.control import TaskControl
from doit.exceptions import InvalidCommand
from doit.task import Stream

from tasks.core.choice import settle_choices
from tasks.core.commands.project_command import (
    A_TASK_BROKE,
    COULD_NOT_START,
    TRY_AGAIN_LATER,
    ProjectCommand,
)
from tasks.core.environment import configuration_file
from tasks.core.errors import Busy, in_one_line
from tasks.core.lifeline import end_all
from tasks.core.records import recipe_action
from tasks.core.report import Fault
from tasks.core.reporter import JsonReporter, QuernReporter
from tasks.core.run_log import RunLog
from tasks.core.runner import SerialRunner, ThreadRunner
from tasks.core.state import StateError
from tasks.core.store import recipe_key

option_cron = {
    "name": "cron",
    "long": "cron",
    "type": bool,
    "default": False,
    "help": "for schedules: exit 0 when another run is at work, keep what is said in "
    ".quern/logs/run.log",
}
option_wait = {
    "name": "wait",
    "long": "wait",
    "type": float,
    "default": 0.0,
    "help": "seconds to wait for another run to end [default: %(default)s]",
}
option_jitter = {
    "name": "jitter",
    "long": "jitter",
    "type": float,
    "default": 0.0,
    "help": "seconds; start after a random part of them [default: %(default)s]",
}
option_json = {
    "name": "json",
    "long": "json",
    "type": bool,
    "default": False,
    "help": "print what happens as JSON, an event a line",
}

DEFAULTS = {
    "reporter": "quern",
    "verbosity": 0,  # what a task prints is in its log
    "continue": True,  # one model's failure doesn't keep another from going live
}
DROPPED_OPTIONS = ("par_type", "pdb")
THE_RUN = "doit"  # in messages, where no task is to blame
LONGEST_JITTER = 86400
INTERRUPTING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP: what runs is ended, what was finished is kept."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Run(ProjectCommand, DoitRun):  # type: ignore[misc]
    """doit's run command on Quern's records, runners and reporter."""

    name = "run"
    takes_lock = True
    cmd_options = (
        *(
            {**option, "default": DEFAULTS.get(option["name"], option["default"])}
            for option in DoitRun.cmd_options
            if option["name"] not in DROPPED_OPTIONS
        ),
        option_cron,
        option_wait,
        option_jitter,
        option_json,
    )

    def get_reporters(self) -> dict[str, Any]:
        """Quern's reporter and doit's own; not those that installed packages may offer, whose
        search would cost every run 5 ms."""
        reporters = {
            "quern": QuernReporter,
            "console": doit_reporters.ConsoleReporter,
            "executed-only": doit_reporters.ExecutedOnlyReporter,
            "json": doit_reporters.JsonReporter,
            "zero": doit_reporters.ZeroReporter,
            "error-only": doit_reporters.ErrorOnlyReporter,
        }
        choices = {name: reporter.desc for name, reporter in reporters.items()}
        self.cmdparser["reporter"].choices = choices
        return reporters

    def execute(self, params: Any, args: list[str]) -> int:
        """Run with SIGTERM and SIGHUP ending it as Ctrl-C does."""
        self.wait_seconds = params["wait"]
        self.run_log = RunLog() if params["cron"] else None
        for number in INTERRUPTING:
            # A cron or nohup that ignores one of them goes on doing so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt)
        if self.run_log is None:
            return self._start(params, args)
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = map(self.run_log.copy, streams)
        if params["outfile"] is streams[0]:
            params["outfile"] = sys.stdout
        try:
            status = self._start(params, args)
        finally:
            sys.stdout, sys.stderr = streams
        self.run_log.end(status)
        return status

    def _start(self, params: Any, args: list[str]) -> int:
        if not 0 <= params["jitter"] <= LONGEST_JITTER:
            sys.stderr.write(
                f"--jitter {params['jitter']:g}: must be 0 to {LONGEST_JITTER} seconds\n"
            )
            return COULD_NOT_START
        try:
            if params["jitter"]:
                time.sleep(random.uniform(0, params["jitter"]))
            return super().execute(params, args)
        except KeyboardInterrupt as interrupt:
            number = getattr(interrupt, "number", signal.SIGINT)
            name = signal.Signals(number).name
            sys.stderr.write(f"ended by {name}; what was finished is kept, the next run goes on\n")
            return 128 + int(number)

    def _with_project(self, params: Any, args: list[str]) -> int:
        try:
            return super()._with_project(params, args)
        except Busy as error:
            if self.run_log is None:
                raise
            self.run_log.drop()
            sys.stdout.write(f"{error}\n")
            return 0

    def _execute(
        self,
        outfile: Any,
        verbosity: int | None = None,
        always: bool = False,
        continue_: bool = False,
        reporter: Any = "quern",
        num_process: int = 0,
        single: bool = False,
        auto_delayed_regex: bool = False,
        force_verbosity: bool = False,
        failure_verbosity: int = 0,
        json: bool = False,
    ) -> int:
        self._select(auto_delayed_regex, single)
        settle_choices(self.project, self.control)
        if num_process < 0:
            raise InvalidCommand(f"-n {num_process}: must not be negative")
        to_file = isinstance(outfile, str)
        with open(outfile, "w", encoding="utf-8") if to_file else nullcontext(outfile) as stream:
            reporter_class = self.reporters[reporter] if isinstance(reporter, str) else reporter
            if json:
                reporter_class = JsonReporter
            reporting = reporter_class(stream, {"failure_verbosity": failure_verbosity})
            if isinstance(reporting, QuernReporter):
                reporting.attach(self.project, self.dep_manager)
            arguments = [
                self.dep_manager,
                reporting,
                continue_,
                always,
                Stream(verbosity, force_verbosity),
            ]

            def new_runner() -> Any:
                runner: Any = SerialRunner(*arguments)
                if num_process:
                    runner = ThreadRunner(*arguments, num_process=num_process)
                runner.begin(self.project)
                return runner

            try:
                runner = new_runner()
                status = self._run_all(runner)
                if runner.tasks_are_stale and not status:
                    # A directory came with other files than the tasks were made of: what follows
                    # it has waited (CommitEachTask.process_task_result).
                    self.load_tasks(self.arguments)
                    self._select(auto_delayed_regex, single)
                    runner = new_runner()
                    status = self._run_all(runner)
                self._notify(runner)
                self._tend_store()
            finally:
                end_all()
                if isinstance(reporting, QuernReporter):
                    reporting.end_bars()
            return TRY_AGAIN_LATER if status and runner.only_passing_faults else status

    def _run_all(self, runner: Any) -> int:
        try:
            status: int = runner.run_all(self.control.task_dispatcher())
            runner.end()
        except StateError as error:
            sys.stderr.write(f"{error}\n")
            runner.report.faults.append(Fault(THE_RUN, str(error)))
            return A_TASK_BROKE
        except KeyboardInterrupt:
            self._notify(runner, deliver=False)
            raise
        runner.report.well.add(THE_RUN)
        return status

    def _notify(self, runner: Any, deliver: bool = True) -> None:
        """Tell models.yaml's `notify` what is new; what goes wrong with that fails no run."""
        try:
            if not Path(configuration_file()).exists():
                return
            from tasks.core.configuration import load_configuration

            addresses = load_configuration().notify
            if not addresses:
                return
            from tasks.core.notifications import Notifications

            runner.report.known = {*self.control.tasks, THE_RUN}
            runner.report.stands = runner.stands
            notifications = Notifications(self.project.root, addresses)
            notifications.learn(runner.report)
            for line in notifications.deliver() if deliver else []:
                sys.stderr.write(f"{line}\n")
        except Exception as error:
            sys.stderr.write(f"notify: {in_one_line(error)}\n")

    def _tend_store(self) -> None:
        """After a run that made or restored something: share what wasn't shared yet, and keep to
        models.yaml's `store.limit_gb`. What goes wrong with that fails no run."""
        if not (self.project.store.used and Path(configuration_file()).exists()):
            return
        try:
            from tasks.core.configuration import load_configuration

            wanted = load_configuration().store
            if wanted.remote:
                self.project.shared_store.push_others(self._keys())
            if wanted.limit_gb:
                from tasks.core.collecting import keep_to_limit

                names = [task.name for task in self.task_list]
                told = keep_to_limit(self.project, names, wanted.limit_gb)
                sys.stderr.write(f"{told}\n" if told else "")
        except Exception as error:
            sys.stderr.write(f"store: {in_one_line(error)}\n")

    def _keys(self) -> Iterator[str]:
        """The recipe keys of what is up to date."""
        for task in self.task_list:
            action, record = recipe_action(task), self.dep_manager.recorded(task.name)
            if action and record and record["components"] and not record.get("failed"):
                yield recipe_key(action.recipe.name, record["components"])

    def _select(self, auto_delayed_regex: bool, single: bool) -> None:
        self.control = TaskControl(self.task_list, auto_delayed_regex=auto_delayed_regex)
        self.control.process(self.sel_tasks)
        if single:
            self._drop_dependencies()

    def _drop_dependencies(self) -> None:
        for name in self.control.selected_tasks:
            task = self.control.tasks[name]
            for each in (
                [self.control.tasks[n] for n in task.task_dep] if task.has_subtask else [task]
            ):
                each.task_dep = []


def _interrupt(number: int, frame: FrameType | None) -> None:
    # A second one ends us at once; the guardian then kills what still runs.
    for each in INTERRUPTING:
        signal.signal(each, signal.SIG_DFL)
    raise Interrupted(number)
