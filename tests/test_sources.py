"""Where checkpoints come from: looked at over a real sshd, brought once, never half."""

import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from tests.source_world import SourceProject, Training, whole

PATTERN = '{host: gpu, path: "~/mycnn/checkpoints_cycle*/best_model.pth"'


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
    connections, sessions = training.counts()
    assert len(training.hashed()) == 1
    assert project.doit() == ""
    assert training.counts() == (connections + 1, sessions + 1)
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
    connections, sessions = training.counts()
    told = project.doit()
    assert f"cycle 14 (gpu:{path}, 0.0 MB) has the bytes of cycle 13" in told
    assert project.taken()["cycle"] == 14
    assert training.counts() == (connections + 1, sessions + 2)  # a look, a digest
    assert (project.root / "used.dogs").read_text().count("\n") == 1


def test_a_touch_reads_it_again_and_moves_nothing(project, training):
    path = training.write(13, whole("13"))
    project.doit()
    path.touch()
    connections, sessions = training.counts()
    assert project.doit() == ""
    assert len(training.hashed()) == 2
    assert training.counts() == (connections + 1, sessions + 2)


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


@pytest.mark.parametrize("there", [(), (13,)])
def test_a_path_outside_the_pattern_can_be_chosen(project, training, there):
    cycles(training, *there)
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
    sessions = training.counts()[1]
    assert project.doit() == ""
    assert training.counts()[1] == sessions + 1


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


# -- where the source is ---------------------------------------------------------------------------


def test_an_instance_of_vast_ai_is_found_by_their_program(tmp_path):
    training = Training(tmp_path / "gpu", name="127.0.0.1")
    try:
        training.write(3, whole("3"))
        project = SourceProject(tmp_path / "project", training)
        program = tmp_path / "local" / "vastai"
        program.parent.mkdir()
        asked = tmp_path / "asked"
        port = training.machine.port
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {asked}\necho warning: old >&2\n'
            f"echo ssh://root@127.0.0.1:{port}\n"
        )
        program.chmod(0o755)
        project.environment["PATH"] = f"{program.parent}:{os.environ['PATH']}"
        source = '{vastai: 12345678, path: "~/mycnn/checkpoints_cycle*/best_model.pth"}'
        project.configure(dogs=source, cats=source).doit()
        assert project.data() == project.data("cats") == whole("3")
        assert project.taken()["host"] == "vastai 12345678"
        assert asked.read_text() == "ssh-url 12345678\n"
        program.write_text("#!/bin/sh\necho 'error: no such instance' >&2\nexit 1\n")
        told = project.doit("fetch:dogs", status=2)
        assert "vastai ssh-url 12345678: it prints no address; it says: error: no such" in told
        program.unlink()
        project.environment["PATH"] = "/usr/bin:/bin"
        told = project.doit("fetch:dogs", status=2)
        assert told.startswith("fetch:dogs: vastai 12345678: there is no program vastai")
        assert told.count("\n") == 1
    finally:
        training.machine.remove()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{host: gqu, path: a}", "models.yaml:4: models.dogs.checkpoint.host: no such host"),
        ("{host: bare, path: a}", "models.yaml:4: models.dogs.checkpoint.host: hosts.bare has no"),
        ("{host: gpu, vastai: 1, path: a}", "models.dogs.checkpoint.vastai: host or vastai"),
        ("{path: a, pick: oldest}", "models.dogs.checkpoint.pick"),
        ("{path: a, pick: {best: {file: b}}}", "models.dogs.checkpoint.pick.best"),
    ],
)
def test_a_wrong_source_is_told_with_its_line(project, source, words):
    told = project.configure(dogs=source).doit(status=3)
    assert words in told
    assert told.count("\n") == 1


def test_a_host_out_of_reach_fails_its_model_alone(project, training):
    cycles(training, 9)
    local = project.root / "here" / "best.pth"
    local.parent.mkdir()
    local.write_bytes(whole("here"))
    project.configure(dogs=PATTERN + "}", cats="{path: here/best.pth}")
    training.machine.stop()
    told = project.doit(status=75)
    (line,) = [line for line in told.splitlines() if "dogs" in line]
    assert line.startswith("fetch:dogs: trainer: out of reach")
    assert project.data("cats") == whole("here")
    assert (project.root / "used.cats").exists()
    training.machine.start()
    project.doit()
    assert project.data() == whole("9")
    training.machine.stop()
    assert "out of reach" in project.doit(status=75)
    assert "looked: trainer: out of reach" in project.doit("why", "fetch:dogs")


def test_several_models_share_one_connection(project, training):
    cycles(training, 9, 13)
    project.configure(dogs=PATTERN + "}", cats=PATTERN + "}", owls=PATTERN + ", pick: newest}")
    project.doit("-n", "3", "fetch")
    connections, sessions = training.counts()
    assert project.doit("fetch") == ""
    assert training.counts() == (connections + 1, sessions + 3)


# -- names -----------------------------------------------------------------------------------------

HOSTILE = [
    "with space",
    "two  spaces ",
    "it's",
    '"quoted"',
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned;",
    "-rf",
    "--help",
    "a\\b",
    "*",
    "[a]",
    "ünïcode",
    "#x",
    "~",
    "%s%n",
]


def test_any_name_that_can_be_shown_is_taken(project, training):
    models, paths = {}, {}
    for number, name in enumerate(HOSTILE):
        model = f"m{number}"
        folder = training.home / "runs" / model / name
        folder.mkdir(parents=True)
        paths[model] = folder / f"{name}.pth"
        paths[model].write_bytes(whole(name))
        models[model] = f'{{host: gpu, path: "~/runs/{model}/*/*.pth"}}'
    project.configure(**models).doit("-n", "2", "fetch")
    for number, name in enumerate(HOSTILE):
        model = f"m{number}"
        assert project.data(model) == whole(name)
        assert project.taken(model)["path"] == str(paths[model])
    assert project.doit("fetch") == ""
    assert not list(training.machine.folder.rglob("pwned"))


def test_names_that_begin_with_a_dash_and_have_no_folder(project, training):
    (training.home / "-n.pth").write_bytes(whole("dash"))
    project.configure(dogs='{host: gpu, path: "*.pth"}').doit()
    assert project.data() == whole("dash")


@pytest.mark.parametrize("name", [b"new\nline", b"esc\x1b[2J", b"\xff\xfe", b"line\xe2\x80\xa8sep"])
def test_a_name_that_can_not_be_shown_is_left_alone_and_told_once(project, training, name):
    cycles(training, 9)
    folder = os.fsencode(training.home) + b"/mycnn/checkpoints_cycle99" + name
    os.mkdir(folder)
    with open(folder + b"/best_model.pth", "wb") as file:
        file.write(whole("evil"))
    told = project.doit("fetch")
    assert project.data() == whole("9")
    assert told.count("left alone, for its name can't be shown: ") >= 1
    assert told.isprintable() or all(c.isprintable() or c == "\n" for c in told)
    assert project.doit("fetch") == ""
    assert "left alone" in project.log()[-1]


def test_a_choice_that_is_gone_before_it_was_taken_is_a_fault(project, training):
    cycles(training, 9, 13)
    project.doit()
    path = training.home / "tried.pth"
    path.write_bytes(whole("tried"))
    # Nothing can be brought: its folder can't be made.
    transfers = project.root / ".quern/transfers"
    shutil.rmtree(transfers, ignore_errors=True)
    transfers.write_text("in the way")
    project.doit("use", "--checkpoint", "~/tried.pth", status=1)
    transfers.unlink()
    path.unlink()
    told = project.doit("fetch", status=2)
    assert f"gpu:{path}, which was chosen: it is gone; doit fetch:dogs --automatic ends" in told
    assert told.count("\n") == 1
    project.doit("fetch", "--automatic")
    assert project.data() == whole("13")
    assert project.doit() == ""


def test_what_the_login_shell_says_is_passed_over(project, training):
    cycles(training, 9)
    (training.home / ".bashrc").write_text("echo Welcome to your instance; printf 'x\\0y'\n")
    project.doit()
    assert project.data() == whole("9")


# -- clocks, and files that are being written ------------------------------------------------------


@pytest.mark.parametrize("hours", [-1, 1])
@pytest.mark.parametrize("by", ["-1 hour", "+1 hour"])
def test_a_clock_that_is_off_changes_nothing(project, training, hours, by):
    training.shift_clock(by)
    path = training.write(13, whole("13"))
    moment = time.time() + 3600 * hours - 60
    os.utime(path, (moment, moment))
    project.doit()
    assert project.data() == whole("13")
    assert project.doit() == ""
    assert len(training.hashed()) == 1


def test_a_file_that_changed_a_moment_ago_is_left_for_the_next_run(tmp_path):
    training = Training(tmp_path / "gpu", real_clock=True)
    try:
        project = SourceProject(tmp_path / "project", training).configure(dogs=PATTERN + "}")
        path = training.write(13, whole("13"))
        stop = threading.Event()

        def write() -> None:
            while not stop.wait(0.2):
                path.touch()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            told = project.doit()
        finally:
            stop.set()
            writer.join()
        assert "still being written (it changed a moment ago): left for the next run" in told
        assert training.hashed() == []
        wait_until_old(path)
        project.doit()
        assert project.data() == whole("13")
    finally:
        training.machine.remove()


def wait_until_old(path: Path) -> None:
    while time.time() - path.stat().st_ctime < 4.1:  # `date` gives whole seconds
        time.sleep(0.1)


def test_a_half_written_file_is_read_once_and_waited_for(project, training):
    cycles(training, 9)
    project.doit()
    data = whole("13", size=1 << 20)
    path = training.write(13, data[: len(data) // 2])
    used = (project.root / "used.dogs").read_text()
    for _ in range(2):
        told = project.doit()
        assert told == (
            f"fetch:dogs: gpu:{path}: still being written (is cut short: the zip directory at its "
            "end is missing): left for the next run\n"
        )
    assert len(training.hashed()) == 2
    assert project.data() == whole("9")
    assert (project.root / "used.dogs").read_text() == used
    path.write_bytes(data)
    project.doit()
    assert project.data() == data


def test_a_file_of_full_size_without_its_end_is_unfinished(project, training):
    data = whole("13", size=1 << 20)
    path = training.write(13, data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    told = project.doit()
    assert "still being written" in told
    assert not (project.root / "weights").exists()
    assert not (project.root / "used.dogs").exists()
    assert "was left for the next run" in project.doit("why", "fetch:dogs")
    path.write_bytes(data)
    project.doit()
    assert project.data() == data


def test_a_writer_that_goes_on_while_it_is_read(project, training):
    cycles(training, 9)
    project.doit()
    path = training.write(13, whole("13"))
    training.wrap("python3", f"echo more >> '{path}'")
    told = project.doit()
    assert "still being written (it changes while it is read): left for the next run" in told
    assert project.taken()["cycle"] == 9
    training.wrap("python3", "")
    path.write_bytes(whole("13, done"))
    project.doit()
    assert project.data() == whole("13, done")


@pytest.mark.parametrize("first", [True, False])
def test_a_writer_that_begins_anew_while_it_is_brought(project, training, first):
    if not first:
        cycles(training, 9)
        project.doit()
    path = training.write(13, whole("13", size=96 << 20))
    transfers = project.root / ".quern/transfers"

    def rewrite() -> None:
        while not list(transfers.glob("*.partial")):
            time.sleep(0.001)
        with open(path, "r+b") as file:
            file.write(b"PK\x03\x04 anew")

    writer = threading.Thread(target=rewrite)
    writer.start()
    told = project.doit()
    writer.join()
    assert "changed while it was brought: left for the next run" in told
    assert told.count("\n") == 1
    assert (project.root / "used.dogs").exists() != first
    if not first:
        assert project.data() == whole("9")
    path.write_bytes(whole("13, done"))
    project.doit()
    assert project.data() == whole("13, done")


def test_a_transfer_that_is_cut_goes_on_at_the_next_run(project, training):
    cycles(training, 9)
    project.doit()
    data = whole("13", size=96 << 20)
    training.write(13, data)
    transfers = project.root / ".quern/transfers"

    def cut() -> None:
        while not any(path.stat().st_size > 1 << 20 for path in transfers.glob("*.partial")):
            time.sleep(0.001)
        training.machine.kill_sessions()

    cutter = threading.Thread(target=cut)
    cutter.start()
    told = project.doit(status=75)
    cutter.join()
    assert told.count("\n") == 1
    assert project.data() == whole("9")
    assert project.doit("use") != ""
    assert project.data() == data
    assert not list(transfers.glob("*.partial"))


# -- programs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "used"),
    [
        (["shasum", "sha256sum", "openssl", "python3"], "python3"),
        (["shasum", "sha256sum", "openssl"], "openssl"),
        (["shasum", "sha256sum"], "sha256sum"),
        (["shasum"], "shasum"),
    ],
)
def test_whatever_can_make_a_digest_is_used(tmp_path, there, used):
    training = Training(tmp_path / "gpu", digests=there)
    try:
        cycles(training, 9)
        project = SourceProject(tmp_path / "project", training).configure(dogs=PATTERN + "}")
        project.doit()
        assert project.data() == whole("9")
        assert training.hashed() == [used]
    finally:
        training.machine.remove()


def test_a_python_that_does_not_work_is_passed_over(tmp_path):
    training = Training(tmp_path / "gpu", digests=["sha256sum"])
    try:
        stub = training.bin / "python3"
        stub.write_text("#!/bin/sh\necho install the developer tools\nexit 1\n")
        stub.chmod(0o755)
        cycles(training, 9)
        project = SourceProject(tmp_path / "project", training).configure(dogs=PATTERN + "}")
        project.doit()
        assert project.data() == whole("9")
    finally:
        training.machine.remove()


def test_a_machine_that_can_make_no_digest_is_told(tmp_path):
    training = Training(tmp_path / "gpu", digests=[])
    try:
        cycles(training, 9)
        project = SourceProject(tmp_path / "project", training).configure(dogs=PATTERN + "}")
        told = project.doit("fetch", status=2)
        assert "one of python3, openssl, sha256sum and shasum is needed" in told
        assert told.count("\n") == 1
    finally:
        training.machine.remove()


# -- through to a live server ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_chosen_cycle_goes_live_and_stays_there(deploy_project, checkpoints, training):
    project = deploy_project
    models = project.root / "models.yaml"
    text = models.read_text().replace("{path: training/", "{host: gpu, path: ~/mycnn/")
    machine = training.machine
    models.write_text(text + f"ssh_config: {machine.config}\nhosts: {{gpu: {{ssh: trainer}}}}\n")
    for cycle in (9, 10):
        training.write(cycle, checkpoints[cycle - 9].read_bytes())
    project.doit()
    assert project.health()["model"].startswith("Cycle 10 ")
    project.doit("deploy", "--cycle", "9")
    assert project.health()["model"].startswith("Cycle 9 ")
    done = project.doit()
    assert (done.stdout, done.stderr) == ("", "")
    path = training.write(11, checkpoints[2].read_bytes()[:-1])
    assert "still being written" in project.doit().stdout
    assert project.health()["model"].startswith("Cycle 9 ")
    project.doit("deploy:digits", "--automatic", "--retry")
    assert project.health()["model"].startswith("Cycle 9 ")  # the one before 11 is not whole
    path.write_bytes(checkpoints[2].read_bytes())
    project.doit()
    assert project.health()["model"].startswith("Cycle 11 ")
