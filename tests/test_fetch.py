"""Which checkpoint of this machine is taken, and what is told of it; no host is involved."""

import hashlib
import json
import os
import sqlite3
from pathlib import Path

import pytest

from tests.source_world import SourceProject, whole

PATTERN = "{path: training/checkpoints_cycle*/best_model.pth"


@pytest.fixture
def project(tmp_path: Path) -> SourceProject:
    return SourceProject(tmp_path).configure(dogs=PATTERN + "}")


def write(project: SourceProject, cycle: int, data: bytes, age: int = 0) -> Path:
    path = project.root / f"training/checkpoints_cycle{cycle}/best_model.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    moment = 1_700_000_000 - age
    os.utime(path, (moment, moment))
    return path


def test_the_highest_cycle_is_a_number_not_a_word(project):
    for cycle in (2, 9, 13):
        write(project, cycle, whole(str(cycle)))
    project.doit()
    assert project.data() == whole("13")


def test_the_newest_is_the_last_one_written(project):
    write(project, 13, whole("13"), age=100)
    write(project, 2, whole("2"), age=1)
    project.configure(dogs=PATTERN + ", pick: newest}").doit()
    assert project.data() == whole("2")


def test_what_is_fetched_is_the_same_bytes_and_their_origin(project):
    data = whole("7", size=5 << 20)
    write(project, 7, data)
    project.doit()
    assert project.data() == data
    assert project.taken() == {
        "path": "training/checkpoints_cycle7/best_model.pth",
        "cycle": 7,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert project.doit() == ""


def test_the_first_time_one_still_being_written_is_passed_over(project):
    data = whole("a")
    write(project, 1, data)
    write(project, 2, data[: len(data) // 2])
    write(project, 3, data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    told = project.doit()
    assert project.taken()["cycle"] == 1
    assert "cycle3/best_model.pth: still being written (is cut short: the zip directory" in told


def test_later_what_was_taken_stays_until_the_next_is_whole(project):
    data = whole("a")
    write(project, 1, data)
    project.doit()
    used = (project.root / "used.dogs").read_text()
    write(project, 3, data[:-1])
    told = project.doit()
    assert told.count("\n") == 1
    assert "cycle3/best_model.pth: still being written" in told
    assert "left for the next run" in told
    assert project.taken()["cycle"] == 1
    assert (project.root / "used.dogs").read_text() == used
    write(project, 3, whole("b"))
    project.doit()
    assert (project.taken()["cycle"], project.data()) == (3, whole("b"))


def test_the_best_of_a_ranking_is_taken(project):
    for cycle in (2, 9, 13):
        write(project, cycle, whole(str(cycle)))
    names = {2: "checkpoints_cycle2", 9: str(project.root / "training/checkpoints_cycle9")}
    ranking = [{"path": f"{names[c]}/best_model.pth", "score": c} for c in names]
    (project.root / "training/ranking.json").write_text(json.dumps(ranking))
    pick = ", pick: {best: {file: ranking.json, by: score}}}"
    project.configure(dogs=PATTERN + pick).doit()
    assert project.data() == whole("9")


def test_when_nothing_is_whole_yet_nothing_is_done_and_it_is_no_fault(project):
    write(project, 1, whole("a")[:-1])
    told = project.doit()
    assert told.count("\n") == 1
    assert "still being written" in told
    assert not (project.root / "weights").exists()
    assert not (project.root / "used.dogs").exists()
    write(project, 1, whole("a"))
    project.doit()
    assert (project.root / "used.dogs").exists()


def test_when_nothing_matches_the_key_is_named(project):
    told = project.doit(status=2)
    assert "models.dogs.checkpoint.path: no file matches training/checkpoints_cycle*" in told


def test_what_was_lost_here_comes_back_from_the_store(project):
    write(project, 1, whole("a"))
    project.doit()
    project.doit("clean", "fetch")
    assert not (project.root / "weights/dogs/checkpoint.pth").exists()
    write(project, 1, whole("a")[:-1])  # training is at it again
    assert "still being written" in project.doit()
    assert project.data() == whole("a")


def test_no_ssh_is_imported_where_no_host_is_involved(project):
    write(project, 1, whole("a"))
    script = (
        "import sys; from doit.doit_cmd import DoitMain; status = DoitMain().run([])\n"
        "print(status, sorted({'paramiko', 'torch'} & set(sys.modules)))"
    )
    assert project.python(script).endswith("0 []\n")


@pytest.mark.parametrize("name", [b"new\nline", b"esc\x1b[2J", b"\xff\xfe"])
def test_a_name_that_can_not_be_shown_is_left_alone(project, name):
    write(project, 9, whole("9"))
    folder = os.fsencode(project.root) + b"/training/checkpoints_cycle99" + name
    os.mkdir(folder)
    with open(folder + b"/best_model.pth", "wb") as file:
        file.write(whole("evil"))
    assert "left alone, for its name can't be shown: " in project.doit("fetch")
    assert project.data() == whole("9")


def test_a_database_of_before_and_a_damaged_choice(project):
    write(project, 9, whole("9"))
    write(project, 13, whole("13"))
    project.doit("fetch")
    with sqlite3.connect(project.root / ".quern/state.db") as database:
        database.execute("drop table look")
        database.execute("drop table remote_file")
    assert project.doit("fetch") == ""
    choices = project.root / ".quern/choices"
    choices.mkdir()
    (choices / "dogs.json").write_text("{")
    told = project.doit("fetch", status=2)
    assert ".quern/choices/dogs.json: can't be read" in told
    assert told.count("\n") == 1
    assert project.doit("fetch:dogs", "--automatic") == ""
    project.doit("fetch", "--cycle", "9")
    assert project.data() == whole("9")
    project.doit("fetch")
    assert "cycle 9 was chosen and stays" in project.doit("why", "fetch:dogs")
