"""Plans on a grid: whole steps, every deadline, an honest bound, and more than rounding alone saves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_cases import random_problem

from cosched.bench import instances
from solvers import check, exact, grid, price
from solvers.problem import Problem
from solvers.share import round_grid

few = settings(max_examples=20, deadline=None, derandomize=True)


@few
@given(
    st.builds(random_problem, st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 3), st.integers(1, 4)),
    st.integers(5, 200),
)
def test_every_plan_is_on_the_grid_and_passes_the_check(problem: Problem, steps: int):
    plan = grid.solve(problem, np.full(problem.n_resources, steps))
    assert check.verify(problem, plan) == []
    assert plan.share * steps == pytest.approx(np.round(plan.share * steps), abs=1e-6)
    assert plan.certificate.bound >= price.solve(problem).certificate.value - 1e-9


def test_points_chosen_for_the_grid_beat_points_rounded_afterwards():
    problem = instances.make(100, 0, mixed=True).problem
    steps = np.array([exact.PRBS if kind == "comm" else exact.STEPS for kind in problem.kinds])
    ours = grid.solve(problem, steps)
    rounded, _ = round_grid(problem, price.solve(problem), steps)
    assert check.verify(problem, ours) == []
    assert ours.certificate.value > 1.03 * rounded.certificate.value


def test_without_a_grid_it_is_the_price_solver():
    problem = random_problem(3, 12, 3, 3)
    plan = grid.solve(problem, np.zeros(3, dtype=np.int64))
    assert (plan.chosen == price.solve(problem).chosen).all()


def test_a_slot_with_work_holds_a_step_and_others_none():
    problem = random_problem(4, 6, 3, 3)
    problem = dataclasses.replace(problem, floor=np.zeros_like(problem.floor))
    with_steps = grid.with_steps(problem, np.array([10, 0, 20]), 0.5)
    works = (problem.work > 0).any(axis=1)
    first = works & (problem.slot == 0)
    assert with_steps.floor[first] == pytest.approx(np.minimum(0.1, problem.cap[first]))
    assert with_steps.rigid[first] - problem.rigid[first] == pytest.approx(0.05)
    rest = ~works | (problem.slot == 1)
    assert (with_steps.floor[rest] == 0).all()
    assert (with_steps.rigid[rest] == problem.rigid[rest]).all()
