"""Where checkpoints come from: looked at over a real sshd, brought once, never half."""

import hashlib
import json
import os
import shutil
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


def test_skipped_cycles_are_skipped_and_new_bytes_in_the_same_cycle_are_taken(project, training):
    training.write(9, whole("9"))
    project.doit()
    training.write(10, whole("10"))
    path = training.write(13, whole("13"))
    told = project.doit()
    assert f"cycle 13 (gpu:{path}, 0.0 MB) is new: taken; cycle 9 was before" in told
    path.write_bytes(whole("31"))
    assert "cycle 13" in (told := project.doit())
    assert "has changed: taken" in told
    assert project.data() == whole("31")
    assert (project.root / "used.dogs").read_text().count("\n") == 3


def test_it_never_goes_back_by_itself(project, training):
    training.write(12, whole("12"))
    training.write(13, whole("13"))
    project.doit()
    shutil.rmtree(training.home / "mycnn/checkpoints_cycle13")
    training.write(9, whole("new bytes"))
    assert project.doit() == ""
    assert project.taken()["cycle"] == 13
    assert project.log()[-1] == (
        "cycle 12 is the highest there now; cycle 13 was taken before and stays"
    )
    (project.root / ".quern/state.db").unlink()  # the file beside the checkpoint knows it too
    assert "cycle 13 was taken before and stays" in project.doit()
    assert project.data() == whole("13")


def test_another_pattern_is_another_count_of_cycles(project, training):
    training.write(13, whole("13"))
    project.doit()
    training.write(2, whole("2"), "last.pth")
    project.configure(dogs='{host: gpu, path: "~/mycnn/checkpoints_cycle*/last.pth"}').doit()
    assert project.data() == whole("2")


def test_the_newest_is_taken_by_its_time(project, training):
    os.utime(training.write(13, whole("13")), (1_600_000_000, 1_600_000_000))
    training.write(2, whole("2"))
    project.configure(dogs=PATTERN + ", pick: newest}").doit()
    assert project.data() == whole("2")


def test_equal_bytes_are_not_moved_again(project, training):
    training.write(13, whole("the same"))
    project.doit()
    path = training.write(14, whole("the same"))
    transfers = training.sessions()[1]
    told = project.doit()
    assert f"cycle 14 (gpu:{path}, 0.0 MB) has the bytes of cycle 13" in told
    assert project.taken()["cycle"] == 14
    assert training.sessions()[1] == transfers
    assert (project.root / "used.dogs").read_text().count("\n") == 1


def test_a_touch_reads_it_again_and_moves_nothing(project, training):
    path = training.write(13, whole("13"))
    project.doit()
    path.touch()
    transfers = training.sessions()[1]
    assert project.doit() == ""
    assert (len(training.hashed()), training.sessions()[1]) == (2, transfers)


def test_what_is_here_and_damaged_is_not_taken_for_the_bytes(project, training):
    training.write(13, whole("13"))
    project.doit()
    training.write(14, whole("13"))
    (project.root / "weights/dogs/checkpoint.pth").write_bytes(b"damaged")
    project.doit()
    assert project.data() == whole("13")


# -- chosen on the command line --------------------------------------------------------------------


def cycles(training: Training, *numbers: int) -> None:
    for number in numbers:
        training.write(number, whole(str(number)))


@pytest.mark.parametrize("task", ["use", "use:dogs", "fetch", "fetch:dogs"])
def test_a_cycle_can_be_chosen_and_stays(project, training, task):
    cycles(training, 9, 10, 13)
    project.doit()
    told = project.doit(task, "--cycle", "10")
    assert "cycle 10 was chosen: cycle 10 (gpu:" in told
    assert project.data() == whole("10")
    project.doit()
    assert project.doit() == ""
    assert project.data() == whole("10")
    assert project.log()[-1] == "cycle 10 was chosen and stays"


def test_a_choice_ends_when_training_writes_something_newer(project, training):
    cycles(training, 10, 13)
    project.doit("fetch", "--cycle", "10")
    cycles(training, 11)  # lower than what was there
    assert project.doit("fetch") == ""
    half = whole("14")
    path = training.write(14, half[:-1])
    assert "cycle14/best_model.pth: still being written" in project.doit("fetch")
    assert project.taken()["cycle"] == 10
    path.write_bytes(half)
    assert "it came after cycle 10 was chosen" in project.doit("fetch")
    assert project.taken()["cycle"] == 14
    shutil.rmtree(path.parent)
    project.doit("fetch")
    assert project.taken()["cycle"] == 14


def test_a_choice_ends_when_the_same_cycle_is_written_anew(project, training):
    cycles(training, 10, 13)
    project.doit("fetch", "--cycle", "10")
    training.write(13, whole("13, improved"))
    project.doit("fetch")
    assert project.data() == whole("13, improved")


def test_a_choice_is_ended_by_hand(project, training):
    cycles(training, 10, 13)
    project.doit("use:dogs", "--cycle", "10")
    project.doit("use:dogs", "--automatic")
    assert project.data() == whole("13")
    assert not list((project.root / ".quern/choices").iterdir())


def test_a_path_outside_the_pattern_can_be_chosen(project, training):
    cycles(training, 13)
    path = training.home / "try this [1]*.pth"
    path.write_bytes(whole("tried"))
    project.doit("use:dogs", "--checkpoint", "~/try this [1]*.pth")
    assert project.data() == whole("tried")
    assert project.doit("use:dogs") == ""
    path.unlink()
    project.doit("use:dogs")
    assert project.data() == whole("tried")
    assert "which was chosen: it is gone; what was taken of it stays" in project.log()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["use", "--cycle", "11"], "no cycle 11 there; cycles are 9, 13"),
        (["use", "--checkpoint", "~/nothing.pth"], "gpu:~/nothing.pth: not there, or not a file"),
        (["use", "--cycle", "9", "--automatic"], "one of them at a time"),
        (["use", "--cycle", "9"], ""),
    ],
)
def test_a_choice_that_is_not_there_changes_nothing(project, training, arguments, words):
    cycles(training, 9, 13)
    project.doit()
    if not words:
        training.write(9, whole("9")[:-1])
        words = "cycle9/best_model.pth: still being written"
    told = project.doit(*arguments, status=3)
    assert words in told
    assert told.count("\n") == 1
    assert not (project.root / ".quern/choices").exists()
    assert project.doit() == ""
    assert project.taken()["cycle"] == 13


def test_of_several_models_one_must_be_named(project, training):
    cycles(training, 9, 13)
    project.configure(dogs=PATTERN + "}", cats=PATTERN + "}")
    told = project.doit("use", "--cycle", "9", status=3)
    assert "use: name the model whose checkpoint it is (use:cats, use:dogs)" in told
    project.doit("use:cats", "--cycle", "9")
    project.doit()
    assert (project.taken("cats")["cycle"], project.taken("dogs")["cycle"]) == (9, 13)


# -- best of a ranking -----------------------------------------------------------------------------

BEST = PATTERN + ", pick: {best: {file: status/model_comparisons.json, by: score}}}"


def rank(training: Training, content: object) -> None:
    path = training.home / "mycnn/status/model_comparisons.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    "ranking",
    [
        [
            {"checkpoint": "checkpoints_cycle9/best_model.pth", "score": 0.9},
            {"checkpoint": "../checkpoints_cycle13/best_model.pth", "score": 0.8},
        ],
        {
            "updated": "today",
            "comparisons": [
                {"path": "~/mycnn/checkpoints_cycle9/best_model.pth", "score": 9},
                {"model_path": "checkpoints_cycle10/best_model.pth", "score": 8.5},
            ],
        },
        {
            "checkpoints_cycle13/best_model.pth": {"score": -2},
            "nine": {"file": "checkpoints_cycle9/best_model.pth", "score": -1},
        },
    ],
)
def test_the_best_of_a_ranking_is_taken(project, training, ranking):
    cycles(training, 9, 10, 13)
    rank(training, ranking)
    told = project.configure(dogs=BEST).doit()
    assert project.data() == whole("9")
    assert "passed over" not in told
    commands = training.sessions()[0]
    assert project.doit() == ""
    assert training.sessions()[0] == commands + 1


def test_with_lowest_the_lowest_is_the_best(project, training):
    cycles(training, 9, 10)
    names = [f"checkpoints_cycle{c}/best_model.pth" for c in (9, 10)]
    rank(training, [{"checkpoint": name, "loss": i} for i, name in enumerate(names)])
    by = PATTERN + ", pick: {best: {file: status/model_comparisons.json, by: loss, lowest: true}}}"
    project.configure(dogs=by).doit()
    assert project.data() == whole("9")


def test_entries_of_a_ranking_that_can_not_be_used_are_told_once(project, training):
    cycles(training, 9, 10)
    rank(
        training,
        [
            {"checkpoint": "checkpoints_cycle9/best_model.pth", "score": 0.1},
            {"checkpoint": "checkpoints_cycle11/best_model.pth", "score": 0.9},
            {"checkpoint": "checkpoints_cycle10/best_model.pth", "score": None},
        ],
    )
    words = (
        "of the ranking's entries 1 name no checkpoint that is there and "
        "1 have no number under 'score': passed over"
    )
    assert words in project.configure(dogs=BEST).doit()
    assert project.data() == whole("9")
    assert project.doit() == ""
    assert words in project.log()[-1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "status/model_comparisons.json: no such ranking"),
        ("[{", "status/model_comparisons.json: not a ranking"),
        ("7", "a list of objects is needed"),
        ('{"a": [{"x": 1}], "b": [{"x": 1}]}', "it holds several lists: a, b"),
        ("[]", "a list of objects is needed"),
        ("{}", "of its 0 entries"),
        ('[{"checkpoint": "gone.pth", "score": 1}]', "1 name a checkpoint that is not there"),
        ('[{"checkpoint": "checkpoints_cycle9/best_model.pth", "score": "x"}]', "1 have no number"),
        ('[{"checkpoint": "checkpoints_cycle9/best_model.pth", "score": NaN}]', "1 have no number"),
    ],
)
def test_a_ranking_that_ranks_nothing_is_one_clear_line(project, training, content, words):
    cycles(training, 9)
    if content is not None:
        rank(training, content)
    told = project.configure(dogs=BEST).doit("fetch", status=2)
    assert words in told
    assert told.startswith("fetch:dogs: gpu:~/mycnn/status/model_comparisons.json: ")
    assert told.count("\n") == 1
