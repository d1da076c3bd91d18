"""Effective bandwidth: plans of the restricted problem keep the rule that they stand for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_cases import random_problem

from solvers import check
from solvers.errors import BadProblem
from solvers.price import solver as price
from solvers.problem import Floats, Problem
from solvers.solution import Solution
from solvers.statistical import LEAST_VARIANCE, first_variance, restrict, solve_effective, variance


def sessions(seed: int, n_tasks: int, load: float) -> tuple[Problem, Floats]:
    """Tasks whose mean use is 5 to 60% of the share that their deadline needs; memory on the last resource."""
    problem = random_problem(seed, n_tasks, 3, 3, load=load)
    rng = np.random.default_rng(seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        need = np.where(problem.work[:, 0] > 0, problem.work[:, 0] / problem.slack[:, :1], 0.0)  # (J, S)
    use = need * rng.uniform(0.05, 0.6, need.shape)
    problem = dataclasses.replace(
        problem, kinds=("comm", "compute", "memory"), floor=np.minimum(use, problem.cap), cap=np.ones_like(use)
    )
    return problem, np.minimum(use, problem.cap)


def rule(problem: Problem, mean_use: Floats, solution: Solution, z: float) -> Floats:
    """(R,) sum u + z sqrt(sum u (x - u)) + rigid + background, term by term; 1 is allowed."""
    total, spread = np.zeros(problem.n_resources), np.zeros(problem.n_resources)
    for i, j in enumerate(solution.chosen):
        for s, r in enumerate(problem.slot[j] if j >= 0 else ()):
            if r < problem.n_resources:
                u, x = mean_use[j, s], solution.share[i, s]
                soft = problem.kinds[r] != "memory" and not np.isnan(u)
                total[r] += problem.rigid[j, s] + (u if soft else x)
                spread[r] += u * (x - u) if soft else 0.0
    return total + z * np.sqrt(spread) + problem.background


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 20), st.floats(0.5, 6.0), st.floats(0.0, 2.0), st.floats(0.001, 0.5))
def test_plans_of_the_restricted_problem_keep_the_rule(seed: int, n: int, load: float, z: float, v0: float):
    problem, use = sessions(seed, n, load)
    restricted = restrict(problem, use, z=z, variance0=np.full(3, v0))
    solution = price.solve(restricted)
    assert check.verify(restricted, solution) == []
    for i in np.flatnonzero(solution.chosen >= 0):
        touched = problem.slot[solution.chosen[i]]
        assert (rule(problem, use, solution, z)[touched[touched < 3]] <= 1 + 1e-9).all()


def busy_sessions(seed: int) -> tuple[Problem, Floats]:
    """As above, of more use than their deadlines need: a line's rigid part is far below 0. Some may stay at home."""
    rng = np.random.default_rng(seed)
    problem, use = sessions(seed, int(rng.integers(3, 25)), float(rng.uniform(1, 8)))
    use = np.minimum(use * rng.uniform(1, 12), 0.9)
    columns = {name: getattr(problem, name).copy() for name in ("slot", "work", "slack", "rigid", "value")}
    at_home = problem.first[1:][rng.random(problem.n_tasks) < 0.6] - 1
    for name, nothing in (("slot", problem.n_resources), ("work", 0.0), ("slack", np.inf), ("rigid", 0.0)):
        columns[name][at_home] = nothing
    columns["value"][at_home] *= rng.uniform(1, 3, len(at_home))
    use[at_home] = 0.0
    return dataclasses.replace(problem, floor=np.where(columns["slot"] < 3, use, 0.0), **columns), use


@pytest.mark.parametrize("seed", range(60))
def test_bounds_hold_where_more_is_used_than_deadlines_need(seed: int):
    """A point may then look as if it were paid for being taken; half of these bounds were below the dual, once."""
    problem, use = busy_sessions(seed)
    rng = np.random.default_rng(seed)
    restricted = restrict(problem, use, z=rng.uniform(0.5, 3), variance0=np.full(3, rng.uniform(0.001, 0.05)))
    warm = None
    for _ in range(3):
        solution = price.solve(restricted, warm=warm)
        assert check.verify(restricted, solution) == []
        warm = solution.prices * rng.uniform(0.95, 1.05, 3)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.5, 4.0))
def test_the_tangent_is_exact_where_it_touches(seed: int, load: float):
    problem, use = sessions(seed, 8, load)
    solution = price.solve(restrict(problem, use))
    if not (solution.chosen >= 0).any():
        return
    v = np.maximum(variance(problem, use, solution), 1e-9)
    touching = restrict(problem, use, variance0=v)
    tasks = np.flatnonzero(solution.chosen >= 0)
    linear = check.usage(touching, solution.chosen[tasks], solution.share[tasks]) + touching.background
    exact = rule(problem, use, solution, 1.25)
    busy = variance(problem, use, solution) > 1e-6
    assert linear[busy] == pytest.approx(exact[busy], rel=1e-9)


def test_mean_use_below_the_share_admits_more():
    """Over 20 seeds at twice the load that hard reservations can carry."""
    hard = soft = 0.0
    for seed in range(20):
        problem, use = sessions(seed, 16, 2.0)
        hard += price.solve(problem).certificate.value
        soft += solve_effective(problem, use, price.solve)[0].certificate.value
    assert soft > 1.3 * hard


def test_the_second_tangent_is_no_worse():
    for seed in range(10):
        problem, use = sessions(seed, 16, 3.0)
        once = price.solve(restrict(problem, use)).certificate.value
        solution, restricted = solve_effective(problem, use, price.solve)
        assert solution.certificate.value >= once
        assert check.verify(restricted, solution) == []


def test_guaranteed_tasks_and_memory_stay_hard():
    problem, use = sessions(3, 6, 1.0)
    use[:3] = np.nan  # the first task's points
    restricted = restrict(problem, use)
    memory = problem.slot == 2
    for name in ("activity", "rigid", "floor"):
        before, after = getattr(problem, name), getattr(restricted, name)
        assert (before[:3] == after[:3]).all()
        assert (before[memory] == after[memory]).all()
    assert restricted.background[2] == problem.background[2]
    assert (restricted.background[:2] > problem.background[:2]).all()


def test_without_confidence_only_the_mean_counts():
    problem, use = sessions(4, 6, 1.0)
    restricted = restrict(problem, use, z=0.0)
    assert (restricted.background == problem.background).all()
    soft = (problem.slot < 2) & (use > 0)
    assert (restricted.activity[soft] == 0).all()
    assert restricted.rigid[soft] == pytest.approx((problem.rigid + use)[soft])


def test_first_variance_counts_held_tasks_fully():
    problem, use = sessions(5, 6, 1.0)
    held = dataclasses.replace(problem, held=problem.first[:-1].copy())
    none = dataclasses.replace(problem, held=np.full(6, -1))
    assert (first_variance(held, use) >= LEAST_VARIANCE).all()
    assert first_variance(held, use)[:2].sum() > first_variance(none, use)[:2].sum()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"mean_use": np.zeros((2, 2))}, "mean_use"),
        ({"mean_use": np.full((18, 3), -0.1)}, "mean_use"),
        ({"z": -1.0}, "z"),
        ({"z": np.nan}, "z"),
        ({"variance0": np.zeros(3)}, "variance0"),
        ({"variance0": np.ones(2)}, "variance0"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], what: str):
    problem, use = sessions(6, 6, 1.0)
    with pytest.raises(BadProblem, match=what):
        restrict(problem, **{"mean_use": use, **change})
