"""The second stage against a cone solver, and whole PRBs that keep every deadline that can be kept."""

from __future__ import annotations

import dataclasses

import cvxpy as cp
import numpy as np
import pytest
from solver_cases import random_problem

from solvers import check
from solvers.codec import problem_from_data
from solvers.price import solver as price
from solvers.problem import Floats, Ints, Problem


def lateness(problem: Problem, chosen: Ints, share: Floats) -> float:
    """Sum over tasks of max over phases of latency / slack: what the second stage minimises."""
    total = 0.0
    for i, j in enumerate(chosen):
        if j >= 0:
            with np.errstate(divide="ignore", invalid="ignore"):
                each = np.where(problem.work[j] > 0, problem.work[j] / share[i], 0.0)
            total += float((each.sum(axis=1) / problem.slack[j]).max())
    return total


def least_lateness(problem: Problem, chosen: Ints) -> float:
    """The same, by Clarabel: reference form of docs/model.md, section 5."""
    n = problem.n_resources
    use, goal, limits = [0.0] * n, 0.0, []
    for j in chosen[chosen >= 0]:
        slots = np.flatnonzero(problem.slot[j] < n)
        x, late = cp.Variable(len(slots)), cp.Variable()
        limits += [x >= problem.floor[j, slots], x <= problem.cap[j, slots], late <= 1]
        for q in np.flatnonzero(np.isfinite(problem.slack[j])):
            limits.append(cp.sum(cp.multiply(problem.work[j, q, slots] / problem.slack[j, q], cp.inv_pos(x))) <= late)
        for k, s in enumerate(slots):
            r = problem.slot[j, s]
            use[r] = use[r] + problem.activity[j, s] * x[k] + problem.rigid[j, s]
            for a, b, kappa in zip(problem.coupling_from, problem.coupling_to, problem.coupling_per_share, strict=True):
                if a == r:
                    use[b] = use[b] + kappa * problem.activity[j, s] * x[k]
        goal = goal + late
    limits += [use[r] + problem.background[r] <= 1 for r in range(n)]
    cone = cp.Problem(cp.Minimize(goal), limits)
    return float(cone.solve(solver=cp.CLARABEL))


@pytest.mark.parametrize("seed", range(16))
def test_second_stage_agrees_with_the_cone_solver(seed: int):
    problem = random_problem(seed, 10, 3, 3, load=(0.3, 0.8, 1.5, 3.0)[seed % 4], coupled=seed % 3 == 0)
    solution = price.solve(problem)
    if not (solution.chosen >= 0).any():
        pytest.skip("nobody is admitted in this case")
    ours = lateness(problem, solution.chosen, solution.share)
    best = least_lateness(problem, solution.chosen)
    assert ours == pytest.approx(best, rel=2e-3, abs=1e-4)


def test_what_is_left_over_is_given_out():
    """Two tasks that need little and one resource: each gets half, for their work over slack is the same."""
    phases = [{"slack_s": 1.0, "work_s": {"node": 0.01}}]
    tasks = [{"id": f"t{i}", "points": [{"id": "p", "value": 1.0, "phases": phases}]} for i in range(2)]
    problem = problem_from_data({"resources": [{"id": "node", "background": 0.2}], "tasks": tasks})
    assert price.solve(problem).share[:, 0] == pytest.approx([0.4, 0.4], rel=1e-5)


def test_caps_stop_what_is_left_over():
    phases = [{"slack_s": 1.0, "work_s": {"node": 0.01}}]
    points = [{"id": "p", "value": 1.0, "phases": phases, "cap": {"node": 0.1}}]
    problem = problem_from_data({"resources": [{"id": "node"}], "tasks": [{"id": "t", "points": points}]})
    assert price.solve(problem).share[0, 0] == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(6))
def test_serving_a_plans_points_is_never_later_than_their_cheapest_shares(seed: int):
    problem = random_problem(seed, 10, 3, 3, load=1.0)
    solution = price.solve(problem)
    costs, tight = price.point_costs(problem, np.maximum(solution.prices, 1e-3))
    assert np.isfinite(costs).any()
    bare = np.where((solution.chosen >= 0)[:, None], tight[np.maximum(solution.chosen, 0)], 0.0)
    served = price.serve(problem, solution.chosen, warm=solution.prices)
    assert served is not None
    again = dataclasses.replace(solution, share=served[0])
    assert check.verify(problem, again) == []
    assert lateness(problem, solution.chosen, again.share) <= lateness(problem, solution.chosen, bare) * (1 + 1e-6)


def test_serve_says_when_points_do_not_fit_together():
    phases = [{"slack_s": 1.0, "work_s": {"node": 0.4}}]
    tasks = [{"id": f"t{i}", "points": [{"id": "p", "value": 1.0, "phases": phases}]} for i in range(3)]
    problem = problem_from_data({"resources": [{"id": "node"}], "tasks": tasks})
    assert price.serve(problem, np.array([0, 1, 2])) is None
    served = price.serve(problem, np.array([0, -1, 2]))
    assert served is not None
    assert served[0][:, 0] == pytest.approx([0.5, 0.0, 0.5], rel=1e-5)
