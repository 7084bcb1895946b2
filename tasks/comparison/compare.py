"""A candidate against what is stable: both live servers asked the same, in turns."""

import io
import json as json_format
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tasks.core.atomic import write_atomically
from tasks.core.configuration import (
    Classifier,
    LanguageModel,
    configuration_file,
    load_configuration,
)
from tasks.core.digest import canonical_json, digest_of_bytes
from tasks.core.errors import QuernError, TryAgainLater, in_one_line
from tasks.core.project import Project
from tasks.core.provenance import provenance
from tasks.hosts.asking import (
    ANSWER_SECONDS,
    CHAT_SECONDS,
    Ask,
    Live,
    ask_both,
    ask_chat,
    ask_class,
)
from tasks.hosts.channels import Channel, host_of, how_it_gets_a_release, in_words, live_release
from tasks.hosts.comparison import FORMAT, keep_comparison, stands
from tasks.hosts.history import Journal

EVALUATION = "weights/evaluation"

Pair = tuple[Live, Live]  # the candidate and the stable one
Progress = Callable[[int, int], None]


class NothingToCompare(QuernError):
    """Both channels have the same release."""


def unseen(done: int, total: int) -> None:
    """Nobody looks on."""


def set_to_compare_on(name: str, images: str = "", questions: str = "") -> str:
    """The path of the set for a model: what was given, else the configured one. Raises
    QuernError."""
    configuration = load_configuration()
    configuration.chosen([name])
    model = configuration.models[name]
    is_classifier = isinstance(model, Classifier)
    if questions if is_classifier else images:
        wanted, other = ("images", "questions") if is_classifier else ("questions", "images")
        raise QuernError(f"compare: {name} is a {model_kind(model)}; --{wanted}, not --{other}")
    if isinstance(model, Classifier):
        path, key = images or model.compare.images, "images"
    else:
        path, key = questions or model.compare.questions or model.evaluate.questions, "questions"
    if not path:
        raise QuernError(
            f"{configuration_file()}: models.{name}.compare.{key} is not set; set it, or give "
            f"--{key} PATH (docs/channels.md)"
        )
    return path


def model_kind(model: Classifier | LanguageModel) -> str:
    """For messages."""
    return "classifier" if isinstance(model, Classifier) else "language model"


def compare(
    project: Project,
    name: str,
    candidate: Channel,
    stable: Channel,
    path: str = "",
    progress: Progress = unseen,
) -> dict[str, Any]:
    """Compare what is live in two channels of model `name`, on the set at `path` or the configured
    one; returns what docs/channels.md describes. It is kept with both releases, and in
    weights/evaluation.

    Raises NothingToCompare; QuernError for a bad set, or TryAgainLater or QuernError where a server
    was lost, answered with an error or got another release: nothing is kept then.
    """
    from tasks.models.answers import figures

    model = load_configuration().models[name]
    start = time.monotonic()
    pair = live_in(project, name, candidate), live_in(project, name, stable)
    if pair[0].release.id == pair[1].release.id:
        raise NothingToCompare(
            f"{name}: {in_words(candidate)} and {in_words(stable)} have the same release "
            f"{pair[0].release.id}: nothing to compare"
        )
    read = images_compared if isinstance(model, Classifier) else questions_compared
    chosen = read(pair, path or set_to_compare_on(name))
    try:
        memory = ask_both(pair, chosen.asked, chosen.timeout, progress)
        items = chosen.items()
    except (QuernError, OSError, LookupError, TypeError) as error:
        kind = TryAgainLater if isinstance(error, TryAgainLater) else QuernError
        said = in_one_line(error) if isinstance(error, QuernError | OSError) else "a strange answer"
        raise kind(f"{name}: the comparison is void, nothing of it is kept: {said}") from None
    told = {
        "format": FORMAT,
        "at": time.time(),
        "seconds": round(time.monotonic() - start, 3),
        "model": name,
        "kind": pair[0].release.kind,
        **by_who(pair, lambda live: live.release.id),
        "labels": by_who(pair, lambda live: live.release.label),
        "channels": by_who(pair, lambda live: in_words(live.channel)),
        "set": chosen.described,
        **figures(items, (pair[0].milliseconds, pair[1].milliseconds)),
        **chosen.more(),
        "memory_bytes": dict(zip(("candidate", "stable"), memory, strict=True)),
        "margin": model.compare.margin,
    }
    told["stands"] = stands(told["difference"], told["margin"])
    keep(project, pair, told, items)
    return told


def by_who(pair: Pair, what: Callable[[Live], Any]) -> dict[str, Any]:
    """{"candidate": …, "stable": …}."""
    return {"candidate": what(pair[0]), "stable": what(pair[1])}


def live_in(project: Project, name: str, channel: Channel) -> Live:
    """A channel's server, with the release that it has. Raises QuernError."""
    host = host_of(project.root, channel)
    try:
        release = live_release(host, name, channel)
    except FileNotFoundError as missing:
        raise QuernError(f"{host.name}: {missing.args[0]} is missing") from None
    if release is None:
        how = how_it_gets_a_release(name, channel)
        raise QuernError(f"nothing is live in {in_words(channel)} yet: {how}")
    return Live(host, channel, release)


@dataclass(frozen=True)
class Prepared:
    """A set as it is asked: `described` is {"path", "digest", "count"}, `asked` where each of it
    stands and how it is asked, with `timeout` seconds to be answered. When all were, `items` says
    what was answered to each (tasks.models.answers), `more` what else is known."""

    described: dict[str, Any]
    asked: list[tuple[str, Ask]]
    timeout: float
    items: Callable[[], list[Any]]
    more: Callable[[], dict[str, Any]]


def images_compared(pair: Pair, path: str) -> Prepared:
    """A set of labelled images, for two classifiers. Raises QuernError."""
    from tasks.models.answers import class_items
    from tasks.models.labelled_images import class_ids, read_image_set

    chosen = read_image_set(path)
    names = class_names(pair[0]), class_names(pair[1])
    ids = (
        class_ids(chosen.images, names[0], in_words(pair[0].channel)),
        class_ids(chosen.images, names[1], in_words(pair[1].channel)),
    )
    for image, first, second in zip(chosen.images, *ids, strict=True):
        if names[0][first] != names[1][second]:
            raise QuernError(
                f"{image.place}: class {image.label} is {names[0][first]!r} of the candidate and "
                f"{names[1][second]!r} of the stable release; give its name"
            )

    def items() -> list[Any]:
        return class_items(chosen.images, names, ids, (pair[0].answers, pair[1].answers))

    described = {"path": path, "digest": chosen.digest, "count": len(chosen.images)}
    asked: list[tuple[str, Ask]] = [
        (image.place, partial(ask_class, image.read)) for image in chosen.images
    ]
    return Prepared(described, asked, ANSWER_SECONDS, items, dict)


def class_names(live: Live) -> list[str]:
    """The classes of a server's release, by their numbers. Raises QuernError."""
    from tasks.models.classes import classes_of

    path = live.directory / live.release.file("classes")
    return classes_of(live.host.read(path) or b"", path)


def questions_compared(pair: Pair, path: str) -> Prepared:
    """A set of questions, for two language models. Raises QuernError."""
    from tasks.models.answers import chat_items, tokens_per_second
    from tasks.models.llama_cpp.questions import MAX_ANSWER_TOKENS, read_questions

    try:
        questions = read_questions(path)
    except OSError as error:
        raise QuernError(f"{path}: can't be read: {error.strerror}") from None

    def items() -> list[Any]:
        return chat_items(questions, (pair[0].answers, pair[1].answers))

    def more() -> dict[str, Any]:
        return {
            "tokens_per_second": by_who(pair, lambda live: tokens_per_second(live.answers)),
            "kl": by_who(pair, lambda live: quality_of(live)["kl"]["mean"]),
        }

    rows = [[question[key] for key in ("category", "prompt", "answer")] for question in questions]
    described = {
        "path": path,
        "digest": digest_of_bytes(canonical_json(rows)),
        "count": len(questions),
    }
    asked: list[tuple[str, Ask]] = [
        (repr(question["prompt"]), partial(ask_chat, question["prompt"], MAX_ANSWER_TOKENS))
        for question in questions
    ]
    return Prepared(described, asked, CHAT_SECONDS, items, more)


def quality_of(live: Live) -> dict[str, Any]:
    """What was measured of a language model's format when it was released."""
    return dict(live.release.manifest["checkpoint"]["quality"])


def keep(project: Project, pair: Pair, told: dict[str, Any], items: list[Any]) -> None:
    """Write a comparison to the hosts of both releases, and its report, with every answer, to
    weights/evaluation. Raises QuernError, OSError."""
    journal = Journal(project.private / "history.jsonl", provenance(project.root))
    for live in {live.host.name: live for live in reversed(pair)}.values():
        keep_comparison(live.host, live.channel["channel"], pair[0].release, told, journal)
    report(project, told, items, (pair[0].milliseconds, pair[1].milliseconds))


def report(
    project: Project, told: dict[str, Any], items: list[Any], milliseconds: tuple[Any, Any]
) -> None:
    """Write weights/evaluation/<model>/<candidate id>-<stable id>.json, .md and .png."""
    from tasks.models.comparison_plot import comparison_plot
    from tasks.models.comparison_report import markdown
    from tasks.models.plotting import save

    folder = project.root / EVALUATION / told["model"]
    name = f"{told['candidate']}-{told['stable']}"
    picture: str | None = f"{name}.png"
    try:
        image = io.BytesIO()
        save(comparison_plot(told, milliseconds), image)
        write_atomically(folder / f"{name}.png", image.getvalue())
    except ImportError:
        picture = None
        sys.stderr.write("no picture: matplotlib is not installed; pip install quern[compare]\n")
    for item, *taken in zip(items, *milliseconds, strict=True):
        item["latency_ms"] = [round(value, 3) for value in taken]
    text = json_format.dumps({**told, "items": items}, indent=1, ensure_ascii=False)
    write_atomically(folder / f"{name}.json", text.encode() + b"\n")
    write_atomically(folder / f"{name}.md", markdown(told, picture).encode())
