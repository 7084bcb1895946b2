"""`doit history` and `doit status`: what is live, since when, and how it came there."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tasks.core.digest import read_digests
from tests.deploy_project import DeployProject

pytestmark = pytest.mark.slow


def git(project: DeployProject, *arguments: str) -> str:
    identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com"]
    done = subprocess.run(
        ["git", *identity, *arguments],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_what_became_of_releases(deploy_project: DeployProject):
    project = deploy_project
    assert project.doit("history").stdout == ""
    told = project.doit("status", status=1).stdout
    assert "stable on local" in told and "nothing is live yet: doit deploy:digits" in told

    git(project, "init", "-q")
    git(project, "add", "models.yaml")
    git(project, "commit", "-qm", "first")
    commit = git(project, "rev-parse", "HEAD")
    for number in (0, 1):
        project.use_checkpoint(number)
        project.doit()
    live = project.health()["release"]
    with open(project.root / "models.yaml", "a") as file:
        file.write("# a change\n")
    project.doit("rollback", "digits")
    back = project.health()["release"]

    records = json.loads(project.doit("history", "--json").stdout)
    assert [(r["outcome"], r["release"]) for r in records] == [
        ("live", back),
        ("live", live),
        ("live", back),
    ]
    first, second, last = records
    assert (first["host"], first["model"], first["channel"]) == ("local", "digits", "stable")
    assert first["previous"] is None and second["previous"] == back and last["previous"] == live
    assert first["run"]["commit"] == last["run"]["commit"] == commit
    assert not first["run"]["dirty"] and last["run"]["dirty"]
    assert first["run"]["configuration"] == second["run"]["configuration"]
    assert first["run"]["configuration"] != last["run"]["configuration"]
    assert first["run"]["command"] == "doit"
    assert last["run"]["command"] == "doit rollback digits"
    assert len(first["run"]["configuration"]) == 32
    assert first["checkpoint"]["sha256"] and first["digests"]["weights"]
    assert {"install", "load", "probe", "switch"} <= first["seconds"].keys()
    kept = (project.root / ".quern/history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == records

    lines = project.doit("history", "digits").stdout.splitlines()
    assert len(lines) == 3
    assert f"({back}) live in stable on local after" in lines[0]
    assert lines[0].endswith(f", doit, commit {commit[:12]}")
    assert lines[2].endswith(f", doit rollback digits, commit {commit[:12]} with changes")
    assert project.doit("history", "digits", "--last", "1").stdout.splitlines() == lines[-1:]
    assert "no model cats" in project.doit("history", "cats", status=3).stderr
    assert "must not be negative" in project.doit("history", "--last", "-1", status=3).stderr

    # A line that a power cut left half-written is passed over.
    with open(project.host / "history.jsonl", "ab") as file:
        file.write(b'{"at": 1, "outc')
    assert project.doit("history").stdout.splitlines() == lines

    # A rollback holds: what is live is what should be.
    [row] = json.loads(project.doit("status", "--json").stdout)
    assert row["status"] == "as it should be" and row["release"] == back
    assert row["since"] == last["at"] and row["label"] == "Cycle 1 (Epoch 0, 50.00%)"
    project.stop()
    [line] = project.doit("status", status=1).stdout.splitlines()
    assert line.startswith("digits  stable on local  Cycle 1 (Epoch 0, 50.00%)")
    assert "does not serve" in line


def test_what_failed_is_in_the_history(deploy_project: DeployProject):
    project = deploy_project
    project.use_checkpoint(0)
    project.doit("release")
    golden = project.root / "weights/digits/golden.json"
    text = json.loads(golden.read_bytes())
    text["probes"][0]["logits"][0] += 5
    golden.chmod(0o644)
    golden.write_text(json.dumps(text))
    told = project.doit("-s", "deploy:digits", status=1).stderr
    assert "it was changed after the release was made" in told
    [line] = project.doit("history").stdout.splitlines()
    assert "failed for stable on local: " in line and "it was changed after" in line


def test_verify_reads_everything_again(deploy_project: DeployProject):
    project = deploy_project
    project.use_checkpoint(0)
    project.doit()
    told = project.doit("verify").stdout
    assert "all is as it was recorded" in told
    read = json.loads(project.doit("verify", "--json").stdout)
    assert read["differences"] == [] and read["read"] > 15

    def flip(path: Path) -> None:
        """Change a byte, and leave size and time as they were."""
        status = path.stat()
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    golden = project.root / "weights/digits/golden.json"
    digest = read_digests(golden)[1]
    flip(project.root / ".quern/store/objects" / digest[:2] / digest[2:])
    flip(project.root / "weights/digits/model_weights.bin")
    (project.root / "weights/digits/details.json").unlink()
    [release] = (project.host / "releases").iterdir()
    flip(release / "classes.json")
    before = project.health()
    differences = project.doit("verify", status=1).stdout.splitlines()
    assert sorted(differences) == [
        f"local: release {release.name} of digits: classes.json is not the release's",
        f"store: .quern/store/objects/{digest[:2]}/{digest[2:]} is damaged; "
        "the next doit makes it anew",
        "weights:digits: weights/digits/details.json is gone",
        "weights:digits: weights/digits/model_weights.bin is not what it made",
    ]
    assert project.health() == before

    # What the next runs put right; the release, when it is deployed anew.
    project.doit("-a", "deploy:digits")
    assert "all is as it was recorded" in project.doit("verify").stdout


def test_why_a_release_is_live(deploy_project: DeployProject):
    project = deploy_project
    assert "stable on local, port" in project.doit("why", "deploy:digits").stdout
    project.use_checkpoint(0)
    project.doit()
    first = project.health()["release"]
    told = project.doit("why", "deploy:digits").stdout
    assert "it is the first that was live there" in told
    project.use_checkpoint(1)
    project.doit()
    second = project.health()["release"]
    digests = [read_digests(path, sha256=True)[2] for path in project.checkpoints[:2]]
    [told] = json.loads(project.doit("why", "deploy:digits", "--json").stdout)
    lines = told["lineage"]
    assert lines[0].endswith(f"({second}):") and lines[0].startswith("stable on local, port")
    assert lines[1].endswith(", doit")
    assert lines[2].strip() == (
        f"from training/checkpoints_cycle1/best_model.pth (SHA-256 {digests[1][:12]})"
    )
    assert f"({first})" in lines[3]
    # From the manifest down to the checkpoint's checksum, each step below what it caused.
    checkpoint = next(line for line in lines if "sha256 changed" in line)
    assert checkpoint.strip() == (
        f"because source sha256 changed from {digests[0][:12]} to {digests[1][:12]}"
    )
    made = [line.strip() for line in lines if "model_weights.bin" in line]
    assert len(made) == 1 and made[0].endswith("made by weights")
    below = lines[lines.index(next(line for line in lines if "model_weights.bin" in line)) + 1 :]
    assert any("weights/digits/checkpoint.pth changed" in line for line in below)
    assert not any("quern-server" in line for line in lines)

    # Another program, with the same checkpoint: its source is what is named.
    source = project.root / "examples/digits/classes.json"
    source.write_text(source.read_text().replace("one", "uno"))
    project.doit()
    lines = project.doit("why", "deploy:digits").stdout.splitlines()
    assert any("because examples/digits/classes.json changed from" in line for line in lines)
    assert not any("sha256 changed" in line for line in lines)

    # Without the store, what the history knows.
    shutil.rmtree(project.root / ".quern/store")
    told = project.doit("why", "deploy:digits").stdout
    assert "because classes changed from" in told
