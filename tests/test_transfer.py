"""Transfers: every way, cut anywhere, resumed, verified. Through a real sshd."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.core.errors import QuernError
from tasks.hosts import remote_digest, sftp_stream, transfer
from tasks.hosts.remote_digest import remote_digests, remote_sha256
from tasks.hosts.ssh import Connection, OutOfReach, RemoteFailed, connect
from tasks.hosts.transfer import Changed, download, remove_old_partials, upload
from tasks.hosts.transfer_directory import download_directory
from tests import ssh_world
from tests.gate import DOWN, UP, Gate
from tests.server_world import wait
from tests.ssh_world import Machine

SIZE = 3_000_001
DATA = os.urandom(SIZE)
SHA256 = hashlib.sha256(DATA).hexdigest()
# More than the sockets on the way hold.
LARGE_SIZE = 24_000_001
LARGE = os.urandom(LARGE_SIZE)
LARGE_SHA256 = hashlib.sha256(LARGE).hexdigest()

HOSTILE = [
    "two words",
    'it\'s "quoted"',
    "new\nline\n",
    "$(touch gotcha)`touch gotcha`",
    "-rf",
    "back\\slash\\n",
    "*",
    "\udcff not UTF-8",
    "ünïcode",
]
TOOLS = ("openssl", "python3", "sha256sum", "shasum")
BASICS = ("sh", "cat", "tail", "sleep", "wc", "df", "mkdir", "rm", "mv", "chmod", "sync", "perl")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("machine")).start()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with an SSH server and a POSIX shell, without SFTP."""
    folder = tmp_path_factory.mktemp("bare")
    with pytest.MonkeyPatch.context() as patch:
        config = ssh_world.SSHD_CONFIG.replace("Subsystem sftp internal-sftp", "")
        patch.setattr(ssh_world, "SSHD_CONFIG", config)
        made = Machine(folder, name="bare").start()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def without_ssh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH without the ssh program; what other fixtures run is there."""
    folder = tmp_path_factory.mktemp("without_ssh")
    for name in ("mount", "umount"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def choose(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By which way bytes go, however few and however busy this machine is."""
    monkeypatch.setattr(sftp_stream, "LONG_LINE_SECONDS", 60.0)
    monkeypatch.setattr(transfer, "WORTH_A_PROGRAM_BYTES", 1 if way == "program" else 1e9)


@pytest.fixture(params=["program", "paramiko", "no sftp"])
def connection(
    request: pytest.FixtureRequest,
    machine: Machine,
    bare: Machine,
    without_ssh: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Connection]:
    """A connection on which bytes go one way or the other."""
    made = (
        connect("bare", str(bare.config))
        if request.param == "no sftp"
        else connect("edge", str(machine.config))
    )
    choose(request.param, monkeypatch)
    if request.param == "paramiko":
        monkeypatch.setenv("PATH", str(without_ssh))
    yield made
    made.close()


@pytest.fixture
def plain(machine: Machine) -> Iterator[Connection]:
    made = connect("edge", str(machine.config))
    yield made
    made.close()


@pytest.fixture
def gate(machine: Machine) -> Iterator[Gate]:
    """What the machine is reached through."""
    made, port = Gate(machine.port), machine.port
    machine.port = made.port
    machine.write_config()
    machine.trust()
    yield made
    machine.port = port
    machine.write_config()
    machine.trust()
    made.close()


@pytest.fixture(params=["program", "paramiko"])
def gated(
    request: pytest.FixtureRequest, gate: Gate, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Connection]:
    """A connection through the gate."""
    made = connect("edge", str(machine.config))
    choose(request.param, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


# Downloads


@pytest.mark.parametrize("have", [0, 1, 4096, SIZE // 2, SIZE - 1, SIZE, SIZE + 1])
def test_a_download_goes_on_where_it_stopped(
    connection: Connection, source: Path, tmp_path: Path, have: int
) -> None:
    partials = tmp_path / "partials"
    partials.mkdir()
    (partials / f"{SHA256}.partial").write_bytes((DATA + b"x")[:have])
    seen: list[tuple[int, int]] = []
    download(
        connection,
        str(source),
        SIZE,
        SHA256,
        tmp_path / "new" / "weights.pth",
        partials,
        lambda done, total: seen.append((done, total)),
    )
    assert (tmp_path / "new" / "weights.pth").read_bytes() == DATA
    assert not list(partials.iterdir())
    assert seen[0][0] >= (have if have <= SIZE else 0)
    assert seen[-1] == (SIZE, SIZE)


def test_only_what_is_missing_moves(gate: Gate, machine: Machine, large: Path) -> None:
    connection = connect("edge", str(machine.config))
    have = LARGE_SIZE - 100_000
    (large.parent / f"{LARGE_SHA256}.partial").write_bytes(LARGE[:have])
    moved = []
    gate.after(300_000, DOWN, lambda: moved.append(True))
    download(connection, str(large), LARGE_SIZE, LARGE_SHA256, large.parent / "to", large.parent)
    connection.close()
    assert not moved


def test_a_server_that_reads_less_at_once_than_asked(
    plain: Connection, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose("paramiko", monkeypatch)
    monkeypatch.setattr(sftp_stream, "REQUEST_BYTES", 1 << 20)  # OpenSSH answers with 255 KiB
    download(plain, str(large), LARGE_SIZE, LARGE_SHA256, tmp_path / "to", tmp_path)
    assert (tmp_path / "to").read_bytes() == LARGE


def test_an_empty_file(connection: Connection, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    nothing = hashlib.sha256().hexdigest()
    download(connection, str(tmp_path / "empty"), 0, nothing, tmp_path / "here", tmp_path)
    assert (tmp_path / "here").read_bytes() == b""
    upload(connection, tmp_path / "empty", 0, nothing, str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == b""


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


def test_a_file_that_grew_is_cut_to_what_was_asked_for(
    connection: Connection, source: Path, tmp_path: Path
) -> None:
    source.write_bytes(DATA + b"more" * 1000)
    download(connection, str(source), SIZE, SHA256, tmp_path / "weights.pth", tmp_path / "p")
    assert (tmp_path / "weights.pth").read_bytes() == DATA


def test_a_file_that_changes_during_the_download(
    gated: Connection, gate: Gate, large: Path, tmp_path: Path
) -> None:
    def change() -> None:
        with open(large, "r+b") as file:
            file.seek(LARGE_SIZE - 5)
            file.write(b"other")

    gate.after(100_000, DOWN, change)
    with pytest.raises(Changed):
        download(gated, str(large), LARGE_SIZE, LARGE_SHA256, tmp_path / "to", tmp_path / "p")
    assert not (tmp_path / "to").exists()
    assert not list((tmp_path / "p").iterdir())


def test_downloads_of_hostile_names(connection: Connection, tmp_path: Path) -> None:
    for name in HOSTILE:
        path = tmp_path / name
        path.write_bytes(DATA)
        download(connection, str(path), SIZE, SHA256, tmp_path / "to" / name, tmp_path / "p")
        assert (tmp_path / "to" / name).read_bytes() == DATA
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == sorted(HOSTILE)


def test_what_is_not_there_is_told_in_one_line(connection: Connection, tmp_path: Path) -> None:
    with pytest.raises(QuernError, match="o such file") as raised:
        download(connection, str(tmp_path / "no"), SIZE, SHA256, tmp_path / "to", tmp_path / "p")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("point", range(10))
def test_a_download_that_was_cut_goes_on(
    gated: Connection, gate: Gate, machine: Machine, large: Path, tmp_path: Path, point: int
) -> None:
    partial = tmp_path / "p" / f"{LARGE_SHA256}.partial"
    gate.after(1 + point * LARGE_SIZE // 10, DOWN, gate.cut)
    with pytest.raises(OutOfReach):
        download(gated, str(large), LARGE_SIZE, LARGE_SHA256, tmp_path / "to", partial.parent)
    if point > 2:
        assert 0 < partial.stat().st_size < LARGE_SIZE
    again = connect("edge", str(machine.config))
    download(again, str(large), LARGE_SIZE, LARGE_SHA256, tmp_path / "to", partial.parent)
    again.close()
    assert (tmp_path / "to").read_bytes() == LARGE


def test_when_only_the_program_is_cut_paramiko_goes_on(
    gate: Gate,
    machine: Machine,
    large: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose("program", monkeypatch)
    connection = connect("edge", str(machine.config))
    cuts: list[bool] = []

    def cut() -> None:
        cuts.append(True)
        gate.cut_newest()

    gate.after(LARGE_SIZE // 2, DOWN, cut)
    download(connection, str(large), LARGE_SIZE, LARGE_SHA256, tmp_path / "to", tmp_path)
    gate.after(LARGE_SIZE // 2, UP, cut)
    upload(connection, large, LARGE_SIZE, LARGE_SHA256, str(tmp_path / "there"))
    connection.close()
    assert len(cuts) == 2
    assert (tmp_path / "to").read_bytes() == LARGE
    assert (tmp_path / "there").read_bytes() == LARGE


def test_ended_sessions_are_out_of_reach(
    gated: Connection, gate: Gate, machine: Machine, large: Path, tmp_path: Path
) -> None:
    gate.after(LARGE_SIZE // 2, DOWN, machine.kill_sessions)
    with pytest.raises(OutOfReach):
        download(gated, str(large), LARGE_SIZE, LARGE_SHA256, tmp_path / "to", tmp_path)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("way", ["program", "paramiko"])
def test_a_silent_link_is_given_up(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SILENCE_SECONDS", 1.0)
    choose(way, monkeypatch)
    size = 200 << 20
    (tmp_path / "zeros").touch()
    os.truncate(tmp_path / "zeros", size)
    sha256 = hashlib.sha256(bytes(size)).hexdigest()
    machine = Machine(tmp_path / "machine", namespaced=True).start()
    try:
        connection = connect("edge", str(machine.config))
        cut = []

        def note(done: int, total: int) -> None:
            if done > 10 << 20 and not cut:
                cut.append(done)
                machine.cut_link()

        start = time.monotonic()
        with pytest.raises(OutOfReach):
            download(
                connection, str(tmp_path / "zeros"), size, sha256, tmp_path / "to", tmp_path, note
            )
        assert time.monotonic() - start < 20
        assert not _programs_of(machine)
        connection.close()
        machine.mend_link()
        partial = tmp_path / f"{sha256}.partial"
        assert cut[0] <= partial.stat().st_size < size
        connection = connect("edge", str(machine.config))
        download(connection, str(tmp_path / "zeros"), size, sha256, tmp_path / "to", tmp_path)
        connection.close()
    finally:
        machine.remove()
    assert (tmp_path / "to").stat().st_size == size


def test_a_disk_too_small_is_told_before_a_byte_moves(
    connection: Connection, small_disk: Path, tmp_path: Path
) -> None:
    for destination, partials in (
        (tmp_path / "to", small_disk / "p"),
        (small_disk / "to", tmp_path / "p"),
    ):
        with pytest.raises(QuernError, match=r"6\.0 MB are needed in .*, 4\.2 MB are free"):
            download(connection, "/nonexistent", 6_000_000, SHA256, destination, partials)
        assert not destination.exists()
        assert [path.stat().st_size for path in partials.iterdir()] == [0]


def test_a_disk_that_fills_up_keeps_what_came(
    gated: Connection, gate: Gate, source: Path, small_disk: Path, tmp_path: Path
) -> None:
    partial = small_disk / f"{SHA256}.partial"

    def fill() -> None:
        wait(lambda: partial.stat().st_size, "the first of it to be written", 20)
        with open(small_disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    gate.after(1_000_000, DOWN, fill)
    with pytest.raises(QuernError, match="disk is full"):
        download(gated, str(source), SIZE, SHA256, tmp_path / "to", small_disk)
    assert 0 < partial.stat().st_size < SIZE
    assert DATA.startswith(partial.read_bytes())
    (small_disk / "filler").unlink()
    download(gated, str(source), SIZE, SHA256, tmp_path / "to", small_disk)
    assert (tmp_path / "to").read_bytes() == DATA


def test_a_partial_on_another_file_system(
    plain: Connection, source: Path, small_disk: Path, tmp_path: Path
) -> None:
    download(plain, str(source), SIZE, SHA256, tmp_path / "to", small_disk)
    assert (tmp_path / "to").read_bytes() == DATA
    assert not list(small_disk.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small_disk", "source", "to"]


DOWNLOAD = """
import sys
from pathlib import Path
from tasks.hosts import remote_digest, sftp_stream, transfer
from tasks.hosts.ssh import connect
config, source, size, sha256, to, partials, worth = sys.argv[1:]
transfer.WORTH_A_PROGRAM_BYTES = float(worth)
connection = connect("edge", config)
transfer.download(connection, source, int(size), sha256, Path(to), Path(partials))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["program", "paramiko"])
def test_a_killed_download_goes_on(way: str, machine: Machine, tmp_path: Path) -> None:
    size = 200 << 20
    (tmp_path / "zeros").touch()
    os.truncate(tmp_path / "zeros", size)
    sha256 = hashlib.sha256(bytes(size)).hexdigest()
    partial = tmp_path / f"{sha256}.partial"
    arguments = [
        *(str(machine.config), str(tmp_path / "zeros"), str(size), sha256),
        *(str(tmp_path / "to"), str(tmp_path), "1" if way == "program" else "1e9"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", DOWNLOAD, *arguments]
    process = subprocess.Popen(command, env=environment)
    _until(lambda: partial.exists() and partial.stat().st_size > 20 << 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _until(lambda: not _programs_of(machine))
    stopped = partial.stat().st_size
    assert 20 << 20 < stopped < size
    subprocess.run(command, env=environment, check=True)
    assert (tmp_path / "to").stat().st_size == size
    assert not partial.exists()


def test_partials_that_nobody_goes_on_with_are_removed(tmp_path: Path) -> None:
    for name, days in (("old.partial", 15), ("young.partial", 13), ("other", 99)):
        (tmp_path / name).touch()
        then = time.time() - days * 86400
        os.utime(tmp_path / name, (then, then))
    remove_old_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "young.partial"]


# Uploads


@pytest.mark.parametrize("have", [0, 1, 4096, SIZE // 2, SIZE - 1, SIZE, SIZE + 1])
def test_an_upload_goes_on_where_it_stopped(
    connection: Connection, source: Path, tmp_path: Path, have: int
) -> None:
    executable = have % 2 == 1
    destination = tmp_path / "new" / "server"
    partial = Path(f"{destination}.{SHA256[:16]}.partial")
    if have:
        partial.parent.mkdir()
        partial.write_bytes((DATA + b"x")[:have])
    upload(connection, source, SIZE, SHA256, str(destination), executable)
    assert destination.read_bytes() == DATA
    assert destination.stat().st_mode & 0o777 == (0o555 if executable else 0o444)
    assert [path.name for path in destination.parent.iterdir()] == ["server"]


def test_an_upload_takes_the_place_of_another_file(
    connection: Connection, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").write_bytes(b"before")
    (tmp_path / "there").chmod(0o444)
    upload(connection, source, SIZE, SHA256, str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == DATA


def test_a_damaged_partial_there_is_sent_anew(
    connection: Connection, source: Path, tmp_path: Path
) -> None:
    (tmp_path / f"there.{SHA256[:16]}.partial").write_bytes(bytes(SIZE))
    upload(connection, source, SIZE, SHA256, str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == DATA


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE])
def test_other_bytes_never_get_the_name_there(
    connection: Connection, source: Path, tmp_path: Path, size: int
) -> None:
    source.write_bytes((b"x" + DATA)[:size])
    with pytest.raises(Changed, match="changed mean"):
        upload(connection, source, SIZE, SHA256, str(tmp_path / "d" / "there"))
    assert not list((tmp_path / "d").iterdir())


def test_uploads_to_hostile_names(connection: Connection, source: Path, tmp_path: Path) -> None:
    for name in HOSTILE:
        upload(connection, source, SIZE, SHA256, str(tmp_path / "d" / name))
        assert (tmp_path / "d" / name).read_bytes() == DATA
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == sorted(HOSTILE)


def test_an_upload_onto_a_directory_is_refused(
    connection: Connection, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(RemoteFailed, match="is a directory"):
        upload(connection, source, SIZE, SHA256, str(tmp_path / "there"))
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize("point", range(10))
def test_an_upload_that_was_cut_goes_on(
    gated: Connection, gate: Gate, machine: Machine, large: Path, tmp_path: Path, point: int
) -> None:
    gate.after(1 + point * LARGE_SIZE // 10, UP, gate.cut)
    with pytest.raises(OutOfReach):
        upload(gated, large, LARGE_SIZE, LARGE_SHA256, str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()
    again = connect("edge", str(machine.config))
    upload(again, large, LARGE_SIZE, LARGE_SHA256, str(tmp_path / "there"))
    again.close()
    assert (tmp_path / "there").read_bytes() == LARGE


def test_a_cut_upload_over_a_long_line_goes_on(
    gate: Gate, machine: Machine, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp_stream, "LONG_LINE_SECONDS", 0.0)
    monkeypatch.setattr(sftp_stream, "UNSURE_BYTES", 8 << 20)
    for part in (2, 2, None):
        connection = connect("edge", str(machine.config))
        if part is not None:
            gate.after(LARGE_SIZE // part, UP, gate.cut)
            with pytest.raises(OutOfReach):
                upload(connection, large, LARGE_SIZE, LARGE_SHA256, str(tmp_path / "there"))
        else:
            upload(connection, large, LARGE_SIZE, LARGE_SHA256, str(tmp_path / "there"))
        connection.close()
    assert (tmp_path / "there").read_bytes() == LARGE


def test_a_host_that_lets_few_channels_be_open(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp_stream, "LONG_LINE_SECONDS", 0.0)
    config = ssh_world.SSHD_CONFIG.replace("MaxSessions 100", "MaxSessions 2")
    monkeypatch.setattr(ssh_world, "SSHD_CONFIG", config)
    machine = Machine(tmp_path / "machine").start()
    connection = connect("edge", str(machine.config))
    upload(connection, large, LARGE_SIZE, LARGE_SHA256, str(tmp_path / "there"))
    connection.close()
    machine.remove()
    assert (tmp_path / "there").read_bytes() == LARGE


def test_a_hosts_disk_too_small_is_told_before_a_byte_moves(
    connection: Connection, large: Path, small_disk: Path
) -> None:
    with pytest.raises(QuernError, match=r"24\.0 MB are needed in .*, 4\.2 MB are free"):
        upload(connection, large, LARGE_SIZE, LARGE_SHA256, str(small_disk / "there"))
    assert not list(small_disk.iterdir())


def test_a_hosts_disk_that_fills_up_keeps_what_arrived(
    gated: Connection, gate: Gate, source: Path, small_disk: Path
) -> None:
    def fill() -> None:
        with open(small_disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    gate.after(1_000_000, UP, fill)
    with pytest.raises(QuernError) as raised:
        upload(gated, source, SIZE, SHA256, str(small_disk / "there"))
    assert not isinstance(raised.value, Changed)
    assert "\n" not in str(raised.value)
    (small_disk / "filler").unlink()
    upload(gated, source, SIZE, SHA256, str(small_disk / "there"))
    assert (small_disk / "there").read_bytes() == DATA


# Digests there


@pytest.fixture(scope="module")
def sparse_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine whose PATH is `home`/bin, with what a POSIX shell's user has, and no more."""
    folder = tmp_path_factory.mktemp("sparse")
    programs = folder / "home" / "bin"
    made = Machine(folder, name="sparse", environment={"PATH": str(programs)})
    programs.mkdir()
    for name in BASICS:
        (programs / name).symlink_to(str(shutil.which(name)))
    made.start()
    yield made
    made.remove()


@pytest.fixture
def sparse(sparse_machine: Machine) -> Iterator[tuple[Connection, Path]]:
    made = connect("sparse", str(sparse_machine.config))
    yield made, sparse_machine.home / "bin"
    made.close()
    for name in TOOLS:
        (sparse_machine.home / "bin" / name).unlink(missing_ok=True)


@pytest.mark.parametrize("tool", TOOLS)
def test_any_of_the_programs_will_do(
    sparse: tuple[Connection, Path], source: Path, tmp_path: Path, tool: str
) -> None:
    connection, programs = sparse
    real = sys.executable if tool == "python3" else str(shutil.which(tool))
    (programs / tool).symlink_to(real)
    assert remote_sha256(connection, str(source)) == SHA256
    upload(connection, source, SIZE, SHA256, str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == DATA


def test_a_program_that_does_not_work_is_passed_over(
    sparse: tuple[Connection, Path], source: Path
) -> None:
    connection, programs = sparse
    for name, words in (("openssl", "exit 1"), ("python3", "echo install me")):
        (programs / name).write_text(f"#!/bin/sh\n{words}\n")
        (programs / name).chmod(0o755)
    (programs / "sha256sum").symlink_to(str(shutil.which("sha256sum")))
    assert remote_sha256(connection, str(source)) == SHA256


def test_a_host_with_none_of_them_is_told_what_it_needs(
    sparse: tuple[Connection, Path], source: Path
) -> None:
    with pytest.raises(RemoteFailed, match="one of: openssl, python3, sha256sum, shasum"):
        remote_sha256(sparse[0], str(source))


def test_digests_of_many_files_with_hostile_names(plain: Connection, tmp_path: Path) -> None:
    expected = {}
    for name in HOSTILE:
        (tmp_path / name).write_bytes(os.fsencode(name))
        expected[str(tmp_path / name)] = hashlib.sha256(os.fsencode(name)).hexdigest()
    missing = str(tmp_path / "missing")
    assert remote_digests(plain, [missing, *expected, missing]) == expected
    with pytest.raises(QuernError, match="no such file"):
        remote_sha256(plain, missing)
    with pytest.raises(RemoteFailed):
        remote_sha256(plain, str(tmp_path))
    assert remote_digests(plain, []) == {}


def test_a_digest_may_take_longer_than_silence_may_last(
    sparse: tuple[Connection, Path], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, programs = sparse
    (programs / "openssl").write_text(f'#!/bin/sh\nsleep 2\nexec {shutil.which("openssl")} "$@"\n')
    (programs / "openssl").chmod(0o755)
    quick = remote_digest.EACH.replace("sleep 5", "sleep 0.5")
    monkeypatch.setattr(remote_digest, "EACH", quick)
    run = Connection.run
    monkeypatch.setattr(Connection, "run", lambda *a: run(*a, timeout=1.5))
    assert remote_sha256(connection, str(source)) == SHA256


# Directories


def _manifest(folder: Path, files: dict[str, bytes]) -> list[tuple[str, int, str]]:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return [(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()]


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


FILES = {
    "config.json": b"{}",
    "model-1.safetensors": LARGE,
    "model-2.safetensors": DATA,
    "same.safetensors": DATA,
    "deep/er/tokenizer.json": b"[]",
    **{f"odd/{name}": os.fsencode(name) for name in HOSTILE},
}


def test_a_directory(connection: Connection, tmp_path: Path) -> None:
    manifest = _manifest(tmp_path / "there", FILES)
    seen: list[tuple[int, int]] = []
    download_directory(
        connection,
        manifest,
        str(tmp_path / "there"),
        tmp_path / "to" / "here",
        tmp_path / "p",
        lambda done, total: seen.append((done, total)),
    )
    assert _files(tmp_path / "to" / "here") == FILES
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["here"]
    total = sum(map(len, FILES.values()))
    assert seen[-1] == (total, total)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../b", "..", "", ".", "a\0b"])
def test_a_name_that_leads_out_is_refused(plain: Connection, tmp_path: Path, name: str) -> None:
    with pytest.raises(QuernError, match="refused"):
        download_directory(
            plain, [(name, SIZE, SHA256)], str(tmp_path), tmp_path / "here", tmp_path / "p"
        )
    assert not list(tmp_path.iterdir())


def test_a_directory_that_failed_goes_on(plain: Connection, tmp_path: Path) -> None:
    manifest = _manifest(tmp_path / "there", FILES)
    (tmp_path / "there" / "config.json").unlink()
    here, gathered = tmp_path / "here", tmp_path / ".here.partial"
    with pytest.raises(QuernError, match="o such file"):
        download_directory(plain, manifest, str(tmp_path / "there"), here, tmp_path / "p")
    assert not here.exists()
    _manifest(tmp_path / "there", {"config.json": b"{}"})
    (gathered / "left over").mkdir()
    (gathered / "left over" / "file").write_bytes(b"of another manifest")
    (gathered / "model-2.safetensors").write_bytes(bytes(SIZE))  # damaged
    download_directory(plain, manifest, str(tmp_path / "there"), here, tmp_path / "p")
    assert _files(here) == FILES
    assert not gathered.exists()


def test_nothing_is_brought_over_a_directory(plain: Connection, tmp_path: Path) -> None:
    manifest = _manifest(tmp_path / "there", {"a": b"new"})
    _manifest(tmp_path / "here", {"a": b"old"})
    with pytest.raises(QuernError, match="is there already"):
        download_directory(plain, manifest, str(tmp_path / "there"), tmp_path / "here", tmp_path)
    assert _files(tmp_path / "here") == {"a": b"old"}


# The user's own SSH configuration, and the benchmark


def test_what_else_the_users_configuration_has_for_a_session_is_left_out(
    machine: Machine, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose("program", monkeypatch)
    port = machine.port  # taken: ssh would fail to listen there
    machine.write_config(
        f"  RemoteCommand false\n  LocalForward {port} localhost:1\n"
        f"  ExitOnForwardFailure yes\n  ControlPath {tmp_path}/control\n  ControlMaster auto\n"
    )
    connection = connect("edge", str(machine.config))
    used = []
    monkeypatch.setattr(sftp_stream, "Pull", lambda *a: used.append(a))
    download(connection, str(source), SIZE, SHA256, tmp_path / "to", tmp_path)
    connection.close()
    machine.write_config()
    assert (tmp_path / "to").read_bytes() == DATA
    assert not used and not (tmp_path / "control").exists()


@pytest.mark.slow
def test_the_benchmark(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.transfer", "--quick", "--json", tmp_path / "json"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    results = json.loads((tmp_path / "json").read_text())
    assert results["ratios"].keys() >= {"rsync", "paramiko_alone", "scp_50ms"}
    assert results["figures"]["resident_mb"] < 80
    assert "paramiko_get" in done.stdout


# Of these tests


def _programs_of(machine: Machine) -> list[str]:
    """The ssh programs that speak with this machine."""
    found = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True).stdout
    return [line for line in found.splitlines() if f"-F {machine.config}" in line and "ssh" in line]


def _until(condition: object, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)
