"""Point 3, the part about commands: what each verb says, and its exit status."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.build_project import DOIT, BuildProject


@pytest.fixture
def project(tmp_path: Path, built_once: BuildProject) -> BuildProject:
    return built_once.copy(tmp_path)


def test_run_says_a_line_per_task_that_did_something(tmp_path):
    project = BuildProject(tmp_path)
    lines = project.built("-n", "2").out.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert re.fullmatch(r"[\w:]+: done in \d+\.\d s \(it has not run here before\)", line)
    assert project.built().text == ""


def test_list(project):
    assert project.built("list").out.split() == ["copy", "make"]
    listed = project.built("list", "--all", "--status").out
    assert [line.split()[:2] for line in listed.splitlines()] == [
        ["U", "copy"],
        ["U", "make"],
        ["U", "make:left"],
        ["U", "make:right"],
        ["U", "make:top"],
    ]
    project.write("in/three", "THREE\n")
    listed = project.built("list", "--all", "--status").out
    assert [line[0] for line in listed.splitlines()] == ["R", "R", "U", "R", "R"]
    (project.root / "in/three").unlink()
    listed = project.built("list", "--all", "--status").out
    assert [line[0] for line in listed.splitlines()] == ["R", "R", "U", "E", "R"]
    assert "in/two" in project.built("list", "--all", "--deps").out


def test_plan_is_a_dry_run_through_to_the_end(project):
    assert project.built("plan").out == "nothing would run: everything is up to date\n"
    before = project.read("in/three")
    project.write("in/three", "THREE\n")
    outcome = project.built("plan")
    lines = outcome.out.splitlines()
    assert re.fullmatch(
        r"make:right would run because input in/three changed from [0-9a-f]{12} to [0-9a-f]{12}",
        lines[0],
    )
    assert lines[1:] == [
        "make:top would run because make:right would",
        "copy would run because make:top would",
    ]
    assert outcome.ran == []
    assert project.built("plan").out == outcome.out  # nothing was recorded
    planned = json.loads(project.built("plan", "--json").out)
    assert {p["task"]: p["runs"] for p in planned} == {
        "make:left": False,
        "make:right": True,
        "make:top": True,
        "copy": True,
    }
    assert project.built("plan", "make:left").out.startswith("nothing would run")
    # What the plan says is what happens.
    assert project.built().ran == ["right", "top", "copy"]
    project.write("in/three", before)
    assert "make:right would be restored from the store because" in project.built("plan").out
    (project.root / "in/three").unlink()
    assert "make:right can't run: its input in/three does not exist" in project.built("plan").out


def test_plan_of_a_missing_input_names_who_makes_it(tmp_path):
    project = BuildProject(tmp_path)
    assert "make:top would run because" in project.built("plan").out


def test_why_says_what_changed_from_which_digest_to_which(project):
    from tasks.core.digest import digest_of_bytes

    old, new = digest_of_bytes(b"three\n"), digest_of_bytes(b"THREE\n")
    project.write("in/three", "THREE\n")
    project.built()
    told = project.built("why", "make:right").out
    changed = f"because input in/three changed from {old[:12]} to {new[:12]}"
    assert re.search(rf"\d\d:\d\d:\d\d: ran for \d+\.\d s, {changed}\n", told)
    assert "now: up to date" in told
    left = project.built("why", "make:left").out
    assert "did not run: nothing it depends on had changed" in left
    data = json.loads(project.built("why", "--json", "make").out)
    assert [item["task"] for item in data] == ["make:left", "make:right", "make:top"]
    reason = data[1]["decision"]["reasons"][0]
    assert (reason["kind"], reason["subject"]) == ("changed", "input in/three")
    assert (reason["before"], reason["after"]) == (old, new)


def test_why_of_a_failure_and_of_a_task_that_has_not_run(tmp_path):
    project = BuildProject(
        tmp_path,
        'def task_t():\n    yield {"name": "bad", "actions": ["exit 4"]}\n'
        '    yield {"name": "never", "actions": ["true"]}\n',
    )
    project.doit("--no-continue")
    assert "failed: command 'exit 4' ended with status 4" in project.built("why", "t:bad").out
    assert "it has not run here yet" in project.built("why", "t:never").out
    assert "now: would run because" in project.built("why", "t:bad").out
    outcome = project.doit("why")
    assert (outcome.status, outcome.out) == (3, "")
    assert project.doit("why", "nobody").status == 3


def test_info_says_what_a_task_is(project):
    told = project.built("info", "make:left").out
    assert "in/one" in told and "out/left" in told and "up-to-date" in told
    project.write("in/one", "ONE\n")
    outcome = project.doit("info", "make:left")
    assert outcome.status == 1  # doit's own: not up to date
    assert "input in/one changed from" in outcome.out
    assert project.doit("info", "nobody").status == 3


def test_help(project):
    assert "Join left." in project.built("help", "make:left").out
    assert "plan" in project.built("help").out
    assert "--wait" in project.built("help", "run").out
    assert "say what would run" in project.built("help", "plan").out
    assert not list(project.root.glob(".doit.db*"))  # no database of doit's own


def test_tab_completion_completes(project):
    script = project.built("tabcompletion").out
    project.write("completion.bash", script)
    shell = (
        "source completion.bash\n"
        "COMP_WORDS=(doit ma); COMP_CWORD=1\n"
        "eval \"$(complete -p doit | sed 's/.*-F \\([^ ]*\\) .*/\\1/')\"\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", shell],
        cwd=project.root,
        capture_output=True,
        text=True,
        env={"PATH": f"{Path(DOIT).parent}:/usr/bin:/bin"},
    )
    assert "make" in done.stdout.split(), done


def test_clean_removes_targets_and_fails_when_a_clean_action_fails(project):
    outcome = project.built("clean", "--dry-run", "make")
    assert "removing file 'out/left'" in outcome.out
    assert (project.root / "out/left").exists()
    project.built("clean", "make")
    assert sorted(p.name for p in (project.root / "out").iterdir()) == ["copy"]
    project.built("clean", "-a")
    assert not list((project.root / "out").iterdir())
    project.write(
        "dodo.py",
        'def fail():\n    raise ValueError("why not")\n\n'
        'def task_t():\n    yield {"name": "x", "actions": ["true"], "clean": ["exit 5"]}\n'
        '    yield {"name": "y", "actions": ["true"], "clean": [fail]}\n'
        '    yield {"name": "z", "actions": ["true"], "clean": ["touch cleaned"]}\n',
    )
    outcome = project.doit("clean", "-a")
    assert outcome.status == 1
    assert len(outcome.err.splitlines()) == 2 and "Traceback" not in outcome.text
    assert "t:x: clean failed: " in outcome.err and "exit 5" in outcome.err
    assert "t:y: clean failed: ValueError: why not" in outcome.err
    assert (project.root / "cleaned").exists()


def test_forget_and_ignore(project):
    project.built("forget", "copy")
    assert project.built().ran == ["copy"]
    project.built("forget", "--all")
    outcome = project.built()
    assert outcome.ran == ["copy"]  # the store is not forgotten
    assert outcome.out.count("restored from the store") == 3
    project.built("ignore", "copy")
    project.write("in/one", "ONE\n")
    assert "copy" not in project.built().ran
    project.built("forget", "copy")
    assert project.built().ran == ["copy"]


def test_json_events(project):
    project.write("in/three", "THREE\n")
    events = project.events()
    assert [e["event"] for e in events] == [
        "start",
        "up to date",
        "running",
        "done",
        "running",
        "done",
        "running",
        "done",
        "end",
    ]
    assert events[2]["task"] == "make:right"
    assert events[2]["reasons"][0]["subject"] == "input in/three"
    assert events[3]["outcome"] == "ran"
    project.write("dodo.py", 'def task_t():\n    return {"actions": ["exit 3"]}\n')
    assert [e["event"] for e in project.events()] == ["start", "running", "failed", "end"]


FAULTS = {
    "task failed": ('def task_t():\n    return {"actions": ["exit 3"]}\n', 1, "t: command"),
    "task broke": (
        'def broken():\n    raise ValueError("in\\ntwo lines")\n\n'
        'def task_t():\n    return {"actions": [broken]}\n',
        2,
        "t: ValueError: in two lines",
    ),
    "returned False": (
        'def no():\n    return False\n\ndef task_t():\n    return {"actions": [no]}\n',
        1,
        "t: Python Task failed",
    ),
    "input missing": (
        'def task_t():\n    return {"actions": ["true"], "file_dep": ["nothing"]}\n',
        2,
        "t: its input nothing does not exist; correct the path or make it",
    ),
    "input is a pipe": (
        'import os\nos.path.exists("fifo") or os.mkfifo("fifo")\n'
        'def task_t():\n    return {"actions": ["true"], "file_dep": ["fifo"]}\n',
        2,
        "t: fifo: is neither a file nor a directory",
    ),
    "broken uptodate": (
        'def check():\n    raise KeyError("x")\n\n'
        'def task_t():\n    return {"actions": ["true"], "uptodate": [check]}\n',
        2,
        "t: unexpected KeyError: 'x'",
    ),
    "syntax error": ("def task_t(:\n", 3, "dodo.py:1: unexpected SyntaxError"),
    "error in dodo.py": ("\nimport nowhere\n", 3, "dodo.py:2: unexpected ModuleNotFoundError"),
    "error in a task's function": (
        "def task_t():\n    return {}['x']\n",
        3,
        "dodo.py:2: unexpected KeyError: 'x'",
    ),
    "wrong task": (
        'def task_t():\n    return {"action": ["true"]}\n',
        3,
        "Task t must contain 'actions' field",
    ),
    "common target": (
        "def task_t():\n    for i in range(2):\n"
        '        yield {"name": str(i), "actions": ["true"], "targets": ["x"]}\n',
        3,
        "common target",
    ),
    "cycle": (
        'def task_a():\n    return {"actions": ["true"], "file_dep": ["b"], "targets": ["a"]}\n\n'
        'def task_b():\n    return {"actions": ["true"], "file_dep": ["a"], "targets": ["b"]}\n',
        3,
        "Cyclic",
    ),
    "refused by the user's code": (
        'from tasks.core.errors import QuernError\nraise QuernError("models.yaml:3: wrong")\n',
        3,
        "models.yaml:3: wrong",
    ),
    "later": (
        "from tasks.core.errors import TryAgainLater\nfrom tasks.core.recipe import Recipe\n"
        'def find():\n    raise TryAgainLater("gpu-box: out of reach")\n\n'
        'def task_t():\n    yield Recipe(name="t", version=1, function="work:join", inputs=find,'
        ' outputs={"out": "x"}).task("x", "Waits.")\n',
        75,
        "t:x: gpu-box: out of reach",
    ),
    "target in a file": (
        "from tasks.core.recipe import Recipe\n"
        'def task_t():\n    yield Recipe(name="t", version=1, function="work:join",'
        ' inputs={"sources": ["in/one"]}, outputs={"out": "in/one/x"},'
        ' parameters={"name": "t"}).task("x", "In a file.")\n',
        1,
        "t:x: in/one: is a file where a directory belongs; move it away",
    ),
    "target is a directory": (
        "from tasks.core.recipe import Recipe\n"
        'def task_t():\n    yield Recipe(name="t", version=1, function="work:join",'
        ' inputs={"sources": ["in/one"]}, outputs={"out": "out"},'
        ' parameters={"name": "t"}).task("x", "Is a directory.")\n',
        1,
        "t:x: out: is a directory where a file belongs; move it away",
    ),
}


IN_THREADS = ("task failed", "task broke", "later", "broken uptodate", "cycle")


@pytest.mark.parametrize(
    "fault, threads",
    [
        *((fault, []) for fault in FAULTS),
        *(pytest.param(fault, ["-n", "2"], marks=pytest.mark.slow) for fault in IN_THREADS),
    ],
)
def test_a_fault_is_one_line_and_an_exit_status(tmp_path, fault, threads):
    dodo, status, told = FAULTS[fault]
    outcome = BuildProject(tmp_path, dodo).doit(*threads)
    assert len(outcome.text.splitlines()) == 1, outcome
    assert outcome.out == ""
    assert told in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.status == status


def test_wrong_command_lines_are_one_line(project):
    for arguments in (
        ["nobody"],
        ["--no-such-option"],
        ["-n", "many"],
        ["-n", "-1"],
        ["plan", "nobody"],
        ["list", "nobody"],
        ["clean", "nobody"],
        ["forget", "nobody"],
    ):
        outcome = project.doit(*arguments)
        assert outcome.status == 3, outcome
        assert len(outcome.text.splitlines()) == 1, outcome
    empty = project.root / "empty"
    empty.mkdir()
    (empty / "pyproject.toml").write_text(project.read("pyproject.toml"))
    done = subprocess.run([DOIT], cwd=empty, capture_output=True, text=True)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1


def test_a_closed_pipe_is_no_fault(project):
    done = subprocess.run(
        ["bash", "-c", f"'{DOIT}' list --all | true"],
        cwd=project.root,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""


def test_of_several_faults_the_exit_status_is_the_gravest(tmp_path):
    later = FAULTS["later"][0].replace("task_t", "task_later")
    failing = 'def task_fail():\n    return {"actions": ["exit 1"]}\n'
    below = """
def task_below():
    return {"actions": ["true"], "file_dep": ["x"]}
"""
    project = BuildProject(tmp_path, later + below)
    outcome = project.doit()
    assert outcome.status == 75
    assert "below: not run, because later:x failed" in outcome.err
    project.write("dodo.py", later + failing)
    assert project.doit().status in (1, 2)


def test_failures_leave_what_stands_and_keep_no_other_task_from_running(project):
    dodo = project.read("dodo.py").replace("cat out/top > out/copy", "exit 9")
    project.write("dodo.py", dodo + 'def task_z():\n    return {"actions": ["echo z >> runs"]}\n')
    outcome = project.doit("--no-continue")
    assert outcome.ran == []
    assert outcome.status == 1
    outcome = project.doit()
    assert outcome.ran == ["z"]
    assert outcome.status == 1
    assert project.read("out/copy") == "one\ntwo\nthree\n"
    assert "its last run failed" in project.built("why", "copy").out
