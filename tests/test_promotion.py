"""Candidate and stable: new releases go to the one, `doit promote` puts them on the other."""

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.digits.train import digits, enlarged
from tests.deploy_project import DeployProject, Hammer, free_port, train_a_little
from tests.remote_project import RemoteProject

pytestmark = pytest.mark.slow


class TwoChannels(DeployProject):
    """A candidate beside the stable channel."""

    def deploys(self, wanted: str, more: str = "") -> None:
        text = (self.root / "models.yaml").read_text()
        before, _, _ = text.partition("    deploy:")
        (self.root / "models.yaml").write_text(f"{before}    deploy: {wanted}\n{more}")

    def live(self, port: int) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
                return str(json.load(answer)["release"])
        except OSError:
            return None

    def compared(self, candidate: str, stable: str, of_candidate: float, of_stable: float) -> None:
        """What `doit compare` would have kept."""
        folder = self.host / "comparisons"
        folder.mkdir(exist_ok=True)
        kept = {
            "format": 1,
            "at": time.time(),
            "candidate": candidate,
            "stable": stable,
            "accuracy": {"candidate": of_candidate, "stable": of_stable},
            "difference": of_candidate - of_stable,
            "interval": [of_candidate - of_stable - 0.01, of_candidate - of_stable + 0.01],
            "p": 0.5,
            "set": {"path": "held_out", "count": 100, "digest": "0"},
        }
        (folder / f"{candidate}-{stable}.json").write_text(json.dumps(kept))


@pytest.fixture
def two(tmp_path: Path, checkpoints: list[Path]) -> Iterator[TwoChannels]:
    project = TwoChannels(tmp_path, checkpoints)
    project.candidate = free_port()
    project.deploys(f"{{local: {{candidate: {project.candidate}, stable: {project.port}}}}}")
    yield project
    project.stop()


def test_a_release_is_a_candidate_until_it_is_promoted(two: TwoChannels, digit_png: bytes):
    assert "nothing is live in candidate on local" in two.doit("promote", "digits", status=1).stderr
    two.use_checkpoint(0)
    two.doit()
    first = two.live(two.candidate)
    assert first and two.live(two.port) is None
    told = two.doit("status", status=1).stdout
    assert "nothing is live yet: doit promote digits" in told
    assert two.doit().stdout == ""

    # There is nothing yet that it could be worse than.
    told = two.doit("promote", "digits").stdout
    assert f"is live on http://{two.address}" in told
    assert two.live(two.port) == first
    assert "has the candidate's release already" in two.doit("promote", "digits").stdout
    assert two.doit("status").stdout.count("as it should be") == 2
    assert two.doit().stdout == ""

    # The next one is a candidate again, and isn't put on stable unseen.
    two.use_checkpoint(1)
    two.doit()
    second = two.live(two.candidate)
    assert second != first and two.live(two.port) == first
    told = two.doit("promote", "digits", status=1).stderr
    assert "was not compared" in told and "models.digits.compare.images" in told
    assert two.doit("promote", "digits", "--force", status=3).stderr.count("--reason") == 1
    two.compared(second, first, 0.80, 0.81)
    [told] = two.doit("promote", "digits", status=1).stderr.splitlines()
    assert "80.00% against 81.00%" in told and "0.00% is allowed" in told
    assert two.live(two.port) == first

    # No worse: it goes live as it is on the host, with no request lost and nothing sent or built.
    two.compared(second, first, 0.81, 0.81)
    store = two.root / ".quern/hosts/local/store"
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    with Hammer(two.address, digit_png) as hammer:
        two.doit("promote", "digits")
    assert hammer.failures == [] and hammer.releases == {first, second}
    assert two.live(two.port) == second
    assert before == {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    record = two.history()[-1]
    assert (record["channel"], record["outcome"], record["release"]) == ("stable", "live", second)
    assert record["run"]["promoted_from"] == "candidate"
    assert "81.00% against 81.00%" in record["run"]["reason"]
    assert "81.00% against 81.00%" in two.doit("history").stdout.splitlines()[-1]

    # A rollback concerns stable; what it took off is neither deployed nor promoted again.
    told = two.doit("rollback", "digits", "--reason", "cats are dogs").stdout
    assert "is live on" in told
    assert two.live(two.port) == first and two.live(two.candidate) == second
    assert two.doit().stdout == ""
    two.compared(second, first, 0.9, 0.8)
    [told] = two.doit("promote", "digits", status=1).stderr.splitlines()
    assert "marked as withdrawn" in told and "cats are dogs" in told and "--allow" in told
    told = two.doit("rollback", "digits", "--allow", second).stdout
    assert "may go live again" in told and "cats are dogs" in told
    assert "has no mark" in two.doit("rollback", "digits", "--allow", second).stdout
    two.doit("promote", "digits")
    assert two.live(two.port) == second

    # A release that is worse, forced, with its reason.
    two.use_checkpoint(2)
    two.doit()
    third = two.live(two.candidate)
    two.compared(third, second, 0.1, 0.9)
    two.doit("promote", "digits", status=1)
    two.doit("promote", "digits", "--force", "--reason", "the labels were wrong")
    assert two.live(two.port) == third
    assert two.history()[-1]["run"]["reason"] == "the labels were wrong"
    # Back to a release by name; the candidate's channel by its own.
    two.doit("rollback", "digits", first)
    assert two.live(two.port) == first and two.live(two.candidate) == third
    two.doit("rollback", "digits", "--channel", "candidate")
    assert two.live(two.candidate) == second
    assert two.doit().stdout == ""
    assert "no channel best" in two.doit("rollback", "digits", "--channel", "best", status=3).stderr
    # The machine was off: each comes back with what it had.
    two.stop()
    two.doit()
    assert two.live(two.port) == first and two.live(two.candidate) == second


def test_a_comparison_older_than_the_release_counts_for_nothing(two: TwoChannels):
    two.use_checkpoint(0)
    two.doit()
    two.doit("promote", "digits")
    stable = two.live(two.port)
    two.use_checkpoint(1)
    two.doit()
    candidate = two.live(two.candidate)
    two.compared(candidate, stable, 0.9, 0.8)
    two.use_checkpoint(0)
    two.doit()
    two.use_checkpoint(1)
    two.doit()
    assert two.live(two.candidate) == candidate
    assert "was not compared" in two.doit("promote", "digits", status=1).stderr
    assert two.live(two.port) == stable


def test_what_models_yaml_may_not_say(two: TwoChannels):
    def fault(wanted: str) -> str:
        two.deploys(wanted)
        [line] = two.doit("list", status=3).stderr.splitlines()
        return line

    assert "there is no channel to promote" in fault("{local: {candidate: 1, promote: manual}}")
    assert "would go to stable" in fault("{local: {stable: 1, best: 2, promote: manual}}")
    assert "compare.images" in fault("{local: {stable: 1, candidate: 2, promote: auto}}")
    assert "promote: must be manual or auto" in fault("{local: {stable: 1, promote: 7}}")
    assert "stable: must be a port" in fault("{local: {stable: auto, candidate: 7}}")
    two.deploys("{local: {stable: 8891}}")
    told = two.doit("promote", "digits", status=3).stderr
    assert "models.digits.deploy: has no channel `candidate`" in told


def test_from_one_host_to_another_and_back_with_nothing_else_there(
    tmp_path: Path, checkpoints: list[Path]
):
    project = RemoteProject(tmp_path / "project", checkpoints, names=("staging", "edge"))
    try:
        models = project.root / "models.yaml"
        channels = "staging: {candidate: 8892}, edge: {stable: 8892}"
        before = models.read_text().partition("deploy:")[0]
        models.write_text(f"{before}deploy: {{{channels}}}\n")
        project.use_checkpoint(0)
        project.doit()
        first = project.health_on("staging")["release"]
        assert not (project.folder_on("edge") / "releases").exists()
        project.doit("promote", "digits")
        assert project.health_on("edge")["release"] == first
        project.use_checkpoint(1)
        project.doit()
        second = project.health_on("staging")["release"]
        assert second != first == project.health_on("edge")["release"]
        project.doit("promote", "digits", "--force", "--reason", "a test")
        assert project.health_on("edge")["release"] == second

        # The machine that trains is away, the newest build is broken, the candidate's host is down.
        shutil.rmtree(project.root / "training")
        (project.root / "weights/digits/manifest@edge.json").write_text("{")
        project.machines["staging"].stop()
        project.doit("rollback", "digits")
        assert project.health_on("edge")["release"] == first
    finally:
        project.stop()


def labelled_digits(folder: Path, count: int) -> None:
    images, labels = digits()
    for number, (image, label) in enumerate(zip(images[-count:], labels[-count:], strict=True)):
        path = folder / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        enlarged(image).save(path)


def test_auto_promotes_what_a_comparison_finds_no_worse(two: TwoChannels):
    labelled_digits(two.root / "labelled", 120)
    channels = f"{{local: {{candidate: {two.candidate}, stable: {two.port}, promote: auto}}}}"
    two.deploys(channels, "    compare: {images: labelled, margin: 0.2}\n")
    train_a_little(two.root / "training/checkpoints_cycle1/best_model.pth", 0, steps=60)
    told = two.doit().stdout
    assert told.count("is live on") == 2
    first = two.live(two.port)
    assert first == two.live(two.candidate)
    assert two.doit().stdout == ""

    # It has learned next to nothing: a candidate it is, and the run is no failure.
    train_a_little(two.root / "training/checkpoints_cycle2/best_model.pth", 1, steps=1)
    told = two.doit().stdout
    worse = two.live(two.candidate)
    assert worse != first and two.live(two.port) == first
    assert "the candidate is worse: accuracy" in told and "20.00% is allowed" in told
    # It was judged; the next run has nothing to do.
    assert two.doit().stdout == ""
    told = two.doit("why", "promotion:digits").stdout
    assert "now: up to date" in told
    [kept] = (two.host / "comparisons").iterdir()
    assert kept.name == f"{worse}-{first}.json"

    # One that is about as good goes all the way in the same run.
    train_a_little(two.root / "training/checkpoints_cycle3/best_model.pth", 0, steps=100)
    two.doit("--cron")
    best = two.live(two.candidate)
    assert best not in (first, worse) and two.live(two.port) == best
    record = two.history()[-1]
    assert (
        record["run"]["promoted_from"] == "candidate"
        and "120 of labelled" in record["run"]["reason"]
    )

    # What was rolled back stays back, whatever a comparison says.
    two.doit("rollback", "digits")
    assert two.live(two.port) == first
    assert two.doit().stdout == ""
    assert two.live(two.port) == first
