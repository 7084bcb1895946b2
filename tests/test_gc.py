"""`doit gc` and `store.limit_gb`: what nothing needs goes, and nothing else."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from tasks.core.digest import DigestIndex, digest_of_bytes, read_digests
from tasks.core.lineage import Lineage
from tasks.core.state import State
from tasks.core.store import Store
from tests.build_project import DIAMOND, BuildProject
from tests.deploy_project import DeployProject
from tests.shared_world import MORE_WORK
from tests.test_build_intermediates import CHAIN

FOLDER = """
import os
from tasks.core.recipe import Recipe


def task_folder():
    yield Recipe(
        name="folder", version=1, function="work:folder", inputs={"words": ["in/one"]},
        outputs={"out": "out/folder"},
    ).task("folder", "Make a directory.")
"""
FOLDER_WORK = MORE_WORK.replace("def folder(out):", "def folder(out, words):").replace(
    "file.write(name)", "file.write(name + (open(words[0]).read() if name == 'a' else ''))"
)
RECIPES = ["left", "right", "top"]


def in_store(project: BuildProject) -> set[bytes]:
    """The bytes of every object."""
    objects = (project.root / ".quern/store/objects").rglob("*")
    return {path.read_bytes() for path in objects if path.is_file()}


def results(project: BuildProject) -> int:
    return len(list((project.root / ".quern/store/results").rglob("*.json")))


def everything(root: Path) -> dict[str, float]:
    """Every file of the store, with its time."""
    return {str(p): p.stat().st_mtime for p in (root / ".quern/store").rglob("*") if p.is_file()}


@pytest.fixture
def project(tmp_path: Path, built_once: BuildProject) -> BuildProject:
    """The diamond, built with THREE and then with three: two results nothing needs."""
    project = built_once.copy(tmp_path)
    project.write("models.yaml", "models: {}\n")
    project.write("in/three", "THREE\n")
    project.built()
    project.write("in/three", "three\n")
    project.built()
    return project


def test_what_nothing_needs_goes(project):
    assert in_store(project) == {
        *(b"one\ntwo\n", b"three\n", b"one\ntwo\nthree\n", b"THREE\n", b"one\ntwo\nTHREE\n")
    }
    before = everything(project.root)
    outcome = project.built("gc", "--dry-run")
    assert outcome.out == "would free 20 bytes: 2 objects, 2 results\n"
    assert everything(project.root) == before
    assert project.built("gc").out == "freed 20 bytes: 2 objects, 2 results\n"
    assert in_store(project) == {b"one\ntwo\n", b"three\n", b"one\ntwo\nthree\n"}
    assert results(project) == 3
    assert project.built("gc").out == "nothing to free: all that is in the store is needed\n"


def test_what_is_needed_is_restored_afterwards(project):
    project.built("gc")
    assert project.built().text == ""
    shutil.rmtree(project.root / "out")
    (project.root / "out").mkdir()
    assert project.built().ran == ["copy"]
    project.write("in/three", "THREE\n")  # that went
    assert project.built().ran == ["right", "top", "copy"]


def test_after_clean_what_was_made_last_is_needed(project):
    project.built("clean")
    project.built("gc")
    assert project.built().ran == ["copy"]


def test_json(project):
    told = json.loads(project.built("gc", "--dry-run", "--json").out)
    counts = {"objects": 2, "results": 2, "leftovers": 0, "bytes": 20}
    assert told == {"dry_run": True, **counts, "hosts": {}}
    assert json.loads(project.built("gc", "--json").out)["dry_run"] is False
    assert results(project) == 3


def test_a_directory_keeps_its_files(tmp_path):
    project = BuildProject(tmp_path, FOLDER, FOLDER_WORK)
    project.write("models.yaml", "models: {}\n")
    project.built()
    project.write("in/one", "ONE\n")
    project.built()
    assert in_store(project) >= {b"aone\n", b"aONE\n", b"below/b"}
    assert project.built("gc").out.startswith("freed ")
    assert b"aone\n" not in in_store(project)
    assert in_store(project) > {b"aONE\n", b"below/b"}
    shutil.rmtree(os.path.realpath(project.root / "out/folder"))
    os.remove(project.root / "out/folder")
    assert project.built().ran == []
    assert project.read("out/folder/a") == "aONE\n"


def test_a_dropped_intermediate_can_still_be_made(tmp_path):
    project = BuildProject(tmp_path, CHAIN.replace("NAMES", "['a', 'b']"))
    project.write("models.yaml", "models: {}\n")
    project.built()
    project.built("gc")
    assert project.built().text == ""
    project.write("dodo.py", CHAIN.replace("NAMES", "['a', 'b', 'c']"))
    assert project.built().ran == ["middle", "c"]


def test_a_task_that_is_no_more_keeps_what_it_made_as_long_as_that_is_there(project):
    without = DIAMOND.replace('    yield joined("top", ["out/left", "out/right"])\n', "")
    without = without[: without.index("def task_copy")]
    project.write("dodo.py", without)
    project.built("gc")
    assert b"one\ntwo\nthree\n" in in_store(project)
    for name in ("top", "copy"):  # the same bytes
        os.remove(project.root / "out" / name)
    project.built("gc")
    assert in_store(project) == {b"one\ntwo\n", b"three\n"}


def test_leftovers_go(project):
    store = project.root / ".quern/store"
    (store / "objects/ab").mkdir(exist_ok=True)
    (store / "objects/ab/.cdef.partial").write_text("12345")
    project.write("out/.top.partial", "12345")
    old = project.write(".quern/transfers/old.partial", "12345")
    os.utime(old, (time.time() - 15 * 86400,) * 2)
    folder = project.write(".quern/transfers/folder.partial/file", "12345").parent
    os.utime(folder, (time.time() - 15 * 86400,) * 2)
    project.write(".quern/transfers/new.partial", "12345")
    assert "4 leftovers" in project.built("gc", "--dry-run").out
    assert "freed 40 bytes: 2 objects, 2 results, 4 leftovers" in project.built("gc").out
    assert not list(store.rglob(".*.partial")) and not (project.root / "out/.top.partial").exists()
    assert os.listdir(project.root / ".quern/transfers") == ["new.partial"]


def test_a_result_that_cannot_be_read_goes(project):
    project.built("gc")
    path = next((project.root / ".quern/store/results").rglob("*.json"))
    path.write_text("{")
    assert project.built("gc").out == "freed 0 bytes: 1 result\n"
    assert not path.exists()


def test_never_during_a_run(project):
    waiting = "touch started; while [ ! -e go ]; do sleep 0.02; done"
    project.write(
        "dodo.py", DIAMOND + f'def task_wait():\n    return {{"actions": ["{waiting}"]}}\n'
    )
    run = project.start("wait")
    project.wait_for("started")
    before = everything(project.root)
    outcome = project.doit("gc")
    project.write("go", "")
    run.communicate(timeout=60)
    assert (outcome.status, outcome.out, run.returncode) == (75, "", 0)
    assert everything(project.root) == before


# -- the limit ---------------------------------------------------------------------------------


BIG = """
from tasks.core.recipe import Recipe


def task_big():
    yield Recipe(
        name="big", version=1, function="work:big", inputs={"word": "in/one"},
        outputs={"out": "out/big"},
    ).task("big", "Make a megabyte.")
"""
BIG_WORK = """
def big(word, out):
    with open("runs", "a") as file:
        file.write("big\\n")
    with open(out, "w") as file:
        file.write(open(word).read()[:1] * 1_000_000)
"""


def big(root: Path, limit_gb: float | None) -> BuildProject:
    project = BuildProject(root, BIG, BIG_WORK)
    limited(project, limit_gb)
    return project


def limited(project: BuildProject, limit_gb: float | None) -> None:
    more = f"store: {{limit_gb: {limit_gb}}}\n" if limit_gb else ""
    project.write("models.yaml", f"models: {{}}\n{more}")


def letters(project: BuildProject) -> str:
    """The first bytes of the objects that there are."""
    return "".join(sorted(chr(data[0]) for data in in_store(project)))


def build(project: BuildProject, letter: str) -> list[str]:
    project.write("in/one", letter)
    outcome = project.built()
    assert outcome.err == ""
    return outcome.ran


def test_the_least_recently_used_goes_first(tmp_path):
    project = big(tmp_path, 0.0031)
    for letter in "abc":
        build(project, letter)
    assert letters(project) == "abc"
    assert build(project, "a") == []  # used again
    build(project, "d")
    assert letters(project) == "acd" and results(project) == 3
    build(project, "e")
    assert letters(project) == "ade"


def test_without_a_limit_nothing_goes(tmp_path):
    project = big(tmp_path, None)
    for letter in "abcd":
        build(project, letter)
    assert letters(project) == "abcd"


def test_a_run_with_nothing_to_do_collects_nothing(tmp_path):
    project = big(tmp_path, None)
    for letter in "abc":
        build(project, letter)
    limited(project, 0.0011)
    assert project.built().text == ""
    assert letters(project) == "abc"
    build(project, "d")
    assert letters(project) == "d"


def test_what_is_up_to_date_stays_and_is_told_once_it_is_too_much(tmp_path):
    project = big(tmp_path, 0.0005)
    project.write("in/one", "a")
    outcome = project.built()
    (line,) = outcome.err.splitlines()
    assert re.fullmatch(r"store\.limit_gb: .*0\.001 GB, more than 0\.0005; raise the limit", line)
    assert letters(project) == "a"
    assert project.built().text == ""


def test_what_went_to_a_host_goes_last(tmp_path):
    project = big(tmp_path, 0.0031)
    for letter in "abc":
        build(project, letter)
    digests = {"weights": digest_of_bytes(b"a" * 1_000_000)}
    record = {"host": "edge", "model": "m", "digests": digests}
    project.write(".quern/history.jsonl", json.dumps(record) + "\n")
    build(project, "d")
    assert letters(project) == "acd"
    limited(project, 0.0011)
    build(project, "e")
    assert letters(project) == "e"


# -- releases ------------------------------------------------------------------------------------


CLASSES = "examples/digits/classes.json"  # in a release, but made by no recipe


def digests_of(project: DeployProject) -> set[str]:
    """Digests of what all releases on the local host consist of, as far as it was made here."""
    found = set()
    for manifest in project.host.glob("releases/*/manifest.json"):
        roles = json.loads(manifest.read_text())["roles"].values()
        found |= {entry["xxh3_128"] for entry in roles}
    return found - {digest_of_bytes((project.root / CLASSES).read_bytes())}


def stored(project: DeployProject) -> set[str]:
    objects = (project.root / ".quern/store/objects").glob("??/*")
    return {path.parent.name + path.name for path in objects}


def steps_to(project: DeployProject, release: str) -> set[str]:
    """The recipes that led to a release, by the store's results."""
    state = State(project.root / ".quern/state.db")
    lineage = Lineage(Store(project.root / ".quern/store", DigestIndex(state)))
    state.close()
    digest = lineage.beginning(release)
    return {made.recipe for made in lineage.steps([digest])} if digest else set()


@pytest.mark.slow
def test_what_kept_releases_consist_of_is_needed(deploy_project: DeployProject):
    project = deploy_project
    for number in (0, 1):
        project.use_checkpoint(number)
        project.doit()
    weights = project.root / "weights/digits/model_weights.bin"
    assert len(list(project.host.glob("releases/*"))) == 2
    assert digests_of(project) <= stored(project)
    dry = project.doit("gc", "--dry-run").stdout
    freed = project.doit("gc").stdout
    assert dry.replace("would free", "freed") == freed
    assert digests_of(project) <= stored(project)
    assert project.doit().stdout == ""
    # How the older one came to be is still known, and its checkpoint is there to do it again.
    brought = {read_digests(path)[1] for path in project.checkpoints[:2]}
    assert brought <= stored(project)
    live = os.readlink(project.host / "stable/current").rpartition("/")[2]
    (old,) = {p.name for p in project.host.glob("releases/*")} - {live}
    assert steps_to(project, old) == steps_to(project, live) != set()
    # A release that is gone from the host leaves its objects to go.
    only_old = digests_of(project)
    shutil.rmtree(project.host / "releases" / old)
    only_old -= digests_of(project)
    assert only_old
    project.doit("gc")
    assert not only_old & stored(project)
    assert steps_to(project, old) == set()
    assert digests_of(project) <= stored(project)
    assert weights.exists() and project.doit().stdout == ""
    project.doit("verify")


@pytest.mark.slow
def test_a_host_out_of_reach_keeps_what_went_there(deploy_project: DeployProject):
    project = deploy_project
    project.use_checkpoint(0)
    project.doit()
    project.use_checkpoint(1)
    project.doit()
    needed = digests_of(project)
    history = project.root / ".quern/history.jsonl"
    history.write_text(history.read_text().replace('"host": "local"', '"host": "edge"'))
    models = (project.root / "models.yaml").read_text()
    (project.root / "ssh_config").write_text("Host edge\n  HostName 127.0.0.1\n  Port 1\n")
    hosts = f"ssh_config: {project.root}/ssh_config\nhosts: {{edge: {{ssh: edge}}}}\n"
    (project.root / "models.yaml").write_text(hosts + models.replace("{local:", "{edge:"))
    done = project.doit("gc")
    assert "edge: out of reach" in done.stderr and len(done.stderr.splitlines()) == 1
    assert needed <= stored(project)
    history.unlink()
    project.doit("gc")
    assert not needed <= stored(project)
