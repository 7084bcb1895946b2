"""How a run goes: doit's runners (0.37), with each task's result committed when it ends.

`select_task` and `process_task_result` run in the main thread in both runners.
"""

import contextlib
import json
import time
from typing import Any

from doit.exceptions import (
    DependencyError,
    InvalidTask,
    TaskError,
    TaskFailed,
    UnmetDependency,
)
from doit.runner import MThreadRunner, Runner

from tasks.core.errors import QuernError, TryAgainLater, in_one_line
from tasks.core.lifeline import GuardedCommand
from tasks.core.project import Project
from tasks.core.reasons import Reason
from tasks.core.recipe import FunctionAction, RecipeAction, failed
from tasks.core.records import Records, recipe_action
from tasks.core.report import Fault, Report
from tasks.core.reporter import failure_in_one_line
from tasks.core.state import StateError


class CommitEachTask:
    """Mixed into doit's runners: marks, checks and commits a task, and records why it ran."""

    dep_manager: Records
    reporter: Any
    always_execute: bool
    final_result: int

    def begin(self, project: Project) -> None:
        """Note the start of the run, for `doit why`."""
        self.up_to_date: list[str] = []
        self.started: dict[str, float] = {}
        self.report = Report(announcements=project.announcements)
        self.not_done: list[Any] = []
        self.tasks_are_stale = False
        self.waiting: set[str] = set()  # sources out of reach, and what follows them
        self.project = project
        self.run_number = 0

    def _run_number(self) -> int:
        if not self.run_number:
            with self.project.state.transaction() as connection:
                cursor = connection.execute("insert into run (started) values (?)", (time.time(),))
                self.run_number = cursor.lastrowid or 0
        return self.run_number

    def select_task(self, node: Any, tasks: dict[str, Any]) -> bool:
        """Whether the task runs now; if so it is marked as running."""
        try:
            runs: bool = super().select_task(node, tasks)  # type: ignore[misc]
        except (InvalidTask, StateError):
            raise
        except TryAgainLater as error:
            self._handle_task_error(node, failed(error))
            return False
        except Exception as error:  # a fault in the task's own `uptodate` or `inputs`
            self._handle_task_error(node, told(error))
            return False
        if node.run_status in ("run", "up-to-date"):
            self._note_look(node.task)
        if node.run_status == "up-to-date" and node.task._actions:
            self.up_to_date.append(node.task.name)
            self.report.well.add(node.task.name)
        if runs and node.task._actions:
            self._prepare(node.task)
            self.dep_manager.mark_running(node.task)
        self.started[node.task.name] = time.monotonic()
        return runs

    def _note_look(self, task: Any) -> None:
        """What a watch found is acted on now: log it, and say it if it is to be said."""
        action = recipe_action(task)
        if action is not None and action.found.told:
            action.found.settle()
            self._told_of(task, action.found.told, action.found.aloud)

    def _told_of(self, task: Any, text: str, aloud: bool) -> None:
        now = time.time()
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        with open(self.project.open_log(task.name), "a", encoding="utf-8") as log:
            log.write(f"{moment} {text}\n")
        with self.project.state.transaction() as connection:
            connection.execute("replace into look values (?,?,?)", (task.name, now, text))
        if aloud and hasattr(self.reporter, "line"):  # doit's own reporters have no such thing
            self.reporter.line(f"{task.name}: {text}")

    def _leave(self, node: Any, text: str) -> None:
        """A source is unfinished: what was there stays and all that follows is judged by it; where
        nothing was there, what follows is silently not run."""
        self._told_of(node.task, text, aloud=True)
        there = self.dep_manager.leave(node.task)
        node.run_status = "up-to-date" if there else "ignore"
        node.task.values = self.dep_manager.get_values(node.task.name)
        self._decide(node.task, "left", text)

    def _prepare(self, task: Any) -> None:
        for action in [*task.actions, *task.teardown]:
            if isinstance(action, FunctionAction):
                action.project = self.project
            elif isinstance(action, RecipeAction):
                action.always = self.always_execute
            else:
                GuardedCommand.guard(action)

    def execute_task(self, task: Any) -> Any:
        """Run the task's actions, in whatever thread; an error is a failure."""
        try:
            return super().execute_task(task)  # type: ignore[misc]
        except Exception as error:
            return told(error)

    def process_task_result(self, node: Any, base_fail: Any) -> None:
        """Check what the task left, and commit its result."""
        task = node.task
        try:
            if base_fail is None:
                base_fail = self._unsound(task)
            super().process_task_result(node, base_fail)  # type: ignore[misc]
        except StateError:
            raise
        except (QuernError, OSError) as error:
            self._handle_task_error(node, failed(error))
            return
        if base_fail is None and task._actions:
            action = recipe_action(task)
            self._decide(task, action.outcome if action else "ran", "")
            self.report.well.add(task.name)
            if action and action.names_changed:
                # What follows was made of the names that were there: see Run._execute.
                self.tasks_are_stale = True
                node.run_status = "ignore"

    def _unsound(self, task: Any) -> Any:
        missing = self.dep_manager.missing_targets(task)
        if missing:
            return TaskFailed(f"its declared target {missing[0]} was not made")
        edited = self.dep_manager.edited_inputs(task)
        if edited:
            return TaskFailed(
                f"its input {edited[0]} was changed while it ran; "
                "its result is not recorded, run again"
            )
        return None

    def _handle_task_error(self, node: Any, base_fail: Any) -> None:
        if isinstance(base_fail, DependencyError):
            judgement = self.dep_manager.judgement(node.task)
            base_fail.message = judgement.error or base_fail.message
            base_fail.try_again_later = judgement.try_again_later
            base_fail.left = judgement.left
        if getattr(base_fail, "left", False):
            self._leave(node, base_fail.message)
            return
        action = recipe_action(node.task)
        if action and action.recipe.watch and not isinstance(base_fail, UnmetDependency):
            self._told_of(node.task, base_fail.message, aloud=False)
        self.not_done.append(node.task)
        if not isinstance(base_fail, UnmetDependency):
            passing = bool(getattr(base_fail, "try_again_later", False))
            busy = bool(getattr(base_fail, "busy", False))
            text = failure_in_one_line(base_fail)
            self.report.faults.append(Fault(node.task.name, text, passing, busy))
            if passing and action and action.recipe.watch:
                self.waiting.add(node.task.name)
        elif all(dependency.task.name in self.waiting for dependency in node.bad_deps):
            base_fail.silent = True  # that its source is out of reach is said once
            self.waiting.add(node.task.name)
        before = self.final_result
        super()._handle_task_error(node, base_fail)  # type: ignore[misc]
        if isinstance(base_fail, UnmetDependency):
            self.final_result = before  # what it waited for has told
        self._decide(node.task, "failed", base_fail.message)

    def _decide(self, task: Any, outcome: str, message: str) -> None:
        reasons = self.dep_manager.judgement(task).reasons
        if not reasons and self.always_execute:
            reasons = [Reason("asked")]
        seconds = time.monotonic() - self.started.get(task.name, time.monotonic())
        row = (
            task.name,
            self._run_number(),
            time.time(),
            outcome,
            seconds,
            message,
            json.dumps([reason.as_data() for reason in reasons]),
        )
        with self.project.state.transaction() as connection:
            connection.execute("replace into decision values (?,?,?,?,?,?,?)", row)

    @property
    def only_passing_faults(self) -> bool:
        """Whether trying again later is all there is to do."""
        return bool(self.report.faults) and all(fault.passing for fault in self.report.faults)

    def stands(self) -> list[str]:
        """What tasks that failed, or never got their turn, say is still as it was before."""
        said: list[str] = []
        for task in self.not_done:
            stands = (task.meta or {}).get("stands")
            if stands is not None:
                with contextlib.suppress(QuernError, OSError):  # a host may be out of reach
                    said += stands()
        return said

    def end(self) -> None:
        """Note the end of the run and what was up to date in it."""
        with self.project.state.transaction() as connection:
            up_to_date = json.dumps(self.up_to_date)
            if self.run_number:
                connection.execute(
                    "update run set ended=?, up_to_date=? where id=?",
                    (time.time(), up_to_date, self.run_number),
                )
            else:
                connection.execute(
                    "insert into run (started, ended, up_to_date) values (?,?,?)",
                    (time.time(), time.time(), up_to_date),
                )
            # Of earlier runs only the times are kept: the lists would fill the disk.
            connection.execute("delete from run where id <= (select max(id) from run) - 1000")
            connection.execute(
                "update run set up_to_date=null"
                " where up_to_date is not null and id < (select max(id) from run)"
            )


def told(error: Exception) -> Any:
    """An error nobody foresaw, as doit's failure: one line, and its traceback for the log."""
    failure = TaskError("", error)
    failure.message = in_one_line(error)
    return failure


class SerialRunner(CommitEachTask, Runner):  # type: ignore[misc]
    """One task after the other."""


class ThreadRunner(CommitEachTask, MThreadRunner):  # type: ignore[misc]
    """Several tasks side by side: threads, each waiting for a child process."""
