"""Bounds of problems with steps against all plans that there are, on small seeded problems.

What a bound speaks of is the ordinary problem at the plan's lengths and periods (docs/model.md, section 10): reads of
those who run are counted whoever is let go, those that riders among several newcomers need whoever comes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from step_cases import Point, beside_each_other, problem_of, random_tasks
from step_plans import Enumeration

from solvers import check, registry
from solvers.problem import Problem
from solvers.solution import Solution

SEEDS = 300
BLOCK = 50
SLIP = 1e-6  # of a value


def instance(seed: int) -> Problem:
    """Two to five tasks on one cell and two nodes: nobody, some or all but one run; devices in every fourth."""
    rng = np.random.default_rng(seed)
    groups = 1 + seed % 2
    tasks = random_tasks(rng, int(rng.integers(2, 5)), groups=groups, running=(0.0, 0.5, 1.0)[seed % 3])
    if seed % 3 == 2:
        tasks += random_tasks(rng, 1, groups=groups, running=0.0)
    return with_devices(tasks, rng, seed)


def one_comes(seed: int) -> Problem:
    """One to four tasks that run where they are and stay there, and one that comes."""
    rng = np.random.default_rng(seed)
    groups = 1 + seed % 2
    run = [[p for p in t if p.held] for t in random_tasks(rng, int(rng.integers(1, 5)), groups=groups, running=1.0)]
    return with_devices(run + random_tasks(rng, 1, groups=groups, running=0.0), rng, seed)


def with_devices(tasks: list[list[Point]], rng: np.random.Generator, seed: int) -> Problem:
    background = rng.uniform(0, 0.9, 3)
    room = (float(background[0]), float(background[1]), float(background[2]))
    if seed % 4:
        return problem_of(tasks, room)
    apart = rng.permutation(len(tasks)).tolist()  # of one UE at most one comes
    ues = tuple(int(rng.integers(2)) if any(p.held for p in task) else apart[i] for i, task in enumerate(tasks))
    loaded = [
        [dataclasses.replace(p, device_s=float(rng.uniform(0, 0.1)), device_use=uses(rng, p)) for p in task]
        for task in tasks
    ]
    return problem_of(beside_each_other(loaded, ues), room, ues)


def uses(rng: np.random.Generator, point: Point) -> float:
    """Part of its device; those who run fit on one together."""
    return float(rng.uniform(0, 0.24 if point.held else 0.9))


def solved(problem: Problem) -> Solution:
    found = registry.solve("joint", problem, options={"second_stage": 0.0})
    assert check.verify(problem, found, dual=True) == []
    return found


def limit(found: Solution) -> float:
    return found.certificate.bound + SLIP * max(1.0, found.certificate.bound)


def best(all_plans: Enumeration) -> float:
    return next(value for value, chosen in all_plans.choices() if all_plans.fits(chosen, as_read=False))


def block(first: int) -> Iterator[int]:
    yield from range(first, first + BLOCK)


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_no_plan_is_worth_more_than_the_bound(first: int) -> None:
    scarce = 0
    for seed in block(first):
        problem = instance(seed)
        found = solved(problem)
        reached = best(plans := Enumeration(problem, found))
        assert reached <= limit(found), seed
        chosen = set(found.chosen[found.chosen >= 0].tolist())
        assert plans.fits([w for w in plans.ways if w.j in chosen], as_read=False), f"{seed}: the plan is one of them"
        most = [problem.value[a:b].max() for a, b in zip(problem.first, problem.first[1:], strict=False)]
        scarce += reached < sum(most) - SLIP
    assert scarce >= BLOCK // 3, "where all are served a bound says nothing"


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_where_one_comes_the_bound_holds_for_reads_as_they_are(first: int) -> None:
    """Then reads that the bound counts are those that a plan causes which lets nobody go."""
    refused = 0
    for seed in block(first):
        problem = one_comes(seed)
        found = solved(problem)
        plans, held = Enumeration(problem, found), {int(j) for j in problem.held if j >= 0}
        for value, chosen in plans.choices():
            if value <= limit(found):
                refused += 1
                break
            assert not (held <= {w.j for w in chosen} and plans.fits(chosen, as_read=True)), seed
    assert refused > 0


def test_a_plan_that_lets_somebody_go_may_be_worth_more() -> None:
    """Whose read is counted is there already: without him two who come would fit, and that no bound speaks of."""
    runs = Point(held=True, shared_s=0.05, pace_s=0.1, value=1.0)
    comes = Point(shared_s=0.0, own_s=0.0, wait=(0.5, 0.0), slack_s=(0.2, np.inf), node_s=0.07, value=1.3)
    problem = problem_of([[runs], [comes], [comes]], (0.0, 0.0, 0.0))
    found = solved(problem)
    plans = Enumeration(problem, found)
    clips = [w for w in plans.ways if w.task > 0]
    assert plans.fits(clips, as_read=True)
    assert not plans.fits(clips, as_read=False)
    assert found.certificate.bound < 2.5
