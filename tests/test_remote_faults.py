"""What can go wrong while a remote host is deployed to. After each: what served before still
serves, or the new is verified; the next run heals; nothing partial is named as whole.
"""

import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from tasks.core.errors import QuernError
from tasks.hosts.deployment import Deployment
from tasks.hosts.remote import RemoteHost
from tests.remote_project import RemoteProject
from tests.test_deploy import release_in

LOOPBACK = "127.0.0.1:8892"

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path, checkpoints: list[Path]) -> Iterator[RemoteProject]:
    """A project whose first release is live on edge."""
    project = RemoteProject(tmp_path / "project", checkpoints)
    try:
        project.use_checkpoint(0)
        project.doit()
        yield project
    finally:
        project.stop()


def release_here(project: RemoteProject) -> str:
    """The id of the release that should be live."""
    manifest = (project.root / "weights/digits/manifest@edge.json").read_bytes()
    return xxhash.xxh3_128_hexdigest(manifest)[:16]


def assert_whole(project: RemoteProject) -> None:
    """Every file in the host's store and every release directory is what its name says."""
    for path in (project.edge.home / "quern/store").rglob("*"):
        if path.is_file() and not path.name.startswith(".") and ".partial" not in path.name:
            assert xxhash.xxh3_128_hexdigest(path.read_bytes()) == path.parent.name + path.name
    for release in project.folder_on().glob("releases/[0-9a-f]*"):
        manifest = json.loads((release / "manifest.json").read_bytes())
        for entry in manifest["roles"].values():
            data = (release / entry["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == entry["sha256"]


def servers_in(project: RemoteProject) -> dict[int, str]:
    """Process id → release directory of the quern-server processes on edge."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, NotADirectoryError):
            continue
        if words[0].endswith(b"quern-server") and str(project.edge.home).encode() in words[0]:
            found[int(entry.name)] = words[0].decode()
    return found


def begun_deploy(project: RemoteProject) -> "subprocess.Popen[str]":
    """A deploy that has just come as far as edge's sshd, or has ended."""
    run = subprocess.Popen(
        project.command("deploy"),
        cwd=project.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not project.edge.sessions() and run.poll() is None:
        assert time.monotonic() < deadline
    return run


def test_the_connection_is_cut_at_ten_points(project: RemoteProject):
    project.use_checkpoint(1)
    start = time.monotonic()
    project.doit()
    seconds = time.monotonic() - start
    cut_runs = 0
    for point in range(10):
        before = project.health_on()["release"]
        project.use_checkpoint(point % 2)
        # All but the deploy is done, so that every point is in the deploy.
        project.doit("release")
        wanted = release_here(project)
        assert wanted != before
        run = begun_deploy(project)
        time.sleep(point * 0.02)
        project.edge.kill_sessions()
        out, err = run.communicate(timeout=120)
        assert run.returncode in (0, 75), (out, err)
        assert "Traceback" not in out + err
        cut_runs += run.returncode == 75
        # Served: the old, or the new after its probe.
        assert project.health_on()["release"] in (before, wanted)
        assert_whole(project)
        assert project.doit("deploy").stderr == ""
        assert project.health_on()["release"] == wanted
        assert_whole(project)
    assert cut_runs >= 3, f"the cuts came too late: a deploy takes {seconds} s"


def test_packets_are_lost_in_the_midst_of_a_deploy(project: RemoteProject):
    before = project.health_on()["release"]
    project.use_checkpoint(1)
    project.doit("release")
    run = begun_deploy(project)
    time.sleep(0.05)
    project.edge.cut_link()
    _, told = run.communicate(timeout=200)
    project.edge.mend_link()
    assert run.returncode == 75 and "edge" in told, told
    assert project.health_on()["release"] in (before, release_here(project))
    project.doit()
    assert project.health_on()["release"] == release_here(project)


def test_the_host_s_disk_is_full(project: RemoteProject):
    before = project.health_on()["release"]
    store = project.edge.home / "quern/store"
    kept = list(store.rglob("*"))
    disk = project.edge.home / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    try:
        project.stop_servers()
        subprocess.run(["cp", "-a", project.edge.home / "quern", disk], check=True)
        project.write_models(edge="root: ~/disk/quern")
        project.doit("deploy")
        filler = disk / "filler"
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        filler.write_bytes(b"\0" * (free - 40_000))
        project.use_checkpoint(1)
        done = project.doit(status=1)
        [line] = [line for line in done.stderr.splitlines() if line.startswith("deploy:")]
        assert "edge" in line and "free" in line, line
        assert project.health_on()["release"] == before
        filler.unlink()
        project.doit()
        assert project.health_on()["release"] == release_here(project) != before
    finally:
        project.edge.stop()
        subprocess.run(["umount", "-l", disk], check=True)
    assert kept


def test_the_new_server_is_killed_in_its_probe(project: RemoteProject, tmp_path: Path):
    """Another build of the server: it is proved as a process of its own."""
    before = project.health_on()["release"]
    [live] = servers_in(project)
    program = tmp_path / "quern-server"
    # The loader ignores what follows the program.
    program.write_bytes((project.root / "native/build/edge/quern-server").read_bytes() + b"another")
    release, files = release_in(project, tmp_path / "other", server=program)
    host = RemoteHost("edge", "edge", "~/quern", str(project.root / "ssh_config"))
    deployment = Deployment(host, release, "stable", f"0.0.0.0:{project.port}", LOOPBACK)
    killed: list[int] = []

    def kill_new() -> None:
        while not killed:
            for pid in servers_in(project).keys() - {live}:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill_new)
    killer.start()
    with pytest.raises(QuernError) as failed:
        deployment.make_live(files, retry=False)
    killer.join()
    assert "\n" not in str(failed.value)
    assert project.health_on()["release"] == before and live in servers_in(project)
    deployment.make_live(files, retry=False)  # it was not the release's fault
    assert project.health_on()["release"] == release.id
    assert killed[0] not in servers_in(project)


def test_the_host_reboots(project: RemoteProject):
    before = project.health_on()["release"]
    project.edge.stop()
    assert not servers_in(project)
    project.edge.start()
    told = project.doit().stdout
    assert "deploy:digits: done" in told and project.health_on()["release"] == before

    # In the midst of a deploy.
    project.use_checkpoint(1)
    project.doit("release")
    run = begun_deploy(project)
    time.sleep(0.1)
    project.edge.stop()
    _, told = run.communicate(timeout=200)
    project.edge.start()
    assert run.returncode in (0, 75), told
    project.doit()
    assert project.health_on()["release"] == release_here(project)
    assert_whole(project)


def test_a_changed_host_key_stops_the_deploy_and_nothing_else(project: RemoteProject):
    before = project.health_on()["release"]
    known = project.edge.folder / "known_hosts"
    kept = known.read_text()
    other = (project.edge.folder / "user_key.pub").read_text().split()[:2]
    known.write_text(f"{project.edge.address} {' '.join(other)}\n")
    project.use_checkpoint(1)
    told = project.doit(status=None)
    assert told.returncode not in (0, 75)
    assert "its host key has changed" in told.stderr and len(told.stderr.splitlines()) == 1
    assert project.health_on()["release"] == before
    known.write_text(kept)
    project.doit()
    assert project.health_on()["release"] == release_here(project) != before
