"""`doit compare`: the statistics, the sets, and two live servers held against each other."""

import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import termios
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from examples.digits.train import digits, enlarged
from tasks.compare import pairs_to_compare
from tasks.comparison.compare import (
    NothingToCompare,
    compare,
    live_in,
    unseen,
)
from tasks.core.configuration import load_configuration
from tasks.core.errors import QuernError
from tasks.core.paired import difference_interval, mcnemar, paired_figures, wilson
from tasks.core.project import Project
from tasks.hosts.asking import ask_both
from tasks.hosts.channels import deployment_of, host_of, live_release
from tasks.hosts.comparison import read_comparison, stands
from tasks.hosts.history import on_host, went_live
from tasks.hosts.kept_alive import KeptAlive
from tasks.hosts.local import LocalHost
from tasks.hosts.unix_http import Refused, Unreachable
from tasks.models.answers import figures, percentiles
from tasks.models.comparison_plot import comparison_plot
from tasks.models.comparison_report import markdown, table, verdict
from tasks.models.labelled_images import class_ids, read_image_set
from tasks.models.plotting import save
from tests.deploy_project import DeployProject, free_port, train_a_little
from tests.native_build import ROOT, programs
from tests.remote_project import RemoteProject
from tests.server_world import connections, serving, wait

the_digits = cache(digits)
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.mark.parametrize("count", [1, 2, 7, 300, 12345])
def test_wilson_is_scipys(count: int):
    for right in {0, 1, count // 3, count - 1, count}:
        interval = binomtest(right, count).proportion_ci(method="wilson")
        assert wilson(right, count) == pytest.approx((interval.low, interval.high), abs=1e-12)
    with pytest.raises(ValueError, match=f"{count + 1} of {count}"):
        wilson(count + 1, count)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (9, 3), (3, 9), (40, 41), (900, 700)])
def test_mcnemar_is_scipys_binomial_test(gained: int, lost: int):
    wanted = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(wanted, rel=1e-9)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


@pytest.mark.parametrize(
    ("gained", "lost", "count"), [(0, 0, 1), (9, 3, 300), (3, 9, 40), (5, 0, 5), (0, 50, 1000)]
)
def test_the_interval_of_the_difference_is_walds_after_half_an_item_in_each_cell(
    gained: int, lost: int, count: int
):
    # In half items: their differences one by one, mean and standard error by numpy.
    same = 2 * (count - gained - lost) + 2
    differences = np.repeat([1.0, -1.0, 0.0], [2 * gained + 1, 2 * lost + 1, same])
    assert len(differences) == 2 * count + 4
    half = 1.959963984540054 * differences.std() / np.sqrt(count + 2)
    low, high = differences.mean() - half, differences.mean() + half
    assert difference_interval(gained, lost, count) == pytest.approx((max(low, -1), min(high, 1)))


def test_the_interval_of_the_difference_holds_the_truth_as_often_as_it_says():
    """Its exact coverage, over every table of 40 items, at several truths."""
    count = 40
    tables = [(a, b) for a, b in product(range(count + 1), repeat=2) if a + b <= count]
    intervals = [difference_interval(a, b, count) for a, b in tables]
    covered = []
    for first, second in [(0.1, 0.1), (0.2, 0.1), (0.3, 0.1), (0.25, 0.25), (0.05, 0.02)]:
        rest = 1 - first - second
        ways = [comb(count, a) * comb(count - a, b) for a, b in tables]
        covered.append(
            sum(
                way * first**a * second**b * rest ** (count - a - b)
                for way, (a, b), (low, high) in zip(ways, tables, intervals, strict=True)
                if low <= first - second <= high
            )
        )
    assert all(0.935 < share < 0.995 for share in covered), covered
    assert 0.945 < sum(covered) / len(covered) < 0.975, covered


def test_figures_of_two_lists():
    candidate = [True] * 6 + [False] * 2 + [True, False]
    stable = [True] * 5 + [False] * 3 + [False, True]
    figures = paired_figures(candidate, stable)
    assert figures["accuracy"] == {"candidate": 0.7, "stable": 0.6}
    assert figures["difference"] == pytest.approx(0.1)
    assert figures["discordant"] == {"candidate": 2, "stable": 1}
    assert figures["p"] == binomtest(2, 3).pvalue == 1.0
    assert figures["interval"] == list(difference_interval(2, 1, 10))
    assert figures["accuracy_interval"]["stable"] == list(wilson(6, 10))
    with pytest.raises(ValueError, match="zip"):
        paired_figures(candidate, stable[:-1])


# -- sets ------------------------------------------------------------------------------------------


def write_set(folder: Path, first: int = 300, last: int = 380) -> Path:
    """Digits that no checkpoint of these tests was trained on, a folder per class."""
    images, labels = the_digits()
    for index in range(first, last):
        path = folder / NAMES[labels[index]] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        enlarged(images[index]).save(path)
    return folder


def test_a_folder_and_a_csv_are_the_same_set(tmp_path: Path):
    folder = write_set(tmp_path / "set", 300, 330)
    (folder / ".DS_Store").write_bytes(b"")
    by_folder = read_image_set(str(folder))
    assert [i.name for i in by_folder.images] == sorted(i.name for i in by_folder.images)
    assert len(by_folder.images) == 30
    rows = [f"{image.name},{image.label},x" for image in reversed(by_folder.images)]
    (folder / "labels.csv").write_text("\ufeffimage,class,note\n" + "\n".join(rows))
    by_csv = read_image_set(str(folder / "labels.csv"))
    assert by_csv.digest == by_folder.digest
    assert class_ids(by_csv.images, NAMES, "it") == class_ids(by_folder.images, NAMES, "it")

    # A class by its number; another label and another byte are another set.
    (folder / "labels.csv").write_text(
        "image,class\n" + "\n".join(f"{i.name},{NAMES.index(i.label)}" for i in by_folder.images)
    )
    numbered = read_image_set(str(folder / "labels.csv"))
    assert class_ids(numbered.images, NAMES, "it") == class_ids(by_folder.images, NAMES, "it")
    assert numbered.digest != by_folder.digest
    (folder / "labels.csv").unlink()
    [path, other] = [image.path for image in by_folder.images[:2]]
    path.write_bytes(other.read_bytes())
    assert read_image_set(str(folder)).digest != by_folder.digest
    with pytest.raises(QuernError, match="changed meanwhile"):
        by_folder.images[0].read()


def unreadable(folder: Path) -> None:
    (folder / "one" / "1.png").mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda folder: folder.rename(folder.with_name("gone")),
            r"set: is not there; give a folder",
        ),
        (lambda folder: [p.unlink() for p in folder.rglob("*.png")], r"set: has no images"),
        (lambda folder: (folder / "a.png").write_bytes(b""), r"set/a.png: is in no class's folder"),
        (lambda folder: (folder / "one/note.txt").write_text("x"), r"one/note.txt: is neither"),
        (lambda folder: (folder / "one/a.png").write_bytes(b""), r"one/a.png: is neither a JPEG"),
        (unreadable, r"set/one/1.png: can't be read: Is a directory"),
        (
            lambda folder: (folder / "one").rename(folder / "eleven"),
            r"it has no class 'eleven'; .*",
        ),
        (
            lambda folder: (folder / "one").rename(folder / "10"),
            r"no class '10'; it has zero,",
        ),
    ],
)
def test_a_bad_folder_is_one_line(tmp_path: Path, spoil: Callable[[Path], Any], words: str):
    folder = write_set(tmp_path / "set", 300, 312)
    spoil(folder)
    with pytest.raises(QuernError, match=words) as fault:
        class_ids(read_image_set(str(folder)).images, NAMES, "it")
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"image;class\n", r"set.csv:1: has no column image; it wants image,class"),
        (b"image,label\n", r"set.csv:1: has no column class"),
        (b"", r"set.csv:1: has no column image"),
        (b"image,class\n", r"set.csv: has no images"),
        (b"image,class\nnine/0.png\n", r"set.csv:2: has no class"),
        (b"image,class\n,nine\n", r"set.csv:2: has no image"),
        (b"image,class\nnine/0.png,nine\n", r"set.csv:2: .*/nine/0.png: can't be read: No such"),
        (b"image,class\na.png,six\na.png,six\n", r"set.csv:3: a.png was there before, at .*:2"),
        (b"image,class\na.png,tw\xff\n", r"set.csv: not UTF-8"),
        (b"image,class\na.png,sixx\n", r"set.csv:2: it has no class 'sixx'; it has zero, one"),
    ],
)
def test_a_bad_csv_is_one_line(tmp_path: Path, text: bytes, words: str):
    enlarged(the_digits()[0][0]).save(tmp_path / "a.png")
    (tmp_path / "set.csv").write_bytes(text)
    with pytest.raises(QuernError, match=words) as fault:
        class_ids(read_image_set(str(tmp_path / "set.csv")).images, NAMES, "it")
    assert "\n" not in str(fault.value)


def test_a_class_that_is_there_twice_wants_its_number(tmp_path: Path):
    images = read_image_set(str(write_set(tmp_path / "set", 300, 312))).images
    with pytest.raises(QuernError, match=r"several classes '\w+'; give its number"):
        class_ids(images, [*NAMES[:-1], images[0].label], "it")


# -- figures ---------------------------------------------------------------------------------------


def test_figures_of_items():
    values = np.random.default_rng(1).exponential(4, 31)
    found = percentiles(list(values))
    assert found["p50"] == pytest.approx(np.percentile(values, 50), abs=1e-3)
    assert found["p95"] == pytest.approx(np.percentile(values, 95), abs=1e-3)
    assert percentiles([2.5]) == {"p50": 2.5, "p95": 2.5}

    def item(name: str, candidate: str, stable: str) -> dict[str, Any]:
        right = [candidate == name, stable == name]
        said = {"candidate": candidate, "stable": stable, "right": right}
        return {"class": name, **said, "right_in_5": [True, right[1]], "server_ms": [1, 2]}

    items = [item("a", "a", "b"), item("a", "b", "b"), item("b", "b", "b"), item("b", "a", "b")]
    told = figures(items, ([1, 2, 3, 4], [5, 6, 7, 8]))
    assert told["agreement"] == 0.5
    assert told["accuracy"] == {"candidate": 0.5, "stable": 0.5}
    assert told["top5"]["candidate"]["accuracy"] == 1 and told["top5"]["stable"]["accuracy"] == 0.5
    assert told["classes"] == [
        {"class": "a", "count": 2, "candidate": 0.5, "stable": 0.0, "change": 0.5},
        {"class": "b", "count": 2, "candidate": 0.5, "stable": 1.0, "change": -0.5},
    ]
    assert told["latency_ms"]["stable"]["p50"] == 6.5


def test_a_candidate_stands_up_to_the_margin():
    assert stands(0.0, 0.0) and stands(0.2, 0.0) and not stands(-0.001, 0.0)
    assert stands((97 - 100) / 300, 0.01) and not stands((96 - 100) / 300, 0.01)


def a_comparison(difference: float, margin: float, classes: list[str]) -> dict[str, Any]:
    """What a report is made of."""
    both = {"candidate": 0.5 + difference, "stable": 0.5}
    figures = {"p50": 1.5, "p95": 4.0}
    return {
        "model": "dogs",
        "kind": "classifier",
        "candidate": "c" * 16,
        "stable": "5" * 16,
        "labels": {"candidate": "Cycle 2", "stable": ""},
        "channels": {"candidate": "candidate on edge", "stable": "stable on edge"},
        "set": {"path": "held_out", "digest": "0" * 32, "count": 9},
        "accuracy": both,
        "accuracy_interval": {who: [share - 0.1, share + 0.1] for who, share in both.items()},
        "difference": difference,
        "interval": [difference - 0.02, difference + 0.02],
        "discordant": {"candidate": 3, "stable": 1},
        "p": 0.625,
        "agreement": 0.5,
        "top5": {who: {"accuracy": 1.0, "interval": [0.7, 1.0]} for who in both},
        "classes": [{"class": name, "count": 1, "change": 1.0, **both} for name in classes],
        "latency_ms": {"candidate": figures, "stable": figures},
        "server_ms": {"candidate": figures, "stable": figures},
        "memory_bytes": {"candidate": 5e6, "stable": None},
        "margin": margin,
        "stands": stands(difference, margin),
        "seconds": 1.0,
    }


@pytest.mark.parametrize(
    ("difference", "margin", "words"),
    [
        (
            0.012,
            0.0,
            "is more accurate by 1.2 points (95 % -0.8 … 3.2, McNemar p 0.62), 1.5 ms p50",
        ),
        (0.012, 0.0, "against 1.5 ms; may be promoted: doit promote dogs"),
        (0.0, 0.0, "the candidate is as accurate (95 % -2.0 … 2.0, McNemar p 0.62), 1.5 ms p50"),
        (-0.01, 0.02, "less accurate by 1.0 points (95 % -3.0 … 1.0, McNemar p 0.62)"),
        (-0.01, 0.02, "within the margin of 2 points, may be promoted: doit promote dogs"),
        (-0.01, 0.0, "it stays a candidate: models.dogs.compare.margin allows 0 points less"),
    ],
)
def test_the_verdict_in_words(difference: float, margin: float, words: str):
    assert words in verdict(a_comparison(difference, margin, ["pug"]))


def test_classes_of_any_name_and_number_are_drawn_and_listed(recwarn: pytest.WarningsRecorder):
    names = ["진돗개", "$5 \\bad$", "a|b", *(f"class {number}" for number in range(140))]
    told = a_comparison(0.1, 0.0, names)
    file = io.BytesIO()
    save(comparison_plot(told, ([1.0, 2.0, 9.0], [1.0])), file)
    assert file.getvalue().startswith(b"\x89PNG")
    assert not recwarn.list
    rows = [line for line in markdown(told, None).splitlines() if line.startswith("| ")]
    assert "| a\\|b (1) | 60.0 % | 50.0 % | +100.0 points |" in rows
    assert sum(row.endswith("+100.0 points |") for row in rows) == len(names)
    assert "and 137 classes more that changed" in "\n".join(table(told))


# -- one connection for many requests --------------------------------------------------------------


def test_a_connection_is_kept_and_made_again_when_the_server_closed_it(tmp_path: Path):
    with serving(programs().server, tmp_path, "--idle-seconds", "1") as server:
        port, pid = server.port, server.process.pid
        with KeptAlive(f"127.0.0.1:{port}", 10) as connection:
            for _ in range(5):
                assert connection.ask("GET", "/health")["status"] == "ok"
            assert len(connections(pid)) == 1
            wait(lambda: not connections(pid), "the server to close it")
            assert connection.ask("GET", "/health")["status"] == "ok"
            assert "quern_resident_bytes" in connection.text("/metrics")
            with pytest.raises(Refused, match="no image"):
                connection.ask("POST", "/predict", b"", "image/png")
            answer, milliseconds = connection.timed("GET", "/models/info")
            assert answer["pid"] == pid and milliseconds > 0
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(Unreachable, match=f"127.0.0.1:{port}: no answer to GET /health"):
                connection.ask("GET", "/health")


# -- two live servers ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Trained enough to be right half of the time, each on other digits."""
    folder = tmp_path_factory.mktemp("two_checkpoints")
    paths = [folder / str(seed) / "best_model.pth" for seed in range(2)]
    for seed, path in enumerate(paths):
        train_a_little(path, seed, steps=(90, 60)[seed])
    return paths


def with_candidate(project: DeployProject, port: int, more: str = "") -> None:
    """models.yaml with a candidate's channel beside each stable one, and `more` of the model."""
    path = project.root / "models.yaml"
    text = path.read_text().replace(
        f"{{stable: {project.port}}}", f"{{candidate: {port}, stable: {project.port}}}"
    )
    path.write_text(text.replace("    deploy:", f"{more}    deploy:"))


@dataclass
class CandidateProject(DeployProject):
    """The first checkpoint is live in `stable`, the second in `candidate`, whose port is `other`.
    80 images are in the folder `set`."""

    other: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.use_checkpoint(0)
        self.doit()
        with_candidate(self, self.other, "    compare: {images: set, margin: 0.05}\n")
        self.use_checkpoint(1)
        self.doit()
        write_set(self.root / "set")


@pytest.fixture
def project(tmp_path: Path, two_checkpoints: list[Path]) -> Iterator[CandidateProject]:
    project = CandidateProject(tmp_path / "project", two_checkpoints)
    yield project
    project.stop()


def asked(url: str, body: bytes | None = None) -> dict[str, Any]:
    request = urllib.request.Request(url, body, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


Recount = dict[str, tuple[bool, bool, str]]


def recounted(address: str, folder: Path) -> Recount:
    """Image → whether one server has it right, and among its five; what it says."""
    said = {}
    for path in sorted(folder.glob("*/*.png")):
        answer = asked(f"http://{address}/predict", path.read_bytes())["predictions"]
        names = [prediction["name"] for prediction in answer]
        wanted = path.parent.name
        said[f"{wanted}/{path.name}"] = (names[0] == wanted, wanted in names, names[0])
    return said


def holds(told: dict[str, Any], candidate: Recount, stable: Recount) -> None:
    """The figures are those of two recounts, by scipy's statistics."""
    both = {"candidate": candidate, "stable": stable}
    count = told["set"]["count"]
    assert count == len(candidate) == len(stable)
    right = {who: sum(said[0] for said in found.values()) for who, found in both.items()}
    for who, found in both.items():
        assert told["accuracy"][who] == pytest.approx(right[who] / count)
        interval = binomtest(right[who], count).proportion_ci(method="wilson")
        assert told["accuracy_interval"][who] == pytest.approx([interval.low, interval.high])
        in_five = sum(said[1] for said in found.values())
        assert told["top5"][who]["accuracy"] == pytest.approx(in_five / count)
    assert told["difference"] == pytest.approx((right["candidate"] - right["stable"]) / count)
    gained = sum(candidate[name][0] and not stable[name][0] for name in candidate)
    lost = sum(stable[name][0] and not candidate[name][0] for name in candidate)
    assert gained > 0 and lost > 0  # else this test is of nothing
    assert told["discordant"] == {"candidate": gained, "stable": lost}
    assert told["p"] == pytest.approx(binomtest(gained, gained + lost).pvalue)
    low, high = told["interval"]
    assert low < told["difference"] < high
    same = sum(candidate[name][2] == stable[name][2] for name in candidate)
    assert told["agreement"] == pytest.approx(same / count)
    assert sum(found["count"] for found in told["classes"]) == count
    for found in told["classes"]:
        names = [name for name in candidate if name.startswith(f"{found['class']}/")]
        assert found["count"] == len(names)
        for who, said in both.items():
            assert found[who] == pytest.approx(sum(said[name][0] for name in names) / len(names))
    for key in ("latency_ms", "server_ms"):
        for who in both:
            assert 0 < told[key][who]["p50"] <= told[key][who]["p95"]
    assert all(size > 1e6 for size in told["memory_bytes"].values())


@pytest.mark.slow
def test_two_live_servers_are_compared(project: CandidateProject):
    candidate = asked(f"http://127.0.0.1:{project.other}/health")["release"]
    stable = project.health()["release"]
    done = project.doit("compare", "digits")
    assert done.stderr == ""
    folder = project.root / "set"
    recounts = recounted(f"127.0.0.1:{project.other}", folder), recounted(project.address, folder)
    host = LocalHost(project.host.parent)
    told = read_comparison(host, "digits", candidate, stable)
    assert told is not None and read_comparison(host, "digits", stable, candidate) is None
    holds(told, *recounts)
    assert (told["candidate"], told["stable"]) == (candidate, stable)
    assert told["labels"]["stable"] == "Cycle 1 (Epoch 0, 50.00%)"
    assert told["set"]["digest"] == read_image_set(str(folder)).digest
    assert told["stands"] == (told["difference"] >= -0.05)

    # What is said on the terminal: a table, and the verdict.
    lines = done.stdout.splitlines()
    assert lines[0].startswith("digits: Cycle 1 (Epoch 1, 50.00%)")
    assert lines[0].endswith("; 80 images of set")
    right = sum(said[0] for said in recounts[0].values())
    [row] = [line for line in lines if "accuracy, top-1" in line]
    assert f" {100 * right / 80:.1f} % (" in row
    assert told["difference"]
    more = "more" if told["difference"] > 0 else "less"
    assert f"the candidate is {more} accurate by" in lines[-1] and "McNemar p" in lines[-1]
    assert lines[-1].endswith("may be promoted: doit promote digits") == told["stands"]

    # The report: each answer, Markdown, and a picture.
    report = project.root / "weights/evaluation/digits" / f"{candidate}-{stable}"
    full = json.loads(report.with_suffix(".json").read_bytes())
    items = full.pop("items")
    assert full == told
    assert {i["name"]: i["candidate"] for i in items} == {k: v[2] for k, v in recounts[0].items()}
    assert {i["name"]: i["stable"] for i in items} == {k: v[2] for k, v in recounts[1].items()}
    assert all(len(item["latency_ms"]) == 2 for item in items)
    markdown = report.with_suffix(".md").read_text()
    assert lines[-1] in markdown and f"({candidate}-{stable}.png)" in markdown
    assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    # The history has it, and nobody takes it for a release that went live.
    [record] = [r for r in on_host(host, "digits") if r["outcome"] == "compared"]
    assert (record["release"], record["against"]["release"]) == (candidate, stable)
    assert record["at"] == told["at"] and record["comparison"]["p"] == told["p"]
    assert went_live(host, "digits") == [stable, candidate]
    line = project.doit("history").stdout.splitlines()[-1]
    assert f"({candidate}) compared with Cycle 1 (Epoch 0, 50.00%) ({stable}): " in line
    shares = [f"{told['accuracy'][who]:.2%}" for who in ("candidate", "stable")]
    assert f": accuracy {shares[0]} against {shares[1]} ({told['difference']:+.2%}, " in line
    assert ", 80 of set), by " in line
    rows = json.loads(project.doit("status", "--json").stdout)
    assert {row["status"] for row in rows} == {"as it should be"}
    live = {r["channel"]: r["at"] for r in on_host(host, "digits") if r["outcome"] == "live"}
    assert {row["channel"]: row["since"] for row in rows} == live
    assert project.doit().stdout == ""

    # On a terminal, how far it is.
    shown = on_a_terminal(project.command("compare", "digits"), project.root)
    assert "compare:digits asking" in shown and "/80" in shown and "accuracy, top-1" in shown

    # A set that is given, as JSON; without matplotlib all but the picture is made.
    write_set(project.root / "other set", 380, 400)
    (project.root / "blocked").mkdir()
    (project.root / "blocked/matplotlib.py").write_text("raise ImportError\n")
    report.with_suffix(".png").unlink()
    done = subprocess.run(
        project.command("compare", "digits", "--images", "other set", "--json"),
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": f"{project.root / 'blocked'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stderr == "no picture: matplotlib is not installed; pip install quern[compare]\n"
    [told] = json.loads(done.stdout)
    assert told["set"]["count"] == 20 and told["set"]["path"] == "other set"
    assert read_comparison(host, "digits", candidate, stable) == told
    assert not report.with_suffix(".png").exists()
    assert ".png" not in report.with_suffix(".md").read_text()


def on_a_terminal(command: list[str], folder: Path) -> str:
    """What a command shows on a terminal of 200 columns."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (50, 200))
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=its, stderr=its)
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # a terminal that nobody holds any more
        while piece := os.read(ours, 1 << 16):
            shown += piece
    os.close(ours)
    assert process.wait() == 0, shown
    return shown.decode()


def nothing_was_kept(project: CandidateProject) -> bool:
    told = [r for r in on_host(LocalHost(project.host.parent), "digits") if "against" in r]
    places = project.host / "comparisons", project.root / "weights/evaluation/digits"
    return not told and not any(place.exists() for place in places)


@pytest.mark.slow
def test_what_is_lost_or_changed_meanwhile_makes_the_comparison_void(
    project: CandidateProject, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(project.root)
    load_configuration.cache_clear()
    opened = Project(project.root)
    [(candidate, stable)] = pairs_to_compare("digits")
    host = host_of(project.root, stable)
    info = f"http://127.0.0.1:{project.other}/models/info"

    def after_20(what: Callable[[], Any], match: str) -> None:
        def progress(done: int, total: int) -> None:
            assert total == 80
            if done == 20:
                what()

        with pytest.raises(QuernError, match=f"^digits: the comparison is void, .*{match}"):
            compare(opened, "digits", candidate, stable, "set", progress)
        assert nothing_was_kept(project)

    # In turns, the one first and then the other.
    order: list[str] = []
    pair = live_in(opened, "digits", candidate), live_in(opened, "digits", stable)
    ask_both(pair, [("", lambda live: order.append(live.channel["channel"]))] * 3, 9, unseen)
    assert order == ["candidate", "stable", "stable", "candidate", "candidate", "stable"]
    # A server that dies is started again by its holder, and answers as before.
    after_20(lambda: os.kill(asked(info)["pid"], signal.SIGKILL), "candidate on .* was started ag")
    # An image is another one; an image that only a server can tell is damaged.
    image = sorted((project.root / "set").glob("*/*.png"))[-1]
    whole = image.read_bytes()
    after_20(lambda: image.write_bytes(whole[:100]), f"{image.name}: changed meanwhile")
    with pytest.raises(QuernError, match=rf"void, .*{image.name}: .* answers: .*image"):
        compare(opened, "digits", candidate, stable, "set")
    image.write_bytes(whole)
    assert nothing_was_kept(project)
    # Another release in the same process.
    first = live_release(host, "digits", stable)
    before = live_release(host, "digits", candidate)
    after_20(
        lambda: deployment_of(host, candidate, first).make_live({}, retry=True),
        f"candidate on local, port {project.other} serves {first.id}, no longer {before.id}",
    )
    # Now both have the same.
    with pytest.raises(NothingToCompare, match=f"have the same release {first.id}"):
        compare(opened, "digits", candidate, stable, "set")
    done = project.doit("compare", "digits")
    assert "have the same release" in done.stderr and done.stdout == ""
    assert json.loads(project.doit("compare", "digits", "--json").stdout) == []
    deployment_of(host, candidate, before).make_live({}, retry=True)
    # All servers end.
    after_20(project.stop, "no answer to POST /predict")
    told = project.doit("compare", "digits", status=1).stderr
    assert len(told.splitlines()) == 1 and "nothing of it is kept" in told
    assert nothing_was_kept(project)


CHANNELS = """
hosts: {{edge: {{ssh: edge}}, attic: {{ssh: attic}}}}
models:
  digits:
    kind: classifier
    checkpoint: {{path: c.pth}}
    architecture: {{file: n.py, class: N}}
    classes: classes.json
    preprocess: {{}}
    deploy: {deploy}
"""


@pytest.mark.parametrize(
    ("deploy", "pairs"),
    [
        ("{local: {candidate: 1, stable: 2}}", ["candidate local stable local"]),
        (
            "{edge: {candidate: 1, stable: 2}, attic: {candidate: 1, stable: 2}}",
            ["candidate edge stable edge", "candidate attic stable attic"],
        ),
        (
            "{local: {candidate: 1}, edge: {stable: 2}, attic: {stable: 2, torch: 3}}",
            [
                "candidate local stable edge",
                "candidate local stable attic",
                "candidate local torch attic",
            ],
        ),
        ("{local: {one: 1, two: 2}}", []),
    ],
)
def test_a_candidate_is_compared_on_its_own_host_else_with_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deploy: str, pairs: list[str]
):
    (tmp_path / "models.yaml").write_text(CHANNELS.format(deploy=deploy))
    monkeypatch.chdir(tmp_path)
    load_configuration.cache_clear()
    if not pairs:
        with pytest.raises(QuernError, match="no candidate's server beside a stable"):
            pairs_to_compare("digits")
        return
    assert pairs == [
        " ".join(f"{channel['channel']} {channel['host']}" for channel in pair)
        for pair in pairs_to_compare("digits")
    ]


@pytest.mark.slow
def test_what_cannot_be_compared_is_one_line(project: CandidateProject):
    def said(*arguments: str, status: int) -> str:
        done = project.doit("compare", *arguments, status=status)
        assert done.stdout == "" and len(done.stderr.splitlines()) == 1, done
        return done.stderr

    assert "name one model" in said(status=3)
    assert "no model cats" in said("cats", status=3)
    told = said("digits", "--questions", "q.jsonl", status=3)
    assert "digits is a classifier; --images, not --questions" in told
    assert "nowhere: is not there" in said("digits", "--images", "nowhere", status=1)
    (project.root / "set/one").rename(project.root / "set/eins")
    told = said("digits", status=1)
    assert "candidate on local" in told and "has no class 'eins'; it has zero, one, two" in told
    models = project.root / "models.yaml"
    text = models.read_text()
    models.write_text(text.replace("    compare: {images: set, margin: 0.05}\n", ""))
    told = said("digits", status=3)
    assert "models.yaml: models.digits.compare.images is not set; set it, or give --images" in told
    models.write_text(text.replace(f"candidate: {project.other}, ", ""))
    told = said("digits", status=3)
    assert "models.digits.deploy has no candidate's server beside a stable" in told
    # Nothing is live in the one; then in the other.
    models.write_text(text)
    (project.host / "stable/current").unlink()
    assert "nothing is live in stable on local, port" in said("digits", status=1)
    (project.host / "candidate/current").unlink()
    told = said("digits", status=1)
    assert f"candidate on local, port {project.other} yet: doit deploy:digits" in told
    assert nothing_was_kept(project)


@pytest.mark.slow
def test_servers_that_listen_on_the_loopback_of_their_host(
    tmp_path: Path, two_checkpoints: list[Path]
):
    """Over SSH, through one channel a server; what is kept is on that host."""
    project = RemoteProject(tmp_path / "project", two_checkpoints)
    try:
        models = project.root / "models.yaml"
        models.write_text(models.read_text().replace("listen: 0.0.0.0", "listen: 127.0.0.1"))
        project.use_checkpoint(0)
        project.doit()
        with_candidate(project, 8893, "    compare: {images: set}\n")
        project.use_checkpoint(1)
        project.doit()
        folder = write_set(project.root / "set")
        log = project.edge.folder / "sshd.log"
        before = log.read_text().count("Starting session: command")
        [told] = json.loads(project.doit("compare", "digits", "--json").stdout)
        assert log.read_text().count("Starting session: command") - before < 20  # for 160 questions
        # Recounted on servers of the same files that listen here.
        recounts = []
        for channel in ("candidate", "stable"):
            release = project.folder_on() / "releases" / told[channel]
            assert (project.folder_on() / channel / "current").readlink().name == told[channel]
            with alone(release) as address:
                recounts.append(recounted(address, folder))
        holds(told, *recounts)
        kept = project.folder_on() / "comparisons" / f"{told['candidate']}-{told['stable']}.json"
        assert json.loads(kept.read_bytes()) == told
        [record] = [r for r in project.history_on() if r["outcome"] == "compared"]
        assert record["host"] == "edge" and record["comparison"]["set"]["count"] == 80
        [line] = [s for s in project.doit("history").stdout.splitlines() if "compared with" in s]
        assert ", 80 of set), by " in line

        # The candidate on one host, what is stable on another: both keep it, and it is told once.
        both = models.read_text()
        here = free_port()
        places = f"local: {{candidate: {here}}}, edge: {{stable: {project.port}}}"
        models.write_text(re.sub(r"deploy: .*", f"deploy: {{{places}}}", both))
        project.doit()
        [across] = json.loads(project.doit("compare", "digits", "--json").stdout)
        assert across["channels"]["candidate"] == f"candidate on local, port {here}"
        assert across["accuracy"] == told["accuracy"] and across["stable"] == told["stable"]
        for folder in (project.host, project.folder_on()):
            name = f"{across['candidate']}-{across['stable']}.json"
            assert json.loads((folder / "comparisons" / name).read_bytes()) == across
        records = [*project.history(), *project.history_on()]
        assert [r["host"] for r in records if r.get("at") == across["at"]] == ["local", "edge"]
        lines = project.doit("history").stdout.splitlines()
        assert sum("compared with" in line for line in lines) == 2

        # The servers are gone, then the host.
        models.write_text(both)
        project.stop_servers()
        said = project.doit("compare", "digits", status=1).stderr
        assert "void" in said and "edge: cannot connect to 127.0.0.1:8893" in said
        project.edge.stop()
        said = project.doit("compare", "digits", status=75).stderr
        assert len(said.splitlines()) == 1 and "edge: out of reach" in said
    finally:
        project.stop()


@contextlib.contextmanager
def alone(release: Path) -> Iterator[str]:
    """A server of a release's files, without a holder; its address."""
    port = free_port()
    files = {"--weights": "model_weights.bin", "--classes": "classes.json"}
    options = [word for key, name in files.items() for word in (key, str(release / name))]
    command = [str(release / "quern-server"), "--port", str(port), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            return asked(f"http://127.0.0.1:{port}/health")["status"] == "ok"
        except OSError:
            return False

    try:
        wait(answers, "a server")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
