"""What a run tells: nothing when nothing changed, a line per task that did something.

On a terminal each running task has a line of its own with a bar, its rate and the time left.
"""

import json
import sys
import threading
import time
from typing import Any

from doit.exceptions import UnmetDependency

from tasks.core.project import Project
from tasks.core.reasons import Reason, sentence
from tasks.core.records import Records, recipe_action


class QuernReporter:
    """doit's reporter interface (0.37). Results to the output stream, failures to stderr."""

    desc = "a line per task that did something, progress on a terminal"

    def __init__(self, outstream: Any, options: dict[str, Any]) -> None:
        self.outstream = outstream
        self.errstream = sys.stderr  # Python actions in other threads put others in its place
        self.started: dict[str, float] = {}
        self.notes: dict[str, list[str]] = {}
        self.lock = threading.Lock()
        self.bars: Any = None

    def attach(self, project: Project, records: Records) -> None:
        """Listen to what running tasks tell of themselves."""
        self.project, self.records = project, records
        project.event = self.event
        project.index.progress = self._hashing

    # -- what doit's runners call ------------------------------------------------------------

    def initialize(self, tasks: Any, selected_tasks: Any) -> None:
        """Nothing is said before something happens."""

    def get_status(self, task: Any) -> None:
        """Nothing is said of looking."""

    def execute_task(self, task: Any) -> None:
        """A task starts."""
        self.started[task.name] = time.monotonic()
        if _is_shown(task) and self.outstream.isatty():
            self._bar(task.name, "", 0, 0, "")

    def add_success(self, task: Any) -> None:
        """A task ended well."""
        self._end_bar(task.name)
        if not _is_shown(task):
            return
        action = recipe_action(task)
        verb = f"restored from {action.origin}" if action and action.origin else "done"
        seconds = time.monotonic() - self.started.get(task.name, time.monotonic())
        because = _because(task, self.records.judgement(task).reasons)
        self.line(f"{task.name}: {verb} in {seconds:.1f} s" + (f" ({because})" if because else ""))
        for note in self.notes.pop(task.name, []):
            self.line(f"  {note}")
        output = "".join((a.out or "") + (a.err or "") for a in task.actions)
        if output and task.verbosity != 2:
            self._write_log(task, output)

    def add_failure(self, task: Any, fail: Any) -> None:
        """A task failed, could not be judged, or waits for one that failed."""
        self._end_bar(task.name)
        if isinstance(fail, UnmetDependency):
            if not _is_shown(task) or getattr(fail, "silent", False):
                return  # a group of which one failed; or what it waits for has told
            self.error(f"{task.name}: not run, because {fail.message.replace(' ', ', ')} failed")
            return
        output = [(a.out or "") + (a.err or "") for a in task.actions]
        details = "".join([*output, *fail.traceback])
        where = ""
        if details:
            self._write_log(task, details)
        if task.executed and self.project.log_path(task.name).exists():
            log = self.project.log_path(task.name).relative_to(self.project.root)
            where = f" (log: {log})"
        self.error(f"{task.name}: {failure_in_one_line(fail)}{where}")

    def skip_uptodate(self, task: Any) -> None:
        """Nothing changed: nothing is said."""

    def skip_ignore(self, task: Any) -> None:
        """Ignored by the user's wish: nothing is said."""

    def cleanup_error(self, exception: Any) -> None:
        """A teardown failed."""
        self.error(failure_in_one_line(exception))

    def runtime_error(self, message: str) -> None:
        """doit itself refused to go on."""
        self.error(" ".join(message.split()))

    def teardown_task(self, task: Any) -> None:
        """Nothing is said of teardowns."""

    def complete_run(self) -> None:
        """The run is over."""
        self.end_bars()

    def end_bars(self) -> None:
        """Give the terminal back."""
        if self.bars is not None:
            self.bars.stop()

    # -- what running tasks tell ---------------------------------------------------------------

    def event(self, task: str, event: dict[str, Any]) -> None:
        """Progress, notes and warnings, from any thread."""
        if "warning" in event:
            self.error(event["warning"])
        elif "note" in event:
            with self.lock:
                self.notes.setdefault(task, []).append(event["note"])
        elif "progress" in event and self.outstream.isatty():
            progress = event["progress"]
            self._bar(
                task, progress["label"], progress["done"], progress["total"], progress["unit"]
            )

    def line(self, text: str) -> None:
        """One line of result."""
        self._print(self.outstream, text)

    def error(self, text: str) -> None:
        """One line of failure."""
        self._print(self.errstream, text)

    def _print(self, stream: Any, text: str) -> None:
        with self.lock:
            if self.bars is not None:
                self.bars.console.print(
                    text, markup=False, emoji=False, highlight=False, soft_wrap=True
                )
            else:
                stream.write(f"{text}\n")
                stream.flush()

    def _write_log(self, task: Any, text: str) -> None:
        with open(self.project.open_log(task.name), "a", encoding="utf-8") as log:
            log.write(text if text.endswith("\n") else f"{text}\n")

    def _hashing(self, path: str, done: int, total: int) -> None:
        if self.outstream.isatty():
            self._bar(path, "reading", done, total, "B")
            if done >= total:
                self._end_bar(path)

    def _bar(self, name: str, label: str, done: float, total: float, unit: str) -> None:
        with self.lock:
            if self.bars is None:
                from tasks.core.progress_bars import ProgressBars

                self.bars = ProgressBars(self.outstream)
            self.bars.show(name, label, done, total, unit)

    def _end_bar(self, name: str) -> None:
        with self.lock:
            if self.bars is not None:
                self.bars.remove(name)


class JsonReporter(QuernReporter):
    """Every event as one JSON object a line, on the output stream."""

    desc = "events as JSON lines"

    def initialize(self, tasks: Any, selected_tasks: Any) -> None:
        """The run starts."""
        self._emit("start", selected=list(selected_tasks))

    def execute_task(self, task: Any) -> None:
        """A task starts."""
        self.started[task.name] = time.monotonic()
        if _is_shown(task):
            reasons = [
                {**r.as_data(), "text": str(r)} for r in self.records.judgement(task).reasons
            ]
            self._emit("running", task=task.name, reasons=reasons)

    def add_success(self, task: Any) -> None:
        """A task ended well."""
        action = recipe_action(task)
        if _is_shown(task):
            seconds = time.monotonic() - self.started.get(task.name, time.monotonic())
            outcome = action.outcome if action else "ran"
            self._emit("done", task=task.name, outcome=outcome, seconds=round(seconds, 3))

    def add_failure(self, task: Any, fail: Any) -> None:
        """A task failed."""
        self._emit("failed", task=task.name, error=failure_in_one_line(fail))

    def skip_uptodate(self, task: Any) -> None:
        """A task is up to date."""
        if _is_shown(task):
            self._emit("up to date", task=task.name)

    def complete_run(self) -> None:
        """The run is over."""
        self._emit("end")

    def line(self, text: str) -> None:
        """What is said of a task that isn't its result."""
        self._emit("told", text=text)

    def event(self, task: str, event: dict[str, Any]) -> None:
        """Progress and notes."""
        name, value = next(iter(event.items()))
        self._emit(name, task=task, **(value if isinstance(value, dict) else {"text": value}))

    def error(self, text: str) -> None:
        """A fault outside any task."""
        self._emit("error", error=text)

    def _hashing(self, path: str, done: int, total: int) -> None:
        self._emit("reading", path=path, done=done, total=total)

    def _emit(self, event: str, **fields: Any) -> None:
        with self.lock:
            self.outstream.write(json.dumps({"event": event, **fields}) + "\n")
            self.outstream.flush()


def failure_in_one_line(fail: Any) -> str:
    """A failure in one line; of a Python action's exception, what it says."""
    text = " ".join(fail.message.split())
    if text == "PythonAction Error" and fail.traceback:
        return " ".join(fail.traceback[-1].split())
    return text


def _because(task: Any, reasons: list[Reason]) -> str:
    """Why it ran: in its watch's own words, if that is what it ran for."""
    action = recipe_action(task)
    if action and action.found.told:
        watched = action.found.parameters
        if any(r.kind == "first" or r.subject.partition(" ")[0] in watched for r in reasons):
            return action.found.told
    return sentence(reasons)


def _is_shown(task: Any) -> bool:
    return bool(task.actions) and not task.name.startswith("_")
