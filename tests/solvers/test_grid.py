"""Plans on a grid: whole steps, every deadline, a bound that other code finds as well, the optimum of small cases."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_cases import random_problem

from cosched.bench import instances
from solvers import check, registry
from solvers.codec import problem_from_data
from solvers.errors import BadProblem
from solvers.grid import solver as grid
from solvers.grid.columns import list_columns, raw_arrays, steps_of
from solvers.problem import Floats, Ints, Problem
from solvers.referees import exact
from solvers.referees.columns import loads, pareto_columns
from solvers.solution import Solution, SolveStatus

few = settings(max_examples=25, deadline=None, derandomize=True)
SMALL = st.builds(
    random_problem,
    st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 4), st.integers(1, 2),
    load=st.sampled_from([0.5, 1.0, 2.0]), coupled=st.booleans(), soft=st.booleans(),
)  # fmt: skip
WIDE = st.builds(
    random_problem,
    st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3), st.just(3), coupled=st.booleans(), soft=st.booleans(),
)  # fmt: skip


def grid_dual(problem: Problem, steps: Ints, prices: Floats) -> float:
    """Dual function at prices (R,) over the columns that the referees list."""
    columns = pareto_columns(problem, steps)
    load = loads(problem, steps, columns)
    per_unit = np.where(load.capacity > 0, prices * (1 - problem.background) / np.maximum(load.capacity, 1), np.inf)
    cost = np.bincount(load.column, weights=per_unit[load.resource] * load.units, minlength=len(columns.task))
    best = np.zeros(problem.n_tasks)
    np.maximum.at(best, columns.task, problem.value[columns.point] - cost)
    return float((per_unit * load.capacity)[load.capacity > 0].sum() + best.sum())


def well(problem: Problem, plan: Solution, steps: Ints) -> None:
    """Check a plan: feasible, and on the grid."""
    assert check.verify(problem, plan) == []
    taken = plan.share * np.append(steps, 1)[problem.slot[plan.chosen]]
    assert taken == pytest.approx(np.round(taken), abs=1e-6)


@few
@given(SMALL | WIDE, st.integers(3, 60))
def test_every_plan_is_on_the_grid_and_passes_the_check(problem: Problem, many: int):
    steps = np.full(problem.n_resources, many)
    well(problem, grid.solve_on_grid(problem, steps), steps)


@few
@given(SMALL, st.integers(3, 100), st.integers(3, 100))
def test_columns_are_those_of_the_referees(problem: Problem, even: int, odd: int):
    """The staircase finds, point by point, the same steps as the referees' table."""
    steps = np.array([even, odd][: problem.n_resources])
    ours = list_columns(problem, raw_arrays(problem, steps))
    theirs = pareto_columns(problem, steps)
    mine = np.column_stack([ours.point, steps_of(ours, np.arange(len(ours.point)))])
    other = np.column_stack([theirs.point, theirs.steps])
    assert sorted(mine.tolist()) == sorted(other.tolist())


@few
@given(WIDE, st.integers(3, 9))
def test_with_three_slots_no_column_is_missed(problem: Problem, many: int):
    """More than two slots share the deadlines: every column of the referees is there, or one that takes no more."""
    steps = np.full(3, many)
    ours = list_columns(problem, raw_arrays(problem, steps))
    mine = steps_of(ours, np.arange(len(ours.point)))
    theirs = pareto_columns(problem, steps)
    for point, taken in zip(theirs.point, theirs.steps, strict=True):
        same = (problem.slot[ours.point] == problem.slot[point]).all(axis=1)
        as_good = problem.value[ours.point] >= problem.value[point]
        assert (same & as_good & (mine <= taken).all(axis=1)).any()


@few
@given(SMALL, st.integers(4, 40))
def test_the_bound_is_the_dual_function_of_the_referees_columns(problem: Problem, many: int):
    steps = np.full(problem.n_resources, many)
    plan, prices = grid.priced_plan(problem, steps)
    bound = plan.certificate.bound
    found = grid_dual(problem, steps, prices)
    assert bound <= found + 1e-5 * max(1.0, found)
    ceiling = np.maximum.reduceat(problem.value, problem.first[:-1]).sum()
    assert found <= bound + 1e-5 * max(1.0, found) or bound <= ceiling
    again = grid.solve_on_grid(problem, steps, warm=prices).certificate.bound
    assert again <= bound * (1 + 2e-4) + 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_small_problems_are_solved_nearly_to_the_optimum(seed: int):
    problem = random_problem(seed, 8, 3, 2, load=1.5, coupled=seed % 3 == 0, soft=seed % 4 == 0)
    steps = np.array([12, 9])
    best = exact.solve_on_grid(problem, steps)
    plan = grid.solve_on_grid(problem, steps)
    assert best.status is SolveStatus.OK
    assert plan.certificate.bound >= best.certificate.value - 1e-6
    assert plan.certificate.value >= best.certificate.value - 1.0  # one task


@pytest.mark.parametrize(("n_tasks", "percent"), [(100, 99.3), (300, 99.6)])
def test_mixed_tasks_come_near_the_bound(n_tasks: int, percent: float):
    """The shares are a few steps each."""
    problem = instances.make(n_tasks, 0, mixed=True).problem
    plan = grid.solve(problem)
    well(problem, plan, grid.grid_of(problem, {}))
    assert plan.certificate.value >= percent / 100 * plan.certificate.bound


@few
@given(SMALL, st.integers(4, 40))
def test_more_capacity_looser_deadlines_never_cost_more_than_the_gap(problem: Problem, many: int):
    steps = np.full(problem.n_resources, many)
    before = grid.solve_on_grid(problem, steps).certificate
    for better in (
        dataclasses.replace(problem, background=problem.background * 0.7),
        dataclasses.replace(problem, slack=problem.slack * 1.2),
    ):
        after = grid.solve_on_grid(better, steps).certificate
        assert after.bound >= before.value - 1e-9


@few
@given(SMALL | WIDE, st.randoms(use_true_random=False))
def test_order_of_tasks_and_resources_changes_nothing(problem: Problem, random: Random):
    tasks, n = list(range(problem.n_tasks)), problem.n_resources
    random.shuffle(tasks)
    points = np.concatenate([np.arange(problem.first[i], problem.first[i + 1]) for i in tasks])
    rows = ("value", "slack", "work", "floor", "cap", "activity", "rigid")
    turned = np.append(np.arange(n)[::-1], n)
    other = dataclasses.replace(
        problem,
        task_ids=tuple(problem.task_ids[i] for i in tasks),
        first=np.append(0, np.cumsum(np.diff(problem.first)[tasks])),
        background=problem.background[::-1].copy(),
        slot=turned[problem.slot[points]],
        coupling_from=turned[problem.coupling_from],
        coupling_to=turned[problem.coupling_to],
        **{name: getattr(problem, name)[points] for name in rows},
    )
    a, b = (grid.solve_on_grid(p, np.full(n, 20)) for p in (problem, other))
    assert a.certificate.value == pytest.approx(b.certificate.value, abs=1e-9)
    assert a.certificate.bound == pytest.approx(b.certificate.bound, rel=1e-3, abs=1e-9)
    same = [problem.task_ids[i] for i in np.flatnonzero(a.chosen >= 0)]
    assert sorted(same) == sorted(other.task_ids[i] for i in np.flatnonzero(b.chosen >= 0))


SCRIPT = """
import json
from cosched.bench.instances import make
from solvers.grid import solver as grid
plans = [grid.solve(make(n, s, mixed=True).problem, options={"prbs": 40, "steps": 30}) for n, s in ((12, 0), (12, 1))]
print(json.dumps([[p.certificate.value, p.certificate.bound, p.chosen.tolist(), p.share.tolist()] for p in plans]))
"""


def run_script(**environment: str) -> list[list[object]]:
    root, whole = Path(__file__).resolve().parents[2], {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, env=whole, capture_output=True, check=True)
    answer: list[list[object]] = json.loads(done.stdout)
    return answer


def test_compiled_or_not_the_plan_is_the_same():
    assert run_script(PYTHONHASHSEED="1") == run_script(PYTHONHASHSEED="2", COSCHED_KERNEL="numpy")


def test_where_all_fits_everybody_has_the_best_point():
    problem = random_problem(5, 6, 3, 2, load=0.02)
    plan = grid.solve_on_grid(problem, np.array([400, 400]))
    assert plan.certificate.gap == 0.0
    assert plan.certificate.value == pytest.approx(np.maximum.reduceat(problem.value, problem.first[:-1]).sum())


def test_hopeless_empty_and_full():
    empty = problem_from_data({"resources": [{"id": "r"}], "tasks": []})
    assert len(grid.solve(empty).chosen) == 0
    pointless = problem_from_data({"resources": [{"id": "r"}], "tasks": [{"id": "t"}]})
    assert grid.solve(pointless).chosen.tolist() == [-1]
    problem = random_problem(1, 5, 2, 2, coupled=True)
    full = dataclasses.replace(problem, background=np.ones(2))
    plan = grid.solve(full)
    assert (plan.chosen == -1).all()
    assert plan.certificate.value == plan.certificate.bound == 0.0
    half = dataclasses.replace(problem, background=np.array([0.0, 1.0]))  # what couples to it cannot be used either
    assert check.verify(half, grid.solve(half)) == []


def test_what_cannot_be_listed_or_is_no_grid_is_refused():
    phases = [{"slack_s": 1.0, "work_s": {"a/ul": 0.01, "b/ul": 0.01, "c/ul": 0.01}}]
    tasks = [{"id": "t", "points": [{"id": "p", "value": 1.0, "phases": phases}]}]
    problem = problem_from_data({"resources": [{"id": f"{c}/ul"} for c in "abc"], "tasks": tasks})
    with pytest.raises(BadProblem, match="a/ul, b/ul, c/ul"):
        grid.solve(problem)
    assert grid.solve(problem, options={"prbs": 20}).certificate.value == 1.0
    for steps in (0, 10**9):
        with pytest.raises(BadProblem, match="grid"):
            grid.solve_on_grid(problem, np.full(3, steps))


def test_registered():
    assert registry.get("grid") is grid.solve
