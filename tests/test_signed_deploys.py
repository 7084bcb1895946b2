"""Signed releases and hosts that demand them, with real servers, here and over SSH."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy_project import DeployProject
from tests.remote_project import RemoteProject
from tests.ssh_world import keygen

pytestmark = pytest.mark.slow


def allow(key: Path, path: Path) -> Path:
    """Make `key`, and a file of signers that allows it as ann."""
    key.parent.mkdir(exist_ok=True)
    keygen(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"ann {key.with_name(f'{key.name}.pub').read_text()}")
    return path


def with_more(project: DeployProject, more: str) -> None:
    models = project.root / "models.yaml"
    models.write_text(models.read_text() + more)


def flip(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.chmod(0o644)
    path.write_bytes(data.replace(old, new))


def git(project: DeployProject, *arguments: str) -> None:
    identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com"]
    subprocess.run(["git", *identity, *arguments], cwd=project.root, check=True)


def test_from_unsigned_to_demanded(deploy_project: DeployProject, tmp_path: Path):
    project = deploy_project
    git(project, "init", "-q")
    git(project, "commit", "-q", "--allow-empty", "-m", "one")
    project.use_checkpoint(0)
    project.doit()
    first = project.host / "releases" / project.health()["release"]
    statement = (first / "provenance.json").read_bytes()
    told = json.loads(statement)
    assert {subject["name"] for subject in told["subject"]} == {
        "manifest.json",
        *(path.name for path in first.iterdir() if "provenance" not in path.name),
    }
    definition = told["predicate"]["buildDefinition"]
    recipes = [step["recipe"] for step in definition["internalParameters"]["steps"]]
    assert {"release", "weights", "fetch", "native"} <= set(recipes)
    named = {found.get("name") for found in definition["resolvedDependencies"]}
    assert {
        "checkpoint",
        "examples/digits/litecnn.py",
        "examples/digits/classes.json",
        "native/server/http_server.cc",
    } <= named

    # Another commit, the same bytes: nothing is deployed, and the statement stays.
    git(project, "commit", "-q", "--allow-empty", "-m", "two")
    assert project.doit().stdout == ""
    assert (first / "provenance.json").read_bytes() == statement

    # A key is no reason to deploy either; --retry signs what isn't.
    key = tmp_path / "keys" / "ann"
    signers = allow(key, tmp_path / "signers")
    with_more(project, f"sign: {{key: {key}}}\n")
    assert project.doit().stdout == ""
    assert not (first / "provenance.json.sig").exists()
    project.doit("deploy:digits", "--retry")
    command = ["ssh-keygen", "-Y", "verify", "-f", signers, "-I", "ann", "-n", "quern-release"]
    with open(first / "provenance.json") as file:
        subprocess.run([*command, "-s", first / "provenance.json.sig"], stdin=file, check=True)
    assert project.doit("deploy:digits", "--retry").stdout == ""

    # A demand is one: what is live is proved again, what follows before it goes live.
    with_more(project, f"hosts: {{local: {{signers: {signers}}}}}\n")
    project.doit()
    project.use_checkpoint(1)
    project.doit()
    second = project.host / "releases" / project.health()["release"]
    record = json.loads(project.doit("history", "--json").stdout)[-1]
    assert record["signed_by"]["name"] == "ann"
    assert record["signed_by"]["key"].startswith("SHA256:") and len(record["statement"]) == 64
    project.doit("rollback", "digits")
    assert project.health()["release"] == first.name

    # Tampered with on the host: the other one stays, and verify tells.
    assert "all is as it was recorded" in project.doit("verify").stdout
    flip(second / "provenance.json", b'"dirty"', b'"dirtx"')
    done = project.doit("rollback", "digits", second.name, status=1)
    (line,) = done.stderr.splitlines()
    assert "has a statement that was changed after it was signed" in line
    assert project.health()["release"] == first.name
    assert project.history()[-1]["outcome"] == "failed"
    (line,) = project.doit("verify", status=1).stdout.splitlines()
    assert line == (
        f"local: release {second.name} of digits has a statement that was changed after it was "
        "signed (provenance.json)"
    )
    assert project.doit().stdout == ""


def test_a_demand_without_a_key_and_with_one_that_asks(
    deploy_project: DeployProject, tmp_path: Path
):
    project = deploy_project
    key = tmp_path / "keys" / "ann"
    signers = allow(key, tmp_path / "signers")
    with_more(project, f"hosts: {{local: {{signers: {signers}}}}}\n")
    project.use_checkpoint(0)
    (line,) = project.doit(status=1).stderr.splitlines()
    assert "is not signed; what served still serves; set sign.key in models.yaml" in line
    assert not list(project.host.glob("releases/*"))
    assert project.history()[-1]["outcome"] == "failed"

    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", key], check=True)
    with_more(project, f"sign: {{key: {key}}}\n")
    (line,) = project.doit(status=1).stderr.splitlines()
    assert f"sign.key: {key}: has a passphrase, which is never asked for" in line
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "secret", "-N", "", "-f", key], check=True)
    project.doit()
    assert project.health()["status"] == "ok"


@pytest.fixture
def remote(tmp_path: Path, checkpoints: list[Path]) -> Iterator[RemoteProject]:
    project = RemoteProject(tmp_path / "project", checkpoints)
    yield project
    project.stop()


def test_a_host_demands_it_itself(remote: RemoteProject, tmp_path: Path):
    project = remote
    allow(tmp_path / "ann", project.folder_on().parent / "allowed_signers")
    project.use_checkpoint(0)
    (line,) = project.doit(status=1).stderr.splitlines()
    assert "edge: release" in line and "is not signed" in line
    assert not (project.folder_on().parent / "store").exists()
    assert [record["outcome"] for record in project.history_on()] == ["failed"]

    with_more(project, f"sign: {{key: {tmp_path / 'ann'}}}\n")
    lived = []
    for number in (0, 1):
        project.use_checkpoint(number)
        project.doit()
        lived.append(project.folder_on() / "releases" / project.health_on()["release"])
    first, second = lived
    assert project.history_on()[-1]["signed_by"]["name"] == "ann"

    # The statement of another release, signed though it is; then a file of the release.
    for name in ("provenance.json", "provenance.json.sig"):
        (first / name).write_bytes((second / name).read_bytes())
    (line,) = project.doit("rollback", "digits", status=1).stderr.splitlines()
    assert "has a statement of other files than its own" in line
    assert "has a statement of other files" in project.doit("verify", status=1).stdout
    flip(first / "golden.json", b"{", b" {")
    assert first.name in project.doit("rollback", "digits", status=1).stderr
    assert project.health_on()["release"] == second.name
    assert project.history_on()[-1]["outcome"] == "failed"

    # Sent from here again it is whole, signed and live.
    project.use_checkpoint(0)
    project.doit()
    assert project.health_on()["release"] == first.name
    assert "all is as it was recorded" in project.doit("verify").stdout
