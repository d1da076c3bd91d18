"""The price solver over blocks of tasks, each on whatever machine (docs/model.md, section 2).

With prices, tasks separate: what is broadcast are R prices, what comes back are R usages. A plan takes some rounds of
the dual (`respond`), one that settles every task whose admission is clear at the prices, and one that gathers the few
that are not: these are planned together in the room that the others leave. Sums run over blocks of a fixed size in
the order of task ids, so the plan does not depend on how many shards the blocks lie on.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from solvers import price as price_solver
from solvers._descent import Dual, Minimum, minimise
from solvers._shard import respond
from solvers.blocks import by_id, join, split, take, use_of
from solvers.price import Tables
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Certificate, Solution, Status

BLOCK: Final = 512  # tasks: few enough for many shards, enough that a block's work hides its overhead
SAMPLE: Final = 500  # tasks, evenly spaced, whose prices a cold start begins with
OPEN: Final = 200  # tasks left open at least
OPEN_PART: Final = 0.02  # ... and this part of all
EVALUATIONS: Final = 40
TOLERANCE: Final = 1e-4  # of the bound: less is not worth another round


class Pool(Protocol):
    """Shards, wherever they are."""

    def ask(self, method: str, *arguments: object) -> list[Any]:
        """Call a method of every Shard with the same arguments; answers in the order of the shards."""
        ...


class Settled(NamedTuple):
    """What a shard's tasks take at given prices, those left open excepted."""

    point: Ints  # (n,) number of the point within its task, -1: not admitted, or open
    share: Floats  # (n, S)
    taken: Floats  # (blocks, 1 + R) value and use


class Plan(NamedTuple):
    """A plan by rank: tasks in the order of their ids."""

    point: Ints  # (N,) number of the point within its task, -1: not admitted
    share: Floats  # (N, S) as small as the deadlines allow
    price: Floats  # (R,)
    certificate: Certificate
    evaluations: int
    converged: bool


class Shard:
    """Blocks of tasks with their tables made ready; `start` is the rank of its first task."""

    def __init__(self, start: int, blocks: Sequence[Problem]) -> None:
        self.start = start
        self.blocks = tuple(blocks)
        self.tables = [Tables(block).table for block in blocks]
        self.bounds = list(itertools.pairwise(itertools.accumulate((b.n_tasks for b in blocks), initial=0)))

    def outline(self) -> tuple[int, Floats]:
        """Return the number of tasks, and the room (R,) that the background leaves."""
        return self.bounds[-1][1], np.maximum(0.0, 1.0 - self.blocks[0].background)

    def respond(self, price: Floats) -> Floats:
        """(blocks, 1 + R) sum of the tasks' net values at prices (R,), and their use."""
        sums = []
        for b, block in enumerate(self.blocks):
            pick, _, total, share = self._answer(b, price)
            served = np.flatnonzero(pick >= 0)
            sums.append([total, *use_of(block, pick[served], share[served])])
        return np.array(sums)

    def nets(self, price: Floats) -> Floats:
        """(n,) what each task's best point gains at prices (R,), below 0 too."""
        return np.concatenate([self._answer(b, price)[1] for b in range(len(self.blocks))])

    def settle(self, price: Floats, left_open: Ints) -> Settled:
        """Serve every task that gains at prices (R,) but those with ranks left_open (K,), sorted."""
        points, shares, taken = [], [], []
        for b, block in enumerate(self.blocks):
            pick, _, _, share = self._answer(b, price)
            pick[self._mine(left_open, b)] = -1
            served = np.flatnonzero(pick >= 0)
            share[pick < 0] = 0.0
            value = block.value[pick[served]].sum()
            taken.append([value, *use_of(block, pick[served], share[served])])
            points.append(np.where(pick >= 0, pick - block.first[:-1], -1))
            shares.append(share)
        return Settled(np.concatenate(points), np.concatenate(shares), np.array(taken))

    def rows(self, ranks: Ints) -> Problem:
        """Of the tasks with ranks (K,), sorted, those that lie here, as a problem of their own."""
        return join([take(block, self._mine(ranks, b)) for b, block in enumerate(self.blocks)])

    def _mine(self, ranks: Ints, b: int) -> Ints:
        """Places within block b of those of the ranks that lie in it."""
        low, high = self.bounds[b]
        here = ranks[(ranks >= self.start + low) & (ranks < self.start + high)]
        return np.asarray(here - (self.start + low), dtype=np.int64)

    def _answer(self, b: int, price: Floats) -> tuple[Ints, Floats, float, Floats]:
        """Picks (n,), nets (n,), the sum of what is gained, and shares (n, S) of block b."""
        block = self.blocks[b]
        pick, net = np.empty(block.n_tasks, dtype=np.int64), np.empty(block.n_tasks)
        share = np.empty((block.n_tasks, block.slot.shape[1]))
        total = respond(self.tables[b], price, pick, net, share)
        return pick, net, total, share


class OneProcess:
    """The pool of one shard, in this process."""

    def __init__(self, blocks: Sequence[Problem]) -> None:
        self.shard = Shard(0, blocks)

    def ask(self, method: str, *arguments: object) -> list[Any]:
        """Call a method of the shard."""
        return [getattr(self.shard, method)(*arguments)]


def solve(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """Plan all blocks in this process. `warm`: (R,) prices of an earlier, similar problem.

    Options: `evaluations` of the dual (40), `tolerance` relative to the bound (1e-4). Shares are as small as the
    deadlines allow, in proportion to need. Status.LIMIT: the evaluations were used up; plan and certificate hold.
    """
    return solution_of(problem, plan(OneProcess(split(problem, BLOCK)), warm=warm, options=options))


def plan(pool: Pool, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Plan:
    """Plan the tasks of all shards; see solve. The same blocks give the same plan on any number of shards."""
    options = options or {}
    sizes, rooms = zip(*pool.ask("outline"), strict=True)
    n_tasks, room = sum(sizes), rooms[0]
    start = _starting_prices(pool, n_tasks, room) if warm is None else warm
    found, evaluations, converged = _descend(pool, start, room, options)
    settled, left_open = _settle(pool, found.price, room, n_tasks)
    rest = join(pool.ask("rows", left_open))
    rest = dataclasses.replace(rest, background=1.0 - np.maximum(0.0, room - settled.taken[1:]))
    last = price_solver.solve(rest, warm=found.price, options={"second_stage": 0.0})
    settled.point[left_open] = np.where(last.chosen >= 0, last.chosen - rest.first[:-1], -1)
    settled.share[left_open] = last.share
    value = float(settled.taken[0]) + last.certificate.value
    certificate = Certificate(value, max(found.bound, value))
    return Plan(settled.point, settled.share, found.price, certificate, evaluations, converged)


def solution_of(problem: Problem, planned: Plan) -> Solution:
    """A plan by rank as a solution of the problem that its blocks were cut from."""
    ranked = by_id(problem)
    chosen, share = np.full(problem.n_tasks, -1, dtype=np.int64), np.zeros_like(planned.share)
    chosen[ranked] = np.where(planned.point >= 0, problem.first[ranked] + planned.point, -1)
    share[ranked] = planned.share
    return Solution(
        status=Status.OK if planned.converged else Status.LIMIT,
        solver="sharded",
        chosen=chosen,
        share=share,
        promised=chosen >= 0,
        prices=planned.price,
        certificate=planned.certificate,
        evaluations=planned.evaluations,
    )


def _settle(pool: Pool, price: Floats, room: Floats, n_tasks: int) -> tuple[Settled, Ints]:
    """Settle the tasks whose admission is clear, as few others left open (K,) as let the settled fit."""
    doubt = np.abs(np.concatenate(pool.ask("nets", price)))
    unclear = np.argsort(doubt, kind="stable")
    many = max(OPEN, int(OPEN_PART * n_tasks))
    while True:
        left_open = np.sort(unclear[:many])
        parts = pool.ask("settle", price, left_open)
        point, share, taken = (np.concatenate(column) for column in zip(*parts, strict=True))
        settled = Settled(point, share, taken.sum(axis=0))
        if many >= n_tasks or (settled.taken[1:] <= room).all():
            return settled, left_open
        many *= 2


def _starting_prices(pool: Pool, n_tasks: int, room: Floats) -> Floats:
    """Prices (R,) of a sample of the tasks with its part of the room."""
    stride = max(1, n_tasks // SAMPLE)
    ranks = np.arange(0, n_tasks, stride)
    sample = join(pool.ask("rows", ranks))
    part = len(ranks) / n_tasks if n_tasks else 1.0
    return price_solver.dual_bound(dataclasses.replace(sample, background=1.0 - room * part))[1]


def _descend(pool: Pool, start: Floats, room: Floats, options: Mapping[str, float]) -> Minimum:
    def evaluate(price: Floats) -> Dual:
        total = np.concatenate(pool.ask("respond", price)).sum(axis=0)  # (1 + R,)
        return Dual(price, float(total[0] + (price * room).sum()), total[1:])

    most = int(options.get("evaluations", EVALUATIONS))
    return minimise(evaluate, start, room, most, options.get("tolerance", TOLERANCE))
