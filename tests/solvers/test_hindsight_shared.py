"""The hindsight bound where several share what they need: against every choice of tasks, at any prices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from solvers import hindsight
from solvers.hindsight import HindsightDemand, SharedDemand, least_dual

EXAMPLES = settings(max_examples=15, deadline=None, derandomize=True)


def instance(seed: int, n: int = 5, rows: int = 3, cells: int = 4) -> HindsightDemand:
    """One option a task; each needs seconds of rows, and of a stretch of cells that all may fill together."""
    rng = np.random.default_rng(seed)
    seconds = rng.uniform(0.0, 0.6, (n, rows)) * (rng.random((n, rows)) < 0.6)
    task, row = np.nonzero(seconds)
    start, length = rng.integers(0, cells, n), rng.integers(1, 3, n)
    cover = [(i, c) for i in range(n) for c in range(start[i], min(start[i] + length[i], cells))]
    load = [(r, c) for r in range(rows) for c in range(cells) if rng.random() < 0.6]
    shared = SharedDemand(
        demand=np.arange(n),
        option=np.arange(n),
        seconds=rng.uniform(0.1, 0.9, n),
        cover=(np.array([k for k, _ in cover]), np.array([c for _, c in cover])),
        load=(np.array([r for r, _ in load], dtype=np.int64), np.array([c for _, c in load], dtype=np.int64)),
        n_demands=n,
        n_cells=cells,
    )
    value = rng.choice([1.0, 2.0, 5.0], n)
    return HindsightDemand(value, np.arange(n), row, task, seconds[task, row], np.ones(rows), shared)


def fits(demand: HindsightDemand, chosen: tuple[bool, ...]) -> bool:
    """Whether cells can be filled for the chosen beside their own work: a linear programme of its own."""
    shared, taken = demand.shared, np.array(chosen, dtype=np.float64)
    assert shared is not None
    left = demand.capacity - np.bincount(
        demand.row, weights=demand.seconds * taken[demand.option], minlength=demand.capacity.size
    )
    loads, covers = np.zeros((demand.capacity.size, shared.n_cells)), np.zeros((shared.n_demands, shared.n_cells))
    loads[shared.load] = 1.0
    covers[shared.cover] = 1.0
    answer = linprog(
        np.zeros(shared.n_cells),
        A_ub=np.concatenate([loads, -covers]),
        b_ub=np.concatenate([left, -shared.seconds * taken]),
    )
    return bool((left >= -1e-12).all() and answer.status == 0)


def best(demand: HindsightDemand) -> float:
    choices = itertools.product((False, True), repeat=demand.value.size)
    return max(float(demand.value @ np.array(c, dtype=np.float64)) for c in choices if fits(demand, c))


@EXAMPLES
@given(st.integers(0, 2**32 - 1))
def test_no_choice_beats_the_bound(seed: int) -> None:
    demand = instance(seed)
    found = least_dual(demand)
    assert best(demand) <= found.bound + 1e-9
    assert found.bound == pytest.approx(found.relaxation, rel=1e-5)


@EXAMPLES
@given(st.integers(0, 2**32 - 1))
def test_at_any_prices_what_is_affordable_proves(seed: int) -> None:
    demand, rng = instance(seed), np.random.default_rng(seed)
    prices = rng.exponential(1.0, demand.capacity.size) * (rng.random(demand.capacity.size) < 0.7)
    shared = hindsight._affordable(demand.shared, prices, rng.exponential(2.0, demand.value.size))
    assert best(demand) <= hindsight._dual(demand, prices, shared) + 1e-9


def test_what_is_shared_is_paid_once() -> None:
    """Two that each need 0.8 of one cell have it for 0.8 together; for a third of 0.3 both give up an eighth."""
    shared = SharedDemand(
        demand=np.array([0, 1]), option=np.array([0, 1]), seconds=np.array([0.8, 0.8]),
        cover=(np.array([0, 1]), np.array([0, 0])), load=(np.array([0]), np.array([0])), n_demands=2, n_cells=1,
    )  # fmt: skip
    demand = HindsightDemand(
        np.array([1.0, 1.0, 1.0]), np.arange(3), np.array([0]), np.array([2]), np.array([0.3]), np.ones(1), shared
    )
    assert least_dual(demand).bound == pytest.approx(3 - 2 / 8, rel=1e-4)
