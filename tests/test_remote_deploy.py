"""Deploys to machines reached by SSH: a real sshd, each machine a network namespace of its own."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy_project import Hammer
from tests.remote_project import RemoteProject

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path, checkpoints: list[Path]) -> Iterator[RemoteProject]:
    project = RemoteProject(tmp_path / "project", checkpoints)
    yield project
    project.stop()


def test_the_same_deploy_as_here(project: RemoteProject, digit_png: bytes):
    project.use_checkpoint(0)
    told = project.doit().stdout
    assert "is live on http://127.0.0.1:8892 of edge" in told
    first = project.health_on()["release"]
    assert project.doit().stdout == ""

    # The next weights: swapped with no request lost, only they are sent.
    with Hammer(project.address_on(), digit_png) as hammer:
        project.use_checkpoint(1)
        told = project.doit().stdout
    assert "deploy:digits: done" in told
    assert not hammer.failures and hammer.answers > 10
    second = project.health_on()["release"]
    assert second != first and {first, second} == hammer.releases
    assert [r["outcome"] for r in project.history_on()] == ["live", "live"]

    model = json.loads(project.doit("health", "--json").stdout)[0]
    assert model["status"] == "healthy" and model["channels"][0]["host"] == "edge"

    told = project.doit("rollback", "digits").stdout
    assert "is live on" in told and project.health_on()["release"] == first
    assert project.doit().stdout == ""  # it stays


@pytest.fixture
def two_hosts(tmp_path: Path, checkpoints: list[Path]) -> Iterator[RemoteProject]:
    project = RemoteProject(tmp_path / "project", checkpoints, names=("edge", "attic"))
    yield project
    project.stop()


def test_a_host_that_is_down_fails_alone_and_is_served_when_it_is_back(two_hosts: RemoteProject):
    project = two_hosts
    project.use_checkpoint(0)
    project.doit()
    first = project.health_on("edge")["release"]
    assert project.health_on("attic")["release"] == first

    project.machines["attic"].stop()
    project.use_checkpoint(1)
    done = project.doit(status=75)
    assert "deploy:digits@edge: done" in done.stdout
    assert done.stderr.count("attic") and "out of reach" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert project.health_on("edge")["release"] != first

    # Nothing but what is missing is done; and the servers that the power cut ended are back.
    project.machines["attic"].start()
    done = project.doit()
    assert [line.split(":")[1] for line in done.stdout.splitlines() if "done" in line] == [
        "digits@attic"
    ]
    assert project.health_on("attic")["release"] == project.health_on("edge")["release"]
    assert project.doit().stdout == ""


def test_two_deployers_at_once(project: RemoteProject):
    """The lock is the host's own: another project, another machine, the host itself."""
    from tasks.hosts.deployer import HostBusy
    from tasks.hosts.local import LocalHost
    from tasks.hosts.remote import RemoteHost

    project.use_checkpoint(0)
    project.doit()
    lock = project.folder_on() / "lock"
    there = RemoteHost("edge", "edge", "~/quern", str(project.root / "ssh_config"))
    on_itself = LocalHost(project.folder_on().parent, "edge")
    project.use_checkpoint(1)
    for holder, other in ((there, on_itself), (on_itself, there)):
        with holder.lock(lock):
            with pytest.raises(HostBusy, match=r"by \S+ \(process \d+ on \S+\)"), other.lock(lock):
                pass
            done = project.doit(status=75)
            assert "digits is being deployed by" in done.stderr
    with there.lock(lock):
        there.connection.close()  # the deployer is gone: so is its lock
        project.doit()


def other_machine(folder: Path, *without: str) -> dict[str, str]:
    """The environment of a machine that says it is another kind, and lacks some programs."""
    folder.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name not in without:
            (folder / program.name).symlink_to(program)
    (folder / "uname").unlink()
    (folder / "uname").write_text('#!/bin/sh\n[ "$1" = -s ] && echo Darwin || echo arm64\n')
    (folder / "uname").chmod(0o755)
    (folder / "getconf").unlink()
    return {"PATH": str(folder)}


def test_a_host_of_another_kind_without_a_compiler_is_refused_before_anything_is_sent(
    tmp_path: Path, checkpoints: list[Path]
):
    environment = other_machine(tmp_path / "programs", "c++", "g++", "cmake")
    project = RemoteProject(tmp_path / "project", checkpoints, environment=environment)
    try:
        project.use_checkpoint(0)
        done = project.doit(status=1)
        assert "native:server@edge: edge: cmake is missing there" in done.stderr
        assert not project.folder_on().exists()

        # The host was exchanged for another after the release was made for it.
        known = project.root / ".quern/hosts/edge.platform.json"
        known.write_text(json.dumps({"system": "Linux", "machine": "x86_64", "libc": [2, 99]}))
        done = project.doit(status=1)
        assert "edge is Darwin arm64; the programs of release" in done.stderr
        assert "nothing was sent" in done.stderr
        assert not list(project.folder_on().glob("releases/*"))
    finally:
        project.stop()


def test_programs_are_built_on_the_host(tmp_path: Path, checkpoints: list[Path]):
    cmake = Path(sys.executable).parent
    environment = {"PATH": f"/usr/bin:/bin:{cmake}"}
    project = RemoteProject(tmp_path / "project", checkpoints, environment=environment)
    try:
        project.write_models(edge="programs: there")
        project.use_checkpoint(0)
        told = project.doit().stdout
        assert "native:server@edge: done" in told
        built = (project.root / "native/build/edge/quern-server").read_bytes()
        assert built[:4] == b"\x7fELF"
        assert project.health_on()["status"] == "ok"
        assert not (project.edge.home / "quern/build").exists()
        assert project.doit().stdout == ""
    finally:
        project.stop()


def test_what_a_host_keeps(project: RemoteProject):
    project.write_models(edge="keep: 1")
    lived = []
    for number in (0, 1, 2):
        project.use_checkpoint(number)
        project.doit()
        lived.append(project.health_on()["release"])
    kept = {path.name for path in project.folder_on().glob("releases/*")}
    assert kept == set(lived[1:])
    entries = [
        entry["xxh3_128"]
        for release in kept
        for entry in json.loads(
            (project.folder_on() / "releases" / release / "manifest.json").read_bytes()
        )["roles"].values()
    ]
    store = project.edge.home / "quern/store"
    assert {p.parent.name + p.name for p in store.rglob("*") if p.is_file()} == set(entries)

    # The release that was live before is kept, however long ago it was made.
    project.doit("rollback", "digits")
    assert project.health_on()["release"] == lived[1]

    # A pinned one too, whatever comes after it; gc takes what no release names.
    assert "is pinned on edge" in project.doit("pin", "digits", lived[1], "--reason", "fair").stdout
    assert "by" in project.doit("pin", "digits").stdout
    project.doit("rollback", "digits", lived[2])
    for number in (0, 1):
        project.use_checkpoint(number)
        project.doit("deploy:digits", "--retry")
    live = project.health_on()["release"]
    assert {p.name for p in project.folder_on().glob("releases/*")} >= {lived[1], live}
    lost = store / "ab/cdef"
    lost.parent.mkdir(exist_ok=True)
    lost.write_bytes(bytes(1000))
    whole = {p for p in store.rglob("*") if p.is_file()} - {lost}
    assert "edge: would free 1.0 kB: 1 file\n" in project.doit("gc", "--dry-run").stdout
    assert lost.exists()
    assert "edge: freed 1.0 kB: 1 file\n" in project.doit("gc").stdout
    assert {p for p in store.rglob("*") if p.is_file()} == whole
    assert "no longer pinned" in project.doit("pin", "digits", lived[1], "--remove").stdout
    told = project.doit("pin", "digits", "0123456789abcdef", status=1).stderr
    assert told == "digits has no release 0123456789abcdef on edge\n"
    assert project.doit().stdout == "" and project.health_on()["release"] == live


def test_health_and_rollback_go_on_without_a_host_that_is_down(two_hosts: RemoteProject):
    project = two_hosts
    for number in (0, 1):
        project.use_checkpoint(number)
        project.doit()
    live = project.health_on("edge")["release"]
    project.machines["attic"].stop()
    told = project.doit("health", status=2).stdout
    assert "stable on attic, host: attic: out of reach" in told and "on edge" not in told
    done = project.doit("status", status=75)
    assert "as it should be" in done.stdout and "attic: out of reach" in done.stdout
    done = project.doit("history")
    assert done.stdout.count("live in stable on attic") == 2
    assert "attic: out of reach" in done.stderr
    assert "shown is what this project did there" in done.stderr
    done = project.doit("rollback", "digits", status=75)
    assert "of edge after" in done.stdout and "attic: out of reach" in done.stderr
    assert project.health_on("edge")["release"] != live
