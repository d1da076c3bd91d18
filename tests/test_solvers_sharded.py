"""The sharded solver: the same plan on any number of shards, here or on Ray, as good as the price solver's."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_cases import random_problem

from cosched.drivers.shards import RayShards, ShardLost, local_ray
from solvers import check, price, sharded
from solvers.blocks import by_id, join, split, take
from solvers.codec import problem_from_data
from solvers.problem import Problem
from solvers.sharded import OneProcess, Plan, Shard, plan, solution_of

SIZE = 40  # tasks of a block in these tests


class Several:
    """Shards side by side in this process."""

    def __init__(self, blocks: list[Problem], cuts: list[int]) -> None:
        self.shards = []
        for low, high in zip([0, *cuts], [*cuts, len(blocks)], strict=True):
            start = sum(b.n_tasks for b in blocks[:low])
            self.shards.append(Shard(start, blocks[low:high]))

    def ask(self, method: str, *arguments: object) -> list[object]:
        return [getattr(shard, method)(*arguments) for shard in self.shards]


def same(a: Plan, b: Plan) -> bool:
    """Bit for bit."""
    return all(x.tobytes() == y.tobytes() if isinstance(x, np.ndarray) else x == y for x, y in zip(a, b, strict=True))


def case(seed: int, n_tasks: int = 400, **kinds: bool) -> Problem:
    return random_problem(seed, n_tasks, 4, 5, weights=(1.0, 5.0), **kinds)


@pytest.mark.parametrize("seed", range(3))
def test_the_number_of_shards_changes_no_bit(seed: int):
    blocks = split(case(seed, coupled=True, soft=True), SIZE)
    alone = plan(OneProcess(blocks))
    assert (alone.point >= 0).sum() > 20
    for cuts in ([1], [5], [3, 4, 9], list(range(1, len(blocks)))):
        assert same(plan(Several(blocks, cuts)), alone)


def test_the_order_of_the_tasks_changes_nothing():
    problem = case(4)
    shuffled = take(problem, np.random.default_rng(1).permutation(problem.n_tasks))
    a, b = sharded.solve(problem), sharded.solve(shuffled)
    place = {name: i for i, name in enumerate(shuffled.task_ids)}
    back = np.array([place[name] for name in problem.task_ids])
    assert a.certificate == b.certificate
    assert (a.share == b.share[back]).all()
    assert ((a.chosen >= 0) == (b.chosen[back] >= 0)).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    n_tasks=st.integers(0, 60),
    n_resources=st.integers(1, 5),
    load=st.sampled_from([0.05, 0.5, 2.0, 8.0]),
    coupled=st.booleans(),
    soft=st.booleans(),
)
def test_every_plan_holds_and_its_bound_is_proven(
    seed: int, n_tasks: int, n_resources: int, load: float, coupled: bool, soft: bool
):
    problem = random_problem(seed, max(n_tasks, 1), 3, n_resources, load=load, coupled=coupled, soft=soft)
    problem = take(problem, np.arange(n_tasks))
    solution = solution_of(problem, plan(OneProcess(split(problem, 7))))
    assert check.verify(problem, solution) == []
    assert solution.certificate.bound >= price.solve(problem).certificate.value - 1e-9


@pytest.mark.parametrize("load", [0.01, 1.0, 3.0])
def test_a_thousand_tasks_are_planned_within_a_thousandth_of_the_bound(load: float):
    problem = random_problem(11, 1500, 4, 6, load=load, coupled=True)
    solution = sharded.solve(problem)
    assert check.verify(problem, solution) == []
    assert solution.certificate.gap <= 1e-3 * solution.certificate.bound
    assert solution.certificate.bound == pytest.approx(price.solve(problem).certificate.bound, rel=1e-3)
    again = sharded.solve(problem, warm=solution.prices)
    assert again.certificate.gap <= 1e-3 * again.certificate.bound
    assert again.evaluations <= solution.evaluations


def test_tasks_of_one_kind_are_all_in_doubt_at_once():
    """Every task costs the same: all gain nothing at the right price, and leaving few of them open cannot do."""
    one = random_problem(5, 1, 2, 2)
    copies = join([dataclasses.replace(one, task_ids=(f"t{i:04d}",)) for i in range(900)])
    copies = dataclasses.replace(copies, work=copies.work / 200, floor=copies.floor / 200, rigid=copies.rigid / 200)
    solution = sharded.solve(copies)
    assert check.verify(copies, solution) == []
    assert 0 < (solution.chosen >= 0).sum() < 900
    saturated = int((solution.prices * (1 - copies.background) > 1e-6 * solution.certificate.bound).sum())
    assert solution.certificate.gap <= saturated * copies.value.max()


@pytest.mark.parametrize(("room", "served"), [(0.5, 500), (0.99, 990)])
def test_tasks_of_one_kind_that_need_either_of_two_resources_fill_both(room: float, served: int):
    """At the right prices all are in doubt between the two, and a descent by slopes alone stops at the kink."""
    work = 2.0 / (1000 * room)
    points = [{"id": r, "value": 1.0, "phases": [{"slack_s": 1.0, "work_s": {r: work}}]} for r in "ab"]
    tasks = [{"id": f"t{i:04d}", "points": points} for i in range(1000)]
    problem = problem_from_data({"resources": [{"id": r} for r in "ab"], "tasks": tasks})
    solution = sharded.solve(problem)
    assert check.verify(problem, solution) == []
    assert solution.certificate.bound == pytest.approx(served, rel=1e-4)
    assert solution.certificate.value == served


def test_tasks_of_one_kind_that_may_split_their_work_anywhere_are_as_many_as_the_bound_says():
    phases = [[{"slack_s": 1.0, "work_s": {"a": (1 + k) / 8e3, "b": (33 - k) / 8e3}}] for k in range(33)]
    points = [{"id": f"k{k}", "value": 1.0, "phases": phase} for k, phase in enumerate(phases)]
    tasks = [{"id": f"t{i:04d}", "points": points} for i in range(1000)]
    problem = problem_from_data({"resources": [{"id": r} for r in "ab"], "tasks": tasks})
    solution = sharded.solve(problem)
    assert check.verify(problem, solution) == []
    assert solution.certificate.bound == pytest.approx(price.solve(problem).certificate.bound, rel=1e-4)
    assert solution.certificate.gap < 1.0  # less than one task


def test_few_evaluations_still_give_a_plan_and_an_honest_bound():
    problem = case(3)
    full, short = sharded.solve(problem), sharded.solve(problem, options={"evaluations": 1})
    assert check.verify(problem, short) == []
    assert short.evaluations <= 2
    assert short.certificate.bound >= full.certificate.value


def test_cutting_and_joining_are_inverse():
    problem = case(2, n_tasks=23, coupled=True)
    problem = dataclasses.replace(problem, held=np.where(np.arange(23) % 3 == 0, problem.first[:-1] + 2, -1))
    again = join(split(problem, 5))
    assert again.task_ids == tuple(problem.task_ids[i] for i in by_id(problem))
    assert all(
        np.array_equal(getattr(again, f.name), getattr(problem, f.name), equal_nan=f.name == "channel")
        for f in dataclasses.fields(Problem)
    )


def blocks_of_half(half: int) -> list[Problem]:
    """Built where the shard lives."""
    blocks = split(case(0, coupled=True, soft=True), SIZE)
    return blocks[: len(blocks) // 2] if half == 0 else blocks[len(blocks) // 2 :]


@pytest.fixture(scope="module")
def ray_shards() -> Iterator[RayShards]:
    sizes = [sum(b.n_tasks for b in blocks_of_half(half)) for half in (0, 1)]
    with ExitStack() as stack:
        try:
            stack.enter_context(local_ray(2))
        except (RuntimeError, ConnectionError, OSError) as error:
            pytest.skip(f"no local Ray starts here: {error}")
        pool = RayShards([partial(blocks_of_half, half) for half in (0, 1)], sizes)
        yield pool
        pool.close()


@pytest.mark.slow
def test_ray_workers_give_the_plan_of_one_process(ray_shards: RayShards):
    problem = case(0, coupled=True, soft=True)
    here = plan(OneProcess(split(problem, SIZE)))
    there = plan(ray_shards)
    assert same(there, here)
    assert same(plan(ray_shards), here)  # nothing is left of the plan before
    assert same(plan(ray_shards, warm=here.price), plan(OneProcess(split(problem, SIZE)), warm=here.price))
    assert check.verify(problem, solution_of(problem, there)) == []


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_that_says_so(ray_shards: RayShards):
    """Last of this module: the pool is broken after it."""
    os.kill(ray_shards.processes()[0], signal.SIGKILL)
    with pytest.raises(ShardLost, match="make the pool anew"):
        list(map(ray_shards.ask, ["outline"] * 50))  # the death may be noticed a few calls later
