"""Transfers: every way, cut anywhere, resumed, verified."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.hosts.ssh import Connection, connect
from tasks.hosts.transfer import Changed, download
from tests.ssh_world import Machine

SIZE = 3_000_001
DATA = os.urandom(SIZE)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("machine")).start()
    yield made
    made.remove()


@pytest.fixture
def connection(machine: Machine) -> Iterator[Connection]:
    made = connect("edge", str(machine.config))
    yield made
    made.close()


@pytest.fixture
def source(machine: Machine) -> Path:
    path = machine.home / "weights.pth"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize("have", [0, 1, 4096, SIZE // 2, SIZE - 1, SIZE, SIZE + 1])
def test_a_download_goes_on_where_it_stopped(
    connection: Connection, source: Path, tmp_path: Path, have: int
) -> None:
    partials = tmp_path / "partials"
    partials.mkdir()
    (partials / f"{SHA256}.partial").write_bytes((DATA + b"x")[:have])
    seen: list[tuple[int, int]] = []
    destination = tmp_path / "weights.pth"
    download(
        connection,
        str(source),
        SIZE,
        SHA256,
        destination,
        partials,
        lambda done, total: seen.append((done, total)),
    )
    assert destination.read_bytes() == DATA
    assert not list(partials.iterdir())
    assert seen[0][0] >= (have if have <= SIZE else 0)
    assert seen[-1] == (SIZE, SIZE)


def test_a_damaged_partial_is_brought_anew(
    connection: Connection, source: Path, tmp_path: Path
) -> None:
    (tmp_path / f"{SHA256}.partial").write_bytes(bytes(SIZE // 2))
    download(connection, str(source), SIZE, SHA256, tmp_path / "weights.pth", tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == DATA


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE, SIZE + 1])
def test_other_bytes_never_get_the_name(
    connection: Connection, source: Path, tmp_path: Path, size: int
) -> None:
    source.write_bytes((b"x" + DATA)[:size])
    with pytest.raises(Changed, match="changed mean"):
        download(connection, str(source), SIZE, SHA256, tmp_path / "weights.pth", tmp_path / "p")
    assert not (tmp_path / "weights.pth").exists()
    assert not list((tmp_path / "p").iterdir())
