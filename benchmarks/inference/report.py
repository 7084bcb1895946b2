"""What was measured, as JSON to keep, as a table to read and as a plot to look at."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.inference.turns import Forward, median_ratio

COLOURS = {"quern": "#c0392b", "openvino": "#2c6fbb", "onnxruntime": "#7f8c8d", "ncnn": "#d9a441"}


def network_figures(forwards: list[Forward]) -> dict[str, Any]:
    """One network: each engine, ours first in `forwards`, and ours against the others."""
    ours, *peers = forwards
    subject = ours.subject
    ratios = {peer.engine: median_ratio(ours.by_round, peer.by_round) for peer in peers}
    return {
        "size": subject.size,
        "parameters": subject.parameters,
        "multiply_adds": subject.multiply_adds,
        "floor_ms": statistics.median(ours.floor),
        "ratios": {**ratios, "fma_peak": 1 / ours.times_floor},
        "engines": {
            forward.engine: {
                "p50_ms": forward.p50,
                "min_ms": forward.minimum,
                "times_floor": forward.times_floor,
                "resident_mb": forward.resident_mb,
                "error": forward.error,
            }
            for forward in forwards
        },
    }


def table(results: dict[str, Any]) -> str:
    lines = [
        f"{results['cpu']}, {results['peak_gflops']:.1f} GFLOP/s a core in multiply-adds alone",
        "CPU time of a forward: one thread, float32, batch 1; memory beyond Python's own",
    ]
    for name, network in results["networks"].items():
        lines += [
            "",
            f"{name}, {network['size']}x{network['size']}:"
            f" {network['parameters'] / 1e6:.2f} M parameters,"
            f" {network['multiply_adds'] / 1e6:.1f} M multiply-adds,"
            f" floor {network['floor_ms']:.2f} ms, share of the peak"
            f" {network['ratios']['fma_peak']:.2f}",
            f"  {'':12}  p50 ms  min ms  x floor  ours / it  memory MB    error",
        ]
        for engine, figures in network["engines"].items():
            ratio = network["ratios"].get(engine)
            lines.append(
                f"  {engine:12} {figures['p50_ms']:7.2f} {figures['min_ms']:7.2f}"
                f" {figures['times_floor']:8.2f} {f'{ratio:10.2f}' if ratio else ' ' * 10}"
                f" {figures['resident_mb']:10.1f}  {figures['error']:.1e}"
            )
    for series, points in results["scaling"].items():
        heading = "size  parameters M  multiply-adds M   p50 ms  floor ms  x floor"
        lines += ["", f"LiteCNNPro by {series}", f"  {heading}"]
        for point in points:
            lines.append(
                f"  {point['size']:4}  {point['parameters'] / 1e6:12.2f}"
                f"  {point['multiply_adds'] / 1e6:15.1f} {point['engines']['quern']['p50_ms']:8.2f}"
                f" {point['floor_ms']:9.2f} {point['engines']['quern']['times_floor']:8.2f}"
            )
    if results["figures"]:
        lines += ["", "server with LiteCNNPro, asked for a 640x480 JPEG"]
        lines += [f"  {name:24} {value:10.2f}" for name, value in results["figures"].items()]
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """The engines against the floor, and our cost as multiply-adds grow, side by side."""
    import matplotlib

    matplotlib.use("Agg")  # no window
    from matplotlib import pyplot

    drawings: list[tuple[Callable[[Any, Any], None], Any]] = []
    if results["networks"]:
        drawings.append((draw_networks, results["networks"]))
    if results["scaling"]:
        drawings += [(draw_cost, results["scaling"]), (draw_share, results["scaling"])]
    size = (5.5 * len(drawings), 5)
    figure, axes = pyplot.subplots(1, len(drawings), figsize=size, squeeze=False)
    for one, (draw, data) in zip(axes[0], drawings, strict=True):
        draw(one, data)
        one.grid(alpha=0.3)
        one.set_axisbelow(True)
    figure.suptitle(
        f"CPU time of a forward: one thread, float32, batch 1\n{results['cpu']},"
        f" {results['peak_gflops']:.0f} GFLOP/s a core in multiply-adds alone",
        fontsize=11,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_networks(axes: Any, networks: dict[str, Any]) -> None:
    """p50 as a multiple of the floor: a group a network, a bar an engine."""
    engines = list(next(iter(networks.values()))["engines"])
    width = 0.8 / len(engines)
    for number, engine in enumerate(engines):
        heights = [network["engines"][engine]["times_floor"] for network in networks.values()]
        places = [x + (number - (len(engines) - 1) / 2) * width for x in range(len(networks))]
        drawn = axes.bar(places, heights, width, label=engine, color=COLOURS[engine])
        axes.bar_label(drawn, fmt="%.2f", fontsize=8, padding=1)
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="floor")
    axes.set_xticks(range(len(networks)), list(networks))
    axes.set(ylabel="p50 / floor", title="Against the multiply-add floor")
    axes.margins(y=0.1)
    axes.legend(fontsize=9)


def draw_cost(axes: Any, scaling: dict[str, Any]) -> None:
    """p50 against multiply-adds, above the floor."""
    points = [point for series in scaling.values() for point in series]
    floor = sorted((point["multiply_adds"] / 1e6, point["floor_ms"]) for point in points)
    axes.plot(*zip(*floor, strict=True), "--", color="black", linewidth=1, label="floor")
    draw_series(axes, scaling, "p50_ms", beside=5)
    axes.set(yscale="log", ylabel="p50, CPU ms", title="LiteCNNPro: cost of an image")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def draw_share(axes: Any, scaling: dict[str, Any]) -> None:
    """The same as multiples of the floor: level where cost grows as multiply-adds do."""
    draw_series(axes, scaling, "times_floor", beside=0)
    axes.axhline(1, color="black", linewidth=1, linestyle="--")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    axes.set(ylabel="p50 / floor", title="LiteCNNPro: against the multiply-add floor")


def draw_series(axes: Any, scaling: dict[str, Any], figure: str, beside: int) -> None:
    """Both series against multiply-adds: sizes named above the points, parameters below."""
    for (name, series), colour in zip(scaling.items(), ("#c0392b", "#2c6fbb"), strict=True):
        multiply_adds = [point["multiply_adds"] / 1e6 for point in series]
        values = [point["engines"]["quern"][figure] for point in series]
        axes.plot(multiply_adds, values, "o-", color=colour, markersize=4, label=f"by {name}")
        side, shift = ("right", (-beside, 6)) if name == "size" else ("left", (beside, -14))
        for x, y, point in zip(multiply_adds, values, series, strict=True):
            millions = f"{point['parameters'] / 1e6:.1f} M"
            text = f"{point['size']}²" if name == "size" else millions
            place = {"xytext": shift, "ha": side if beside else "center"}
            axes.annotate(
                text, (x, y), textcoords="offset points", fontsize=8, color=colour, **place
            )
    axes.set(xscale="log", xlabel="million multiply-adds")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.margins(0.15)
    axes.legend(fontsize=9)
