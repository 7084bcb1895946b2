"""For random graphs and random changes: the targets are those of a build from scratch, and what
ran is exactly what a model of a dozen lines says: recipes whose inputs were never seen, plain
tasks whose inputs or targets aren't as they were."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.build_project import BuildProject

INPUTS = ("a", "b", "c")
CONTENTS = ("xy", "xz", "qq")
DODO = """
import json
from tasks.core.recipe import Recipe

def task_t():
    for task in json.load(open("graph.json")):
        name, length, sources = task["name"], task["length"], task["sources"]
        if task["recipe"]:
            yield Recipe(name="cut", version=1, function="work:cut", inputs={"sources": sources},
                outputs={"out": f"out/{name}"}, parameters={"name": name, "length": length},
            ).task(name, "Cut.")
        else:
            cut = "".join(f"head -c {length} {s} >> out/{name};" for s in sources)
            yield {"name": name, "file_dep": sources, "targets": [f"out/{name}"], "clean": True,
                "actions": [f"rm -f out/{name}; {cut} echo {name} >> runs"]}
"""
WORK = """
def cut(name, length, sources, out):
    open("runs", "a").write(name + "\\n")
    open(out, "w").write("".join(open(s).read()[:length] for s in sources))
"""


@st.composite
def graphs(draw: Callable[..., Any]) -> list[dict[str, Any]]:
    tasks = []
    for i in range(draw(st.integers(2, 5))):
        possible = [*(f"in/{name}" for name in INPUTS), *(f"out/n{j}" for j in range(i))]
        tasks.append(
            {
                "name": f"n{i}",
                "recipe": draw(st.booleans()),
                "length": draw(st.integers(1, 2)),
                "sources": draw(st.lists(st.sampled_from(possible), min_size=1, unique=True)),
            }
        )
    return tasks


TARGETS = st.integers(0, 4)
CHANGES = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(INPUTS), st.sampled_from(CONTENTS)),
    st.tuples(st.just("touch"), st.sampled_from(INPUTS)),
    st.tuples(st.just("delete"), TARGETS),
    st.tuples(st.just("tamper"), TARGETS, st.sampled_from(CONTENTS)),
    st.tuples(st.just("length"), TARGETS, st.integers(1, 2)),
    st.tuples(st.just("clean")),
)
STEPS = st.lists(st.lists(CHANGES, max_size=3), min_size=1, max_size=4)


class Model:
    """What Quern's doit should do, in the fewest words."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int, tuple[str, ...]]] = set()
        self.last: dict[str, tuple[Any, str]] = {}

    def build(self, graph: list[dict[str, Any]], files: dict[str, str]) -> list[str]:
        """Bring `files` up to date; the names of the tasks that run."""
        ran = []
        for task in graph:
            name, length, target = task["name"], task["length"], f"out/{task['name']}"
            key = (name, length, tuple(files[s] for s in task["sources"]))
            made = "".join(files[s][:length] for s in task["sources"])
            up_to_date = (key, files.get(target)) == self.last.get(name)
            if not up_to_date and not (task["recipe"] and key in self.seen):
                ran.append(name)
            if task["recipe"]:
                self.seen.add(key)
            files[target] = made
            self.last[name] = (key, made)
        return ran


def apply(change: tuple[Any, ...], project: BuildProject, graph: list[Any], files: Any) -> None:
    kind, *rest = change
    if kind == "write":
        project.write(f"in/{rest[0]}", rest[1])
        files[f"in/{rest[0]}"] = rest[1]
    elif kind == "touch":
        (project.root / "in" / rest[0]).touch()
    elif kind == "clean":
        project.built("clean", "--clean-all")
        for task in graph:
            files.pop(f"out/{task['name']}", None)
    else:
        task = graph[rest[0] % len(graph)]
        target = f"out/{task['name']}"
        if kind == "length":
            task["length"] = rest[1]
            project.write("graph.json", json.dumps(graph))
        elif kind == "delete":
            (project.root / target).unlink(missing_ok=True)
            files.pop(target, None)
        else:
            project.write(target, rest[1])
            files[target] = rest[1]


def follows_the_model(graph: list[Any], steps: list[list[Any]], threads: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        project, model = BuildProject(Path(folder), DODO, WORK), Model()
        files = {f"in/{name}": "xy" for name in INPUTS}
        for path, text in files.items():
            project.write(path, text)
        project.write("graph.json", json.dumps(graph))
        for changes in [[], *steps]:
            for change in changes:
                apply(change, project, graph, files)
            expected = model.build(graph, files)
            outcome = project.built(*(["-n", "2"] if threads else []))
            assert sorted(outcome.ran) == sorted(expected), (outcome, changes)
            for path, text in files.items():
                assert project.read(path) == text, (path, changes)


# Shrinking would build for minutes.
QUIET = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
    "phases": (Phase.explicit, Phase.generate),
}


@pytest.mark.slow
@given(graph=graphs(), steps=STEPS, threads=st.booleans())
@settings(max_examples=25, **QUIET)
def test_random_graphs_and_changes(graph, steps, threads):
    follows_the_model(graph, steps, threads)


@given(graph=graphs(), steps=STEPS)
@settings(max_examples=2, derandomize=True, **QUIET)
def test_a_few_random_graphs_and_changes(graph, steps):
    follows_the_model(graph, steps, threads=True)


def test_the_model_itself():
    graph = [
        {"name": "n0", "recipe": True, "length": 1, "sources": ["in/a"]},
        {"name": "n1", "recipe": False, "length": 2, "sources": ["out/n0", "in/b"]},
    ]
    model, files = Model(), {"in/a": "xy", "in/b": "xy"}
    assert model.build(graph, files) == ["n0", "n1"]
    assert model.build(graph, files) == []
    files["in/a"] = "xz"  # n0 comes to the same letter
    assert model.build(graph, files) == ["n0"]
    files["in/a"] = "xy"  # seen before
    assert model.build(graph, files) == []
    del files["out/n1"]
    assert model.build(graph, files) == ["n1"]
