"""Where checkpoints come from: looked at over a real sshd, brought once, never half."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.source_world import SourceProject, Training, whole

PATTERN = '{host: gpu, path: "~/mycnn/checkpoints_cycle*/best_model.pth"'


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    training = Training(tmp_path / "gpu")
    yield training
    training.machine.remove()


@pytest.fixture
def project(tmp_path: Path, training: Training) -> SourceProject:
    return SourceProject(tmp_path / "project", training).configure(dogs=PATTERN + "}")


def test_the_highest_cycle_is_a_number_and_is_brought_whole(project, training):
    for cycle in (9, 13, 10):
        path = training.write(cycle, whole(f"of cycle {cycle}"))
    told = project.doit()
    data = whole("of cycle 13")
    assert project.data() == data
    path = training.home / "mycnn/checkpoints_cycle13/best_model.pth"
    assert project.taken() == {
        "host": "gpu",
        "path": str(path),
        "cycle": 13,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert f"cycle 13 (gpu:{path}, 0.0 MB) is the first: taken" in told


def test_nothing_changed_is_one_round_trip_and_no_digest_and_no_word(project, training):
    training.write(13, whole("a"))
    project.doit()
    commands, transfers = training.sessions()
    assert (len(training.hashed()), transfers) == (1, 1)
    assert project.doit() == ""
    assert training.sessions() == (commands + 1, transfers)
    assert len(training.hashed()) == 1
    assert project.log()[-1] == "cycle 13 is unchanged: nothing to do"
    assert "looked: cycle 13 is unchanged: nothing to do" in project.doit("why", "fetch:dogs")
