"""Point 5: nothing is lost or half done, however a run ends, and nothing outlives it."""

import os
import random
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.build_project import DOIT, BuildProject, fill

SLEEPING_WORK = """
import os, signal, subprocess, sys, time

def sleep(out, how):
    if how == "ignores SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = "import os, time; open('grandchild', 'w').write(str(os.getpid())); time.sleep(60)"
    if how == "has a grandchild":
        subprocess.run([sys.executable, "-c", "import signal\\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n" + code])
    open("child.partly", "w").write(str(os.getpid()))
    os.rename("child.partly", "child")
    time.sleep(60)
"""
SLEEPING = """
from tasks.core.recipe import Recipe

def task_sleep():
    if "HOW" == "shell":
        yield {"name": "x", "actions": ["sh -c 'echo $$ > grandchild; sleep 60'"],
            "targets": ["out/x"]}
    else:
        yield Recipe(name="sleep", version=1, function="work:sleep", inputs={},
            outputs={"out": "out/x"}, parameters={"how": "HOW"}).task("x", "Sleeps.")
"""


def sleeping(root: Path, how: str) -> tuple[BuildProject, str]:
    """A project with a task that sleeps, and the file that tells it does."""
    project = BuildProject(root, SLEEPING.replace("HOW", how), SLEEPING_WORK)
    return project, "grandchild" if how in ("shell", "has a grandchild") else "child"


def processes_in(folder: Path) -> list[psutil.Process]:
    """Every process whose working directory is in the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def gone(folder: Path, seconds: float) -> bool:
    """Whether all processes in the folder are gone within the time."""
    deadline = time.monotonic() + seconds
    while processes_in(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize(
    "number, threads",
    [
        (signal.SIGINT, []),
        (signal.SIGTERM, ["-n", "2"]),
        pytest.param(signal.SIGINT, ["-n", "2"], marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, [], marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, [], marks=pytest.mark.slow),
        (signal.SIGHUP, ["-n", "2"]),
    ],
)
def test_a_signal_ends_the_run_and_all_below_it(tmp_path, number, threads):
    how = "has a grandchild" if threads else "shell"
    project, began = sleeping(tmp_path, how)
    process = project.start(*threads)
    project.wait_for(began)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert processes_in(tmp_path) == []
    assert process.returncode == 128 + number
    assert out == ""
    assert err.splitlines() == [
        f"ended by {number.name}; what was finished is kept, the next run goes on"
    ]


@pytest.mark.slow
def test_a_child_that_ignores_sigterm_is_killed(tmp_path):
    project, began = sleeping(tmp_path, "ignores SIGTERM")
    process = project.start()
    project.wait_for(began)
    process.terminate()
    process.communicate(timeout=10)
    assert processes_in(tmp_path) == []


@pytest.mark.parametrize("how", ["shell", "has a grandchild", "ignores SIGTERM"])
def test_no_process_outlives_a_killed_run(tmp_path, how):
    project, began = sleeping(tmp_path, how)
    process = project.start(*(["-n", "2"] if how == "shell" else []))
    project.wait_for(began)
    process.kill()
    process.communicate(timeout=10)
    assert gone(tmp_path, 2)
    assert not (project.root / "out/x").exists()
    # The lock is free at once and the work directory of the killed run is removed.
    project.write("dodo.py", 'def task_t():\n    return {"actions": ["true"]}\n')
    project.built()
    assert not (project.root / ".quern/work").exists()


@pytest.mark.slow
def test_no_process_outlives_a_run_of_which_another_task_fails(tmp_path):
    project, began = sleeping(tmp_path, "has a grandchild")
    failing = """
def task_fail():
    return {"actions": ["while ! test -e BEGAN; do sleep 0.05; done; false"]}
"""
    project.write("dodo.py", project.read("dodo.py") + failing.replace("BEGAN", began))
    work = project.read("work.py").replace("time.sleep(60)", "time.sleep(1)")
    project.write("work.py", work)
    outcome = project.doit("-n", "2")
    assert outcome.status == 1
    assert processes_in(tmp_path) == []


# ---- kill -9 at random moments ---------------------------------------------------------------

CHAINS = """
from tasks.core.recipe import Recipe

def task_recipe():
    for chain in range(2):
        for i in range(4):
            source = f"out/{chain}.{i - 1}" if i else "in/one"
            yield Recipe(name="slow", version=1, function="work:slow",
                inputs={"source": source},
                outputs={"out": f"out/{chain}.{i}", "second": f"out/{chain}.{i}.second"},
                parameters={"name": f"{chain}.{i}"}).task(f"{chain}.{i}", "Slow.")

def task_plain():
    for i in range(4):
        source = f"out/0.{i}"
        yield {"name": str(i), "file_dep": [source], "targets": [f"out/plain{i}"], "actions": [
            f"printf half > out/plain{i}; sleep 0.05; cat {source} {source} > out/plain{i}; "
            f"echo plain{i} >> runs"]}
"""
CHAINS_WORK = """
import time

def slow(source, out, second, name):
    text = open(source).read()
    for path in (out, second):
        with open(path, "w") as file:
            for letter in text + name:
                file.write(letter)
                file.flush()
                time.sleep(0.002)
    with open("runs", "a") as file:
        file.write(name + "\\n")
"""


def expected(first: str) -> dict[str, str]:
    """What the chains come to, worked out here."""
    files = {}
    for chain in range(2):
        text = first
        for i in range(4):
            text += f"{chain}.{i}"
            files[f"{chain}.{i}"] = files[f"{chain}.{i}.second"] = text
            if chain == 0:
                files[f"plain{i}"] = text * 2
    return files


def kill_and_check(root: Path, kills: int, threads: list[str], seed: int) -> None:
    generator = random.Random(seed)
    project = BuildProject(root, CHAINS, CHAINS_WORK)
    wanted = expected("one\n")
    for n in range(kills):
        if n % 5 == 0:  # something new to do
            first = f"round {n}\n"
            wanted = expected(first)
            project.write("in/one", first)
            (project.root / "runs").unlink(missing_ok=True)
        process = project.start(*threads)
        time.sleep(generator.uniform(0.1, 0.9))
        process.kill()
        process.communicate(timeout=10)
        # Recipes' targets are whole at every moment: of this round or the one before.
        for path in (project.root / "out").glob("[0-9]*"):
            text = path.read_text()
            name = path.name.removesuffix(".second")
            assert text.endswith(name) and text.startswith("round "), (path, text)
        if (project.root / ".quern/state.db").exists():
            database = sqlite3.connect(project.root / ".quern/state.db")
            assert database.execute("pragma integrity_check").fetchone()[0] == "ok"
            database.close()
        if n % 5 == 4:
            assert gone(root, 2)
            outcome = project.built(*threads)
            assert {p.name: p.read_text() for p in (project.root / "out").iterdir()} == wanted
            assert project.partial_files() == []
            assert not (project.root / ".quern/work").exists() or not list(
                (project.root / ".quern/work").iterdir()
            )
            assert project.built(*threads).text == ""
            # Every kill repeats at most what it hit.
            runs = project.runs()
            at_once = int(threads[-1]) if threads else 1
            assert len(runs) - len(set(runs)) <= 5 * at_once, runs
            assert "damaged" not in outcome.text


@pytest.mark.slow
@pytest.mark.parametrize("threads", [[], ["-n", "2"]], ids=["serial", "threads"])
def test_kill_at_random_moments(tmp_path, threads):
    kill_and_check(tmp_path, 10, threads, seed=len(threads))


def test_a_few_kills_at_random_moments(tmp_path):
    kill_and_check(tmp_path, 5, ["-n", "2"], seed=7)


def test_a_run_killed_between_store_and_target_restores_without_running(tmp_path):
    """The moment is made by hand: the result is in the store, the target is a partial file."""
    project = BuildProject(tmp_path)
    project.built()
    (project.root / "out/left").unlink()
    project.write("out/.left.partial", "on")
    with sqlite3.connect(project.root / ".quern/state.db") as database:
        database.execute("insert into running values ('make:left', 0)")
    database.close()
    outcome = project.built()
    assert outcome.ran == []
    assert project.read("out/left") == "one\ntwo\n"
    assert project.partial_files() == []


def test_a_partial_file_beside_a_whole_target_is_removed(tmp_path):
    project = BuildProject(tmp_path)
    project.built()
    project.write("out/.left.partial", "on")
    with sqlite3.connect(project.root / ".quern/state.db") as database:
        database.execute("insert into running values ('make:left', 0)")
    database.close()
    assert project.built().ran == []
    assert project.partial_files() == []


# ---- one run at a time -----------------------------------------------------------------------


def test_two_runs_at_once(tmp_path):
    project = BuildProject(
        tmp_path,
        'def task_t():\n    return {"actions": ["echo t >> runs; while ! test -e go; '
        'do sleep 0.02; done"], "file_dep": ["in/one"]}\n',
    )
    first = project.start()
    project.wait_for("runs")
    told = f"another doit is at work here: process {first.pid} on {os.uname().nodename} since "
    second = project.doit()
    assert second.status == 75
    assert second.err.startswith(told) and second.out == ""
    assert len(second.err.splitlines()) == 1
    cron = project.doit("--cron")
    assert cron.status == 0
    assert cron.text.startswith(told) and len(cron.text.splitlines()) == 1
    started = time.monotonic()
    assert project.doit("--wait", "0.5").status == 75
    assert time.monotonic() - started >= 0.5
    for changing in ("clean", "forget"):
        assert project.doit(changing).status == 75
    for reading in (["list", "--status"], ["plan"], ["why", "t"]):
        assert project.doit(*reading).status == 0  # reading needs no lock
    waiting = project.start("--wait", "20")
    time.sleep(0.4)
    project.write("go", "")
    assert first.wait(10) == 0
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out, err) == (0, "", "")
    assert project.runs() == ["t"]
    first.communicate()


# ---- damaged databases, full disks, missing tools ----------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a database, " * 999)


def scramble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 64] = os.urandom(64)
    path.write_bytes(data)


def drop_tables(path: Path) -> None:
    with sqlite3.connect(path) as database:
        for table in ("task", "digest"):
            database.execute(f"drop table {table}")
    database.close()


def not_json(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("update task set record = '{\"components\": '")
    database.close()


def not_text(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("update task set record = cast(x'fffe00ff' as text)")
    database.close()


def other_shape(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("update task set record = '[1, 2]'")
    database.close()


def from_the_future(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("pragma user_version=999")
    database.close()


@pytest.mark.parametrize(
    "harm",
    [
        truncate,
        scramble,
        not_json,
        from_the_future,
        *(
            pytest.param(harm, marks=pytest.mark.slow)
            for harm in (overwrite, drop_tables, not_text, other_shape)
        ),
    ],
)
def test_a_damaged_database_is_set_aside_and_filled_anew(tmp_path, built_once, harm):
    project = built_once.copy(tmp_path)
    harm(project.root / ".quern/state.db")
    outcome = project.built()
    assert outcome.ran == ["copy"]  # recipes come from the store; what has no store runs
    assert len(outcome.err.splitlines()) == 1
    assert "set aside as state.db.damaged-" in outcome.err
    assert list((project.root / ".quern").glob("state.db.damaged-*"))
    assert project.read("out/copy") == "one\ntwo\nthree\n"
    assert project.built().text == ""


def test_a_lost_database_is_filled_anew(tmp_path, built_once):
    project = built_once.copy(tmp_path)
    os.truncate(project.root / ".quern/state.db", 0)
    assert project.built().ran == ["copy"]
    (project.root / ".quern/state.db").unlink()
    assert project.built().ran == ["copy"]


def test_a_database_that_is_a_directory_is_one_line(tmp_path):
    project = BuildProject(tmp_path)
    (project.root / ".quern/state.db").mkdir(parents=True)
    outcome = project.doit()
    assert outcome.status == 3
    assert len(outcome.text.splitlines()) == 1
    assert ".quern/state.db" in outcome.err


def test_a_full_disk_is_one_line_and_changes_nothing(small_disk):
    project = BuildProject(
        small_disk / "project",
        """
from tasks.core.recipe import Recipe

def task_big():
    yield Recipe(name="big", version=1, function="work:big", inputs={"source": "in/one"},
        outputs={"out": "out/big"}).task("x", "Big.")
""",
        "def big(source, out):\n    text = open(source).read()\n"
        "    open(out, 'w').write(text * (1000 if text == 'one\\n' else 2_000_000))\n",
    )
    project.built()
    project.write("in/one", "two\n")
    outcome = project.doit()
    assert outcome.status == 1
    assert len(outcome.text.splitlines()) == 1
    assert outcome.err.startswith("big:x: ") and "No space left on device" in outcome.err
    assert project.read("out/big") == "one\n" * 1000
    assert project.partial_files() == []
    # Not a byte left: the database can't be written either.
    full = fill(small_disk)
    project.write("in/one", "6\n")  # same block
    outcome = project.doit()
    assert outcome.status in (1, 2, 3)
    assert len(outcome.text.splitlines()) == 1
    assert "No space" in outcome.err or "full" in outcome.err
    assert project.read("out/big") == "one\n" * 1000
    full.unlink()
    project.write("in/one", "one\n")
    outcome = project.built()
    assert "Traceback" not in outcome.text
    assert project.read("out/big") == "one\n" * 1000
    assert project.built().text == ""


def test_a_read_only_folder_is_one_line(tmp_path, built_once):
    project = built_once.copy(tmp_path / "project")
    subprocess.run(["mount", "--bind", project.root, project.root], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", project.root], check=True)
    try:
        outcome = project.doit()
        shown = project.doit("tabcompletion")
    finally:
        subprocess.run(["umount", "-l", project.root], check=True)
    assert outcome.status == 3
    assert len(outcome.text.splitlines()) == 1
    assert ".quern/lock" in outcome.err and "Read-only file system" in outcome.err
    assert shown.status == 0
    assert project.built().text == ""


def test_a_target_folder_that_cannot_be_written_is_one_line(tmp_path, built_once):
    project = built_once.copy(tmp_path / "project")
    subprocess.run(["mount", "--bind", project.root / "out", project.root / "out"], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", project.root / "out"], check=True)
    try:
        project.write("in/three", "THREE\n")
        outcome = project.doit("make:right")
    finally:
        subprocess.run(["umount", "-l", project.root / "out"], check=True)
    assert outcome.status == 1
    assert outcome.err.startswith("make:right: out/") and "Read-only file system" in outcome.err
    assert len(outcome.text.splitlines()) == 1
    assert project.read("out/right") == "three\n"
    assert project.built().ran == ["top", "copy"]  # right's result was in the store already


def test_permissions_that_forbid_are_one_line(tmp_path, built_once):
    """Without the capability by which root may write anywhere."""
    project = built_once.copy(tmp_path / "project")
    subprocess.run(["chmod", "-R", "a-w", project.root], check=True)
    without = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", DOIT]
    outcome = project.doit(program=without)
    subprocess.run(["chmod", "-R", "u+w", project.root], check=True)
    assert outcome.status == 3
    assert len(outcome.text.splitlines()) == 1
    assert "Permission denied" in outcome.err


def test_a_missing_program_is_one_line(tmp_path):
    project = BuildProject(
        tmp_path,
        """
from tasks.core.recipe import Recipe

def task_t():
    yield {"name": "list", "actions": [["no-such-compiler", "-o", "x"]]}
    yield {"name": "shell", "actions": ["no-such-compiler -o x"]}
    yield Recipe(name="t", version=1, function="work:compile", inputs={},
        outputs={"out": "x"}).task("recipe", "Compiles.")
    yield Recipe(name="t", version=1, function="nowhere:compile", inputs={},
        outputs={"out": "y"}).task("module", "Has no module.")
""",
        "import subprocess\ndef compile(out):\n    subprocess.run(['no-such-compiler'])\n",
    )
    outcome = project.doit()
    lines = outcome.err.splitlines()
    assert len(lines) == 4 and outcome.out == ""
    assert all("no-such-compiler" in line for line in lines[:3])
    assert "nowhere does not exist" in lines[3]


# ---- children that misbehave -------------------------------------------------------------------

MISBEHAVING = """
from tasks.core.recipe import Recipe

def task_child():
    yield Recipe(name="child", version=1, function="work:child", inputs={},
        outputs={"out": "out/x"}).task("x", "Misbehaves.")
"""


def misbehaving(root: Path, body: str) -> BuildProject:
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    head = "import os, sys, time, json, signal\nfrom tasks.core import action\n"
    return BuildProject(root, MISBEHAVING, f"{head}def child(out):\n{lines}\n")


def test_garbage_on_the_event_pipe_is_passed_over(tmp_path):
    project = misbehaving(
        tmp_path,
        r"""
os.write(action._events, b"garbage\n\xff\xfe\x00\n[1, 2]\n7\n{}\n{\"unheard of\": 1}\n\n")
action.note("told")
open(out, "w").write("x")
os.write(action._events, b"no end of line")
""",
    )
    outcome = project.built("-n", "2")
    assert "told" in outcome.out
    assert project.read("out/x") == "x"
    (project.root / ".quern/store").rename(project.root / "store")
    (project.root / "out/x").unlink()
    assert all("event" in event for event in project.events())


def test_a_huge_event_is_read(tmp_path):
    project = misbehaving(
        tmp_path, 'action.note("x" * 5_000_000 + "end")\nopen(out, "w").write("x")'
    )
    assert "xend\n" in project.built().out


def test_a_child_that_prints_a_lot_fills_its_log_only(tmp_path):
    project = misbehaving(
        tmp_path,
        """
for _ in range(300):
    print("x" * 100_000)
    sys.stderr.write("y" * 100_000)
open(out, "w").write("x")
""",
    )
    outcome = project.built()
    assert len(outcome.text) < 200
    assert (project.root / ".quern/logs/child.x.log").stat().st_size > 60_000_000


def test_a_daemon_forked_off_does_not_hold_the_run(tmp_path):
    project = misbehaving(
        tmp_path,
        """
if os.fork() == 0:
    os.setsid()
    open("daemon", "w").write(str(os.getpid()))
    time.sleep(30)
    os._exit(0)
while not os.path.exists("daemon"):
    time.sleep(0.01)
open(out, "w").write("x")
""",
    )
    started = time.monotonic()
    project.built()
    took = time.monotonic() - started
    project.wait_for("daemon")
    time.sleep(0.05)
    os.kill(int(project.read("daemon")), signal.SIGKILL)
    assert took < 15
    assert project.built().text == ""  # nor does it hold the lock


def test_a_child_forked_without_leaving_the_group_is_ended(tmp_path):
    project = misbehaving(
        tmp_path,
        """
if os.fork() == 0:
    time.sleep(30)
    os._exit(0)
open(out, "w").write("x")
""",
    )
    project.built()
    assert gone(tmp_path, 2)


@pytest.mark.parametrize(
    "body, told",
    [
        ("os._exit(7)", "its process ended with status 7"),
        ("os.kill(os.getpid(), 9)", "its process was ended by SIGKILL (out of memory?)"),
        ("sys.exit('enough')", "unexpected SystemExit: enough"),
        ("raise ValueError('two\\nlines')", "unexpected ValueError: two lines"),
        ("return {1, 2}", "unexpected TypeError: "),
        ("from tasks.core.errors import TryAgainLater; raise TryAgainLater('later')", "later"),
        ("os.close(action._events); open(out, 'w').write('x')", ""),
    ],
)
def test_however_a_child_ends_it_is_one_line(tmp_path, body, told):
    outcome = misbehaving(tmp_path, body).doit()
    assert len(outcome.text.splitlines()) == 1
    assert "Traceback" not in outcome.text
    assert told in outcome.text
    assert outcome.status == (75 if told == "later" else 1)
