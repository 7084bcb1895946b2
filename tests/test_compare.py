"""`doit compare`: the statistics, the sets, and two live servers held against each other."""

from itertools import product
from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest

from tasks.core.paired import difference_interval, mcnemar, paired_figures, wilson


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
