"""Releases' provenance, its signature, and hosts that demand one: on this machine, with real keys,
where a release is a file in LM Studio's folder; with servers in test_signed_deploys.py."""

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tasks.core.digest import canonical_json, read_digests
from tasks.core.errors import QuernError
from tasks.core.project import Project
from tasks.core.provenance import provenance, repository
from tasks.core.store import Artifact
from tasks.hosts.admission import Admission
from tasks.hosts.attestation import Attestation
from tasks.hosts.attestor import Attestor
from tasks.hosts.history import Journal
from tasks.hosts.local import LocalHost
from tasks.hosts.model_folders import FolderDeployment
from tasks.hosts.releases import Release
from tasks.hosts.statement import subjects
from tests.ssh_world import keygen


@dataclass
class World:
    """A project, a host that is a folder of this machine, and keys of ann and bob."""

    root: Path
    signers: str | None = None  # hosts.edge.signers
    key: str | None = None  # sign.key
    files: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.host = LocalHost(self.root / "host", "edge")
        self.folder = self.host.root / "majora"
        (self.root / "models.yaml").write_text("models: {}\n")
        self.project = Project(self.root)
        self.project.open()
        for name in ("ann", "bob"):
            keygen(self.root / name)

    def allowed(self, *names: str) -> str:
        """A file that allows these signers."""
        path = self.root / f"signers-{'-'.join(names)}"
        lines = (f"{name} {(self.root / f'{name}.pub').read_text()}" for name in names)
        path.write_text("".join(lines))
        return str(path)

    def demand_on_host(self, *names: str) -> None:
        """The host's own file."""
        self.host.make_directory(self.host.root)
        shutil.copy(self.allowed(*names), self.host.root / "allowed_signers")

    def release(self, text: str) -> Release:
        """A release whose weights are `text`."""
        weights = self.root / f"{text}.gguf"
        weights.write_text(text)
        signature, xxh3, sha256 = read_digests(weights, sha256=True)
        entry = {
            "file": weights.name,
            "size": signature[2],
            "xxh3_128": xxh3,
            "sha256": sha256,
        }
        manifest = {
            "format": 1,
            "kind": "llm",
            "model": "majora",
            "label": text,
            "checkpoint": {},
            "roles": {"weights": entry},
        }
        release = Release.of(canonical_json(manifest) + b"\n", "here")
        self.files[release.id] = {"weights": str(weights)}
        return release

    def deployment(self, release: Release) -> FolderDeployment:
        settings = {"folder": str(self.root / "studio"), "publisher": "quern", "by": "copy"}
        return FolderDeployment(self.host, release, "lmstudio", settings, Journal(), self.signers)

    def deploy(self, release: Release) -> Path:
        """As `doit deploy` does; returns the release's directory."""
        deployment = self.deployment(release)
        deployment.attestor = Attestor(self.project, provenance(self.root), self.key)
        deployment.make_live(self.files[release.id], retry=False)
        return self.folder / "releases" / release.id

    def roll_back(self, directory: Path) -> None:
        """As `doit rollback` does."""
        self.deployment(Release.on(self.host, directory)).make_live({}, retry=True)

    @property
    def live(self) -> str | None:
        link = self.host.link_target(self.folder / "lmstudio/current")
        return link.name if link else None

    @property
    def last(self) -> dict[str, Any]:
        """The last record of the history."""
        lines = (self.folder / "history.jsonl").read_text().splitlines()
        return json.loads(lines[-1])  # type: ignore[no-any-return]

    def refused(self, act: Any, *arguments: Any) -> str:
        """What must not go live does not, and is told in one line; what was live still is."""
        before = self.live
        with pytest.raises(QuernError) as caught:
            act(*arguments)
        told = str(caught.value)
        assert "\n" not in told and self.live == before
        assert (self.last["outcome"], self.last["error"]) == ("failed", told)
        return told


@pytest.fixture
def world(tmp_path: Path, monkeypatch) -> World:
    monkeypatch.chdir(tmp_path)
    return World(tmp_path)


def test_without_key_and_demand_a_statement_is_written_and_nothing_is_asked(world, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no ssh-keygen, no git
    release = world.release("one")
    directory = world.deploy(release)
    assert world.live == release.id
    assert not (directory / "provenance.json.sig").exists()
    statement = (directory / "provenance.json").read_bytes()
    assert canonical_json(json.loads(statement)) + b"\n" == statement
    sha256 = read_digests(directory / "provenance.json", sha256=True)[2]
    assert world.last["statement"] == sha256 and "signed_by" not in world.last
    world.roll_back(directory)
    # Not again, whatever run it is: the bytes are the same.
    world.deploy(release)
    assert (directory / "provenance.json").read_bytes() == statement


def test_the_statement_has_the_fields_of_in_toto_and_slsa(world):
    release = world.release("one")
    weights = release.manifest["roles"]["weights"]
    source = {"host": '"gpu box"', "path": '"/data/cycle 1"', "sha256": f'"{"a" * 64}"'}
    store = world.project.store
    (world.root / "classes.json").write_text("[]")
    components = {
        "recipe version": "2",
        "function": "tasks.fetch:fetch",
        "tool torch": "2.9.1",
        **{f"source {field}": value for field, value in source.items()},
        "input classes.json": read_digests(world.root / "classes.json")[1],
        "input gone.json": "0" * 32,
    }
    store.record_result(
        "ab" * 16,
        {"weights": Artifact(weights["xxh3_128"])},
        {"recipe": "fetch", "components": components},
    )
    for command in (
        "init -q",
        "remote add origin https://ann:secret@example.com/ann/dogs.git",
        "-c user.name=A -c user.email=a@b commit -q --allow-empty -m x",
    ):
        subprocess.run(["git", *command.split()], cwd=world.root, check=True)
    statement = json.loads((world.deploy(release) / "provenance.json").read_bytes())

    # https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
    assert statement.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    manifest, file = statement["subject"]
    assert manifest["name"] == "manifest.json"
    assert file == {
        "name": "one.gguf",
        "digest": {"sha256": weights["sha256"], "xxh3_128": weights["xxh3_128"]},
    }
    # https://slsa.dev/spec/v1.0/provenance#schema
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    predicate = statement["predicate"]
    assert predicate.keys() == {"buildDefinition", "runDetails"}
    definition, details = predicate["buildDefinition"], predicate["runDetails"]
    assert definition.keys() == {
        "buildType",
        "externalParameters",
        "internalParameters",
        "resolvedDependencies",
    }
    assert definition["buildType"] == "urn:quern:release:v1"
    assert definition["externalParameters"].keys() == {"model", "command", "configuration"}
    assert definition["internalParameters"]["steps"] == [
        {
            "recipe": "fetch",
            "version": "2",
            "function": "tasks.fetch:fetch",
            "key": "ab" * 16,
            "tools": {"torch": "2.9.1"},
            "toolFiles": {},
        }
    ]
    adapter, commit, classes, gone = definition["resolvedDependencies"]
    assert adapter == {
        "name": "adapter",
        "uri": "gpu%20box:/data/cycle%201",
        "digest": {"sha256_of_files": "a" * 64},
    }
    assert commit["uri"] == "git+https://example.com/ann/dogs.git"
    assert len(commit["digest"]["gitCommit"]) == 40 and commit["annotations"] == {"dirty": False}
    assert classes["name"] == "classes.json" and len(classes["digest"]["sha256"]) == 64
    assert gone == {"name": "gone.json", "digest": {"xxh3_128": "0" * 32}}
    assert details.keys() == {"builder", "metadata"}
    assert details["builder"]["id"].startswith("urn:quern:builder:")
    metadata = details["metadata"]
    assert metadata.keys() == {"invocationId", "startedOn", "finishedOn"}
    for moment in (metadata["startedOn"], metadata["finishedOn"]):
        assert len(moment) == 20 and moment[10] == "T" and moment[-1] == "Z"


@pytest.mark.parametrize(
    ("origin", "shown"),
    [
        ("https://ann:secret@example.com:8443/a/b.git?t=x", "git+https://example.com:8443/a/b.git"),
        ("git@example.com:a/b.git", "git+ssh://example.com/a/b.git"),
        ("ssh://git@example.com/a/b", "git+ssh://example.com/a/b"),
        ("/srv/my git/b", "git+file:///srv/my%20git/b"),
        (None, "git+file://{here}"),
    ],
)
def test_a_repository_is_named_without_credentials(tmp_path, origin, shown):
    assert repository(tmp_path) is None
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    if origin:
        subprocess.run(["git", "remote", "add", "origin", origin], cwd=tmp_path, check=True)
    assert repository(tmp_path) == shown.format(here=tmp_path)


def demand(world: World, place: str, *names: str) -> None:
    if place == "models.yaml":
        world.signers = world.allowed(*names)
    else:
        world.demand_on_host(*names)


@pytest.mark.parametrize("place", ["models.yaml", "the host"])
def test_only_what_an_allowed_key_signed_goes_live_and_nothing_else_is_sent(world, place):
    demand(world, place, "ann")
    release = world.release("one")
    told = world.refused(world.deploy, release)
    assert "is not signed" in told and "set sign.key in models.yaml" in told
    world.key = str(world.root / "bob")
    told = world.refused(world.deploy, release)
    assert "is signed by SHA256:" in told and "does not allow; what served still serves" in told
    assert world.last["signed_by"]["key"].startswith("SHA256:")
    world.key = str(world.root / "nobody")
    assert "sign.key" in world.refused(world.deploy, release)
    assert not (world.host.root / "store").exists() and not (world.folder / "releases").exists()

    world.key = str(world.root / "ann")
    directory = world.deploy(release)
    assert world.live == release.id
    assert world.last["signed_by"]["name"] == "ann"
    copy = world.root / f".quern/provenance/majora/{release.id}/edge.json"
    assert copy.read_bytes() == (directory / "provenance.json").read_bytes()
    assert Path(f"{copy}.sig").read_bytes() == (directory / "provenance.json.sig").read_bytes()
    world.key = None  # another deployer, without a key, may put it live again
    world.deploy(release)
    world.roll_back(directory)


def test_where_both_demand_both_must_accept(world):
    world.signers = world.allowed("ann")
    world.demand_on_host("bob")
    world.key = str(world.root / "ann")
    release = world.release("one")
    assert "edge:" in world.refused(world.deploy, release)
    world.demand_on_host("bob", "ann")
    world.deploy(release)
    assert world.live == release.id


def test_a_missing_file_of_signers_lets_nothing_through(world):
    world.signers = str(world.root / "missing")
    world.key = str(world.root / "ann")
    told = world.refused(world.deploy, world.release("one"))
    assert "models.yaml: hosts.edge.signers: " in told and "not there" in told


def add_a_byte(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b" ")


def other_statement(directory: Path) -> None:
    """The signed statement of the release that was made before."""
    (other,) = (path for path in directory.parent.iterdir() if path != directory)
    for name in ("provenance.json", "provenance.json.sig"):
        shutil.copy(other / name, directory / name)


TAMPERING = {
    "the statement": (
        lambda directory: add_a_byte(directory / "provenance.json"),
        "has a statement that was changed after it was signed",
    ),
    "the signature": (
        lambda directory: (directory / "provenance.json.sig").write_text("no signature"),
        "has a statement that was changed after it was signed",
    ),
    "no signature": (
        lambda directory: (directory / "provenance.json.sig").unlink(),
        "is not signed",
    ),
    "no statement": (
        lambda directory: (directory / "provenance.json").unlink(),
        "has no statement",
    ),
    "a statement without end": (
        lambda directory: (directory / "provenance.json").write_text("[" * 100_000),
        "has a statement of other files than its own",
    ),
    "another's statement": (other_statement, "has a statement of other files than its own"),
    "the manifest": (
        lambda directory: add_a_byte(directory / "manifest.json"),
        "has another manifest than it was installed with",
    ),
    "a file": (lambda directory: add_a_byte(directory / "two.gguf"), "is damaged"),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_a_rollback_refuses_what_was_tampered_with(world, what):
    tamper, words = TAMPERING[what]
    world.demand_on_host("ann")
    world.key = str(world.root / "ann")
    first, second = (world.deploy(world.release(name)) for name in ("one", "two"))
    world.roll_back(first)
    tamper(second)
    told = world.refused(world.roll_back, second)
    assert words in told and second.name in told and "doit deploy:majora" in told
    assert world.live == first.name
    # What is sent from here is signed anew, and mended.
    (release,) = [r for r in map(world.release, ("one", "two")) if r.id == second.name]
    world.deploy(release)
    assert world.live == second.name
    world.roll_back(first)
    world.roll_back(second)


def test_what_lies_there_is_read_again_after_it_was_sent(world):
    world.demand_on_host("ann")
    world.key = str(world.root / "ann")
    release = world.release("one")
    directory = world.deploy(release)
    admission = Admission(world.host, release, None)
    admission.confirm()
    add_a_byte(directory / "one.gguf")
    with pytest.raises(QuernError, match=r"has a file with other bytes .*one\.gguf"):
        admission.confirm()
    (directory / "one.gguf").unlink()
    with pytest.raises(QuernError, match=r"has a file with other bytes .*one\.gguf"):
        admission.confirm()


def test_a_release_from_before_is_signed_when_it_is_deployed_again(world):
    release = world.release("one")
    directory = world.deploy(release)
    (directory / "provenance.json").unlink()  # an earlier Quern wrote none
    world.demand_on_host("ann")
    told = world.refused(world.roll_back, directory)
    assert "has no statement" in told and "doit deploy:majora --retry signs" in told
    world.key = str(world.root / "ann")
    world.deploy(release)
    world.roll_back(directory)
    assert world.last["signed_by"]["name"] == "ann"


def test_without_a_demand_a_key_signs_what_is_not_signed_and_leaves_what_is(world):
    release = world.release("one")
    directory = world.deploy(release)
    world.key = str(world.root / "bob")
    world.deploy(release)
    signed = Attestation.on(world.host, directory)
    assert signed and signed.signature and world.last["signed_by"]["name"] is None
    world.key = str(world.root / "ann")
    world.deploy(release)
    world.key = None
    world.deploy(release)
    assert Attestation.on(world.host, directory) == signed
    # Nor is it lost when the directory is made anew.
    add_a_byte(directory / "one.gguf")
    world.deploy(release)
    assert Attestation.on(world.host, directory) == signed
    assert subjects(release) == json.loads(signed.statement)["subject"]


def test_differences_that_verify_tells(world):
    world.key = str(world.root / "bob")
    release = world.release("one")
    directory = world.deploy(release)

    def told(live: bool = True) -> str:
        return Admission(world.host, release, world.signers).difference(live)

    assert told() == ""
    world.demand_on_host("ann")
    assert "is signed by SHA256:" in told() and "is signed by SHA256:" in told(live=False)
    (directory / "provenance.json.sig").unlink()
    assert told() == "is not signed" and told(live=False) == ""
    (directory / "provenance.json").unlink()
    assert "has no statement" in told() and told(live=False) == ""
    (directory / "provenance.json").write_text("{}")
    assert "has a statement of other files" in told(live=False)


def test_a_changed_manifest_is_told_as_drift(world):
    directory = world.deploy(world.release("one"))
    live = world.deployment(Release.on(world.host, directory))
    assert live.drift() == ""
    add_a_byte(directory / "manifest.json")
    live = world.deployment(Release.on(world.host, directory))
    assert live.drift() == "lmstudio has a release whose manifest was changed"
