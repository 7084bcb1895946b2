"""All formats of all models side by side: as JSON, as a Markdown table and as a picture."""

import json
from pathlib import Path
from typing import Any

from tasks.core.atomic import write_atomically
from tasks.core.errors import QuernError
from tasks.models.llama_cpp.divergence import gate
from tasks.models.llama_cpp.measure import as_json
from tasks.models.plotting import COLOURS, INK, MUTED, new_figure, plain, save

COLUMNS = (
    "Format",
    "Size",
    "Bits per weight",
    "KL, mean",
    "KL, 95 %",
    "KL, max",
    "Top-1",
    "Perplexity",
    "Reading",
    "Writing",
    "Questions",
    "Within limits",
)


def report(
    reports: list[str],
    limits: dict[str, dict[str, float]],
    json: str,
    markdown: str,
    plot: str,
) -> None:
    """Gather what `reference` and `measure` wrote, `reports`, into three files.

    `limits`: model → {"max_kl", "min_top1"}. `plot`: a PNG, of size against divergence and
    against speed. Raises QuernError: a report can't be read.
    """
    models: dict[str, list[dict[str, Any]]] = {}
    for path in reports:
        told = _read(path)
        models.setdefault(told["model"], []).append(told)
    for name, formats in models.items():
        formats.sort(key=lambda told: -told["bytes"])
        for told in formats:
            told["within_limits"] = None if told["kl"] is None else _within(told, limits[name])
    write_atomically(Path(json), as_json({"models": models, "limits": limits}))
    write_atomically(Path(markdown), _markdown(models, limits).encode())
    _plot(models, limits, plot)


def _read(path: str) -> dict[str, Any]:
    try:
        told = json.loads(Path(path).read_bytes())
        told["model"], told["bytes"], told["kl"]
    except (ValueError, KeyError, TypeError):
        raise QuernError(f"{path}: not a report of a format; build it again") from None
    return dict(told)


def _within(told: dict[str, Any], limits: dict[str, float]) -> bool:
    try:
        gate(told, limits["max_kl"], limits["min_top1"])
    except QuernError:
        return False
    return True


def _markdown(models: dict[str, list[dict[str, Any]]], limits: dict[str, dict[str, float]]) -> str:
    lines = ["# Formats", ""]
    for name, formats in models.items():
        lines += [f"## {name}", ""]
        lines.append("| " + " | ".join(COLUMNS) + " |")
        lines.append("|---|" + "---:|" * (len(COLUMNS) - 1))
        lines += ["| " + " | ".join(_row(told)) + " |" for told in formats]
        lines += ["", _footnote(formats, limits[name]), ""]
    return "\n".join(lines)


def _row(told: dict[str, Any]) -> list[str]:
    kl = told["kl"] or {}
    questions = told.get("questions")
    within = {None: "", True: "yes", False: "**no**"}[told["within_limits"]]
    if told["kl"] is None:
        divergence, agreement = ["", "", ""], ""
    else:
        divergence = [_figure(kl[key]) for key in ("mean", "p95", "max")]
        agreement = _share(told["top1"])
    return [
        told["format"],
        size(told["bytes"]),
        f"{told['bits_per_weight']:.2f}",
        *divergence,
        agreement,
        _figure(told["perplexity"], 4),
        _speed(told["speed"]["prompt"]),
        _speed(told["speed"]["generation"]),
        f"{_share(questions['accuracy'])} of {questions['count']}" if questions else "",
        within,
    ]


def _footnote(formats: list[dict[str, Any]], limits: dict[str, float]) -> str:
    first = formats[0]
    text = (
        f"Over {first['tokens']} tokens, in windows of {first['context']}. KL: nats per token from "
        f"the unquantized model's predictions, mean at most {limits['max_kl']:g}; top-1: the share "
        f"of tokens whose likeliest is the same, at least {limits['min_top1']:.0%}. Reading and "
        "writing: tokens per second on the machine that built it."
    )
    against = next((told["torch"] for told in formats if told.get("torch")), None)
    if against:
        text += (
            f" The unquantized model against PyTorch in {against['type']}: KL "
            f"{_figure(against['kl']['mean'])} nats, top-1 {_share(against['top1'])}."
        )
    return text


def size(count: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _figure(value: float | None, digits: int = 3) -> str:
    return "not a number" if value is None else f"{value:.{digits}g}"


def _share(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.1%}"


def _speed(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}/s" if value >= 10 else f"{value:.1f}/s"


def _plot(
    models: dict[str, list[dict[str, Any]]], limits: dict[str, dict[str, float]], path: str
) -> None:
    """Two pictures over one axis of size: divergence (the less the better), speed of writing."""
    measured = {
        name: [told for told in formats if told["kl"] and told["kl"]["mean"]]
        for name, formats in models.items()
    }
    largest = max((t["bytes"] for f in measured.values() for t in f), default=1)
    unit, scale = next(
        (u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1)) if largest >= s
    )
    figure = new_figure(11, 4.8)
    left, right = figure.subplots(1, 2, sharex=True)
    for (name, formats), colour in zip(
        measured.items(), COLOURS * (1 + len(models) // len(COLOURS)), strict=False
    ):
        formats = sorted(formats, key=lambda told: told["bytes"])
        sizes = [told["bytes"] / scale for told in formats]
        figures = (
            (left, [told["kl"]["mean"] for told in formats]),
            (right, [told["speed"]["generation"] for told in formats]),
        )
        for axes, values in figures:
            axes.plot(sizes, values, "o-", color=colour, label=name, linewidth=1.6, markersize=6)
            for told, x, y in zip(formats, sizes, values, strict=True):
                axes.annotate(
                    told["format"],
                    (x, y),
                    xytext=(7, 4),  # above right: both curves fall
                    textcoords="offset points",
                    color=INK,
                    fontsize=8.5,
                )
        if formats:
            left.axhline(limits[name]["max_kl"], color=colour, linestyle=":", linewidth=1.2)
            left.annotate(
                f"limit {limits[name]['max_kl']:g}",
                (1, limits[name]["max_kl"]),
                xycoords=("axes fraction", "data"),
                xytext=(-4, 3),
                textcoords="offset points",
                ha="right",
                color=colour,
                fontsize=8,
            )
    left.set_yscale("log")
    left.set_title("Distance from the unquantized model", loc="left", color=INK, fontsize=11)
    left.set_ylabel("mean KL divergence, nats (less is better)", color=MUTED)
    right.set_title("Speed of writing", loc="left", color=INK, fontsize=11)
    right.set_ylabel("tokens per second (more is better)", color=MUTED)
    for axes in (left, right):
        axes.set_xlabel(f"size, {unit}", color=MUTED)
        axes.margins(y=0.12)
        plain(axes)
    left.set_xlim(0, 1.2 * largest / scale)  # with room for the last name
    right.set_ylim(bottom=0)
    if len(models) > 1:
        right.legend(frameon=False, loc="best", labelcolor=INK)
    save(figure, path)
