"""The proof before a release goes live: the server's answers match PyTorch's on the same bytes."""

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.core.errors import QuernError
from tasks.hosts.holder import Server
from tasks.hosts.releases import Release


class ProbeFailed(QuernError):
    """The server answers, and its answers are wrong."""


@dataclass(frozen=True)
class ProbeResult:
    """`worst_relative` is max|server - torch| / max(1, max|torch|) over all probes."""

    probes: int
    worst_relative: float

    def as_data(self) -> dict[str, Any]:
        """For history.jsonl."""
        return asdict(self)


def probe(server: Server, directory: Path, release: Release) -> ProbeResult:
    """Put the golden set to the release that `server` has loaded but not activated.

    Raises ProbeFailed naming the first wrong answer, Refused, Unreachable.
    """
    _check_digests(server, release)
    golden = json.loads(server.host.read(directory / release.file("golden")) or b"")
    classes = json.loads(server.host.read(directory / release.file("classes")) or b"")
    tolerance, worst = golden["tolerance"]["relative"], 0.0
    if not golden["probes"]:
        raise ProbeFailed("the golden set is empty")
    for question in golden["probes"]:
        answer = server.ask("POST", "/predict?top=1", base64.b64decode(question["image"]))
        expected, logits = question["logits"], answer["logits"]
        if len(logits) != len(expected):
            raise ProbeFailed(f"{len(logits)} logits on {question['name']}, {len(expected)} wanted")
        scale = max(1.0, max(abs(value) for value in expected))
        difference = max(abs(a - b) for a, b in zip(logits, expected, strict=True)) / scale
        # A NaN compares as false and must not pass.
        if not difference <= tolerance:
            raise ProbeFailed(
                f"wrong answer on {question['name']}: its logits differ from PyTorch's by "
                f"{difference:.2g} relative, {tolerance:.2g} is allowed"
            )
        worst = max(worst, difference)
        _check_class(answer["predictions"][0], logits, classes, question["name"])
    return ProbeResult(len(golden["probes"]), worst)


def _check_digests(server: Server, release: Release) -> None:
    status = server.ask("GET", "/status") | server.loaded
    if status["release"] != release.id:
        raise ProbeFailed(f"it loaded release {status['release']}, {release.id} was asked for")
    for role in ("server", "weights", "classes"):
        if status[role] != release.digest(role):
            raise ProbeFailed(
                f"it runs {role} {status[role][:12]}, the manifest says {release.digest(role)[:12]}"
            )


def _check_class(prediction: dict[str, Any], logits: list[float], classes: Any, name: str) -> None:
    best = prediction["class_id"]
    if logits[best] != max(logits):
        raise ProbeFailed(f"wrong class on {name}: {best} is not its highest logit")
    entry = classes[str(best)] if isinstance(classes, dict) else classes[best]
    fields = {"name": entry} if isinstance(entry, str) else entry
    for key, value in fields.items():
        if key not in ("class_id", "score") and prediction.get(key) != value:
            raise ProbeFailed(f"wrong class name on {name}: {key} is {prediction.get(key)!r}")
