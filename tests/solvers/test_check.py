"""The referee finds every kind of fault that is planted in a good plan, and none in a good plan."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import pytest
from solver_cases import random_problem

from solvers import check
from solvers.codec import problem_from_data
from solvers.price import solver as price
from solvers.problem import Problem
from solvers.solution import Certificate, Solution


@pytest.fixture(scope="module")
def problem() -> Problem:
    return random_problem(11, 14, 4, 4, load=2.0, coupled=True)


@pytest.fixture(scope="module")
def solution(problem: Problem) -> Solution:
    return price.solve(problem)


def first_admitted(solution: Solution) -> int:
    return int(np.flatnonzero(solution.chosen >= 0)[0])


def shares_times(factor: float) -> Callable[[Problem, Solution], Solution]:
    return lambda _, s: dataclasses.replace(s, share=s.share * factor)


def certified(value: float, bound: float) -> Callable[[Problem, Solution], Solution]:
    return lambda _, s: dataclasses.replace(
        s, certificate=Certificate(s.certificate.value + value, s.certificate.bound + bound)
    )


def foreign_point(problem: Problem, solution: Solution) -> Solution:
    chosen = solution.chosen.copy()
    i = first_admitted(solution)
    chosen[i] = problem.first[(i + 1) % problem.n_tasks]
    return dataclasses.replace(solution, chosen=chosen)


def padded_share(problem: Problem, solution: Solution) -> Solution:
    share = solution.share.copy()
    for i in np.flatnonzero(solution.chosen >= 0):
        share[i, problem.slot[solution.chosen[i]] == problem.n_resources] = 0.01
    return dataclasses.replace(solution, share=share)


def not_a_number(_: Problem, solution: Solution) -> Solution:
    share = solution.share.copy()
    share[first_admitted(solution), 0] = np.nan
    return dataclasses.replace(solution, share=share)


def dearer(_: Problem, solution: Solution) -> Solution:
    return dataclasses.replace(solution, prices=solution.prices * 3)


def withdrawn(keep_promise: bool) -> Callable[[Problem, Solution], Solution]:
    """Take a task's point, and either its shares or its promise."""

    def plant(problem: Problem, solution: Solution) -> Solution:
        i = first_admitted(solution)
        chosen, share, promised = solution.chosen.copy(), solution.share.copy(), solution.promised.copy()
        value = solution.certificate.value - (0.0 if keep_promise else problem.value[chosen[i]])
        chosen[i], promised[i] = -1, keep_promise
        if keep_promise:
            share[i] = 0.0
        certificate = Certificate(value, solution.certificate.bound)
        return dataclasses.replace(solution, chosen=chosen, share=share, promised=promised, certificate=certificate)

    return plant


FAULTS = [
    (withdrawn(keep_promise=True), "has no point"),
    (withdrawn(keep_promise=False), "without a point"),
    (shares_times(1.02), "is used to"),
    (shares_times(0.5), "takes"),
    (shares_times(0.2), "below its floor"),
    (shares_times(5.0), "above its cap"),
    (certified(0.5, 0.5), "value reported"),
    (certified(0.0, -100.0), "is below the value"),
    (certified(0.0, -0.01), "is not proven"),
    (foreign_point, "belongs to another task"),
    (padded_share, "above its cap"),
    (not_a_number, "not finite"),
    (dearer, "is not proven"),
]


def test_a_good_plan_has_no_findings(problem: Problem, solution: Solution):
    assert check.verify(problem, solution) == []


@pytest.mark.parametrize(("plant", "finding"), FAULTS)
def test_planted_faults_are_found(
    problem: Problem, solution: Solution, plant: Callable[[Problem, Solution], Solution], finding: str
):
    findings = check.verify(problem, plant(problem, solution))
    assert any(finding in line for line in findings), findings


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"prices": np.array([-1.0, 0, 0, 0])}, "negative"),
        ({"prices": np.zeros(2)}, "shape"),
        ({"promised": np.zeros(3, dtype=bool)}, "shape"),
    ],
)
def test_malformed_solutions_are_found(problem: Problem, solution: Solution, change: dict[str, object], finding: str):
    findings = check.verify(problem, dataclasses.replace(solution, **change))
    assert any(finding in line for line in findings)


def test_deadlines_count_only_where_they_are_promised(problem: Problem, solution: Solution):
    late = dataclasses.replace(
        solution,
        share=solution.share * 0.5,
        promised=np.zeros(problem.n_tasks, dtype=bool),
        prices=np.zeros(problem.n_resources),
        certificate=Certificate(0.0, np.inf),
    )
    assert check.verify(problem, late) == []


def test_dual_value_by_hand():
    """One task, one resource: cost work / slack x price, so the dual is price + max(0, 1 - 0.2 price)."""
    problem = random_problem(0, 1, 1, 1)
    problem = dataclasses.replace(
        problem,
        background=np.zeros(1),
        value=np.ones(1),
        slack=np.array([[0.5, np.inf]]),
        work=np.array([[[0.1], [0.0]]]),
        floor=np.zeros((1, 1)),
        cap=np.ones((1, 1)),
        rigid=np.zeros((1, 1)),
    )
    for paid in (0.0, 1.0, 4.0, 5.0, 9.0):
        assert check.dual_value(problem, np.array([paid])) == pytest.approx(paid + max(0.0, 1 - 0.2 * paid))


def test_dual_value_is_convex_and_bounds_plans(problem: Problem, solution: Solution):
    rng = np.random.default_rng(5)
    for _ in range(10):
        a, b = rng.lognormal(0, 1, (2, problem.n_resources))
        ends = check.dual_value(problem, a), check.dual_value(problem, b)
        assert check.dual_value(problem, (a + b) / 2) <= (ends[0] + ends[1]) / 2 + 1e-9
        assert min(ends) >= solution.certificate.value


def test_without_the_dual_it_is_cheap_enough_for_every_decision(problem: Problem, solution: Solution):
    check.verify(problem, solution, dual=False)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        check.verify(problem, solution, dual=False)
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3  # 80 us on the machine it was written on


@pytest.mark.parametrize(("floor", "worth"), [(0.2, True), (0.39, True), (0.41, False)])
def test_nobody_is_worth_more_than_his_price_where_his_floor_does_not_fit(floor: float, worth: bool):
    """The dual counts a point only where what the background leaves holds its floor."""
    phases = [{"slack_s": 1.0, "work_s": {"r": 0.05}}]
    points = [{"id": "p", "value": 1.0, "phases": phases, "floor": {"r": floor}}]
    case = problem_from_data({"resources": [{"id": "r", "background": 0.6}], "tasks": [{"id": "t", "points": points}]})
    prices = np.array([0.1])
    net = 1.0 - 0.1 * floor if worth else 0.0
    assert check.dual_value(case, prices) == pytest.approx(0.1 * 0.4 + net)
