"""kill -9 at random moments of fetch, weights, native and deploy: nothing is lost or half done."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tasks.core.digest import read_digests
from tasks.core.store import recipe_key
from tests.deploy_project import DeployProject

pytestmark = pytest.mark.slow

KILLS = 50
ALLOWED = ("quern-holder", "quern-server")


def processes_of(project: DeployProject) -> dict[int, tuple[str, str]]:
    """Every process that works in the project's folder: pid → (its name, its parent's)."""
    found = {}
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(project.root):
                parent = psutil.Process(process.ppid()).name()
                found[process.pid] = (process.name(), parent)
        except (psutil.Error, OSError):
            continue  # it ended while we looked
    return found


def kill_after(project: DeployProject, seconds: float) -> bool:
    """Start doit, SIGKILL it after `seconds`; whether it was still running."""
    process = subprocess.Popen(
        project.command(), cwd=project.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


def assert_no_orphans(project: DeployProject) -> None:
    """Only the holder and its servers remain, and those are in the holder's keeping."""
    deadline = time.monotonic() + 15
    while True:
        strays = [name for name, _ in processes_of(project).values() if name not in ALLOWED]
        if not strays:
            break
        assert time.monotonic() < deadline, strays
        time.sleep(0.1)
    for name, parent in processes_of(project).values():
        if name == "quern-server":
            assert parent == "quern-holder"


def assert_nothing_partial(project: DeployProject, made: dict[str, set[str]]) -> None:
    """Every target that exists is one of the whole contents it ever had."""
    for name, digests in made.items():
        path = project.root / name
        if path.exists():
            assert read_digests(path)[1] in digests, f"{name} is partial"
    connection = sqlite3.connect(project.root / ".quern/state.db")
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()


def targets(project: DeployProject) -> dict[str, str]:
    paths = [*project.root.glob("weights/digits/*"), *project.root.glob("native/build/*")]
    return {str(p.relative_to(project.root)): read_digests(p)[1] for p in sorted(paths)}


def forget(results: list[Path]) -> None:
    for path in results:
        path.unlink(missing_ok=True)


def seconds_of_runs(project: DeployProject, results: list[Path]) -> tuple[float, float]:
    """What a run takes that makes the weights anew, and one that has them from the store."""
    durations = []
    for number, known in ((0, False), (1, True)):
        project.use_checkpoint(number)
        if not known:
            forget(results)
        start = time.monotonic()
        project.doit()
        durations.append(time.monotonic() - start)
    return durations[0], durations[1]


def test_fifty_kills_lose_nothing(deploy_project: DeployProject):
    project = deploy_project
    made: dict[str, set[str]] = {}
    releases = {}
    for number in range(3):
        project.use_checkpoint(number)
        project.doit()
        for name, digest in targets(project).items():
            made.setdefault(name, set()).add(digest)
        releases[number] = project.health()["release"]
    results = project.root / ".quern/store/results"
    weights_results = [
        path
        for path in results.glob("*/*.json")
        if json.loads(path.read_bytes())["recipe"] in ("fetch", "weights", "release")
    ]
    seed = int(os.environ.get("QUERN_SEED", time.time_ns() % 100_000))
    print(f"QUERN_SEED={seed}")
    chance = random.Random(seed)
    # How long a run takes here, so that the moments fall inside one on any machine.
    rebuilt, reused = seconds_of_runs(project, weights_results)
    hit = 0
    for kill in range(KILLS):
        number = chance.choice([n for n in range(3)])
        project.use_checkpoint(number)
        rebuild = chance.random() < 0.5
        if rebuild:  # nothing known: fetch and weights must really run
            forget(weights_results)
        if chance.random() < 0.3:
            for path in project.root.glob("weights/digits/*"):
                path.unlink()
        hit += kill_after(project, chance.uniform(0.05, rebuilt if rebuild else reused))
        assert_no_orphans(project)
        assert_nothing_partial(project, made)
        assert project.health()["release"] in releases.values()
        if kill % 5 == 4:  # the next doit finishes
            done = project.doit("run", "--json")
            events = [json.loads(line) for line in done.stdout.splitlines()]
            ended = [e["task"] for e in events if e["event"] == "done"]
            assert len(ended) == len(set(ended))
            assert project.health()["release"] == releases[number]
            assert project.doit().stdout == ""
            assert not list(project.root.rglob(".*.partial"))
    assert hit >= KILLS // 2
    project.doit()
    assert targets(project).items() <= {
        (name, digest) for name, digests in made.items() for digest in digests
    }


def test_only_the_task_that_was_hit_is_repeated(deploy_project: DeployProject):
    project = deploy_project
    project.use_checkpoint(0)
    process = subprocess.Popen(
        project.command("run", "--json"), cwd=project.root, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    ended = []
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "done":
            ended.append(event["task"])
        if event["event"] == "running" and event["task"] == "weights:digits":
            time.sleep(0.3)
            process.kill()
            break
    process.stdout.close()
    process.wait()
    assert "fetch:digits" in ended
    assert_no_orphans(project)
    done = project.doit("run", "--json")
    again = [json.loads(line) for line in done.stdout.splitlines()]
    assert not {e["task"] for e in again if e["event"] == "done"} & set(ended)
    why = project.doit("why", "weights:digits").stdout
    assert "has not finished" in why


@pytest.mark.parametrize("moment", [0.5, 3.0, 8.0])
def test_a_compiler_dies_with_doit(deploy_project: DeployProject, moment: float):
    project = deploy_project
    project.use_checkpoint(0)
    project.doit("native")
    before = targets(project)
    results = project.root / ".quern/store/results"
    native = {
        path: path.read_bytes()
        for path in results.glob("*/*.json")
        if json.loads(path.read_bytes())["recipe"] == "native"
    }
    for path in native:
        path.unlink()
    for path in project.root.glob("native/build/*"):
        path.unlink()
    process = subprocess.Popen(project.command("native:server"), cwd=project.root)
    deadline = time.monotonic() + 60
    building = ("make", "gmake", "cmake")
    while not any(name in building for name, _ in processes_of(project).values()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(moment)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert_no_orphans(project)
    assert not list(project.root.glob("native/build/*"))
    for path, data in native.items():
        path.write_bytes(data)
    project.doit("native")
    assert targets(project) == before


def test_recipe_keys_do_not_depend_on_where_the_project_is():
    components = {"recipe version": "1", "input a": "0" * 32}
    assert recipe_key("copy", components) == recipe_key("copy", dict(reversed(components.items())))
