"""`doit --cron`: what a run leaves behind when nobody watches, and where its secrets come from."""

import json
import re
import signal
from pathlib import Path

import pytest

from tests.build_project import BuildProject

LATER = """
from tasks.core.errors import TryAgainLater
from tasks.core.recipe import Recipe

def find():
    raise TryAgainLater("gpu-box: out of reach")

def task_t():
    yield Recipe(name="t", version=1, function="work:join", inputs=find,
        outputs={"out": "x"}).task("x", "Waits.")
"""
SECRET = "sesame-0123456789"


def last_run(project: BuildProject) -> dict:
    return json.loads(project.read(".quern/last-run.json"))


def logged(project: BuildProject) -> list[str]:
    """The lines of run.log without their times, which must be there."""
    lines = project.read(".quern/logs/run.log").splitlines()
    for line in lines:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line), line
    return [line[20:] for line in lines]


def test_what_a_run_says_is_kept_with_its_time_and_a_quiet_one_leaves_no_line(tmp_path):
    project = BuildProject(tmp_path)
    outcome = project.built("--cron")
    lines = logged(project)
    assert lines[:-1] == outcome.out.splitlines() and len(lines) == 5
    assert re.fullmatch(r"exit status 0 after \d+\.\d s", lines[-1])
    assert last_run(project)["status"] == 0
    first = last_run(project)["ended"]
    assert project.built("--cron").text == ""
    assert logged(project) == lines
    assert last_run(project)["ended"] > first


@pytest.mark.parametrize(
    ("dodo", "status"),
    [
        ('def task_t():\n    return {"actions": ["exit 3"]}\n', 1),
        ('def b():\n    raise ValueError("x")\n\ndef task_t():\n    return {"actions": [b]}\n', 2),
        ("def task_t(:\n", 3),
        (LATER, 75),
    ],
)
def test_a_run_that_fails_says_so_to_the_log_too(tmp_path, dodo, status):
    project = BuildProject(tmp_path, dodo)
    outcome = project.doit("--cron")
    assert outcome.status == status
    assert logged(project)[:-1] == outcome.err.splitlines()
    assert logged(project)[-1].startswith(f"exit status {status} ")
    assert last_run(project)["status"] == status


def test_while_another_run_is_at_work_nothing_is_left_behind(tmp_path):
    project = BuildProject(
        tmp_path,
        'def task_t():\n    return {"actions": ["touch began; while ! test -e go; '
        'do sleep 0.02; done"]}\n',
    )
    first = project.start()
    project.wait_for("began")
    outcome = project.doit("--cron")
    assert (outcome.status, outcome.err) == (0, "")
    assert not (tmp_path / ".quern/logs/run.log").exists()
    assert not (tmp_path / ".quern/last-run.json").exists()
    project.write("go", "")
    first.communicate(timeout=20)
    assert first.returncode == 0


def test_the_log_is_rotated(tmp_path):
    project = BuildProject(tmp_path)
    log = project.write(".quern/logs/run.log", "x" * (1 << 20) + "\n")
    project.built("--cron")
    assert len(logged(project)) == 5
    assert log.with_name("run.log.1").stat().st_size == (1 << 20) + 1


def test_a_log_that_cannot_be_written_fails_nothing(tmp_path):
    project = BuildProject(tmp_path)
    (tmp_path / ".quern/logs").mkdir(parents=True)
    (tmp_path / ".quern/logs/run.log").symlink_to("/dev/full")
    outcome = project.built("--cron")
    assert outcome.err == "" and len(outcome.out.splitlines()) == 4


def test_jitter(tmp_path):
    project = BuildProject(tmp_path)
    assert len(project.built("--cron", "--jitter", "0.01").ran) == 4
    for wrong in ("-1", "nan", "1e9", "5m"):
        outcome = project.doit("--cron", "--jitter", wrong)
        assert outcome.status == 3 and len(outcome.text.splitlines()) == 1, outcome
    waiting = project.start("--cron", "--jitter", "86400")
    with pytest.raises(Exception, match="timed out"):
        waiting.wait(1)
    project.built()  # the lock is free while one waits
    waiting.send_signal(signal.SIGTERM)
    _, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 128 + signal.SIGTERM
    assert len(err.splitlines()) == 1


# ---- .quern/environment --------------------------------------------------------------------------

USES_A_VARIABLE = """
from tasks.core.configuration import load_configuration

load = load_configuration

def task_t():
    file = load().models["dogs"].architecture.file
    return {"actions": [f"test {file} = $EXPECTED && echo same >> runs"]}
"""
MODELS = """
models:
  dogs:
    kind: classifier
    checkpoint: {path: "a*/best_model.pth"}
    architecture: {file: "${QUERN_TEST_FILE}", class: Net}
    classes: classes.json
    preprocess: {resize: 256, crop: 224}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildProject:
    monkeypatch.setenv("EXPECTED", SECRET)
    monkeypatch.delenv("QUERN_TEST_FILE", raising=False)
    project = BuildProject(tmp_path, USES_A_VARIABLE)
    project.write("models.yaml", MODELS)
    return project


def environment(project: BuildProject, text: str, mode: int = 0o600) -> None:
    project.write(".quern/environment", text).chmod(mode)


@pytest.mark.parametrize("line", ["QUERN_TEST_FILE={}", 'QUERN_TEST_FILE = "{}"'])
def test_variables_come_from_the_environment_file(project, line):
    outcome = project.doit("--cron")
    assert outcome.status == 3
    assert "QUERN_TEST_FILE is not set; export it or put it in .quern/environment" in outcome.err
    environment(project, f"# the network\n\n{line.format(SECRET)}\n")
    assert project.built("--cron").ran == ["same"]
    assert project.built("plan").status == 0  # by hand as well


def test_what_the_shell_has_set_goes_first(project, monkeypatch):
    environment(project, "QUERN_TEST_FILE=other\n")
    monkeypatch.setenv("QUERN_TEST_FILE", SECRET)
    assert project.built("--cron").ran == ["same"]


def test_a_file_that_others_can_read_is_refused(project):
    environment(project, f"QUERN_TEST_FILE={SECRET}\n", 0o640)
    outcome = project.doit("--cron")
    assert outcome.status == 3
    assert outcome.err.splitlines() == [
        ".quern/environment: others than its owner may read it; run: chmod 600 .quern/environment"
    ]


@pytest.mark.parametrize("line", [SECRET, f"export A={SECRET}", f"1A={SECRET}", f"={SECRET}"])
def test_a_wrong_line_is_named_and_not_shown(project, line):
    environment(project, f"A=b\n{line}\n")
    outcome = project.doit("--cron")
    assert outcome.status == 3
    assert outcome.err.splitlines() == [".quern/environment:2: is not a NAME=value line"]
    assert SECRET not in project.read(".quern/logs/run.log")


# ---- a model's whole way -------------------------------------------------------------------------


@pytest.mark.slow
def test_what_goes_live_and_what_does_not_is_told(deploy_project, receiver):
    import torch

    project = deploy_project
    models = project.root / "models.yaml"
    models.write_text(f'{models.read_text()}\nnotify: ["{receiver.address}"]\n')
    project.use_checkpoint(0)
    project.doit("--cron")
    checkpoint = "training/checkpoints_cycle1/best_model.pth"
    live = f"stable on local, port {project.port}"
    fetched, deployed = receiver.texts().pop().splitlines()
    assert fetched == f"new checkpoint: fetch:digits: cycle 1 ({checkpoint})"
    assert re.fullmatch(
        r"deployed: deploy:digits: Cycle 1 \(Epoch 0, 50\.00%\) in "
        + live
        + r", accuracy 50\.00%, after \d+\.\d s",
        deployed,
    )
    assert project.doit("--cron").stdout == "" and len(receiver.texts()) == 1
    torch.save({"model_state_dict": {"another": torch.zeros(3)}}, project.root / checkpoint)
    for _ in range(2):
        project.doit("--cron", status=1)
    assert len(receiver.texts()) == 2
    failed, stands, fetched = receiver.texts()[1].splitlines()
    assert failed.startswith("failed: weights:digits: ")
    assert stands == f"digits: {live} still serves Cycle 1 (Epoch 0, 50.00%)"
    assert fetched.startswith("new checkpoint: ")
    project.use_checkpoint(1)
    project.doit("--cron")
    assert len(receiver.texts()) == 3
    kinds = [line.partition(":")[0] for line in receiver.texts()[2].splitlines()]
    assert kinds == ["recovered", "new checkpoint", "deployed"]
