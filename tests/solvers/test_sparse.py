"""`joint` where resources are many: plans by the referee, bounds by a linear program over what tasks can be given."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from many_resources import sparse_problem
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from solvers import check, joint
from solvers.price import solver as price
from solvers.problem import Floats, Problem
from solvers.sparse import solver as sparse


def relaxed(problem: Problem, prices: list[Floats]) -> float:
    """Value of the best mixture of plans in which tasks hold what is cheapest at some of the prices."""
    value, row, column, entry = [], [], [], []
    for one in prices:
        cost, share = price.point_costs(problem, one)
        for i in range(problem.n_tasks):
            for j in range(problem.first[i], problem.first[i + 1]):
                if np.isfinite(cost[j]):
                    row.append(i)
                    column.append(len(value))
                    entry.append(1.0)
                    for s, r in enumerate(problem.slot[j]):
                        row.append(problem.n_tasks + r)
                        column.append(len(value))
                        entry.append(problem.activity[j, s] * share[j, s] + problem.rigid[j, s])
                    value.append(problem.value[j])
    limits = np.concatenate([np.ones(problem.n_tasks), 1.0 - problem.background])
    matrix = coo_matrix((entry, (row, column)), shape=(len(limits), len(value))).tocsr()
    return -float(linprog(-np.array(value), A_ub=matrix, b_ub=limits, bounds=(0, None), method="highs").fun)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_bound_is_not_below_a_mixture_of_plans_and_near_it(mixed: bool):
    problem = sparse_problem(3, joint.MANY, 260, mixed=mixed)
    plan = joint.solve(problem)
    assert plan.solver == sparse.NAME
    assert check.verify(problem, plan) == []
    near = [plan.prices * factor for factor in (0.8, 0.9, 1.0, 1.1, 1.25)]
    least = relaxed(problem, near)
    assert least - 1e-6 <= plan.certificate.bound <= 1.03 * least


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_resources", "n_tasks", "options"),
    [
        (700, 3500, {}),
        (700, 7000, {"load": 8.0}),
        (700, 7000, {"mixed": True}),
        (1000, 5000, {}),
        (1000, 5000, {"cells": 20}),
    ],
)
def test_many_resources_hold_95_of_100_of_the_bound(n_resources: int, n_tasks: int, options: dict[str, float]):
    """The bundle, whose place this takes, served 0.27 of the bound with load 8 and 0.12 with mixed tasks."""
    problem = sparse_problem(1, n_resources, n_tasks, **options)
    plan = joint.solve(problem)
    assert plan.solver == sparse.NAME
    assert check.verify(problem, plan) == []
    assert plan.certificate.value >= 0.95 * plan.certificate.bound


def test_fewer_resources_are_left_to_the_price_solver():
    problem = sparse_problem(1, joint.MANY - 1, 40)
    ours, theirs = joint.solve(problem), price.solve(problem)
    assert ours.solver == theirs.solver == "joint"
    assert (ours.share == theirs.share).all()
    assert joint.dual_bound(problem)[0] == price.dual_bound(problem)[0]


def test_the_same_answer_again_and_in_another_order_of_tasks():
    problem = sparse_problem(5, joint.MANY, 200, mixed=True)
    first, again = joint.solve(problem), joint.solve(problem)
    assert (first.share == again.share).all()
    assert first.certificate == again.certificate


@pytest.mark.parametrize("options", [{"second_stage": 0.0}, {"evaluations": 1}, {"evaluations": 3}])
def test_options_are_kept_and_what_is_cut_short_is_honest(options: dict[str, float]):
    problem = sparse_problem(6, joint.MANY, 200)
    plan, best = joint.solve(problem, options=options), joint.solve(problem)
    assert check.verify(problem, plan) == []
    assert plan.certificate.bound >= best.certificate.value - 1e-9


def test_warm_prices_change_neither_feasibility_nor_proof_and_all_that_fits_is_served():
    problem = sparse_problem(7, joint.MANY, 200)
    cold = joint.solve(problem)
    for warm in (cold.prices, np.full(joint.MANY, np.nan), np.zeros(joint.MANY)):
        plan = joint.solve(problem, warm=warm)
        assert check.verify(problem, plan) == []
        assert plan.certificate.value <= cold.certificate.bound + 1e-9
    easy = sparse_problem(7, joint.MANY, 200, load=0.3)
    plan = joint.solve(easy)
    assert check.verify(easy, plan) == []
    assert plan.certificate.value == plan.certificate.bound == 200.0


@pytest.mark.parametrize("seed", range(6))
def test_strange_problems_have_finite_honest_plans_without_a_warning(seed: int):
    """Weights from 1e-9 to 1e9, no work, no room, floors at caps, rigid demand beyond a resource, idle resources."""
    rng, problem = np.random.default_rng(seed), sparse_problem(seed, joint.MANY, 60, mixed=seed % 2 == 0)
    problem.value[:] = 10.0 ** rng.uniform(-9, 9, problem.n_points)
    problem.work[rng.random(problem.n_points) < 0.1] = 0.0
    problem.background[rng.random(problem.n_resources) < 0.1] = 1.0
    problem.rigid[rng.random(problem.n_points) < 0.1, 0] = 1.5
    tight = rng.random(problem.n_points) < 0.2
    problem.cap[tight] = 0.3
    problem.floor[tight] = 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = joint.solve(problem)
        bound, _ = joint.dual_bound(problem)
    assert check.verify(problem, plan) == []
    assert np.isfinite(bound)
    assert bound >= plan.certificate.value * (1 - 1e-9)
