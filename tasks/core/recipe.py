"""Recipes: named, versioned transformations of digests into digests.

The key of a recipe is the digest of its name, version, parameters, tool versions and input
digests. A known key's outputs come from the store; an unknown one's function runs in a child
process, into a work directory, and its outputs are checked, stored and renamed into place.
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from doit.action import BaseAction
from doit.exceptions import BaseFail, TaskFailed

from tasks.core.child import call_in_child
from tasks.core.errors import Busy, LeftForLater, QuernError, TryAgainLater, in_one_line
from tasks.core.store import Artifact, names_in, recipe_key

if TYPE_CHECKING:
    from tasks.core.choice import Wish
    from tasks.core.project import Project

Paths = str | list[str]


@dataclass(frozen=True)
class Found:
    """What a recipe's watch found: `parameters` (name → fields) count in the key, `means` are
    passed on and don't (an address, a stat). `told` is the look's outcome in one line, for the log
    and `doit why`; with `aloud` it is also printed. `settle` is called when a run acts on it."""

    parameters: Mapping[str, Mapping[str, Any]]
    means: Mapping[str, Any] = field(default_factory=dict)
    told: str = ""
    aloud: bool = False
    settle: Callable[[], None] = lambda: None


class Watch(Protocol):
    """What finds a recipe's parameters when its task's turn comes."""

    def __call__(self, project: "Project", recorded: Mapping[str, str]) -> Found:
        """Look; `recorded` are the components at the task's last success. Raises LeftForLater."""

    def choose(self, project: "Project", wish: "Wish") -> None:
        """See to a wish of the command line (tasks.core.choice). Raises QuernError."""


@dataclass(frozen=True)
class Recipe:
    """What a task makes of what.

    `function` is "module:function"; it is called with every input, output and parameter as a
    keyword argument (paths as strings; outputs are paths in the work directory). `inputs` may
    be a function that finds them when the task's turn comes (a watched folder). `tools` are
    versions of what does the work; `tool_files` are programs, libraries and modules that count
    by digest but are not passed on. The module of `function` itself always counts. `watch` finds
    parameters when the task's turn comes, such as the digest of what is to be brought from another
    machine; it may raise LeftForLater. An output may be a directory. Outputs of a
    `large` recipe share their bytes with the store even where the file system has no reflink, and
    are read-only then; those of one with `drop` may be removed (`tasks.core.intermediates`).
    """

    name: str
    version: int
    function: str
    outputs: Mapping[str, str]
    inputs: Mapping[str, Paths] | Callable[[], Mapping[str, Paths]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    tool_files: tuple[str, ...] = ()
    watch: Watch | None = None
    large: bool = False
    drop: bool = False

    def task(self, name: str, doc: str, **more: Any) -> dict[str, Any]:
        """The doit task that keeps this recipe's outputs up to date."""
        known = {} if callable(self.inputs) else self.inputs
        return {
            "name": name,
            "doc": doc,
            "actions": [RecipeAction(self)],
            "file_dep": [*each_path(known), *self.tool_files],
            "targets": list(self.outputs.values()),
            "clean": True,
            "io": {"capture": False},
            **more,
        }

    def current_inputs(self) -> Mapping[str, Paths]:
        """The inputs by role, found now if they are watched for. Raises QuernError."""
        return self.inputs() if callable(self.inputs) else self.inputs

    def components(
        self, inputs: Mapping[str, Paths], found: Found, digest: Callable[[str], str]
    ) -> dict[str, str]:
        """All that the result depends on; raises FileNotFoundError for a missing input."""
        module = self.function.partition(":")[0]
        components = {
            "recipe version": str(self.version),
            "function": self.function,
            f"code {module}": digest(source_file(module)),
        }
        for name, value in self.parameters.items():
            components[f"parameter {name}"] = json.dumps(value, sort_keys=True)
        for name, fields in found.parameters.items():
            for key, value in fields.items():
                components[f"{name} {key}"] = json.dumps(value, sort_keys=True)
        for name, version in self.tools.items():
            components[f"tool {name}"] = version
        for path in self.tool_files:
            components[f"tool file {path}"] = digest(path)
        for path in each_path(inputs):
            components[f"input {path}"] = digest(path)
        return components


def source_file(module: str) -> str:
    """The file of a Python module, found as the child process will find it. Raises QuernError."""
    path = f"{module.replace('.', '/')}.py"
    if os.path.exists(path):
        return path
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        found = None
    if found is None or found.origin is None:
        raise QuernError(f"recipe function's module {module} does not exist; correct its name")
    return found.origin


def each_path(inputs: Mapping[str, Paths]) -> list[str]:
    """Every path of the inputs, in order, spelled as doit's nodes are (`./a` is `a`)."""
    return [
        os.path.normpath(path)
        for value in inputs.values()
        for path in ([value] if isinstance(value, str) else value)
    ]


class RecipeAction(BaseAction):  # type: ignore[misc]
    """doit's handle on a recipe. `outcome` is "ran" or "restored" after execute(), `origin` what
    the outputs were restored from."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.task: Any = None
        self.project: Project | None = None
        self.out = self.err = self.result = None
        self.values: dict[str, Any] = {}
        self.outcome = self.origin = ""
        self.always = False  # --always-execute: run even if the store has the result
        self.inputs: Mapping[str, Paths] = {}
        self.found = Found({})
        self.components: dict[str, str] = {}
        self.targets: dict[str, str] = {}
        self.names_changed = False  # a directory it made has other files than before

    def judge(
        self, project: "Project", recorded: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Find the inputs as they are now; returns the components of the result. `recorded` are
        those of the task's last success. Raises LeftForLater, QuernError, OSError."""
        self.project = project
        self.inputs = self.recipe.current_inputs()
        if self.recipe.watch is not None:
            self.found = self.recipe.watch(project, recorded or {})
        self.components = self.recipe.components(
            self.inputs, self.found, project.intermediates.digest
        )
        return self.components

    @property
    def key(self) -> str:
        """The recipe key for the inputs as judged."""
        return recipe_key(self.recipe.name, self.components)

    def execute(self, out: object = None, err: object = None) -> BaseFail | None:
        """Bring the outputs: from the store, from the shared one, or by running the function."""
        assert self.project is not None
        try:
            outputs = None if self.always else self._restored()
            self.outcome = "restored" if outputs is not None else "ran"
            if outputs is None:
                outputs = self._run()
            for role, target in self.recipe.outputs.items():
                if outputs[role].directory:
                    names = set(self.project.store.listing(outputs[role].digest))
                    self.names_changed |= names != names_in(target)
                self.project.store.place(outputs[role], Path(target), self.recipe.large)
                self.targets[target] = outputs[role].digest
            if self.outcome == "ran":
                self.project.shared_store.push(self.key, self._progress)
        except (QuernError, OSError) as error:
            return failed(error)
        return None

    def _restored(self) -> dict[str, Artifact] | None:
        assert self.project is not None
        project, roles = self.project, self.recipe.outputs.keys()
        outputs = project.store.result(self.key)
        if outputs is not None and roles <= outputs.keys():  # else it is to make more than then
            self.origin = "the store"
            return outputs
        outputs = project.shared_store.pull(
            self.key, roles, lambda: project.work_directory(self.task.name), self._progress
        )
        self.origin = "the shared store" if outputs is not None else ""
        return outputs

    def _progress(self, label: str, done: int, total: int) -> None:
        assert self.project is not None
        progress = {"label": label, "done": done, "total": total, "unit": "B"}
        self.project.hear(self.task.name, {"progress": progress})

    def _run(self) -> dict[str, Artifact]:
        assert self.project is not None
        project, recipe = self.project, self.recipe
        project.intermediates.bring_back(each_path(self.inputs), self.task.name)
        work = project.work_directory(self.task.name)
        try:
            paths = {
                role: str(work / role / Path(target).name)
                for role, target in recipe.outputs.items()
            }
            for path in paths.values():
                os.makedirs(os.path.dirname(path))
            call_in_child(
                recipe.function,
                {
                    **self.inputs,
                    **paths,
                    **recipe.parameters,
                    **self.found.parameters,
                    **self.found.means,
                },
                project.open_log(self.task.name),
                lambda event: project.hear(self.task.name, event),
            )
            for role, path in paths.items():
                if not os.path.lexists(path):
                    raise QuernError(f"its declared target {recipe.outputs[role]} was not made")
            self._refuse_edited_inputs()
            outputs = {role: project.store.take(Path(path)) for role, path in paths.items()}
            project.store.record_result(
                self.key, outputs, {"recipe": recipe.name, "components": self.components}
            )
            return outputs
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _refuse_edited_inputs(self) -> None:
        assert self.project is not None
        for name, before in self.components.items():
            kind, _, path = name.partition(" ")
            if kind == "input" and self.project.index.digest(path) != before:
                raise QuernError(
                    f"its input {path} was changed while it ran; its result is not kept, run again"
                )


class FunctionAction(BaseAction):  # type: ignore[misc]
    """A plain function as an action, whose faults are one line: QuernError, OSError."""

    def __init__(self, function: Callable[..., Any], **arguments: Any) -> None:
        self.function = function
        self.arguments = arguments
        self.task: Any = None
        self.project: Project | None = None
        self.out = self.err = self.result = None
        self.values: dict[str, Any] = {}

    def execute(self, out: object = None, err: object = None) -> BaseFail | None:
        """Call the function with the project and the task's own options."""
        assert self.project is not None
        try:
            options = self.task.options or {}
            values = self.function(
                project=self.project, task=self.task.name, **self.arguments, **options
            )
            self.values = values if isinstance(values, dict) else {}
        except (QuernError, OSError) as error:
            return failed(error)
        return None


def failed(error: QuernError | OSError) -> BaseFail:
    """The error as doit's failure; a passing fault keeps its mark for the exit status, and what is
    left for the next run its own."""
    failure = TaskFailed(in_one_line(error))
    failure.try_again_later = isinstance(error, TryAgainLater)
    failure.busy = isinstance(error, Busy)
    failure.left = isinstance(error, LeftForLater)
    return failure
