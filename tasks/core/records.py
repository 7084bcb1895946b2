"""What doit knows of past runs, in Quern's way: judged by content, committed task by task.

Takes the place of `doit.dependency.Dependency` (doit 0.37). A task is up to date when every
component of its result (actions, parameters, tools, inputs by digest) is as recorded at its
last success, every target has the digest it had then, and no run of it was cut short.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from types import CodeType, FunctionType, MethodType
from typing import Any

from doit.action import CmdAction
from doit.dependency import DependencyStatus, UptodateCalculator

from tasks.core.digest import digest_of_bytes
from tasks.core.errors import LeftForLater, QuernError, TryAgainLater, in_one_line
from tasks.core.project import Project
from tasks.core.reasons import Reason, differences
from tasks.core.recipe import FunctionAction, RecipeAction


@dataclass(slots=True)
class Judgement:
    """Whether a task runs: for what reasons, or why it can't be said (`error`). `left`: no fault,
    the next run looks again."""

    reasons: list[Reason] = field(default_factory=list)
    error: str = ""
    try_again_later: bool = False
    left: bool = False
    components: dict[str, str] = field(default_factory=dict)


class Records:
    """The interface of doit's Dependency, kept in the project's state database."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.name = str(project.state.path)
        self._records, self._interrupted = project.state.load(self._load)
        self._judged: dict[str, Judgement] = {}
        self._closed = False

    def _load(self) -> tuple[dict[str, dict[str, Any]], set[str]]:
        rows = self.project.state.rows("select name, record from task")
        running = self.project.state.rows("select name from running")
        records = {name: json.loads(record) for name, record in rows}
        for name, record in records.items():
            if not isinstance(record, dict) or not {"components", "targets"} <= record.keys():
                raise ValueError(f"the record of {name} has another shape")
        return records, {name for (name,) in running}

    # -- judging ---------------------------------------------------------------------------

    def judge(self, task: Any, tasks: dict[str, Any]) -> Judgement:
        """Why `task` would run now, looked at by itself (see plan for the whole graph)."""
        judgement = Judgement()
        task.dep_changed = []
        says_when = False
        for check, arguments, options in task.uptodate:
            answer = self._ask(check, arguments, options, task, tasks)
            if answer is None:
                continue
            says_when = True
            if not answer:
                text = str(getattr(check, "reason", "") or "its own check says so")
                judgement.reasons.append(Reason("not up to date", text))
        action, record = recipe_action(task), self._records.get(task.name)
        try:
            judgement.components = (
                action.judge(self.project, record["components"] if record else {})
                if action
                else self._plain_components(task)
            )
        except FileNotFoundError as error:
            maker = next((t.name for t in tasks.values() if error.filename in t.targets), "")
            hint = f"made by {maker}" if maker else "correct the path or make it"
            judgement.error = f"its input {error.filename} does not exist; {hint}"
            return judgement
        except OSError as error:
            judgement.error = f"its input {error.filename} can't be read: {error.strerror}"
            return judgement
        except QuernError as error:
            judgement.error = in_one_line(error)
            judgement.try_again_later = isinstance(error, TryAgainLater)
            judgement.left = isinstance(error, LeftForLater)
            return judgement
        if record is None:
            # Group tasks have no actions and nothing to record.
            if task._actions or task.targets:
                judgement.reasons.append(Reason("first"))
        else:
            judgement.reasons.extend(differences(record["components"], judgement.components))
            judgement.reasons.extend(self._changed_targets(task, record["targets"]))
            if record.get("failed"):
                judgement.reasons.append(Reason("failed"))
        if task.name in self._interrupted:
            judgement.reasons.append(Reason("interrupted"))
        if not (judgement.reasons or says_when or task.file_dep or action or not task._actions):
            judgement.reasons.append(Reason("always"))
        changed = {r.subject.partition(" ")[2] for r in judgement.reasons if r.kind == "changed"}
        task.dep_changed = [path for path in task.file_dep if record is None or path in changed]
        return judgement

    def _ask(
        self, check: Any, arguments: Any, options: Any, task: Any, tasks: dict[str, Any]
    ) -> bool | None:
        if isinstance(check, str):
            quiet = subprocess.DEVNULL
            return subprocess.call(check, shell=True, stdout=quiet, stderr=quiet) == 0
        if not callable(check):
            return check  # type: ignore[no-any-return]
        if isinstance(check, UptodateCalculator):
            check.setup(self, tasks)
        first = list(signature(check).parameters)[:2]
        magic: list[Any] = []
        if first[:1] == ["task"]:
            magic.append(task)
            if first[1:] == ["values"]:
                magic.append(self.get_values(task.name))
        return check(*magic, *arguments, **options)  # type: ignore[no-any-return]

    def _plain_components(self, task: Any) -> dict[str, str]:
        components = {f"input {path}": self.project.index.digest(path) for path in task.file_dep}
        if task._actions:
            components["actions"] = digest_of_bytes(_definition(task._actions).encode())
        return components

    def _changed_targets(self, task: Any, recorded: dict[str, str]) -> Iterable[Reason]:
        for target in task.targets:
            try:
                digest = self.project.intermediates.digest(target)
            except OSError:
                yield Reason("target missing", target)
                continue
            before = recorded.get(target)
            if before is None:
                yield Reason("added", f"target {target}", after=digest)
            elif digest != before:
                yield Reason("target changed", target, before, digest)

    def get_status(self, task: Any, tasks: dict[str, Any], get_log: bool = False) -> Any:
        """doit's question: run, up-to-date or error."""
        status = DependencyStatus(get_log)
        judgement = self._judged[task.name] = self.judge(task, tasks)
        if judgement.error:
            status.status, status.error_reason = "error", judgement.error
        elif judgement.reasons:
            status.status = "run"
        status.reasons["quern"] = judgement.reasons
        return status

    def judgement(self, task: Any) -> Judgement:
        """What get_status last said of the task in this process."""
        return self._judged.get(task.name, Judgement())

    # -- recording -------------------------------------------------------------------------

    def mark_running(self, task: Any) -> None:
        """Committed before the first action: found at the next start, it means dirty."""
        with self.project.state.transaction() as connection:
            connection.execute("replace into running values (?,?)", (task.name, time.time()))

    def missing_targets(self, task: Any) -> list[str]:
        """Declared targets that aren't there after the task's actions ended well."""
        missing = []
        for target in task.targets:
            try:
                self.project.index.digest(target)
            except OSError:
                missing.append(target)
        return missing

    def edited_inputs(self, task: Any) -> list[str]:
        """Inputs whose bytes are no longer those judged before the task's actions."""
        if recipe_action(task):
            return []  # a recipe looks for itself, before it keeps its result
        before = self.judgement(task).components
        edited = []
        for path in task.file_dep:
            try:
                if self.project.index.digest(path) != before.get(f"input {path}"):
                    edited.append(path)
            except OSError:
                edited.append(path)
        return edited

    def save_success(self, task: Any, result_hash: Any = None) -> None:
        """Record and commit a task that ended well, with the digests of its targets."""
        action = recipe_action(task)
        record = {
            "components": action.components if action else self.judgement(task).components,
            "targets": {target: self.project.index.digest(target) for target in task.targets},
            "values": task.values,
            "result": result_hash if result_hash is not None else _result(task),
        }
        if action:
            self.project.intermediates.remember(action, record["targets"])
        self._commit(task.name, record)

    def leave(self, task: Any) -> bool:
        """The task is left as it was, for the next run; returns whether its targets are there."""
        record = self._records.get(task.name)
        self._commit(task.name, record)
        return record is not None and not self.missing_targets(task)

    def remove_success(self, task: Any) -> None:
        """Mark a task that failed; one that never got to run keeps its record as it is."""
        record = self._records.get(task.name)
        if task.executed:
            self._commit(task.name, record and {**record, "failed": True})

    def _commit(self, name: str, record: dict[str, Any] | None) -> None:
        self.project.index.save()
        with self.project.state.transaction() as connection:
            if record is None:
                connection.execute("delete from task where name=?", (name,))
            else:
                connection.execute("replace into task values (?,?)", (name, json.dumps(record)))
            connection.execute("delete from running where name=?", (name,))
        self._interrupted.discard(name)
        if record is None:
            self._records.pop(name, None)
        else:
            self._records[name] = record

    # -- what doit and its commands ask ----------------------------------------------------

    def get_values(self, name: str) -> dict[str, Any]:
        """The values a task saved at its last success."""
        return self._records.get(name, {}).get("values") or {}

    def get_value(self, name: str, key: str) -> Any:
        """One saved value of a task; raises QuernError when there is none."""
        values = self.get_values(name)
        if key not in values:
            raise QuernError(f"task {name} has saved no value {key!r}")
        return values[key]

    def get_result(self, name: str) -> Any:
        """The result of a task's last action at its last success."""
        return self._records.get(name, {}).get("result")

    def _get(self, name: str, key: str) -> Any:
        known = {"result:": self.get_result, "_values_:": self.get_values}
        return known[key](name) if key in known else None

    def recorded(self, name: str) -> dict[str, Any] | None:
        """The whole record of a task, or None."""
        return self._records.get(name)

    def ignore(self, task: Any) -> None:
        """`doit ignore`: skip the task until it is forgotten."""
        record = self._records.get(task.name) or {"components": {}, "targets": {}}
        self._commit(task.name, {**record, "ignored": True})

    def status_is_ignore(self, task: Any) -> bool:
        """Whether `doit ignore` was said of the task."""
        return bool(self._records.get(task.name, {}).get("ignored"))

    def remove(self, name: str) -> None:
        """`doit forget TASK`."""
        self._commit(name, None)

    def remove_all(self) -> None:
        """`doit forget --all`."""
        with self.project.state.transaction() as connection:
            connection.execute("delete from task")
            connection.execute("delete from running")
        self._records.clear()

    def close(self) -> None:
        """Save the digest index; nothing else waits for the end of a run."""
        if not self._closed:
            self._closed = True
            self.project.index.save()


def recipe_action(task: Any) -> RecipeAction | None:
    """The task's recipe action, if it is a recipe's task."""
    action = task._actions[0] if task._actions else None
    return action if isinstance(action, RecipeAction) else None


def _result(task: Any) -> Any:
    if isinstance(task.result, str):
        return digest_of_bytes(task.result.encode())
    return task.result


def _definition(actions: list[Any]) -> str:
    """What the actions do, as text: commands as written, functions by their compiled code."""
    return "\n".join(_text(action) for action in actions)


def _text(value: Any) -> str:
    """`value` as text that repeats from process to process."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, dict):
        return f"{{{','.join(f'{_text(k)}:{_text(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(_text(item) for item in value)}]"
    if isinstance(value, set | frozenset):
        return f"{{{','.join(sorted(_text(item) for item in value))}}}"
    if isinstance(value, CodeType):
        return f"{value.co_code.hex()}{_text(value.co_consts)}{value.co_names}"
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return _text([value.__code__, value.__defaults__, value.__kwdefaults__, cells])
    if isinstance(value, MethodType):
        return _text(value.__func__)
    if isinstance(value, FunctionAction):
        return _text([value.function, value.arguments])
    if isinstance(value, CmdAction):
        return _text(value._action)
    if isinstance(value, partial):
        return _text([value.func, value.args, value.keywords])
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
