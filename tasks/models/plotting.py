"""How Quern's pictures look."""

import warnings
from pathlib import Path
from typing import Any, BinaryIO

INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
COLOURS = ("#2f6fb3", "#d9742b", "#3a8f5c", "#8e5bb5", "#b8423f", "#7a6a4f")


def new_figure(width: float, height: float) -> Any:
    """An empty picture, in inches. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a class's name may have a dollar sign
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def plain(axes: Any) -> None:
    """A grid, and a line below: nothing else that isn't data."""
    axes.grid(True, which="major", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, which="both", length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == "bottom")
        axes.spines[side].set_color(GRID)


def save(figure: Any, file: Path | str | BinaryIO) -> None:
    """Write a PNG. No version and no time is in it: the same figures give the same bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font lacks
        figure.savefig(file, format="png", metadata={"Software": None})
