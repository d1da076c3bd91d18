"""The second stage against a cone solver, and whole PRBs that keep every deadline that can be kept."""

from __future__ import annotations

import dataclasses
from random import Random

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from solver_cases import random_problem

from cosched.bench import instances
from solvers import check, price
from solvers.blocks import take
from solvers.codec import problem_from_data
from solvers.errors import BadProblem
from solvers.problem import Floats, Ints, Problem
from solvers.share import round_grid, round_prbs, share_out
from solvers.solution import Solution


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
def test_share_out_improves_any_feasible_plan(seed: int):
    problem = random_problem(seed, 10, 3, 3, load=1.0)
    solution = price.solve(problem)
    costs, tight = price.point_costs(problem, np.maximum(solution.prices, 1e-3))
    assert np.isfinite(costs).any()
    admitted = solution.chosen >= 0
    bare = np.where(admitted[:, None], tight[np.maximum(solution.chosen, 0)], 0.0)
    plan = dataclasses.replace(solution, share=bare)
    again = share_out(problem, plan)
    assert check.verify(problem, again) == []
    assert lateness(problem, plan.chosen, again.share) <= lateness(problem, plan.chosen, bare) * (1 + 1e-6)


def test_share_out_leaves_plans_without_promises_alone():
    problem = random_problem(1, 6, 2, 2, load=1.0)
    solution = price.solve(problem)
    unpromised = dataclasses.replace(solution, promised=np.zeros(6, dtype=bool))
    assert share_out(problem, unpromised) is unpromised


def test_serve_says_when_points_do_not_fit_together():
    phases = [{"slack_s": 1.0, "work_s": {"node": 0.4}}]
    tasks = [{"id": f"t{i}", "points": [{"id": "p", "value": 1.0, "phases": phases}]} for i in range(3)]
    problem = problem_from_data({"resources": [{"id": "node"}], "tasks": tasks})
    assert price.serve(problem, np.array([0, 1, 2])) is None
    served = price.serve(problem, np.array([0, -1, 2]))
    assert served is not None
    assert served[0][:, 0] == pytest.approx([0.5, 0.0, 0.5], rel=1e-5)


@pytest.mark.parametrize("n_prb", [25, 52, 273])
@pytest.mark.parametrize("seed", range(12))
def test_rounded_shares_are_whole_prbs_and_hold_what_they_promise(seed: int, n_prb: int):
    problem = random_problem(seed, 10, 3, 3, load=2.0, coupled=seed % 3 == 0)
    solution = price.solve(problem)
    rounded, prbs = round_prbs(problem, solution, 0, n_prb)
    assert check.verify(problem, rounded, dual=False) == []
    assert (prbs >= 0).all()
    assert (rounded.promised <= solution.promised).all()
    for i, j in enumerate(rounded.chosen):
        on = (problem.slot[j] == 0) if j >= 0 else np.zeros(0, dtype=bool)
        assert rounded.share[i, on].sum() * n_prb == pytest.approx(prbs[i])


def test_loose_deadlines_lose_nothing_to_rounding():
    lost = 0
    for seed in range(20):
        problem = random_problem(seed, 6, 3, 2, load=0.7)
        solution = price.solve(problem)
        rounded, _ = round_prbs(problem, solution, 0, 273)
        lost += int(solution.promised.sum() - rounded.promised.sum())
    assert lost <= 1


def most_promises(problem: Problem, solution: Solution, n_prb: int) -> float:
    """Greatest value that any whole PRBs of resource 0 keep, resource 1 shared freely: an integer program."""
    entries: list[tuple[int, float, float, float]] = []  # task, share of 0, least share of 1, value
    for i in np.flatnonzero(solution.promised):
        j = solution.chosen[i]
        here = [int(s) for s in np.flatnonzero(problem.slot[j] == 0)]
        there = [int(s) for s in np.flatnonzero(problem.slot[j] == 1)]
        rigid = [problem.rigid[j, problem.slot[j] == r].sum() for r in range(2)]
        for prbs in range(n_prb + 1) if here else [0]:
            x = prbs / n_prb
            if here and not problem.floor[j, here[0]] - 1e-12 <= x <= problem.cap[j, here[0]] + 1e-12:
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                mine = np.nan_to_num(problem.work[j, :, here[0]] / x, nan=0.0, posinf=np.inf) if here else np.zeros(2)
                left = problem.slack[j] - mine
                work = problem.work[j, :, there[0]] if there else np.zeros(2)
                need = np.where(work > 0, work / left, 0.0)
            if (left < 0).any() or not np.isfinite(need).all():
                continue
            least = max(problem.floor[j, there[0]], need.max()) if there else 0.0
            if not there or least <= problem.cap[j, there[0]]:
                entries.append((int(i), x + rigid[0], least + rigid[1], float(problem.value[j])))
    tasks = sorted({e[0] for e in entries})
    rows = [[float(e[0] == i) for e in entries] for i in tasks] + [[e[k] for e in entries] for k in (1, 2)]
    limits = [1.0] * len(tasks) + list(1 - problem.background)
    found = milp(
        [-e[3] for e in entries],
        constraints=LinearConstraint(np.array(rows), -np.inf, limits),
        integrality=np.ones(len(entries)),
        bounds=Bounds(0, 1),
    )
    return -float(found.fun)


@pytest.mark.parametrize("load", [0.7, 3.0])
def test_rounding_keeps_nearly_what_an_integer_program_keeps(load: float):
    """On one cell and one node, of plans that leave no room: at most one task of twenty is lost in vain."""
    kept = best = 0.0
    for seed in range(10):
        problem = random_problem(seed, 6, 3, 2, load=load)
        solution = price.solve(problem)
        rounded, _ = round_prbs(problem, solution, 0, 100)
        kept += rounded.certificate.value
        best += most_promises(problem, solution, 100)
    assert kept <= best + 1e-6
    assert kept >= 0.95 * best


@pytest.mark.parametrize("seed", range(8))
def test_several_grids_at_once(seed: int):
    problem = random_problem(seed, 30, 3, 4, load=1.0, coupled=seed % 2 == 0, soft=seed % 3 == 0)
    solution = price.solve(problem)
    grid = np.array([52, 106, 0, 0])
    rounded, prbs = round_grid(problem, solution, grid)
    assert check.verify(problem, rounded, dual=False) == []
    assert rounded.certificate.value >= 0.85 * solution.certificate.value
    for i in np.flatnonzero(rounded.chosen >= 0):
        steps = np.append(grid, 0)[problem.slot[rounded.chosen[i]]]
        assert rounded.share[i] * steps == pytest.approx(np.where(steps > 0, prbs[i], 0))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    copies=st.integers(1, 3),
    prbs=st.integers(3, 30),
    random=st.randoms(use_true_random=False),
)
def test_whose_prbs_are_whose_does_not_depend_on_the_order_of_the_tasks(
    seed: int, copies: int, prbs: int, random: Random
):
    """Tasks that are alike tie at every step; of them the one with the lesser id is served first, bit for bit."""
    some = random_problem(seed, 8, 3, 4, load=2.0, coupled=seed % 2 == 0, soft=seed % 3 == 0)
    problem = take(some, np.tile(np.arange(8), copies))
    problem = dataclasses.replace(problem, task_ids=tuple(f"t{i:02d}" for i in range(8 * copies)))
    order = list(range(8 * copies))
    random.shuffle(order)
    grid = np.array([prbs, prbs + 2, 0, 0])
    plans = [round_grid(p, price.solve(p), grid) for p in (problem, take(problem, np.array(order)))]
    (a, a_prbs), (b, b_prbs) = plans
    assert (a_prbs[order] == b_prbs).all()
    assert (a.share[order] == b.share).all()
    assert (a.promised[order] == b.promised).all()
    assert a.certificate == b.certificate


def two_on_a_cell(ul_s: float, node_s: float) -> tuple[Problem, Solution]:
    phases = [{"slack_s": 1.0, "work_s": {"cell/ul": ul_s, "node": node_s}}]
    tasks = [{"id": f"t{i}", "points": [{"id": "p", "value": 1.0, "phases": phases}]} for i in range(2)]
    problem = problem_from_data({"resources": [{"id": "cell/ul"}, {"id": "node"}], "tasks": tasks})
    return problem, price.solve(problem)


def test_a_missing_prb_is_paid_with_the_node():
    """3 PRBs for two equal tasks with 1.5 each: one gets 1 and more of the node, whose load allows it."""
    problem, solution = two_on_a_cell(0.2, 0.05)
    solution = dataclasses.replace(solution, share=np.array([[0.5, 0.2], [0.5, 0.2]]))
    rounded, prbs = round_prbs(problem, solution, 0, 3)
    assert sorted(prbs.tolist()) == [1, 2]
    assert rounded.promised.all()
    assert check.verify(problem, rounded, dual=False) == []


def test_a_deadline_is_given_up_only_where_nothing_helps():
    problem, solution = two_on_a_cell(0.45, 0.04)
    assert solution.certificate.value == 2.0
    rounded, prbs = round_prbs(problem, solution, 0, 3)
    assert prbs.sum() <= 3
    assert rounded.promised.sum() == 1
    assert rounded.certificate.value == 1.0
    assert check.verify(problem, rounded, dual=False) == []


def test_no_prbs_is_refused():
    problem, solution = two_on_a_cell(0.2, 0.05)
    with pytest.raises(BadProblem, match="n_prb"):
        round_prbs(problem, solution, 0, 0)


@pytest.mark.parametrize("mixed", [False, True])
def test_of_a_thousand_tasks_hardly_any_loses_its_deadline(mixed: bool):
    """Each has ten PRBs on average, and every resource is full."""
    problem = instances.make(1000, 3, mixed=mixed).problem
    solution = price.solve(problem)
    rounded, prbs = round_grid(problem, solution, np.repeat([2500, 0], [4, 4]))
    assert check.verify(problem, rounded, dual=False) == []
    served = rounded.chosen >= 0
    assert np.bincount(problem.slot[rounded.chosen[served], 0], prbs[served, 0]).max() <= 2500
    assert rounded.certificate.value >= 0.997 * solution.certificate.value


@pytest.mark.parametrize("n_prb", [900, 1250])
def test_tasks_all_alike_share_prbs_that_do_not_divide(n_prb: int):
    """500 tasks, more than single moves are tried for: with 900 PRBs 100 of them get one and pay with the node."""
    phases = [{"slack_s": 1.0, "work_s": {"cell/ul": 0.0008, "node": 0.0008}}]
    tasks = [{"id": f"t{i:03d}", "points": [{"id": "p", "value": 1.0, "phases": phases}]} for i in range(500)]
    problem = problem_from_data({"resources": [{"id": "cell/ul"}, {"id": "node"}], "tasks": tasks})
    rounded, prbs = round_prbs(problem, price.solve(problem), 0, n_prb)
    assert check.verify(problem, rounded, dual=False) == []
    assert rounded.promised.all()
    assert prbs.sum() == n_prb


def test_many_tasks_on_few_prbs_keep_what_the_prbs_allow():
    """500 tasks that need a whole PRB each, and 100 PRBs: 100 promises, whoever they are."""
    phases = [{"slack_s": 1.0, "work_s": {"cell/ul": 0.0019}}]
    tasks = [{"id": f"t{i:03d}", "points": [{"id": "p", "value": 1.0, "phases": phases}]} for i in range(500)]
    problem = problem_from_data({"resources": [{"id": "cell/ul"}, {"id": "node"}], "tasks": tasks})
    solution = price.solve(problem)
    assert solution.promised.all()
    rounded, _ = round_prbs(problem, solution, 0, 100)
    assert check.verify(problem, rounded, dual=False) == []
    assert rounded.promised.sum() == 100


def test_hardly_more_is_lost_than_must_be():
    """Duality: at any prices, what whole PRBs of the chosen points can be worth; one task of each resource is forgiven.

    Work of one phase on a cell and on a node: with p of its PRBs the least share of the node is closed.
    """
    problem, n_prb = instances.make(2000, 5).problem, 5000
    solution = price.solve(problem)
    rounded, _ = round_grid(problem, solution, np.repeat([n_prb, 0], [4, 4]))
    chosen = solution.chosen[solution.promised]
    part = problem.work[chosen, 0] / problem.slack[chosen, 0][:, None]  # (K, 2)
    prbs = np.arange(1, n_prb + 1)
    bound = solution.prices @ (1 - problem.background)
    for j, (cell, node) in zip(chosen, part, strict=True):
        left = 1 - cell * n_prb / prbs
        need = np.divide(node, left, out=np.full(n_prb, np.inf), where=left > 0) if node > 0 else 0 * left
        need[(left < 0) | (need > 1)] = np.inf
        at_cell, at_node = solution.prices[problem.slot[j]]
        bound += max(0.0, problem.value[j] - (at_cell * prbs / n_prb + at_node * need).min())
    assert bound - problem.n_resources <= rounded.certificate.value <= bound


@pytest.mark.parametrize("priced", [False, True])
def test_the_order_of_many_tasks_changes_nothing(priced: bool):
    """More tasks than single moves are tried for, with couplings and floors, from known prices and from none."""
    problem = random_problem(7, 600, 3, 4, load=2.0, coupled=True, soft=True)
    solution = price.solve(problem)
    solution = solution if priced else dataclasses.replace(solution, prices=np.zeros(4))
    order = np.random.default_rng(0).permutation(600)
    inverse = np.concatenate(
        [np.arange(a, b) for a, b in zip(problem.first[order], problem.first[order + 1], strict=True)]
    )
    place = np.append(np.argsort(inverse), -1)  # of each point in the permuted problem
    permuted = dataclasses.replace(
        solution,
        chosen=place[solution.chosen[order]],
        share=solution.share[order],
        promised=solution.promised[order],
    )
    grid = np.array([300, 500, 0, 0])
    (a, a_prbs), (b, b_prbs) = round_grid(problem, solution, grid), round_grid(take(problem, order), permuted, grid)
    assert check.verify(problem, a, dual=False) == []
    assert (a_prbs[order] == b_prbs).all()
    assert (a.share[order] == b.share).all()
    assert a.certificate == b.certificate
