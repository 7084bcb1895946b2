"""Of what an artifact was made, by the results that the store keeps."""

import os
from pathlib import Path

from tasks.core.digest import DigestIndex, digest_of_bytes
from tasks.core.lineage import Lineage, Material
from tasks.core.state import State
from tasks.core.store import Artifact, Store
from tests.build_project import DIAMOND, BuildProject

ONE, TWO, THREE = (
    Material(f"in/{name}", digest_of_bytes(f"{name}\n".encode()))
    for name in ("one", "two", "three")
)


def store_of(root: Path) -> Store:
    return Store(root / ".quern/store", DigestIndex(State(root / ".quern/state.db")))


def lineage_of(build: BuildProject) -> Lineage:
    return Lineage(store_of(build.root))


def digest(build: BuildProject, path: str) -> str:
    return digest_of_bytes((build.root / path).read_bytes())


def names(steps: list) -> list[str]:
    return [step.parameters["name"] for step in steps]


def test_every_step_on_the_way_down_once_and_the_users_own_files(tmp_path):
    build = BuildProject(tmp_path)
    build.built()
    lineage = lineage_of(build)
    top = digest(build, "out/top")
    (made,) = lineage.made(top)
    assert (made.recipe, made.output) == ("join", "out")
    assert made.parameters == {"name": "top"}
    assert made.inputs[0] == Material("out/left", digest(build, "out/left"))
    assert (tmp_path / f".quern/store/results/{made.key[:2]}/{made.key[2:]}.json").exists()
    assert names(lineage.steps([top])) == ["top", "left", "right"]
    assert names(lineage.steps([top, made.inputs[0].digest])) == ["top", "left", "right"]
    assert lineage.materials([top]) == [ONE, THREE, TWO]
    assert lineage.materials([digest(build, "out/right")]) == [THREE]


def test_what_no_recipe_made_has_no_lineage(tmp_path):
    build = BuildProject(tmp_path)
    assert lineage_of(build).steps([ONE.digest]) == []
    build.built()
    lineage = lineage_of(build)
    assert lineage.made(ONE.digest) == [] == lineage.steps([ONE.digest])
    assert lineage.materials(["0" * 32]) == []


def test_of_runs_that_gave_the_same_bytes_the_newest_is_first(tmp_path):
    build = BuildProject(tmp_path)
    build.built("make:left")
    build.write("dodo.py", DIAMOND.replace('"in/two"])', '"in/two"], version=2)'))
    build.built("make:left")
    left = digest(build, "out/left")
    newest, before = lineage_of(build).made(left)
    assert [newest.components["recipe version"], before.components["recipe version"]] == ["2", "1"]
    file = tmp_path / f".quern/store/results/{before.key[:2]}/{before.key[2:]}.json"
    os.utime(file)
    assert lineage_of(build).steps([left]) == [before]


def test_a_step_that_passes_its_input_on_hides_no_maker(tmp_path):
    store = store_of(tmp_path)
    made = {"recipe": "make", "components": {"input a": "1" * 32}}
    store.record_result("aa", {"out": Artifact("2" * 32)}, made)
    os.utime(store.root / "results/aa/.json", (1, 1))
    passed = {"recipe": "pass on", "components": {"input b": "2" * 32}}
    store.record_result("bb", {"out": Artifact("2" * 32)}, passed)
    lineage = Lineage(store)
    assert [step.recipe for step in lineage.steps(["2" * 32])] == ["pass on", "make"]
    assert lineage.materials(["2" * 32]) == [Material("a", "1" * 32)]


def test_tools_and_what_a_watch_found_are_told(tmp_path):
    store = store_of(tmp_path)
    components = {
        "recipe version": "2",
        "function": "tasks.fetch:fetch_checkpoint",
        "code tasks.fetch": "3" * 32,
        "tool torch": "2.9.1",
        "tool file /usr/bin/c++": "4" * 32,
        "source host": '"gpu"',
        "source cycle": "13",
    }
    store.record_result(
        "ab" * 16,
        {"checkpoint": Artifact("5" * 32)},
        {"recipe": "fetch", "components": components},
    )
    (made,) = Lineage(store).made("5" * 32)
    assert made.key == "ab" * 16
    assert made.tools == {"torch": "2.9.1"}
    assert made.tool_files == [Material("/usr/bin/c++", "4" * 32)]
    assert made.found == {"source": {"host": "gpu", "cycle": 13}}


def test_a_damaged_result_is_left_out(tmp_path):
    build = BuildProject(tmp_path)
    build.built()
    top = digest(build, "out/top")
    for text in ("{", "[]", "{}", '{"outputs": 1, "recipe": "x", "components": {}}'):
        build.write(".quern/store/results/00/damaged.json", text)
        assert names(lineage_of(build).steps([top])) == ["top", "left", "right"]
