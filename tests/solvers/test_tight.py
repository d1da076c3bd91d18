"""Resources that demand fills exactly: bounds that hold, plans that use what fits. Against plain enumeration."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import auto, check, registry
from solvers.codec import problem_from_data
from solvers.errors import BadProblem
from solvers.grid import solver as grid
from solvers.price import solver as price
from solvers.problem import Ints, Problem
from solvers.referees import exact, mip
from solvers.referees.columns import loads, pareto_columns
from solvers.registry import Solver
from solvers.solution import Solution, SolveStatus

SOLVERS: dict[str, Solver] = {"exact": exact.solve, "grid": grid.solve, "joint": price.solve, "auto": auto.solve}
few = settings(max_examples=30, deadline=None, derandomize=True)


def knapsack(seed: int) -> tuple[Ints, Ints, Ints]:
    """Weights (N, M, D), values (N, M) and capacities (D,), whole numbers; some choice fills every capacity exactly."""
    rng = np.random.default_rng(seed)
    n, m, d = int(rng.integers(2, 9)), int(rng.integers(1, 4)), 1 + seed % 2
    weight = rng.integers(1, int(rng.choice([10, 97, 1000, 99_991])) + 1, (n, m, d))
    value = weight.sum(axis=2) + rng.integers(0, 3, (n, m)) if seed % 3 == 0 else rng.integers(1, 50, (n, m))
    taken = rng.integers(0, m, n)
    inside = rng.random(n) < 0.6
    inside[rng.integers(n)] = True
    return weight, value, weight[inside, taken[inside]].sum(axis=0)


def optimum(weight: Ints, value: Ints, capacity: Ints) -> int:
    """Greatest value with one point for each task at most, by all sums that can be reached, in whole numbers."""
    best: dict[tuple[int, ...], int] = {(0,) * len(capacity): 0}
    for i in range(len(weight)):
        new = dict(best)
        for used, worth in best.items():
            for k in range(weight.shape[1]):
                more = tuple(int(a + b) for a, b in zip(used, weight[i, k], strict=True))
                if all(a <= c for a, c in zip(more, capacity, strict=True)):
                    new[more] = max(new.get(more, 0), worth + int(value[i, k]))
        best = new
    return max(best.values())


def as_problem(weight: Ints, value: Ints, capacity: Ints) -> Problem:
    """Memories of which each point takes its weight over the capacity: no decimal or binary fraction, mostly."""
    names = [f"node{r}/mem" for r in range(len(capacity))]
    tasks = [
        [
            {"value": float(value[i, k]), "rigid": dict(zip(names, (weight[i, k] / capacity).tolist(), strict=True))}
            for k in range(weight.shape[1])
        ]
        for i in range(len(weight))
    ]
    return problem_of(tasks, *names)


def problem_of(tasks: list[list[dict[str, Any]]], *resources: str) -> Problem:
    return problem_from_data(
        {
            "resources": [{"id": r} for r in resources],
            "tasks": [
                {"id": f"t{i:04}", "points": [{"id": f"p{k}", **point} for k, point in enumerate(points)]}
                for i, points in enumerate(tasks)
            ],
        }
    )


def rigid(value: float, part: float) -> dict[str, Any]:
    return {"value": value, "rigid": {"m": part}}


@pytest.mark.parametrize("seed", range(100))
def test_every_bound_holds_and_the_referees_optimum_is_one_where_capacities_are_exactly_filled(seed: int):
    """Multiple-choice knapsacks: `exact` and HiGHS find the optimum, no bound is below it, every plan is checked."""
    weight, value, capacity = knapsack(seed)
    most, problem = optimum(weight, value, capacity), as_problem(weight, value, capacity)
    for name, solve in SOLVERS.items():
        found = solve(problem)
        assert check.verify(problem, found) == [], name
        assert found.certificate.bound >= most * (1 - 1e-9), name
        assert found.certificate.value <= most * (1 + 1e-9), name
        if name in {"exact", "auto"}:
            assert found.certificate.value == pytest.approx(most, rel=1e-9), name
            assert found.certificate.gap <= 1e-5 * most, name
            assert found.status is SolveStatus.OK
    if seed < 20:
        assert mip.solve(problem).certificate.value == pytest.approx(most, rel=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_third_and_two_thirds_are_one(name: str):
    problem = problem_of([[rigid(0.5, 1 / 3)], [rigid(0.5, 2 / 3)]], "m")
    found = SOLVERS[name](problem)
    assert (found.chosen >= 0).all()
    assert found.certificate.bound == pytest.approx(1.0)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("many", [3, 7, 49, 300])
def test_equal_parts_all_fit(name: str, many: int):
    found = SOLVERS[name](problem_of([[rigid(1.0, 1 / many)]] * many, "m"))
    assert (found.chosen >= 0).all()
    assert found.certificate.gap <= 1e-9


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("over", "fit"), [(1e-10, True), (5e-10, True), (2e-9, False), (2e-6, False), (1e-3, False)])
def test_what_is_too_much_is_what_the_check_calls_too_much(name: str, over: float, fit: bool):
    problem = problem_of([[rigid(1.0, 0.5)], [rigid(0.9, 0.5 + over)]], "m")
    found = SOLVERS[name](problem)
    assert check.verify(problem, found) == []
    assert found.certificate.value == pytest.approx(1.9 if fit else 1.0)
    alone = SOLVERS[name](problem_of([[rigid(1.0, 1 + over)]], "m"))
    assert (alone.chosen >= 0).all() == fit


@pytest.mark.parametrize("n_small", [1, 20, 300, 1000])
@pytest.mark.parametrize("nodes", [0.0, 1000.0])
def test_a_small_excess_costs_a_small_task_and_not_a_large_one(n_small: int, nodes: float):
    """All fit but for 2e-6 of the memory: leaving out the least valuable task is enough, 0.001 of 1.9 and more."""
    left = 1 - n_small * 1e-4
    small = [[rigid(0.001 * (1 + i % 7 / 10), 1e-4)] for i in range(n_small)]
    problem = problem_of([*small, [rigid(1.0, left / 2)], [rigid(0.9, left / 2 + 2e-6)]], "m")
    found = price.solve(problem, options={"nodes": nodes})
    assert check.verify(problem, found) == []
    assert found.certificate.value == pytest.approx(problem.value.sum() - 0.001)


@few
@given(st.integers(0, 10**6), st.floats(0, 0.3), st.integers(4, 40))
def test_whole_steps_fill_what_the_background_leaves(seed: int, background: float, steps: int):
    """Also where that is a hair less than whole steps: a plan uses no step that is not there."""
    rng = np.random.default_rng(seed)
    whole = int(rng.integers(1, steps + 1))
    for hair in (0.0, -5e-10, 3e-9, 1e-8, 1e-7):  # between 0 and 1e-9 either is right
        point = {"value": 1.0, "phases": [{"slack_s": 1.0, "work_s": {"m": 1 / steps}}]}
        problem = problem_of([[point]] * (whole + 1), "m")
        problem = dataclasses.replace(problem, background=np.array([max(0.0, 1 - whole / steps + hair)]))
        for solve in (exact.solve_on_grid, grid.solve_on_grid):
            found = solve(problem, np.array([steps]))
            assert check.verify(problem, found) == []
            assert found.certificate.value == whole - (hair > 1e-9)
    assert background >= 0


def test_units_relax_and_safe_units_do_not():
    """Rounded down, what fits still fits; rounded up, what fits really does: on sums of a thousand columns."""
    rng = np.random.default_rng(5)
    parts = rng.random(1000)
    problem = problem_of([[rigid(1.0, x)] for x in (parts / parts.sum()).tolist()], "m")
    steps = np.array([100])
    load = loads(problem, steps, pareto_columns(problem, steps))
    everything = np.arange(1000)
    assert load.fit(everything)
    assert load.units.sum() <= load.capacity[0]
    more = loads(dataclasses.replace(problem, background=np.array([1.2e-9])), steps, pareto_columns(problem, steps))
    assert not more.fit(everything)
    safe = more.safe()
    assert safe.units.sum() > safe.capacity[0]


def test_demand_far_beyond_a_resource_does_not_overflow():
    huge = problem_of([[{"value": 1.0, "phases": [{"slack_s": 1.0, "work_s": {"m": 0.5}}]}]] * 3, "m", "n")
    huge = dataclasses.replace(
        huge, coupling_from=np.array([0]), coupling_to=np.array([1]), coupling_per_share=np.array([1e100])
    )
    for solve in (exact.solve, grid.solve):
        found = solve(huge)
        assert (found.chosen == -1).all()
        assert found.certificate.value == 0.0


# auto


def hard(n_tasks: int, seed: int = 3) -> Problem:
    """Knapsacks on which the price solver's gap stays open."""
    rng = np.random.default_rng(seed)
    part = rng.integers(200, 400, n_tasks)
    return problem_of([[rigid(float(x), x / 1000)] for x in part.tolist()], "m")


def same(one: Solution, other: Solution) -> bool:
    return bool((one.chosen == other.chosen).all()) and one.share.tobytes() == other.share.tobytes()


def test_auto_is_the_price_solver_where_that_proves_its_plan_or_the_problem_is_large():
    easy = problem_of([[rigid(1.0, 0.2)]] * 3, "m")
    assert auto.solve(easy).solver == "joint"
    large = hard(auto.TASKS + 1)
    found = auto.solve(large)
    assert found.solver == "joint"
    assert same(found, price.solve(large))


def test_auto_is_the_referee_where_that_is_better_and_says_so():
    problem = hard(12)
    joint, found, best = price.solve(problem, options={"nodes": 0.0}), auto.solve(problem), exact.solve(problem)
    assert found.certificate.value == best.certificate.value >= joint.certificate.value
    assert found.certificate.gap <= 1e-5 * found.certificate.value
    assert found.solver == "exact"
    assert check.verify(problem, found) == []
    assert same(found, auto.solve(problem))


@few
@given(st.integers(0, 10**6), st.integers(1, 10))
def test_auto_is_never_worse_and_its_bound_holds_off_the_grid_as_well(seed: int, n_tasks: int):
    """With elastic work the referee's bound is of its grid only: the price solver's stays."""
    rng = np.random.default_rng(seed)
    tasks = [
        [
            {
                "value": float(rng.choice([1.0, 2.0, 5.0])),
                "phases": [{"slack_s": 1.0, "work_s": {"m": float(rng.uniform(0.05, 0.5)), "n": 0.01}}],
                "rigid": {"n": float(rng.uniform(0, 0.4))},
            }
            for _ in range(2)
        ]
        for _ in range(n_tasks)
    ]
    problem = problem_of(tasks, "m", "n")
    joint, found = price.solve(problem), auto.solve(problem)
    assert check.verify(problem, found) == []
    assert found.certificate.value >= joint.certificate.value
    assert found.certificate.bound == joint.certificate.bound
    assert (found.solver == "joint") == same(found, joint)


def test_auto_hands_points_that_the_referee_cannot_list_to_the_price_solver():
    work = {"slack_s": 1.0, "work_s": {"a/ul": 0.11, "b/ul": 0.12, "c/ul": 0.13}}
    problem = problem_of([[{"value": 1.0 + i / 9, "phases": [work]}] for i in range(6)], "a/ul", "b/ul", "c/ul")
    with pytest.raises(BadProblem):
        exact.solve(problem)
    assert same(auto.solve(problem), price.solve(problem))


def test_auto_takes_the_options_of_both():
    problem = hard(12)
    assert auto.solve(problem, options={"limit_s": 0.0, "nodes": 0.0}).solver == "joint"
    assert registry.get("auto") is auto.solve
