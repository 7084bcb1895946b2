"""A comparison of two releases as a picture: accuracy, the change of each class, latency."""

from collections.abc import Sequence
from typing import Any

from tasks.models.plotting import COLOURS, INK, MUTED, new_figure, plain

WHO = ("candidate", "stable")
MOST_CLASSES = 24  # more are not readable; those that changed most are shown


def comparison_plot(told: dict[str, Any], milliseconds: tuple[Any, Any]) -> Any:
    """The picture (a matplotlib Figure) of a comparison; `milliseconds` are the latencies of each
    as they were seen from here. Raises ImportError without matplotlib."""
    figure = new_figure(13, 4.8)
    colours = dict(zip(WHO, COLOURS[1::-1], strict=True))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.1, 1))
    _accuracy(left, told, colours)
    _classes(middle, told)
    _latency(right, dict(zip(WHO, milliseconds, strict=True)), told, colours)
    for axes in (left, middle, right):
        plain(axes)
    middle.grid(False, axis="y")
    left.grid(False, axis="y")
    names = (f"{who} {told['labels'][who] or told[who]} ({told[who][:8]})" for who in WHO)
    figure.suptitle(f"{told['model']}: {', '.join(names)}", x=0.01, ha="left", color=INK, size=11)
    return figure


def _accuracy(axes: Any, told: dict[str, Any], colours: dict[str, str]) -> None:
    measured = [("top-1" if "top5" in told else "all", told["accuracy"], told["accuracy_interval"])]
    if "top5" in told:
        top5 = told["top5"]
        shares = {who: top5[who]["accuracy"] for who in WHO}
        measured.append(("top-5", shares, {who: top5[who]["interval"] for who in WHO}))
    for place, (_, shares, intervals) in enumerate(measured):
        for shift, who in zip((-0.14, 0.14), WHO, strict=True):
            share, (low, high) = 100 * shares[who], (100 * end for end in intervals[who])
            axes.plot([low, high], [place + shift] * 2, color=colours[who], linewidth=2)
            axes.plot(share, place + shift, "o", color=colours[who], markersize=7)
            axes.annotate(
                f"{who} {share:.1f} %",
                (share, place + shift),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                color=colours[who],
                fontsize=9,
            )
    axes.set_yticks(range(len(measured)), [name for name, _, _ in measured])
    axes.set_ylim(len(measured) - 0.5, -0.5)
    axes.margins(x=0.2)
    axes.set_xlabel("% right, with 95 % intervals", color=MUTED)
    axes.set_title("Accuracy", loc="left", color=INK, fontsize=11)


def _classes(axes: Any, told: dict[str, Any]) -> None:
    by_size = sorted(told["classes"], key=lambda found: -abs(found["change"]))
    shown = sorted(by_size[:MOST_CLASSES], key=lambda found: found["change"])
    changes = [100 * found["change"] for found in shown]
    colours = [COLOURS[2] if change > 0 else COLOURS[4] for change in changes]
    axes.barh(range(len(shown)), changes, color=colours, height=0.62)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    names = [f"{_short(found['class'])} ({found['count']})" for found in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8.5 if len(shown) > 12 else 9.5)
    most = max(1.0, *map(abs, changes)) * 1.15
    axes.set_xlim(-most, most)
    what = "class" if told["kind"] == "classifier" else "category"
    some = f", the {MOST_CLASSES} that changed most" if len(by_size) > MOST_CLASSES else ""
    axes.set_xlabel("points, candidate − stable", color=MUTED)
    axes.set_title(f"Change per {what}{some}", loc="left", color=INK, fontsize=11)


def _latency(
    axes: Any, milliseconds: dict[str, Sequence[float]], told: dict[str, Any], colours: Any
) -> None:
    """The share of answers that came within a time, up to twice the longer p95."""
    for who, values in milliseconds.items():
        ordered = sorted(values)
        shares = [100 * (index + 1) / len(ordered) for index in range(len(ordered))]
        found = told["latency_ms"][who]
        name = f"{who}\np50 {found['p50']:.3g} ms, p95 {found['p95']:.3g} ms"
        axes.step(ordered, shares, where="post", color=colours[who], linewidth=1.8, label=name)
        axes.plot([found["p50"], found["p95"]], [50, 95], "o", color=colours[who], markersize=5)
    axes.set_xlim(0, 2 * max(told["latency_ms"][who]["p95"] for who in WHO))
    axes.set_ylim(0, 101)
    axes.set_xlabel("milliseconds, as seen from here", color=MUTED)
    axes.set_ylabel("% of answers within", color=MUTED)
    axes.set_title("Latency", loc="left", color=INK, fontsize=11)
    axes.legend(frameon=False, loc="lower right", labelcolor=INK, fontsize=8.5, handlelength=1.2)


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"
