"""Deploys to the local host, with the real server and holder: switching, refusing, healing."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tasks.core.digest import canonical_json, read_digests
from tasks.core.errors import QuernError
from tasks.hosts.deployment import Deployment
from tasks.hosts.holder import Holder
from tasks.hosts.local import LocalHost
from tasks.hosts.releases import Release
from tests.deploy_project import DeployProject, Hammer

pytestmark = pytest.mark.slow


def release_in(project: DeployProject, folder: Path, **changed: Path) -> tuple[Release, dict]:
    """A release of the project's artifacts, with the files of some roles exchanged."""
    files = {
        "server": project.root / "native/build/quern-server",
        "holder": project.root / "native/build/quern-holder",
        "weights": project.root / "weights/digits/model_weights.bin",
        "classes": project.root / "examples/digits/classes.json",
        "golden": project.root / "weights/digits/golden.json",
        **changed,
    }
    written = next((project.root / "weights/digits").glob("manifest*.json"))
    manifest = json.loads(written.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    for role, path in files.items():
        copy = folder / role
        copy.write_bytes(path.read_bytes())
        files[role] = copy
        signature, xxh3, sha256 = read_digests(copy, sha256=True)
        manifest["roles"][role] |= {"size": signature[2], "xxh3_128": xxh3, "sha256": sha256}
    (folder / "manifest.json").write_bytes(canonical_json(manifest) + b"\n")
    return Release.read(folder / "manifest.json"), {r: str(p) for r, p in files.items()}


def make_live(project: DeployProject, release: Release, files: dict, retry: bool = False) -> None:
    host = LocalHost(project.host.parent)
    Deployment(host, release, "stable", project.address).make_live(files, retry)


def server_pids(project: DeployProject) -> list[int]:
    return [s.pid for s in Holder(LocalHost(project.host), project.host / "stable").servers()]


def wait_until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_weights_and_programs_are_switched_without_losing_a_request(
    deploy_project: DeployProject, digit_png: bytes, tmp_path: Path
):
    project = deploy_project
    project.use_checkpoint(0)
    project.doit()
    first = project.health()["release"]
    project.use_checkpoint(1)
    with Hammer(project.address, digit_png) as hammer:
        project.doit()  # new weights: swapped inside the process
        second = project.health()["release"]
        others = {}
        for role in ("server", "holder"):
            # The loader ignores what follows the program: another binary, the same behaviour.
            others[role] = tmp_path / f"other-{role}"
            program = (project.root / f"native/build/quern-{role}").read_bytes()
            others[role].write_bytes(program + b"another build")
        releases = [
            release_in(project, tmp_path / "a"),
            release_in(project, tmp_path / "b", **others),
        ]
        # New programs each time: another process on the same socket, and the holder upgraded.
        for turn in range(8):
            make_live(project, *releases[(turn + 1) % 2])
        project.use_checkpoint(0)
        project.doit()
    assert hammer.failures == []
    assert hammer.answers > 100
    assert {first, second} <= hammer.releases
    assert project.health()["release"] == first
    outcomes = [(record["outcome"], bool(record["probe"])) for record in project.history()]
    assert outcomes == [("live", True)] * 11
    wait_until(lambda: len(server_pids(project)) == 1)


def refused(project: DeployProject, release: Release, files: dict) -> str:
    """Deploy what must not go live; returns the reason. What served before still serves."""
    before, pids = project.health(), server_pids(project)
    with pytest.raises(QuernError) as caught:
        make_live(project, release, files)
    message = str(caught.value)
    assert "\n" not in message
    assert project.health() == before
    wait_until(lambda: server_pids(project) == pids)
    assert os.readlink(project.host / "stable/current").endswith(before["release"])
    assert project.history()[-1]["outcome"] == "failed"
    assert project.history()[-1]["error"] == message
    return message


def test_a_release_that_fails_its_probe_never_takes_over(
    deploy_project: DeployProject, tmp_path: Path
):
    project = deploy_project
    project.use_checkpoint(0)
    project.doit()
    other_weights = tmp_path / "other_weights.bin"
    other_weights.write_bytes((project.root / "weights/digits/model_weights.bin").read_bytes())
    project.use_checkpoint(1)
    project.doit()

    wrong, files = release_in(project, tmp_path / "wrong", weights=other_weights)
    assert "wrong answer" in refused(project, wrong, files)

    # Remembered: the same release is refused at once, and tried again only when asked for.
    with pytest.raises(QuernError, match=r"failed before .*--retry"):
        make_live(project, wrong, files)
    with pytest.raises(QuernError, match="wrong answer"):
        make_live(project, wrong, files, retry=True)

    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    release, files = release_in(project, tmp_path / "crashing", server=crash)
    assert "exit 3" in refused(project, release, files)
    assert "no such luck" in project.history()[-1]["error"]

    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 1000\n")
    release, files = release_in(project, tmp_path / "silence", server=silent)
    assert "does not answer" in refused(project, release, files)

    damaged = tmp_path / "damaged.bin"
    data = bytearray(other_weights.read_bytes())
    data[-5] ^= 1
    damaged.write_bytes(bytes(data))
    release, files = release_in(project, tmp_path / "damaged", weights=damaged)
    assert "digest" in refused(project, release, files)

    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps([str(n) for n in range(11)]))
    release, files = release_in(project, tmp_path / "eleven", classes=classes)
    assert "11" in refused(project, release, files)

    spaced = tmp_path / "spaced.json"
    spaced.write_bytes((project.root / "examples/digits/classes.json").read_bytes() + b" ")
    release, files = release_in(project, tmp_path / "late", classes=spaced)
    Path(files["classes"]).write_bytes(spaced.read_bytes() + b" ")
    assert "changed after the release was made" in refused(project, release, files)


def test_a_bad_checkpoint_fails_the_build_in_one_line_and_the_old_one_serves(
    deploy_project: DeployProject,
):
    project = deploy_project
    project.use_checkpoint(0)
    project.doit()
    before = project.health()
    checkpoint = project.root / "training/checkpoints_cycle2/best_model.pth"
    checkpoint.parent.mkdir()
    import torch

    torch.save({"model_state_dict": {"stem.0.weight": torch.zeros(3)}}, checkpoint)
    done = project.doit(status=1)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("weights:digits: ") and "stem" in lines[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert project.health() == before


def test_drift_is_put_right(deploy_project: DeployProject):
    project = deploy_project
    project.use_checkpoint(0)
    project.doit()
    release = project.health()["release"]
    assert project.doit().stdout == ""

    # A dead server is started again by its holder.
    (pid,) = server_pids(project)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in server_pids(project) and server_pids(project))
    wait_until(lambda: project.doit(status=None).stdout == "")
    assert project.health()["release"] == release

    # A dead holder (a reboot) is put right by the next run, which says what was wrong.
    status = Holder(LocalHost(project.host), project.host / "stable").ask("GET", "/status")
    (pid,) = server_pids(project)
    os.kill(status["pid"], signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))
    done = project.doit()
    assert "does not serve" in done.stdout
    assert project.health()["release"] == release

    # Another release put in its place by hand.
    project.use_checkpoint(1)
    project.doit()
    other = project.health()["release"]
    assert other != release
    project.use_checkpoint(0)
    project.doit("fetch", "weights", "release")
    done = project.doit("deploy:digits")
    assert f"serves {other}" in done.stdout
    assert project.health()["release"] == release


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_port_taken_by_another_program_is_said_in_one_line(deploy_project: DeployProject):
    import socket

    project = deploy_project
    project.use_checkpoint(0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", project.port))
        other.listen()
        done = project.doit(status=1)
    assert len(done.stderr.splitlines()) == 1
    assert str(project.port) in done.stderr and "holder did not start" in done.stderr
    project.doit()
    assert project.health()["status"] == "ok"


def test_clean_then_doit_takes_everything_from_the_store(deploy_project: DeployProject):
    project = deploy_project
    project.use_checkpoint(0)
    project.doit()
    digests = {p: read_digests(p)[1] for p in sorted(project.root.glob("weights/digits/*"))}
    project.doit("clean")
    assert not list(project.root.glob("weights/digits/*"))
    assert project.health()["status"] == "ok"  # running servers are left alone
    events = [json.loads(line) for line in project.doit("run", "--json").stdout.splitlines()]
    outcomes = {e["task"]: e["outcome"] for e in events if e["event"] == "done"}
    assert {v for k, v in outcomes.items() if not k.startswith("deploy")} == {"restored"}
    assert set(outcomes) >= {"fetch:digits", "weights:digits", "native:server", "release:digits"}
    assert {p: read_digests(p)[1] for p in sorted(project.root.glob("weights/digits/*"))} == digests
