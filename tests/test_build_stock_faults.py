"""Every fault found in stock doit 0.37: shown in stock doit where that is cheap, absent here."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.build_project import BuildProject, fill

# As a whole 35 s: each fault is also held, without stock doit beside it, by a quicker test.
pytestmark = pytest.mark.slow

COPY = """
def task_copy():
    return {"actions": ["cat in/one > out/copy; echo copy >> runs"], "file_dep": ["in/one"],
        "targets": ["out/copy"]}
"""
CHAIN = (
    COPY
    + """
def task_below():
    return {"actions": ["cat out/copy > out/below; echo below >> runs"], "file_dep": ["out/copy"],
        "targets": ["out/below"]}
"""
)


def quern_and_stock(root: Path, dodo: str) -> tuple[BuildProject, BuildProject]:
    return BuildProject(root / "quern", dodo), BuildProject(root / "stock", dodo, stock=True)


def built_twice(root: Path, dodo: str) -> tuple[BuildProject, BuildProject]:
    """Both projects, built, and found up to date."""
    projects = quern_and_stock(root, dodo)
    for project in projects:
        project.built()
        assert project.built().ran == []
    return projects


def test_same_mtime_counts_as_unchanged(tmp_path):
    quern, stock = built_twice(tmp_path, COPY)
    for project in (quern, stock):
        kept = (project.root / "in/one").stat().st_mtime_ns
        os.utime(project.write("in/one", "much longer than before\n"), ns=(kept, kept))
    assert stock.built().ran == []
    assert quern.built().ran == ["copy"]


def test_after_a_touch_the_file_is_hashed_at_every_later_run(tmp_path):
    dodo = """
def task_use():
    for i in range(3):
        yield {"name": str(i), "actions": ["echo use >> runs"], "file_dep": ["in/one"]}
"""
    quern, stock = built_twice(tmp_path, dodo)
    for project in (quern, stock):
        os.utime(project.root / "in/one", ns=(1, 1))
    time.sleep(2.2)
    assert [quern.opens("in/one"), quern.opens("in/one")] == [1, 0]
    assert [stock.opens("in/one"), stock.opens("in/one")] == [3, 3]


def test_changed_command_and_targets_are_not_noticed(tmp_path):
    quern, stock = built_twice(tmp_path, COPY)
    for project in (quern, stock):
        project.write("dodo.py", COPY.replace("cat in/one", "rev in/one"))
    assert stock.built().ran == []
    assert quern.built().ran == ["copy"]
    for project in (quern, stock):
        project.write("out/more", "")
        project.write("dodo.py", COPY.replace('"out/copy"]', '"out/copy", "out/more"]'))
    assert stock.built().ran == []
    assert quern.built().ran == ["copy"]


def test_an_input_edited_while_the_action_runs_is_recorded_as_built(tmp_path):
    dodo = COPY.replace("echo copy >> runs", "echo copy >> runs; echo new > in/one")
    quern, stock = quern_and_stock(tmp_path, dodo)
    stock.built()
    assert stock.built().ran == []  # stale for good
    assert stock.read("out/copy") == "one\n"
    assert quern.doit().status == 1
    assert quern.built().ran == ["copy"]
    assert quern.read("out/copy") == "new\n"


def test_a_tampered_target_is_not_noticed_and_propagated(tmp_path):
    quern, stock = built_twice(tmp_path, CHAIN)
    for project in (quern, stock):
        project.write("out/copy", "tampered\n")
    assert stock.built().ran == ["below"]
    assert stock.read("out/below") == "tampered\n"
    assert quern.built().ran == ["copy"]
    assert quern.read("out/below") == quern.read("out/copy") == "one\n"


def test_a_declared_target_never_produced_exits_0(tmp_path):
    dodo = 'def task_lazy():\n    return {"actions": ["true"], "targets": ["out/never"]}\n'
    quern, stock = quern_and_stock(tmp_path, dodo)
    assert stock.doit().status == 0
    assert quern.doit().status == 1


def test_two_spellings_of_a_path_are_two_nodes(tmp_path):
    dodo = """
def task_second():
    return {"actions": ["cat mid > end"], "file_dep": ["mid"], "targets": ["end"]}

def task_first():
    return {"actions": ["cat in/one > mid"], "file_dep": ["in/one"], "targets": ["./mid"]}
"""
    quern, stock = quern_and_stock(tmp_path, dodo)
    assert stock.doit().status == 1  # it knows no task that makes mid
    assert quern.doit().status == 0
    assert quern.read("end") == "one\n"


SLOW_LAST = (
    CHAIN
    + """
def task_slow():
    return {"actions": ["echo slow >> runs; echo $$ > pid; SLEEP"], "file_dep": ["out/below"]}
"""
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_database_is_written_once_at_the_end(tmp_path, number):
    quern, stock = quern_and_stock(tmp_path, SLOW_LAST.replace("SLEEP", "sleep 30"))
    for project in (quern, stock):
        process = project.start()
        project.wait_for("pid")
        process.send_signal(number)
        process.communicate(timeout=20)
        project.write("dodo.py", SLOW_LAST.replace("SLEEP", "true"))
    assert stock.built().ran == ["copy", "below", "slow"]  # every record of the run is lost
    assert quern.built().ran == ["slow"]


def test_a_kill_and_a_reverted_input_leave_the_wrong_output_up_to_date(tmp_path):
    dodo = COPY.replace("echo copy >> runs", "echo copy >> runs; touch began; SLEEP")
    quern, stock = quern_and_stock(tmp_path, dodo)
    for project in (quern, stock):
        project.write("dodo.py", dodo.replace("SLEEP", "true"))
        project.built()
        kept = (project.root / "in/one").stat()
        (project.root / "began").unlink()
        project.write("dodo.py", dodo.replace("SLEEP", "sleep 20"))
        project.write("in/one", "B\n")
        process = project.start()
        project.wait_for("began")
        process.kill()
        process.communicate(timeout=10)
        project.write("dodo.py", dodo.replace("SLEEP", "true"))
        project.write("in/one", "one\n")
        os.utime(project.root / "in/one", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert stock.built().ran == []
    assert stock.read("out/copy") == "B\n"
    assert quern.built().ran == ["copy"]
    assert quern.read("out/copy") == "one\n"


def test_two_runs_do_every_action_twice(tmp_path):
    dodo = COPY.replace("echo copy >> runs", "echo copy >> runs; touch began; sleep 1.5")
    quern, stock = quern_and_stock(tmp_path, dodo)
    for project in (quern, stock):
        first = project.start()
        project.wait_for("began")
        second = project.start()
        second.communicate(timeout=30)
        first.communicate(timeout=30)
        assert first.returncode == 0
        assert second.returncode == (75 if project is quern else 0)
    assert stock.runs() == ["copy", "copy"]
    assert quern.runs() == ["copy"]


SLEEPERS = """
import os, time

def sleep(i):
    open(f"pid{i}", "w").write(str(os.getpid()))
    time.sleep(30)

def task_sleep():
    for i in range(2):
        yield {"name": str(i), "actions": [ACTION]}
"""


def test_killed_with_n_workers_stay(tmp_path):
    stock = BuildProject(tmp_path / "stock", SLEEPERS.replace("ACTION", "(sleep, [i])"), stock=True)
    command = 'f"echo $$ > pid{i}; sleep 30"'
    quern = BuildProject(tmp_path / "quern", SLEEPERS.replace("ACTION", command))
    alive = {}
    for project in (quern, stock):
        process = project.start("-n", "2", start_new_session=True)
        time.sleep(0.2)
        project.wait_for("pid0")
        project.wait_for("pid1")
        time.sleep(0.2)
        process.kill()
        workers = [psutil.Process(int(project.read(f"pid{i}"))) for i in range(2)]
        _, alive[project] = psutil.wait_procs(workers, timeout=3)
        for worker in alive[project]:
            worker.kill()
        process.communicate(timeout=10)
    assert len(alive[stock]) == 2
    assert alive[quern] == []


def test_a_killed_worker_hangs_doit(tmp_path):
    dying = """
import os, signal

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""
    stock = BuildProject(
        tmp_path / "stock",
        dying + 'def task_die():\n    yield {"name": "x", "actions": [die]}\n',
        stock=True,
    )
    process = stock.start("-n", "2", start_new_session=True)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    quern = BuildProject(
        tmp_path / "quern",
        "from tasks.core.recipe import Recipe\n\ndef task_die():\n"
        '    yield Recipe(name="die", version=1, function="work:die", inputs={},'
        ' outputs={"out": "x"}).task("x", "Dies.")\n',
        dying.replace("die()", "die(out)"),
    )
    outcome = quern.doit("-n", "2")
    assert outcome.status == 1
    assert "die:x: its process was ended by SIGKILL (out of memory?)" in outcome.err


def test_the_default_database_is_not_portable(tmp_path):
    quern, stock = built_twice(tmp_path, COPY)
    assert (
        not (stock.root / ".doit.db").exists()
        or b"SQLite" not in ((stock.root / ".doit.db").read_bytes()[:16])
    )
    assert (quern.root / ".quern/state.db").read_bytes().startswith(b"SQLite format 3")


def test_disk_full_truncates_the_json_database(tmp_path, small_disk):
    dodo = """
def task_t():
    for i in range(COUNT):
        yield {"name": f"{i}", "actions": ["echo t >> /dev/null"], "file_dep": ["in/one"]}
"""
    quern = BuildProject(small_disk / "quern", dodo.replace("COUNT", "5"))
    stock = BuildProject(small_disk / "stock", dodo.replace("COUNT", "5"), stock=True)
    stock.write("doit.cfg", "[GLOBAL]\nbackend = json\ndep_file = records.json\n")
    for project in (quern, stock):
        project.built()
        project.write("dodo.py", dodo.replace("COUNT", "300"))
    before = (stock.root / "records.json").read_text()
    full = fill(small_disk)
    stock_outcome = stock.doit()
    quern_outcome = quern.doit()
    damaged = (stock.root / "records.json").read_text()
    full.unlink()
    assert stock_outcome.status != 0
    assert damaged != before  # what was recorded before is gone
    assert not damaged.endswith("}")
    assert quern_outcome.status in (2, 3)
    assert len(quern_outcome.text.splitlines()) == 1
    assert "full" in quern_outcome.err or "No space" in quern_outcome.err
    quern.write("dodo.py", dodo.replace("COUNT", "5"))
    assert quern.built().text == ""


def test_a_directory_as_file_dep_aborts_the_run(tmp_path):
    dodo = 'def task_pack():\n    return {"actions": ["ls in > out/x"], "file_dep": ["in"]}\n'
    quern, stock = quern_and_stock(tmp_path, dodo)
    assert "Traceback" in stock.doit().text
    assert quern.doit().status == 0


def test_clean_exits_0_when_a_clean_action_fails(tmp_path):
    dodo = 'def task_t():\n    return {"actions": ["true"], "clean": ["false"]}\n'
    quern, stock = quern_and_stock(tmp_path, dodo)
    assert stock.doit("clean").status == 0
    outcome = quern.doit("clean")
    assert outcome.status == 1
    assert "t: clean failed: " in outcome.err


def test_list_status_judges_each_task_alone(tmp_path):
    quern, stock = built_twice(tmp_path, CHAIN)
    for project in (quern, stock):
        project.write("in/one", "other\n")
    assert [line[0] for line in stock.built("list", "--status").out.splitlines()] == ["U", "R"]
    assert [line[0] for line in quern.built("list", "--status").out.splitlines()] == ["R", "R"]


def test_list_status_with_another_checker_deletes_records(tmp_path):
    quern, stock = built_twice(tmp_path, COPY)
    assert stock.doit("list", "--status", "--check_file_uptodate", "timestamp").status == 0
    assert stock.built().ran == ["copy"]
    # There is one way of checking here.
    assert quern.doit("list", "--status", "--check_file_uptodate", "timestamp").status == 3
    assert quern.built().ran == []


def test_failure_text_goes_to_stdout(tmp_path):
    dodo = 'def task_t():\n    return {"actions": ["exit 3"]}\n'
    quern, stock = quern_and_stock(tmp_path, dodo)
    assert "TaskFailed" in stock.doit().out
    outcome = quern.doit()
    assert outcome.out == ""
    assert outcome.err.startswith("t: command 'exit 3' ended with status 3")


def test_percent_in_shell_strings_is_formatted(tmp_path):
    dodo = 'def task_t():\n    return {"actions": ["date +%Y > year; printf %s x > y"]}\n'
    quern, stock = quern_and_stock(tmp_path, dodo)
    assert stock.doit().status == 2
    assert quern.doit().status == 0
    assert int(quern.read("year")) > 2000
    assert quern.read("y") == "x"


def test_sigterm_is_not_handled(tmp_path):
    quern, stock = quern_and_stock(
        tmp_path, 'def task_t():\n    return {"actions": ["echo $$ > pid; sleep 30"]}\n'
    )
    alive = {}
    for project in (quern, stock):
        process = project.start()
        project.wait_for("pid")
        time.sleep(0.1)
        process.terminate()
        worker = psutil.Process(int(project.read("pid")))
        _, alive[project] = psutil.wait_procs([worker], timeout=3)
        for each in alive[project]:
            for child in each.children():
                child.kill()
            each.kill()
        process.communicate(timeout=10)
        assert process.returncode == (128 + signal.SIGTERM if project is quern else -15)
    assert len(alive[stock]) == 1
    assert alive[quern] == []
