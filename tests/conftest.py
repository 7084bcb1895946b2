"""Fixtures shared by the tests."""

import io
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.build_project import BuildProject, kill_started
from tests.native_build import llama_build, native_build
from tests.receiver import Receiver

# A shell's background job ignores SIGINT, nohup's SIGHUP; so would every doit started from here.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_sessionstart(session: pytest.Session) -> None:
    """With workers (`-n`), build the programs first: many tests begin with a copy of the store,
    and are disturbed by one that compiles into it meanwhile."""
    is_worker = hasattr(session.config, "workerinput")
    if session.config.getoption("numprocesses", None) and not is_worker:
        native_build()
        llama_build()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three checkpoints of one architecture, each trained a little from another seed."""
    from tests.deploy_project import train_a_little

    folder = tmp_path_factory.mktemp("checkpoints")
    paths = [folder / str(seed) / "best_model.pth" for seed in range(3)]
    for seed, path in enumerate(paths):
        train_a_little(path, seed)
    return paths


@pytest.fixture
def deploy_project(tmp_path: Path, checkpoints: list[Path]) -> Iterator[object]:
    """A project whose `doit` ends with a live server; stopped afterwards."""
    from tests.deploy_project import DeployProject

    project = DeployProject(tmp_path, checkpoints)
    yield project
    project.stop()


@pytest.fixture(scope="session")
def digit_png() -> bytes:
    """A PNG of a handwritten digit, 64×64 grayscale."""
    from examples.digits.train import digits, enlarged

    buffer = io.BytesIO()
    enlarged(digits()[0][3]).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    kill_started()


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> BuildProject:
    """The diamond of tests/build_project.py, built; tests take a copy()."""
    project = BuildProject(tmp_path_factory.mktemp("built"))
    project.built()
    return project


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 4 MiB that a test can fill (mounting needs root)."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="session")
def language_models(tmp_path_factory: pytest.TempPathFactory) -> object:
    """tests.gguf_models.LanguageModels: tiny language models, made when first asked for."""
    from tests.gguf_models import LanguageModels

    return LanguageModels(tmp_path_factory.mktemp("language_models"))


@pytest.fixture
def receivers() -> Iterator[Callable[..., Receiver]]:
    """Starts servers that take notifications, on a port if one is given."""
    started: list[Receiver] = []

    def start(port: int = 0) -> Receiver:
        started.append(Receiver(port))
        return started[-1]

    yield start
    for receiver in started:
        receiver.close()


@pytest.fixture
def receiver(receivers: Callable[..., Receiver]) -> Receiver:
    return receivers()


@pytest.fixture
def training(tmp_path: Path) -> Iterator[object]:
    """tests.source_world.Training: a machine that trains, reached by SSH."""
    from tests.source_world import Training

    training = Training(tmp_path / "gpu")
    yield training
    training.machine.remove()
