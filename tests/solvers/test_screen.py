"""What is kept from one solve to the next, and warm prices of any kind: neither shows in proof or plan."""

from __future__ import annotations

import numpy as np
import pytest

from cosched.bench import instances
from solvers import check
from solvers.codec import problem_from_data
from solvers.price import solver as price
from solvers.solution import Solution, SolveStatus


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, -1.0, 0.0, 1e200, 1e-200])
@pytest.mark.parametrize("everywhere", [False, True])
def test_no_warm_prices_break_the_proof(bad: float, everywhere: bool):
    problem = instances.make(300, 3).problem
    cold = price.solve(problem)
    warm = np.where(everywhere | (np.arange(problem.n_resources) == 2), bad, cold.prices)
    solution = price.solve(problem, warm=warm)
    assert check.verify(problem, solution) == []
    assert solution.certificate.bound >= cold.certificate.bound * (1.0 - 1e-4)


def same(a: Solution, b: Solution) -> bool:
    arrays = zip((a.chosen, a.share, a.prices), (b.chosen, b.share, b.prices), strict=True)
    return a.certificate == b.certificate and all(x.tobytes() == y.tobytes() for x, y in arrays)


@pytest.mark.parametrize("load", [0.3, 1.3, 2.5])
@pytest.mark.parametrize("mixed", [False, True])
def test_what_tables_remember_shows_in_no_plan(load: float, mixed: bool):
    """Lists made beforehand, by another solve, or for other prices; and marks left where everybody could be served."""
    case, moving = instances.make(300, 7, mixed=mixed, load=load), instances.channels(300, 7)
    first, second = (instances.at_channel(case, next(moving)) for _ in range(2))
    warm = price.solve(first).prices
    cold, plan = price.solve(second), price.solve(second, warm=warm)
    kept = price.Tables(first, warm * 3.0)
    price.solve(first, tables=kept)
    for near in (None, warm, warm * 1.07, warm * 5.0):
        kept.refresh(second, near)
        assert same(price.solve(second, warm=warm, tables=kept), plan)
        assert same(price.solve(second, tables=kept), cold)
        assert same(price.solve(second, warm=warm, tables=kept), plan)


@pytest.mark.parametrize("n_tasks", [800, 990, 1000, 1300, 3000])
def test_where_all_slopes_are_nearly_parallel_the_dual_settles(n_tasks: int):
    """The best prices are a vertex where every task is indifferent between 33 points."""
    phases = [[{"slack_s": 1.0, "work_s": {"a": (1 + k) / 8e3, "b": (33 - k) / 8e3}}] for k in range(33)]
    points = [{"id": f"k{k}", "value": 1.0, "phases": phase} for k, phase in enumerate(phases)]
    tasks = [{"id": f"t{i:04d}", "points": points} for i in range(n_tasks)]
    problem = problem_from_data({"resources": [{"id": r} for r in "ab"], "tasks": tasks})
    solution = price.solve(problem)
    assert solution.status is SolveStatus.OK
    assert check.verify(problem, solution, dual=n_tasks == 800) == []
    assert solution.certificate.gap < 1.0  # less than one task
