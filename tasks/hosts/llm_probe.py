"""The proof before a language model goes live: the server's probabilities are the GGUF's own.

llama-server's `POST /completion` takes a prompt of token ids, so that neither a chat template nor
a tokenizer comes in between. With `n_probs` and without `post_sampling_probs` it answers the
softmax over all logits, before temperature and samplers have a say: `top_logprobs` of the first of
`completion_probabilities`, each with `id` and `logprob`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.hosts.holder import Server
from tasks.hosts.probe import ProbeFailed
from tasks.hosts.releases import Release

Ask = Callable[[dict[str, Any]], dict[str, Any]]  # request of /completion → answer


@dataclass(frozen=True)
class LanguageProbeResult:
    """`worst_difference` is the greatest |server - golden| of a probability over all probes."""

    probes: int
    worst_difference: float

    def as_data(self) -> dict[str, Any]:
        """For history.jsonl."""
        return asdict(self)


ANSWER_SECONDS = 300.0


def probe(server: Server, directory: Path, release: Release) -> LanguageProbeResult:
    """Put the golden set to the release that `server` has loaded but not activated.

    Raises ProbeFailed naming the first wrong answer, Refused, Unreachable.
    """
    status = server.ask("GET", "/status") | server.loaded
    if status["release"] != release.id:
        raise ProbeFailed(f"it loaded release {status['release']}, {release.id} was asked for")
    for role in ("server", "weights", "chat"):
        if status[role] != release.digest(role):
            raise ProbeFailed(
                f"it runs {role} {status[role][:12]}, the manifest says {release.digest(role)[:12]}"
            )
    golden = json.loads(server.host.read(directory / release.file("golden")) or b"")

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        return dict(server.ask("POST", "/predict", question, ANSWER_SECONDS))

    return check(golden, ask)


def request(probe: dict[str, Any]) -> dict[str, Any]:
    """The body of `POST /completion` that puts one probe of a golden set to a server."""
    return {
        "prompt": probe["tokens"],
        "n_predict": 1,
        "n_probs": len(probe["top"]),
        "temperature": 0,
        "post_sampling_probs": False,
        "cache_prompt": False,  # a kept prompt may come from the release before
        "stream": False,
    }


def check(golden: dict[str, Any], ask: Ask) -> LanguageProbeResult:
    """Put the golden set to a server, through `ask`.

    Raises ProbeFailed telling the first wrong answer in one line; what `ask` raises passes.
    """
    tolerance, worst = golden["tolerance"]["probability"], 0.0
    if not golden["probes"]:
        raise ProbeFailed("the golden set is empty")
    for probe in golden["probes"]:
        answer = ask(request(probe))
        found, least = _probabilities(answer, probe["name"])
        for token, expected in probe["top"]:
            # One that the server doesn't list is at most as likely as the least that it does.
            got = found.get(token, min(least, expected))
            difference = abs(got - expected)
            # NaN compares as false and must not pass.
            if not difference <= tolerance:
                raise ProbeFailed(
                    f"wrong answer on {probe['name']}: token {token} has the probability "
                    f"{got:.3f}, the model's file gives {expected:.3f}; {tolerance:g} is allowed"
                )
            worst = max(worst, difference)
    return LanguageProbeResult(len(golden["probes"]), worst)


def _probabilities(answer: dict[str, Any], name: str) -> tuple[dict[int, float], float]:
    """Token id → probability, and the least of them."""
    try:
        listed = answer["completion_probabilities"][0]["top_logprobs"]
        found = {int(entry["id"]): math.exp(entry["logprob"]) for entry in listed}
        return found, min(found.values())
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise ProbeFailed(
            f"no probabilities in the answer on {name}: {str(answer)[:200]}"
        ) from None
