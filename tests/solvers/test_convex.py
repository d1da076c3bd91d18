"""The second stage by every objective: the dual method and the cone solver against each other, and by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.optimize import brentq
from solver_cases import random_problem

from solvers import check
from solvers.codec import problem_from_data
from solvers.errors import BadProblem
from solvers.objectives import convex, second_stage
from solvers.objectives.second_stage import (
    HEADROOM,
    TIE,
    TRANSMIT_W,
    Goal,
    Objective,
    leftover,
    parse_goal,
    share_by,
    value_of,
)
from solvers.price import solver as price
from solvers.problem import Floats, Problem
from solvers.solution import Solution

GOALS = ("latency", "max-latency", "alpha-fair:0.5", "alpha-fair", "alpha-fair:2", "energy")
RELATIVE = {"alpha-fair:2": 1e-4}  # Clarabel's own: its points break limits by 1e-8, and this utility is steep there


def case(seed: int) -> tuple[Problem, Solution]:
    """One cell and two nodes, tasks of all kinds."""
    problem = random_problem(seed, 10, 3, 3, load=(0.3, 0.8, 1.5)[seed % 3], coupled=seed % 2 == 0, soft=seed % 4 == 0)
    problem = dataclasses.replace(problem, kinds=("comm", "compute", "compute"))
    return problem, price.solve(problem)


def objective(problem: Problem, goal: Goal, chosen: np.ndarray, share: Floats, weight: Floats) -> float:
    """The objective as docs/exact.md states it, task by task."""
    late, energy, seconds = {}, 0.0, 0.0
    for i in np.flatnonzero(chosen >= 0):
        j = chosen[i]
        late[i] = max(
            sum(w / x for w, x in zip(problem.work[j, q], share[i], strict=True) if w > 0) / problem.slack[j, q]
            for q in range(2)
        )
        for s in np.flatnonzero(problem.work[j].max(axis=0) > 0):
            if problem.kinds[problem.slot[j, s]] == "comm":
                energy += weight[i] * goal.power_w * problem.work[j, :, s].sum() / share[i, s]
                seconds += weight[i] * goal.power_w * problem.work[j, :, s].sum()
    total = sum(weight[i] * x for i, x in late.items())
    if goal.objective is Objective.LATENCY:
        return total
    if goal.objective is Objective.MAX_LATENCY:
        return max(late.values())
    if goal.objective is Objective.ENERGY:
        return energy + TIE * seconds * total / sum(weight[i] for i in late)
    spare = {i: 1 + HEADROOM - x for i, x in late.items()}
    if goal.alpha == 1.0:
        return -sum(weight[i] * np.log(x) for i, x in spare.items())
    return -sum(weight[i] * x ** (1 - goal.alpha) / (1 - goal.alpha) for i, x in spare.items())


@pytest.mark.parametrize("name", GOALS)
@pytest.mark.parametrize("seed", range(8))
def test_fast_path_agrees_with_the_cone_solver(seed: int, name: str):
    problem, plan = case(seed)
    goal = parse_goal(name)
    weight = np.random.default_rng(seed).choice([1.0, 2.0, 5.0], problem.n_tasks)
    theirs, least = convex.second_stage(problem, plan.chosen, objective=goal, weight=weight)
    ours, bound = share_by(problem, plan, goal, weight=weight)
    left = leftover(problem, plan.chosen, goal, weight)
    value = value_of(left, goal, ours[left.task, left.slot])
    assert value == pytest.approx(least, rel=RELATIVE.get(name, 1e-6))
    assert bound - 1e-9 * abs(bound) <= value <= bound + 1e-6 * abs(bound)
    assert objective(problem, goal, plan.chosen, ours, weight) == pytest.approx(value, rel=1e-9)
    assert objective(problem, goal, plan.chosen, theirs, weight) == pytest.approx(least, rel=1e-4)
    plan_of = dataclasses.replace(plan, share=theirs)
    assert check.verify(problem, plan_of, dual=False, tolerance=1e-5) == []


@pytest.mark.parametrize("name", GOALS)
@pytest.mark.parametrize("seed", range(8, 20))
def test_every_deadline_and_limit_holds_afterwards_and_the_goal_is_no_worse(seed: int, name: str):
    problem, plan = case(seed)
    goal = parse_goal(name)
    after = second_stage.second_stage(problem, plan, goal)
    assert check.verify(problem, after) == []
    assert after.certificate == plan.certificate
    left = leftover(problem, plan.chosen, goal)
    before = value_of(left, goal, plan.share[left.task, left.slot])
    now = value_of(left, goal, after.share[left.task, left.slot])
    assert now <= before + 1e-6 * abs(before)


def test_plans_without_promises_are_left_alone():
    problem, plan = case(1)
    unpromised = dataclasses.replace(plan, promised=np.zeros(problem.n_tasks, dtype=bool))
    assert second_stage.second_stage(problem, unpromised, Goal()) is unpromised


def test_same_shares_every_time_and_for_an_empty_plan():
    problem, plan = case(4)
    first, second = (share_by(problem, plan, parse_goal("alpha-fair"))[0] for _ in range(2))
    assert (first == second).all()
    nobody = np.full(problem.n_tasks, -1)
    share, value = convex.second_stage(problem, nobody)
    assert value == 0.0
    assert (share == 0).all()


def two_on_a_cell(ul_s: tuple[float, float], **node: float) -> Problem:
    phases = [[{"slack_s": 1.0, "work_s": {"cell/ul": x} | node}] for x in ul_s]
    tasks = [{"id": f"t{i}", "points": [{"id": "p", "value": 1.0, "phases": p}]} for i, p in enumerate(phases)]
    return problem_from_data({"resources": [{"id": "cell/ul"}, *({"id": r} for r in node)], "tasks": tasks})


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("latency", 1 / 3),  # a / x^2 equal: shares as roots of the work, 1 : 2
        ("max-latency", 1 / 5),  # a / x equal: shares as the work, 1 : 4
        ("energy", 1 / 3),
    ],
)
def test_two_tasks_by_hand(name: str, first: float):
    problem = two_on_a_cell((0.1, 0.4))
    plan = price.solve(problem)
    ours, _ = share_by(problem, plan, parse_goal(name))
    theirs, _ = convex.second_stage(problem, plan.chosen, objective=parse_goal(name))
    assert ours[:, 0] == pytest.approx([first, 1 - first], rel=2e-4)
    assert theirs[:, 0] == pytest.approx([first, 1 - first], rel=2e-4)


def test_energy_is_power_times_time_on_air():
    problem = two_on_a_cell((0.1, 0.4))
    _, joules = convex.second_stage(problem, np.array([0, 1]), objective=parse_goal("energy"))
    on_air = 0.1 * 3 + 0.4 * 1.5
    lateness = TIE * 0.5 * (0.1 * 3 + 0.4 * 1.5) / 2
    assert joules == pytest.approx(TRANSMIT_W * (on_air + lateness), rel=1e-6)


def test_power_limited_rate_is_b_log2_of_1_plus_snr_over_b():
    """One task alone on a cell, deadline as goal: the least latency is at its cap; and two tasks by one equation."""
    problem = two_on_a_cell((0.1, 0.1))
    snr = np.array([[20.0, np.inf], [np.inf, np.inf]])[:, : problem.slot.shape[1]]
    share, worst = convex.second_stage(problem, np.array([0, 1]), objective=parse_goal("max-latency"), snr=snr)

    def seconds(x: float) -> float:  # 0.1 s at full share
        return 0.1 * np.log1p(20.0) / (x * np.log1p(20.0 / x))

    x = brentq(lambda b: seconds(b) - 0.1 / (1 - b), 1e-3, 0.999)
    assert share[:, 0] == pytest.approx([x, 1 - x], rel=1e-5)
    assert worst == pytest.approx(seconds(x), rel=1e-6)
    assert x < 0.5  # less bandwidth does for whom power limits


def test_parameters_and_constants_give_the_same(monkeypatch: pytest.MonkeyPatch):
    problem, plan = case(3)
    compiled = [convex.second_stage(problem, plan.chosen, objective=parse_goal(name))[1] for name in GOALS]
    monkeypatch.setattr(convex, "PARAMETERS", 0)
    built = [convex.second_stage(problem, plan.chosen, objective=parse_goal(name))[1] for name in GOALS]
    assert built == pytest.approx(compiled, rel=1e-6)


def test_points_that_do_not_fit_are_refused():
    with pytest.raises(BadProblem, match="cannot be served together"):
        convex.second_stage(two_on_a_cell((0.7, 0.7)), np.array([0, 1]))


@pytest.mark.parametrize("text", ["", "fair", "alpha-fair:x", "alpha-fair:-1", "energy:2", "alpha-fair:inf"])
def test_objectives_that_there_are_not(text: str):
    with pytest.raises(BadProblem, match="objective"):
        parse_goal(text)


@pytest.mark.parametrize(("seed", "n_tasks"), [(141, 11), (232, 6), (295, 9), (663, 5), (714, 8)])
def test_where_a_goal_asks_nothing_deadlines_hold_all_the_same(seed: int, n_tasks: int):
    """No resource is on air, so energy gives no task a weight, prices fall to nothing, and phases are apart."""
    problem = random_problem(seed, n_tasks, 3, 5, load=0.05, coupled=seed % 2 == 0, soft=seed % 3 == 0)
    gone = np.random.default_rng(seed).random(problem.work.shape) < 0.3
    problem = dataclasses.replace(problem, kinds=("compute",) * 5, work=np.where(gone, 0.0, problem.work))
    plan = price.solve(problem, options={"second_stage": 0.0})
    shared = second_stage.second_stage(problem, plan, Goal(Objective.ENERGY))
    assert check.verify(problem, shared, dual=False) == []


@pytest.mark.parametrize("name", GOALS)
def test_where_nobody_has_a_deadline_nothing_is_asked(name: str):
    phases = [{"slack_s": None, "work_s": {"cell/ul": 0.1}}]
    problem = problem_from_data(
        {
            "resources": [{"id": "cell/ul"}],
            "tasks": [{"id": "t", "points": [{"id": "p", "value": 1.0, "phases": phases}]}],
        }
    )
    plan = price.solve(problem)
    share, bound = share_by(problem, plan, parse_goal(name))
    assert np.isfinite(share).all()
    assert np.isfinite(bound) or name == "energy"
    assert check.verify(problem, dataclasses.replace(plan, share=share), dual=False) == []
