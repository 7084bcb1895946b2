"""Point 5: each task's result is committed when it ends, from any thread, and kept small."""

import json
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from tasks.core.digest import DigestIndex
from tasks.core.errors import QuernError
from tasks.core.logs import LOG_BYTES, LOGS_KEPT
from tasks.core.project import Project, file_name
from tasks.core.state import State
from tests.build_project import BuildProject


def rows(project: BuildProject, query: str) -> list[tuple]:
    database = sqlite3.connect(project.root / ".quern/state.db")
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def test_a_result_is_committed_when_its_task_ends(tmp_path):
    project = BuildProject(
        tmp_path,
        'def task_t():\n    yield {"name": "1", "actions": ["true"]}\n'
        '    yield {"name": "2", "actions": ["touch began; sleep 30"]}\n',
    )
    process = project.start()
    project.wait_for("began")
    try:
        assert rows(project, "select name from task") == [("t:1",)]
        assert rows(project, "select name from running") == [("t:2",)]
        assert rows(project, "select name, outcome from decision") == [("t:1", "ran")]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)


def test_a_failed_task_runs_again_and_a_group_is_not_recorded(tmp_path):
    dodo = 'def task_t():\n    yield {"name": "x", "file_dep": ["in/one"], "actions": ["STEP"]}\n'
    project = BuildProject(tmp_path, dodo.replace("STEP", "echo x >> runs"))
    project.built()
    project.write("in/one", "ONE\n")
    project.write("dodo.py", dodo.replace("STEP", "echo x >> runs; exit 1"))
    assert project.doit().ran == ["x"]
    # The input and the command as at the last success: that a run failed since must count.
    project.write("in/one", "one\n")
    project.write("dodo.py", dodo.replace("STEP", "echo x >> runs"))
    assert project.built().ran == ["x"]
    assert rows(project, "select name from task") == [("t:x",)]


def test_many_tasks_in_threads_share_one_database(tmp_path):
    project = BuildProject(
        tmp_path,
        """
from tasks.core.recipe import Recipe

def task_r():
    for i in range(12):
        yield Recipe(name="join", version=1, function="work:join",
            inputs={"sources": ["in/one", f"out/s{i}"]}, outputs={"out": f"out/r{i}"},
            parameters={"name": f"r{i}"}).task(str(i), "Joins.")

def task_s():
    for i in range(12):
        yield {"name": str(i), "actions": [f"echo {i} > out/s{i}; echo s{i} >> runs"],
            "file_dep": ["in/one"], "targets": [f"out/s{i}"]}
""",
    )
    assert sorted(project.built("-n", "6").ran) == sorted(
        f"{kind}{i}" for kind in "rs" for i in range(12)
    )
    assert [project.read(f"out/r{i}") for i in range(12)] == [f"one\n{i}\n" for i in range(12)]
    assert project.built("-n", "6").text == ""
    assert project.built().text == ""


def test_the_index_and_the_database_hold_under_threads(tmp_path):
    files = [tmp_path / f"{i}" for i in range(40)]
    for i, path in enumerate(files):
        path.write_bytes(b"%d" % i * 1000)
    index = DigestIndex(State(tmp_path / "state.db"))
    expected = [index.digest(str(path)) for path in files]
    faults: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for n in range(60):
                i = (n * 7 + seed) % len(files)
                os.utime(files[i])
                assert index.digest(str(files[i])) == expected[i]
                if n % 10 == 0:
                    index.save()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    index.save()
    again = DigestIndex(State(tmp_path / "state.db"))
    assert [again.digest(str(path)) for path in files] == expected


def test_the_database_opened_while_another_process_writes(tmp_path):
    project = BuildProject(tmp_path)
    project.built()
    writer = sqlite3.connect(project.root / ".quern/state.db", isolation_level=None)
    writer.execute("begin immediate")
    writer.execute("insert into running values ('other', 0)")
    os.utime(project.root / "in/one")  # so that doit list has a digest to save
    process = project.start("list", "--all", "--status")
    time.sleep(0.7)
    writer.execute("rollback")
    writer.close()
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert [line[0] for line in out.splitlines()] == ["U"] * 5


@pytest.mark.slow
def test_readers_beside_a_run_do_not_disturb_it(tmp_path):
    project = BuildProject(
        tmp_path,
        "def task_t():\n    for i in range(30):\n"
        '        yield {"name": str(i), "actions": [f"sleep 0.02; echo {i} > out/{i}"],'
        ' "targets": [f"out/{i}"], "file_dep": ["in/one"]}\n',
    )
    run = project.start("-n", "2")
    while run.poll() is None:
        for reading in (["list", "--all", "--status"], ["plan"]):
            outcome = project.doit(*reading)
            assert (outcome.status, outcome.err) == (0, "")
    assert run.communicate()[1] == ""
    assert run.returncode == 0
    assert project.built().text == ""


def test_the_list_of_what_was_up_to_date_is_kept_of_the_last_run_only(tmp_path):
    project = BuildProject(tmp_path)
    for _ in range(4):
        project.built()
    lists = [row[0] for row in rows(project, "select up_to_date from run order by id")]
    assert lists[:-1] == [None, None, None]
    assert len(json.loads(lists[-1])) == 4


def test_logs_are_rotated(tmp_path):
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    for n in range(LOGS_KEPT + 3):
        project.open_log("weights:digits").write_text(f"{n}" * (LOG_BYTES + 1))
    project.open_log("weights:digits")
    logs = sorted(path.name for path in (project.private / "logs").iterdir())
    assert logs == [
        "weights.digits.log",
        *(f"weights.digits.log.{i + 1}" for i in range(LOGS_KEPT)),
    ]
    newest = (project.private / "logs/weights.digits.log.1").read_text()
    assert newest[0] == str(LOGS_KEPT + 2)


def test_what_a_task_prints_is_in_its_log(tmp_path):
    project = BuildProject(
        tmp_path,
        'def task_t():\n    return {"actions": ["echo to out; echo to err >&2; exit 1"]}\n',
    )
    outcome = project.doit()
    assert outcome.err.splitlines() == [
        "t: command 'echo to out; echo to err >&2; exit 1' ended with status 1"
        " (log: .quern/logs/t.log)"
    ]
    assert "to err" in project.read(".quern/logs/t.log")
    assert "to out" in project.read(".quern/logs/t.log")


def test_task_names_with_odd_characters(tmp_path):
    names = ["a.b", "a/b", "a b", "ä", "a%2fb", "'\"", "..", "-x", "$(touch pwned)", "x" * 300]
    project = BuildProject(
        tmp_path,
        f"""
from tasks.core.recipe import Recipe

def task_odd():
    for i, name in enumerate({names!r}):
        yield Recipe(name="join", version=1, function="work:join",
            inputs={{"sources": ["in/one"]}}, outputs={{"out": f"out/{{i}}"}},
            parameters={{"name": f"odd{{i}}"}}).task(name, "Odd.")
""",
    )
    assert len(project.built("-n", "4").ran) == len(names)
    assert project.built().text == ""
    assert not (project.root / "pwned").exists()
    assert len({file_name(f"odd:{name}") for name in names}) == len(names)
    assert project.built("why", "odd:a/b").out.startswith("odd:a/b:")


def test_colliding_names_have_logs_and_work_folders_of_their_own():
    assert len({file_name(n) for n in ("a:b", "a.b", "a/b", "a b", "a%2eb", "a::b")}) == 6
    assert file_name("weights:digits") == "weights.digits"


def test_output_of_python_actions_in_threads_does_not_swallow_faults(tmp_path):
    project = BuildProject(
        tmp_path,
        """
import time

def slow():
    print("slow")
    time.sleep(1)

def task_t():
    yield {"name": "slow", "actions": [slow]}
    yield {"name": "bad", "actions": ["sleep 0.3; exit 1"]}
""",
    )
    outcome = project.doit("-n", "2")
    assert "t:bad: command" in outcome.err
    assert outcome.status == 1


def test_a_state_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / ".quern").write_text("a file")
    with pytest.raises(QuernError, match=r"\.quern"):
        State(tmp_path / ".quern" / "state.db")
    outcome = BuildProject(tmp_path).doit()
    assert outcome.status == 3
    assert len(outcome.text.splitlines()) == 1


def test_values_pass_from_task_to_task(tmp_path):
    project = BuildProject(
        tmp_path,
        """
def give():
    return {"number": 7}

def take(number):
    open("runs", "a").write(f"{number}\\n")

def task_give():
    return {"actions": [give], "file_dep": ["in/one"]}

def task_take():
    return {"actions": [take], "getargs": {"number": ("give", "number")}}
""",
    )
    assert project.built().ran == ["7"]
    assert project.built().ran == []  # getargs: up to date as long as the value stays


def test_work_is_removed_whatever_happens(tmp_path: Path) -> None:
    project = BuildProject(tmp_path)
    project.built()
    work = project.root / ".quern/work"
    assert not work.exists() or not list(work.iterdir())
