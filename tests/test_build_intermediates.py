"""Intermediates that are dropped, large artifacts, and what is said of a process that crashed."""

import os
import stat
from pathlib import Path

import pytest

from tests.build_project import BuildProject

# source -> middle (droppable) -> a, b (recipes); tidy drops middle once a and b are there.
CHAIN = """
import os
from tasks.core.recipe import FunctionAction, Recipe


def drop(project, task, paths):
    project.intermediates.drop(paths)


def joined(name, sources, **more):
    return Recipe(
        name="join", version=1, function="work:join", inputs={"sources": sources},
        outputs={"out": f"out/{name}"}, parameters={"name": name}, **more,
    ).task(name, f"Join {name}.")


def task_make():
    yield joined("middle", ["in/one"], drop=True, large=True)
    for name in NAMES:
        yield joined(name, ["out/middle", "in/two"])


def task_tidy():
    return {
        "actions": [FunctionAction(drop, paths=["out/middle"])],
        "task_dep": ["make"],
        "uptodate": [lambda: not os.path.exists("out/middle")],
    }
"""


def project(root: Path, names: str = "['a', 'b']") -> BuildProject:
    return BuildProject(root, dodo=CHAIN.replace("NAMES", names))


def test_a_dropped_intermediate_costs_nothing_until_it_is_needed(tmp_path):
    build = project(tmp_path)
    assert build.built().ran == ["middle", "a", "b"]
    assert not (tmp_path / "out/middle").exists()
    assert not [p for p in (tmp_path / ".quern/store/objects").rglob("*") if reads(p, "one\n")]
    outcome = build.built()
    assert outcome.ran == [] and outcome.text == ""
    # Another consumer: it alone runs, after the intermediate was made again; then that goes.
    build.write("dodo.py", CHAIN.replace("NAMES", "['a', 'b', 'c']"))
    outcome = build.built()
    assert outcome.ran == ["middle", "c"]
    assert "out/middle was dropped: made again" in outcome.text
    assert build.read("out/c") == "one\ntwo\n"
    assert not (tmp_path / "out/middle").exists()
    assert build.built().ran == []


def reads(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


def test_a_change_upstream_runs_through_a_dropped_intermediate(tmp_path):
    build = project(tmp_path)
    build.built()
    build.write("in/one", "ONE\n")
    assert build.built().ran == ["middle", "a", "b"]
    assert build.read("out/a") == "ONE\ntwo\n"


def test_consumers_side_by_side_make_it_again_once(tmp_path):
    build = project(tmp_path)
    build.built()
    build.write("in/two", "TWO\n")
    ran = build.built("-n", "2").ran
    assert sorted(ran) == ["a", "b", "middle"]
    assert build.read("out/b") == "one\nTWO\n"


def test_a_deleted_target_comes_from_the_store_without_its_intermediate(tmp_path):
    build = project(tmp_path)
    build.built()
    (tmp_path / "out/a").unlink()
    assert build.built().ran == []
    assert build.read("out/a") == "one\ntwo\n"


def test_one_that_comes_out_differently_is_refused(tmp_path):
    build = project(tmp_path)
    text = build.read("work.py").replace("= separator.join(", "= chance() + separator.join(")
    build.write("work.py", text + "\n\ndef chance():\n    return os.urandom(4).hex()\n")
    build.write("work.py", "import os\n" + build.read("work.py"))
    build.built()
    build.write("in/two", "2\n")
    outcome = build.doit()
    assert outcome.status == 1
    assert "out/middle came out differently than before it was dropped" in outcome.text


@pytest.mark.parametrize("large", [True, False])
def test_a_large_artifact_is_one_file_with_two_names(tmp_path, large):
    build = BuildProject(
        tmp_path,
        dodo=CHAIN.replace("NAMES", "[]").replace("drop=True, large=True", f"large={large}"),
    )
    build.built("make")
    target = tmp_path / "out/middle"
    links, mode = target.stat().st_nlink, stat.S_IMODE(target.stat().st_mode)
    shares_blocks = links == 1 and large  # a file system with reflinks
    assert (links, mode) == ((2, 0o444) if large and not shares_blocks else (1, 0o644))
    # An edit in place reaches the store; it is noticed, and the artifact made anew.
    os.chmod(target, 0o644)
    target.write_text("edited")
    outcome = build.built("make")
    assert build.read("out/middle") == "one\n"
    assert ("damaged in the store" in outcome.text) == (links == 2)
    assert outcome.ran == (["middle"] if links == 2 else [])


CRASH = """
import os
import signal


def crash(out):
    print("loading tensors")
    print("GGML_ASSERT(n > 0) failed", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_a_crash_is_one_line_with_the_last_words_of_the_log(tmp_path):
    dodo = """
from tasks.core.recipe import Recipe


def task_crash():
    yield Recipe(
        name="crash", version=1, function="work:crash", outputs={"out": "out/it"}
    ).task("it", "Crash.")
"""
    build = BuildProject(tmp_path, dodo=dodo, work=CRASH)
    outcome = build.doit()
    assert outcome.status == 1
    lines = outcome.err.splitlines() or outcome.out.splitlines()
    assert len(lines) == 1, outcome
    assert "SIGSEGV" in lines[0]
    assert "loading tensors | GGML_ASSERT(n > 0) failed" in lines[0]
    assert ".quern/logs/crash.it.log" in lines[0]
    assert not (tmp_path / "out/it").exists()
