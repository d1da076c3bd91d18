"""Quantiles of the latest measurements: by nearest rank, over so many and no more."""

from __future__ import annotations

import random

import pytest

from cosched.api.messages import Quantiles
from cosched.daemon.stats import Window


def window(values: list[float], size: int = 100) -> Quantiles:
    found = Window(size)
    for value in values:
        found.add(value)
    return found.quantiles()


def test_without_a_measurement_all_is_nothing():
    assert window([]) == Quantiles(n=0, p50=0.0, p99=0.0, max=0.0)


@pytest.mark.parametrize(
    ("n", "p50", "p99"),
    [(1, 0, 0), (2, 1, 1), (3, 1, 2), (99, 49, 98), (100, 50, 99), (200, 100, 198), (1000, 500, 990)],
)
def test_quantiles_are_by_rank_in_whatever_order_they_came(n: int, p50: float, p99: float):
    values = [float(i) for i in range(n)]
    random.Random(n).shuffle(values)  # noqa: S311
    assert window(values, size=1000) == Quantiles(n=n, p50=p50, p99=p99, max=n - 1)


def test_only_the_latest_count():
    assert window([1e9, 1e9, 1.0, 2.0, 3.0], size=3) == Quantiles(n=3, p50=2.0, p99=3.0, max=3.0)
