"""`doit reproduce`: a release built again in a clean directory has the same bytes."""

import json
import shutil
from pathlib import Path

import pytest

from tests.deploy_project import DeployProject
from tests.test_history import git

pytestmark = pytest.mark.slow


def test_a_release_is_built_again_byte_for_byte(deploy_project: DeployProject):
    project = deploy_project
    (project.root / ".gitignore").write_text(".quern\nweights\nnative/build\ntraining\nbuild\n")
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    project.use_checkpoint(0)
    project.doit()
    first = project.health()["release"]
    live = project.root / "weights/digits/manifest.json"
    data = live.read_bytes()

    # Since then everything has moved on: the sources, the checkpoint, what serves.
    source = project.root / "native/server/server_main.cc"
    source.write_text(source.read_text() + "#error not what it was\n")
    classes = project.root / "examples/digits/classes.json"
    classes.write_text(classes.read_text().replace("one", "uno"))
    project.use_checkpoint(1)
    shutil.rmtree(project.root / "weights")
    told = project.doit("reproduce", first, "--json")
    found = json.loads(told.stdout)
    assert found["same"] and found["release"] == first
    assert found["files"].keys() == {*json.loads(data)["roles"], "manifest"}
    assert not list((project.root / ".quern/reproduce").iterdir())
    assert project.health()["release"] == first

    # What can't be had any more is named; what was never built here isn't guessed at.
    assert "no such release was built here" in project.doit("reproduce", "0" * 16, status=3).stderr
    assert "name one release" in project.doit("reproduce", status=3).stderr
    for path in Path(project.root / ".quern/store/objects").glob("??/*"):
        if path.stat().st_size == project.checkpoints[0].stat().st_size:
            path.unlink()
    [line] = project.doit("reproduce", first, status=3).stderr.splitlines()
    assert "weights/digits/checkpoint.pth as it was" in line and "not here any more" in line


def test_bytes_that_differ_are_told(deploy_project: DeployProject):
    from tasks.hosts.releases import Release
    from tasks.reproduce import compare, in_words

    project = deploy_project
    project.use_checkpoint(0)
    project.doit("release")
    recorded = Release.read(project.root / "weights/digits/manifest.json")
    project.use_checkpoint(1)
    project.doit("release")
    rebuilt = Release.read(project.root / "weights/digits/manifest.json")
    told = compare(recorded, rebuilt)
    assert not told["same"]
    assert told["files"]["server"]["recorded"] == told["files"]["server"]["rebuilt"]
    lines = in_words(told)
    assert lines[-1] == f"3 of {len(lines) - 1} files differ"
    assert sum(" now " in line for line in lines) == 3
    assert compare(recorded, recorded)["same"]
