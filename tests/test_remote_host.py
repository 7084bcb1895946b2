"""The operations that a host offers, each through a real sshd, in a folder with a hostile name."""

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from tasks.core.errors import QuernError
from tasks.hosts.deployer import HostBusy
from tasks.hosts.host import Host, Platform
from tasks.hosts.local import LocalHost
from tasks.hosts.remote import RemoteHost
from tasks.hosts.ssh import connections
from tasks.hosts.unix_http import Unreachable
from tests.ssh_world import Machine

ROOT = 'quern\'s $(touch evil) "folder"'


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "edge").start()
    yield machine
    connections.close()
    machine.remove()


@pytest.fixture(params=["here", "there"])
def host(machine: Machine, request: pytest.FixtureRequest) -> Host:
    """The same operations on this machine and on one by SSH."""
    if request.param == "here":
        return LocalHost(machine.home / ROOT)
    return RemoteHost("edge", "edge", f"~/{ROOT}", str(machine.config))


def entry(data: bytes) -> dict[str, Any]:
    return {
        "file": "f",
        "size": len(data),
        "xxh3_128": xxhash.xxh3_128_hexdigest(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def test_files(host: Host, tmp_path: Path):
    data = os.urandom(100_000)
    source = tmp_path / "source"
    source.write_bytes(data)
    seen: list[tuple[int, int]] = []
    stored = host.root / "store" / "ab" / "cd ef"
    host.put_file(source, stored, entry(data), True, lambda done, total: seen.append((done, total)))
    assert host.holds(stored, entry(data)) and not host.holds(stored, entry(data + b"x"))
    assert not host.holds(stored.with_name("nothing"), entry(data))
    assert stored.stat().st_mode & 0o777 == 0o555
    with pytest.raises(QuernError):
        host.put_file(source, stored.with_name("other"), entry(b"other"), False, lambda *_: None)
    assert not stored.with_name("other").exists()

    host.make_directory(host.root / "a" / "b")
    host.link_file(stored, host.root / "a" / "second")
    assert stored.samefile(host.root / "a" / "second")
    assert host.read(host.root / "a" / "second") == data
    assert host.read(stored, first=4) == data[:4] and host.read(stored, last=7) == data[-7:]
    assert host.read(host.root / "nothing") is None
    before = host.signature(stored)
    assert before == host.signature(stored) is not None
    assert host.signature(host.root / "nothing") is None

    for by, how in (("automatic", "hard-link"), ("copy", "copy"), ("symbolic-link",) * 2):
        target = host.root / "new folder" / "it's"
        assert host.place(stored, target, by) == how
        assert host.place(stored, target, by) == how  # again, over itself
        assert target.read_bytes() == data
    assert [p.name for p in (host.root / "new folder").iterdir()] == ["it's"]
    assert host.files_below(host.root / "store") == {"ab/cd ef": len(data)}
    assert host.files_below(host.root / "nothing") == {}
    host.remove_file(host.root / "a" / "second")
    host.remove_file(host.root / "a" / "second")
    assert not (host.root / "a" / "second").exists()


def test_small_files_and_links(host: Host):
    path = host.root / "deep" / "file.json"
    host.write(path, b"one")
    host.write(path, b"two")
    assert host.read(path) == b"two" and [p.name for p in path.parent.iterdir()] == [path.name]
    for text in ("it's", '"$(touch evil)"', "é\\n", "%s"):
        host.append_line(host.root / "log", {"text": text})
    lines = (host.read(host.root / "log") or b"").decode().splitlines()
    assert [line for line in lines if "evil" in line] == ['{"text": "\\"$(touch evil)\\""}']
    assert len(lines) == 4

    for name in ("first", "second"):
        host.make_directory(host.root / name)
        host.point(host.root / "current", host.root / name)
        assert host.link_target(host.root / "current") == host.root / name
    assert host.link_target(path) is None and host.link_target(host.root / "nothing") is None
    host.make_directory(host.root / ".hidden")
    assert set(host.directories(host.root)) == {"deep", "first", "second"}
    assert host.directories(host.root / "nothing") == []
    host.rename_directory(host.root / "first", host.root / "third")
    host.remove_directory(host.root / "third")
    host.remove_directory(host.root / "third")
    assert set(host.directories(host.root)) == {"deep", "second"}
    assert not list(host.root.parent.glob("evil")) and not Path("evil").exists()


def test_stale_partials(host: Host):
    store = host.root / "store" / "ab"
    host.make_directory(store)
    for name, days in (("old.partial", 20), ("new.partial", 2), ("old", 20)):
        (store / name).write_bytes(b"x")
        os.utime(store / name, (time.time() - days * 86400,) * 2)
    host.remove_stale_partials(host.root / "store")
    assert sorted(p.name for p in store.iterdir()) == ["new.partial", "old"]


def test_programs(host: Host, monkeypatch: pytest.MonkeyPatch):
    host.make_directory(host.root)
    assert host.run(["sh", "-c", "pwd; echo $0 >&2; exit 3", "it's"], host.root, 30) == (
        3,
        f"{host.root}\nit's\n",
    )
    assert host.has_program("sh") and not host.has_program("no-such-program")
    assert host.platform() == LocalHost(host.root).platform()
    assert (host.free_disk() or 0) > 1 << 20 and (host.free_memory() or 0) > 1 << 20

    monkeypatch.setenv("QUERN_READ_KEY", "a 'secret'")
    log = host.root / "log"
    command = ["sh", "-c", 'echo "$QUERN_READ_KEY" "$0"; exec sleep 1000', "it's"]
    program = host.spawn(command, log)
    deadline = time.monotonic() + 20
    while not log.exists() or not log.read_bytes().endswith(b"\n"):
        assert time.monotonic() < deadline
    assert log.read_text() == "a 'secret' it's\n"
    assert program.poll() is None
    pid = program.pid  # type: ignore[attr-defined]
    host.run(["kill", str(pid)], host.root, 30)
    while program.poll() is None:
        assert time.monotonic() < deadline


def test_servers_that_are_not_there(host: Host):
    with pytest.raises(Unreachable):
        host.ask_port("127.0.0.1:1", "/health")
    with pytest.raises(Unreachable):
        host.ask_socket(host.root / "holder.sock", "GET", "/status")


@pytest.mark.parametrize("program", ["flock", "perl", "python3"])
def test_the_lock_with_whatever_program_is_there(tmp_path: Path, program: str):
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("sh", "mkdir", "dirname", "cat", "sleep", program):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    machine = Machine(tmp_path / "edge", environment={"PATH": str(folder)}).start()
    try:
        there = RemoteHost("edge", "edge", "~/quern", str(machine.config))
        on_itself = LocalHost(machine.home / "quern", "edge")
        lock = machine.home / "quern" / "digits" / "lock"
        for _ in range(2):
            with (
                there.lock(lock),
                pytest.raises(HostBusy, match="digits is being deployed by"),
                on_itself.lock(lock),
            ):
                pass
            with (
                on_itself.lock(lock),
                pytest.raises(HostBusy, match="digits is being deployed by"),
                there.lock(lock),
            ):
                pass
    finally:
        connections.close()
        machine.remove()


def test_a_host_without_any_program_for_a_lock(tmp_path: Path):
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("sh", "mkdir", "dirname", "cat"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    machine = Machine(tmp_path / "edge", environment={"PATH": str(folder)}).start()
    try:
        there = RemoteHost("edge", "edge", "~/quern", str(machine.config))
        lock = there.lock(machine.home / "quern" / "digits" / "lock")
        with pytest.raises(QuernError, match="needs flock, perl or python3"), lock:
            pass
    finally:
        connections.close()
        machine.remove()


def test_which_programs_run_where():
    built = Platform("Linux", "x86_64", (2, 34))
    assert Platform("Linux", "x86_64", (2, 36)).runs_programs_of(built)
    assert Platform("Linux", "x86_64", (2, 34)).runs_programs_of(built)
    assert not Platform("Linux", "x86_64", (2, 31)).runs_programs_of(built)
    assert not Platform("Linux", "aarch64", (2, 36)).runs_programs_of(built)
    assert not Platform("Linux", "x86_64", ()).runs_programs_of(built)  # another C library
    mac = Platform("Darwin", "arm64", ())
    assert mac.runs_programs_of(mac) and not mac.runs_programs_of(built)
    assert Platform.of(built.as_data()) == built
