"""The exact solver against plain enumeration of the same grid, its bound against the price solver's plans."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solver_cases import random_problem

from solvers import check, registry
from solvers.codec import problem_from_data
from solvers.errors import BadProblem
from solvers.price import solver as price
from solvers.problem import Floats, Ints, Problem
from solvers.referees import exact, mip
from solvers.referees.columns import loads, pareto_columns
from solvers.registry import Solver
from solvers.solution import SolveStatus


def options_of(problem: Problem, j: int, grid: Ints) -> list[Floats]:
    """All (R,) uses of point j: every combination of whole steps that holds its limits and deadlines, as it is."""
    n = problem.n_resources
    slots = [s for s in range(problem.slot.shape[1]) if problem.slot[j, s] < n]
    found = []
    for steps in itertools.product(*(range(int(grid[problem.slot[j, s]]) + 1) for s in slots)):
        x = np.array(steps) / grid[problem.slot[j, slots]]
        if (x < problem.floor[j, slots] - 1e-12).any() or (x > problem.cap[j, slots] + 1e-12).any():
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.where(problem.work[j][:, slots] > 0, problem.work[j][:, slots] / x, 0.0)
        if (each.sum(axis=1) > problem.slack[j] * (1 + 1e-12)).any():
            continue
        use = np.zeros(n)
        for s, share in zip(slots, x, strict=True):
            use[problem.slot[j, s]] += problem.activity[j, s] * share + problem.rigid[j, s]
            for a, b, kappa in zip(problem.coupling_from, problem.coupling_to, problem.coupling_per_share, strict=True):
                if a == problem.slot[j, s]:
                    use[b] += kappa * problem.activity[j, s] * share
        found.append(use)
    return found


def enumerated(problem: Problem, grid: Ints) -> float:
    """Greatest value of any plan on the grid: all reachable uses, task by task."""
    room = 1 - problem.background + 1e-9
    uses, values = np.zeros((1, problem.n_resources)), np.zeros(1)
    for i in range(problem.n_tasks):
        new_uses, new_values = [uses], [values]
        for j in range(problem.first[i], problem.first[i + 1]):
            for use in options_of(problem, j, grid):
                more = uses + use
                fits = (more <= room).all(axis=1)
                new_uses.append(more[fits])
                new_values.append(values[fits] + problem.value[j])
        uses, values = np.concatenate(new_uses), np.concatenate(new_values)
        order = np.lexsort((-values, *np.round(uses, 12).T))  # of equal uses the most valuable
        same = np.round(uses[order], 12)
        first = np.append(True, (np.diff(same, axis=0) != 0).any(axis=1))
        uses, values = uses[order][first], values[order][first]
    return float(values.max())


@pytest.mark.parametrize("seed", range(18))
def test_optimum_is_that_of_plain_enumeration(seed: int):
    n_resources = 2 + seed % 2
    problem = random_problem(
        seed, 4, 3, n_resources, load=(0.5, 1.0, 2.0)[seed % 3], coupled=seed % 4 == 0, soft=seed % 5 == 0
    )
    grid = np.array([6, 5, 4][:n_resources])
    solution = exact.solve_on_grid(problem, grid)
    assert solution.status is SolveStatus.OK
    assert check.verify(problem, solution) == []
    assert solution.certificate.value == pytest.approx(enumerated(problem, grid), abs=1e-9)
    assert solution.certificate.gap == pytest.approx(0.0, abs=1e-5)


@given(seed=st.integers(0, 10_000), coupled=st.booleans(), soft=st.booleans())
def test_columns_are_served_and_none_is_left_out_that_matters(seed: int, *, coupled: bool, soft: bool):
    """For every combination of steps that serves a point, some column is worth no less and takes no more."""
    problem = random_problem(seed, 2, 3, 2, load=1.0, coupled=coupled, soft=soft)
    grid = np.array([7, 5])
    columns = pareto_columns(problem, grid)
    load = loads(problem, grid, columns)
    use = np.zeros((len(columns.task), 2))
    np.add.at(use, (load.column, load.resource), load.units)
    fine = load.capacity / np.maximum(1e-12, 1 - problem.background)
    for i in range(problem.n_tasks):
        mine = columns.task == i
        for j in range(problem.first[i], problem.first[i + 1]):
            for taken in options_of(problem, j, grid):
                if (taken <= 1 - problem.background + 1e-9).all():
                    as_good = problem.value[columns.point[mine]] >= problem.value[j]
                    no_more = (use[mine] <= np.ceil(taken * fine + 1.0)).all(axis=1)
                    assert (as_good & no_more).any()


def test_same_answer_every_time():
    problem = random_problem(3, 20, 4, 2, load=2.0, weights=(1.0, 5.0))
    options = {"prbs": 50.0, "steps": 20.0, "limit_s": 0.05}
    first, second = (exact.solve(problem, options=options) for _ in range(2))
    assert first.certificate == second.certificate
    assert (first.chosen == second.chosen).all()
    assert (first.share == second.share).all()
    assert first.evaluations == second.evaluations


@pytest.mark.parametrize("seed", range(4))
def test_a_search_cut_short_still_has_a_plan_and_a_bound(seed: int):
    problem = random_problem(seed, 60, 4, 3, load=2.0, coupled=seed % 2 == 0)
    short = exact.solve(problem, options={"limit_s": 0.001, "steps": 30})
    longer = exact.solve(problem, options={"limit_s": 0.5, "gap": 0.02, "steps": 30})
    assert short.status is SolveStatus.LIMIT
    assert check.verify(problem, short) == []
    assert check.verify(problem, longer) == []
    assert short.certificate.bound >= longer.certificate.value - 1e-9
    assert short.certificate.value <= longer.certificate.bound + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_grid_plans_stay_below_the_price_solvers_bound_and_a_finer_grid_reaches_its_plan(seed: int):
    problem = random_problem(seed, 12, 4, 2, load=2.0)
    joint = price.solve(problem)
    coarse = exact.solve(problem, options={"steps": 10, "limit_s": 0.5})
    fine = exact.solve(problem, options={"steps": 300, "limit_s": 0.5, "gap": 0.01})
    assert coarse.certificate.value <= fine.certificate.bound + 1e-6
    assert fine.certificate.value <= joint.certificate.bound + 1e-6
    assert fine.certificate.bound >= 0.95 * joint.certificate.value


def test_points_on_too_many_resources_are_refused_by_name():
    phases = [{"slack_s": 1.0, "work_s": {"a/ul": 0.01, "b/ul": 0.01, "c/ul": 0.01}}]
    tasks = [{"id": "t", "points": [{"id": "p", "value": 1.0, "phases": phases}]}]
    problem = problem_from_data({"resources": [{"id": f"{c}/ul"} for c in "abc"], "tasks": tasks})
    with pytest.raises(BadProblem, match="a/ul, b/ul, c/ul"):
        exact.solve(problem)
    assert exact.solve(problem, options={"prbs": 20}).certificate.value == 1.0


@pytest.mark.parametrize("seed", range(6))
def test_columns_left_out_are_in_no_better_plan(seed: int):
    """The optimum over all columns, and over those that bound and known plan leave, is the same."""
    problem = random_problem(seed, 5, 3, 2, load=1.0, coupled=seed % 2 == 0)
    grid = np.array([8, 7])
    core = exact.core_of(problem, grid, None)
    best = enumerated(problem, grid)
    known = exact.worth(problem, core.columns, core.known)
    assert known <= best + 1e-9 <= core.bound + 1e-6
    assert exact.solve_on_grid(problem, grid).certificate.value == pytest.approx(best, abs=1e-9)
    if best > known + 1e-9:
        assert set(core.served) <= set(np.flatnonzero(exact.solve_on_grid(problem, grid).chosen >= 0))


def test_nobody_can_be_served():
    problem = random_problem(1, 5, 2, 2, load=2.0)
    full = dataclasses.replace(problem, background=np.ones(2))
    solution = exact.solve(full)
    assert solution.status is SolveStatus.OK
    assert (solution.chosen == -1).all()
    assert solution.certificate.value == solution.certificate.bound == 0.0


@pytest.mark.parametrize("solve", [exact.solve, mip.solve])
def test_tasks_without_any_point_are_a_problem_like_others(solve: Solver):
    problem = problem_from_data({"resources": [{"id": "r"}], "tasks": [{"id": "t"}, {"id": "u"}]})
    solution = solve(problem)
    assert check.verify(problem, solution) == []
    assert solution.chosen.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"steps": 0.0}, "steps"),
        ({"prbs": 1e9}, "prbs"),
        ({"prbs": np.nan}, "prbs"),
        ({"limit_s": 0.0}, "limit_s"),
        ({"gap": -1.0}, "gap"),
        ({"workers": np.nan}, "workers"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], place: str):
    with pytest.raises(BadProblem, match=place):
        exact.solve(random_problem(1, 3, 2, 2), options=options)


def test_registered():
    assert registry.get("exact") is exact.solve
