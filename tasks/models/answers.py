"""What the answers of two servers to the same questions say: of each question, and in all."""

from collections.abc import Sequence
from typing import Any

from tasks.core.paired import paired_figures, wilson
from tasks.models.labelled_images import LabelledImage
from tasks.models.llama_cpp.questions import is_right

WHO = ("candidate", "stable")
Answers = Sequence[dict[str, Any]]  # one server's, in the order of the questions
Item = dict[str, Any]
Both = tuple[Any, Any]  # the candidate's and the stable's


def class_items(
    images: Sequence[LabelledImage], names: Both, ids: Both, answers: Both
) -> list[Item]:
    """Each image with what was said of it: {"name", "class", "candidate", "stable" (the likeliest
    classes), "right", "right_in_5", "server_ms"}, the last three a pair each.

    `names`, `ids`, `answers`: per release the classes' names, each image's class, and /predict's
    answers. Raises KeyError, IndexError, TypeError where an answer isn't one of /predict's.
    """
    items = []
    for index, image in enumerate(images):
        wanted = [ids[who][index] for who in (0, 1)]
        said = [[p["class_id"] for p in answers[who][index]["predictions"]] for who in (0, 1)]
        items.append(
            {
                "name": image.name,
                "class": names[0][wanted[0]],
                "candidate": names[0][said[0][0]],
                "stable": names[1][said[1][0]],
                "right": [said[who][0] == wanted[who] for who in (0, 1)],
                "right_in_5": [wanted[who] in said[who] for who in (0, 1)],
                "server_ms": [answers[who][index]["timing"]["total_ms"] for who in (0, 1)],
            }
        )
    return items


def chat_items(questions: Sequence[dict[str, str]], answers: Both) -> list[Item]:
    """Each question with what was said to it: {"name", "class" (its category), "candidate",
    "stable", "right", "server_ms"}. Raises as class_items()."""
    items = []
    for index, question in enumerate(questions):
        both = [answers[who][index] for who in (0, 1)]
        said = [str(answer["choices"][0]["message"]["content"] or "") for answer in both]
        items.append(
            {
                "name": question["prompt"],
                "class": question["category"],
                "candidate": said[0],
                "stable": said[1],
                "right": [is_right(text, question) for text in said],
                "server_ms": [
                    answer["timings"]["prompt_ms"] + answer["timings"]["predicted_ms"]
                    for answer in both
                ],
            }
        )
    return items


def figures(items: Sequence[Item], milliseconds: Both) -> dict[str, Any]:
    """What all items say: paired_figures() and {"agreement": the share of the same answers,
    "classes": [{"class", "count", "candidate", "stable", "change"}] (shares), "latency_ms" and
    "server_ms": {who: {"p50", "p95"}}}; of images {"top5": {who: {"accuracy", "interval"}}} too.
    `milliseconds` are the latencies as they were seen from here.
    """
    count = len(items)
    told: dict[str, Any] = {
        **paired_figures(*([item["right"][who] for item in items] for who in (0, 1))),
        "agreement": sum(item["candidate"] == item["stable"] for item in items) / count,
        "classes": _classes(items),
        "latency_ms": {name: percentiles(milliseconds[who]) for who, name in enumerate(WHO)},
        "server_ms": {
            name: percentiles([item["server_ms"][who] for item in items])
            for who, name in enumerate(WHO)
        },
    }
    if "right_in_5" in items[0]:
        told["top5"] = {}
        for who, name in enumerate(WHO):
            right = sum(item["right_in_5"][who] for item in items)
            told["top5"][name] = {"accuracy": right / count, "interval": list(wilson(right, count))}
    return told


def _classes(items: Sequence[Item]) -> list[dict[str, Any]]:
    rights: dict[str, list[list[bool]]] = {}
    for item in items:
        rights.setdefault(item["class"], []).append(item["right"])
    rows = []
    for name, pairs in sorted(rights.items()):
        shares = [sum(pair[who] for pair in pairs) / len(pairs) for who in (0, 1)]
        row = {"class": name, "count": len(pairs), "change": shares[0] - shares[1]}
        rows.append(row | dict(zip(WHO, shares, strict=True)))
    return rows


def tokens_per_second(answers: Answers) -> float | None:
    """How fast a language model wrote, over all its answers; None if it wrote nothing."""
    tokens = sum(answer["timings"]["predicted_n"] for answer in answers)
    milliseconds = sum(answer["timings"]["predicted_ms"] for answer in answers)
    return 1000 * tokens / milliseconds if milliseconds else None


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """{"p50", "p95"} of one value or more, between the two that are nearest."""
    from statistics import quantiles

    parts = quantiles([*values, *values] if len(values) == 1 else values, n=20, method="inclusive")
    return {"p50": round(parts[9], 3), "p95": round(parts[18], 3)}
