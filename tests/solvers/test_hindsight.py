"""The hindsight bound against exhaustive schedules, a naively built LP, and its own claims."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from solvers.errors import BadProblem
from solvers.hindsight import bound_at, default_windows, hindsight_bound
from solvers.problem import Floats, Ints

EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)


Case = tuple[Floats, Ints, Floats, Floats, Floats]


def instance(seed: int, n: int = 5, options: int = 2, resources: int = 1) -> Case:
    """Random tasks: (value, first, work, start_s, end_s)."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 10, n)
    end = start + rng.uniform(0.5, 6, n)
    first = np.arange(n + 1) * options
    value = rng.choice([1.0, 2.0, 5.0], n * options) * rng.uniform(0.9, 1, n * options)
    work = rng.uniform(0.1, 1.0, (n * options, resources)) * np.repeat(end - start, options)[:, None]
    return value, first, work, start, end


def edf_meets(jobs: list[tuple[float, float, float]], rate: float) -> bool:
    """Simulate preemptive earliest-deadline-first on one resource: jobs are (start, end, work)."""
    left = {k: work for k, (_, _, work) in enumerate(jobs)}
    times = sorted({t for start, end, _ in jobs for t in (start, end)})
    for now, then in itertools.pairwise(times):
        budget = (then - now) * rate
        for k in sorted(left, key=lambda k: jobs[k][1]):
            if jobs[k][0] <= now and budget > 0:
                done = min(budget, left[k])
                left[k] -= done
                budget -= done
        if any(left[k] > 1e-9 and jobs[k][1] <= then for k in left):
            return False
    return True


def best_schedule(case: Case, rate: float) -> float:
    """Most valuable feasible choice of one option or none per task."""
    value, first, work, start, end = case
    best = 0.0
    for choice in itertools.product(*([-1, *range(first[i], first[i + 1])] for i in range(start.size))):
        worth = sum(value[j] for j in choice if j >= 0)
        jobs = [(start[i], end[i], work[j, 0]) for i, j in enumerate(choice) if j >= 0]
        if worth > best and edf_meets(jobs, rate):
            best = worth
    return best


def naive_lp(case: Case, windows: Sequence[tuple[float, float]], background: Floats) -> float:
    """Relaxation with every constraint written out."""
    value, first, work, start, end = case
    n, rows, limits = start.size, [], []
    for i in range(n):
        rows.append([1.0 if first[i] <= j < first[i + 1] else 0.0 for j in range(value.size)])
        limits.append(1.0)
    for a, b in windows:
        for r in range(background.size):
            row = np.zeros(value.size)
            for i in range(n):
                inside = max(0.0, min(end[i], b) - max(start[i], a))
                for j in range(first[i], first[i + 1]):
                    if inside > 0:
                        row[j] = max(0.0, work[j, r] - (end[i] - start[i] - inside) * (1 - background[r]))
            rows.append(row)
            limits.append((b - a) * (1 - background[r]))
    possible = [
        (0, 1 if all(work[j] <= (end[i] - start[i]) * (1 - background)) else 0)
        for i in range(n)
        for j in range(first[i], first[i + 1])
    ]
    return -float(linprog(-value, A_ub=np.array(rows), b_ub=limits, bounds=possible, method="highs-ds").fun)


@EXAMPLES
@given(seed=st.integers(0, 10_000), background=st.sampled_from([0.0, 0.3]))
def test_no_schedule_beats_the_bound(seed: int, background: float):
    case = instance(seed)
    windows = default_windows(case[3], case[4], (1.0, 3.0, math.inf))
    bound = hindsight_bound(*case, windows, np.array([background])).bound
    assert bound >= best_schedule(case, 1 - background) - 1e-9


@EXAMPLES
@given(seed=st.integers(0, 10_000))
def test_equals_the_relaxation_written_out(seed: int):
    case = instance(seed, n=12, options=3, resources=2)
    windows = default_windows(case[3], case[4], (2.0, 5.0, math.inf))
    background = np.array([0.1, 0.0])
    result = hindsight_bound(*case, windows, background)
    exact = naive_lp(case, windows, background)
    assert result.bound == pytest.approx(exact, rel=1e-5)
    assert result.bound >= exact - 1e-9
    assert result.prices.shape == (len(windows), 2)
    assert (result.prices >= 0).all()


@EXAMPLES
@given(seed=st.integers(0, 10_000))
def test_valid_at_any_prices(seed: int):
    case = instance(seed, n=4)
    windows = default_windows(case[3], case[4], (2.0, math.inf))
    prices = np.random.default_rng(seed).exponential(1.0, (len(windows), 1))
    least = hindsight_bound(*case, windows, np.zeros(1))
    assert bound_at(prices, *case, windows, np.zeros(1)) >= max(best_schedule(case, 1.0), least.bound) - 1e-5
    assert bound_at(least.prices, *case, windows, np.zeros(1)) == least.bound


@EXAMPLES
@given(seed=st.integers(0, 10_000))
def test_less_capacity_and_more_windows_never_raise_it(seed: int):
    case = instance(seed, n=15, options=2, resources=2)
    few, many = ((0.0, 20.0),), ((0.0, 20.0), *default_windows(case[3], case[4], (2.0, 5.0)))
    free = hindsight_bound(*case, many, np.zeros(2)).bound
    assert hindsight_bound(*case, many, np.full(2, 0.4)).bound <= free * (1 + 1e-6)
    assert free <= hindsight_bound(*case, few, np.zeros(2)).bound * (1 + 1e-6)


def test_known_case():
    # Three tasks of 2 s of work in [0, 4]: two fit, the third but for nothing; and one elsewhere that always fits.
    value, first = np.array([1.0, 1.0, 1.0, 5.0]), np.arange(5)
    work, start, end = np.full((4, 1), 2.0), np.array([0.0, 0, 0, 10]), np.array([4.0, 4, 4, 12])
    result = hindsight_bound(value, first, work, start, end, ((0, 4), (10, 12)), np.zeros(1))
    assert result.bound == pytest.approx(7.0)
    assert result.prices[0, 0] == pytest.approx(0.5)  # value per second in the crowded window


def test_partial_overlap_counts_what_cannot_be_done_outside():
    # 3 s of work in [0, 4]; the window [2, 4] cannot escape 1 s of it. Two such tasks fit it, three not.
    value, first = np.ones(3), np.arange(4)
    work, start, end = np.full((3, 1), 3.0), np.zeros(3), np.full(3, 4.0)
    bound = hindsight_bound(value, first, work, start, end, ((2.0, 4.0),), np.zeros(1)).bound
    assert bound == pytest.approx(2.0)


def test_impossible_options_are_worth_nothing():
    bound = hindsight_bound(
        np.array([3.0]), np.array([0, 1]), np.array([[2.0]]), np.zeros(1), np.ones(1), (), np.zeros(1)
    )
    assert bound.bound == 0.0


def test_order_of_tasks_does_not_matter():
    value, first, work, start, end = instance(7, n=20, options=3, resources=2)
    windows = default_windows(start, end, (2.0, math.inf))
    shuffled = np.random.default_rng(1).permutation(20)
    options = (shuffled[:, None] * 3 + np.arange(3)).ravel()
    one = hindsight_bound(value, first, work, start, end, windows, np.zeros(2)).bound
    two = hindsight_bound(
        value[options], first, work[options], start[shuffled], end[shuffled], windows, np.zeros(2)
    ).bound
    assert one == pytest.approx(two, rel=1e-6)
    assert one == hindsight_bound(value, first, work, start, end, windows, np.zeros(2)).bound


@EXAMPLES
@given(span=st.floats(0.1, 100), length=st.floats(0.5, 50), at=st.floats(0, 1))
def test_windows_cover_every_instant(span: float, length: float, at: float):
    windows = default_windows(np.array([3.0]), np.array([3.0 + span]), (length,))
    assert any(a - 1e-9 <= 3.0 + at * span <= b + 1e-9 for a, b in windows)
    assert all(a >= 3.0 and b <= 3.0 + span + 1e-9 and b - a <= max(length, 1e-9) + 1e-9 for a, b in windows)


def test_nothing_to_serve():
    empty = np.zeros(0)
    assert default_windows(empty, empty) == ()
    result = hindsight_bound(empty, np.zeros(1, dtype=np.int64), np.zeros((0, 2)), empty, empty, (), np.zeros(2))
    assert result.bound == 0.0


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"first": np.array([0, 2, 3])}, "first"),
        ({"work": np.zeros((3, 1))}, "work"),
        ({"value": np.array([1.0, math.nan])}, "work"),
        ({"end_s": np.array([1.0, -1.0])}, "end_s"),
        ({"background": np.array([1.5])}, "background"),
        ({"windows": ((3.0, 1.0),)}, "windows"),
    ],
)
def test_malformed_input_is_named(change: dict[str, object], where: str):
    arguments = {
        "value": np.ones(2),
        "first": np.arange(3),
        "work": np.ones((2, 1)),
        "start_s": np.zeros(2),
        "end_s": np.ones(2),
        "windows": ((0.0, 1.0),),
        "background": np.zeros(1),
    }
    with pytest.raises(BadProblem) as error:
        hindsight_bound(**(arguments | change))
    assert error.value.where == where
