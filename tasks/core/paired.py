"""Two classifiers on the same items: shares with intervals, and whether they differ by chance."""

from collections.abc import Sequence
from math import sqrt
from typing import Any

NORMAL_97_5 = 1.959963984540054  # the normal distribution's quantile for 95 %, two-sided


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % score interval for the share `right` of `count` (Wilson 1927, without correction
    for continuity). Raises ValueError unless 0 <= right <= count and count > 0."""
    if not 0 <= right <= count or count == 0:
        raise ValueError(f"{right} of {count}")
    square = NORMAL_97_5**2
    middle = (right + square / 2) / (count + square)
    spread = right * (count - right) / count + square / 4
    half = NORMAL_97_5 * sqrt(spread) / (count + square)
    # At the ends the interval ends there, which rounding must not hide.
    low = 0.0 if right == 0 else middle - half
    return low, 1.0 if right == count else middle + half


def difference_interval(gained: int, lost: int, count: int) -> tuple[float, float]:
    """The 95 % interval for the difference of two shares of the same `count` items, of which
    `gained` are in the first share only and `lost` in the second only: Wald's after half an item
    was added to each cell of the 2 × 2 table (Agresti & Min 2005, Statistics in Medicine 24,
    729–740). Raises ValueError unless the items are as many."""
    if min(gained, lost) < 0 or gained + lost > count or count == 0:
        raise ValueError(f"{gained} and {lost} of {count}")
    first, second, whole = gained + 0.5, lost + 0.5, count + 2
    difference = (first - second) / whole
    half = NORMAL_97_5 * sqrt(first + second - (first - second) ** 2 / whole) / whole
    return max(-1.0, difference - half), min(1.0, difference + half)


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p of McNemar's exact test: were the items that one of two got right and the
    other didn't split by a fair coin? 1.0 where there are none."""
    discordant, fewer = gained + lost, min(gained, lost)
    ways, so_far = 1, 0
    for taken in range(fewer + 1):
        so_far += ways
        ways = ways * (discordant - taken) // (taken + 1)
    return min(1.0, float(2 * so_far / 2**discordant))


def paired_figures(candidate: Sequence[bool], stable: Sequence[bool]) -> dict[str, Any]:
    """What two lists of right and wrong answers to the same questions say.

    {"accuracy": {"candidate", "stable"}, "accuracy_interval": the same with [low, high],
    "difference" (candidate − stable), "interval" of it, "discordant" (how many only the one got
    right), "p" (McNemar's exact)}. Shares, not percent. The lists are as long, and not empty.
    """
    count = len(candidate)
    rights = {"candidate": sum(candidate), "stable": sum(stable)}
    both = sum(a and b for a, b in zip(candidate, stable, strict=True))
    gained, lost = rights["candidate"] - both, rights["stable"] - both
    return {
        "accuracy": {who: right / count for who, right in rights.items()},
        "accuracy_interval": {who: list(wilson(right, count)) for who, right in rights.items()},
        "difference": (gained - lost) / count,
        "interval": list(difference_interval(gained, lost, count)),
        "discordant": {"candidate": gained, "stable": lost},
        "p": mcnemar(gained, lost),
    }
