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
from solvers._dual import ARMIJO, FAINT, FINE, KEPT, LONGEST, MISMATCH, MISMATCH_TASKS, NEAR, SHORTEST, Bundle, Dual
from solvers._kernel import Table
from solvers._oracle import Look
from solvers._shard import advance, respond
from solvers.blocks import by_id, join, split, take, use_of
from solvers.price import Tables
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Certificate, Solution, Status

BLOCK: Final = 512  # tasks: few enough for many shards, enough that a block's work hides its overhead
SAMPLE: Final = 500  # tasks, evenly spaced, whose prices a cold start begins with
OPEN: Final = 200  # tasks left open at least
OPEN_PART: Final = 0.02  # ... and this part of all
TIED: Final = 1e-3  # of the mean value: whoever gains or lacks less is left open, too
NOTHING: Final = 1e-9  # worth of all room at prices that stand for 0
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
        self.tables = [Tables(block) for block in blocks]
        self.bounds = list(itertools.pairwise(itertools.accumulate((b.n_tasks for b in blocks), initial=0)))

    def outline(self) -> tuple[int, Problem, Floats]:
        """Return the number of tasks, the resources as a problem without tasks, and the blocks' values at no prices."""
        none = np.zeros(0, dtype=np.int64)
        return self.bounds[-1][1], take(self.blocks[0], none), np.array([t.table.most.sum() for t in self.tables])

    def respond(self, price: Floats) -> Floats:
        """(blocks, 1 + R + R R) what tasks gain at prices (R,), their use, and the dual's second derivative in logs."""
        sums = []
        for tables in self.tables:
            look, total = self._look(tables, price)
            sums.append([total, *look.use[:-1], *look.bend.ravel()])
        return np.array(sums)

    @staticmethod
    def _look(tables: Tables, price: Floats) -> tuple[Look, float]:
        """What is seen of a block at prices (R,), and the sum of what its tasks gain."""
        return respond(tables.table, tables.screen, price, np.zeros((0, tables.table.slot.shape[1])))

    def doubts(self, price: Floats) -> Floats:
        """(n,) by how much each task's best point is better at prices (R,) than none, or worse."""
        looks = [self._look(tables, price)[0] for tables in self.tables]
        return np.concatenate([np.where(look.pick >= 0, look.net, np.maximum(0.0, -look.gain)) for look in looks])

    def settle(self, price: Floats, left_open: Ints) -> Settled:
        """Serve every task that gains at prices (R,) but those with ranks left_open (K,), sorted."""
        points, shares, taken = [], [], []
        for b, block in enumerate(self.blocks):
            share = np.zeros((block.n_tasks, block.slot.shape[1]))
            pick = respond(self.tables[b].table, self.tables[b].screen, price, share)[0].pick
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
    sizes, sites, ceilings = zip(*pool.ask("outline"), strict=True)
    n_tasks, empty, ceiling = sum(sizes), Tables(sites[0]).table, float(np.concatenate(ceilings).sum())
    room = empty.room[:-1]
    start = _starting_prices(pool, n_tasks, room) if warm is None else warm
    found = _descend(pool, empty, start, ceiling, n_tasks, options)
    settled, left_open = _settle(pool, found.price, room, ceiling)
    rest = join(pool.ask("rows", left_open))
    rest = dataclasses.replace(rest, background=1.0 - np.maximum(0.0, room - settled.taken[1:]))
    last = price_solver.solve(rest, warm=found.price, options={"second_stage": 0.0})
    settled.point[left_open] = np.where(last.chosen >= 0, last.chosen - rest.first[:-1], -1)
    settled.share[left_open] = last.share
    value = float(settled.taken[0]) + last.certificate.value
    certificate = Certificate(value, max(min(found.bound, ceiling), value))
    price = found.price if found.bound < ceiling else _faint(found.price, room)
    return Plan(settled.point, settled.share, price, certificate, found.evaluations, found.converged)


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


def _faint(price: Floats, room: Floats) -> Floats:
    """Prices (R,) so small that the bound is that of prices 0, their ratios kept."""
    return np.asarray(price * (NOTHING / max(float((price * room).sum()), NOTHING)), dtype=np.float64)


def _settle(pool: Pool, price: Floats, room: Floats, ceiling: float) -> tuple[Settled, Ints]:
    """Settle the tasks whose admission is clear, as few others left open (K,) as let the settled fit."""
    doubt = np.concatenate(pool.ask("doubts", price))
    unclear = np.argsort(doubt, kind="stable")
    n_tasks = len(doubt)
    many = max(OPEN, int(OPEN_PART * n_tasks), int((doubt * n_tasks <= TIED * ceiling).sum()))
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


def _descend(
    pool: Pool, empty: Table, start: Floats, ceiling: float, n_tasks: int, options: Mapping[str, float]
) -> Dual:
    """Minimise the dual as solvers/_dual.py does, each look a round through the pool; `empty`: a table of no tasks.

    Stops as it does, and where all that is chosen fits and the room that it leaves is worth less than the tolerance.
    """
    room, (most, tolerance) = empty.room[:-1], _limits(options)
    least = np.divide(FAINT * ceiling, room, out=np.zeros_like(room), where=room > 0)  # so that logarithms exist
    seen = best = _look_at(pool, np.where(room > 0, np.maximum(start, least), 0.0), room, 1)
    loose, longest, bundle = MISMATCH + MISMATCH_TASKS / max(1, n_tasks), LONGEST, _new_bundle(len(room))
    while True:
        move = advance(empty, bundle, seen, best, longest)
        idle, worth = best.price * (room - best.look.use[:-1]), float((best.price * room).sum())
        enough = tolerance * min(best.bound, 10.0 * abs(ceiling - best.bound) + NEAR * best.bound)
        matched = move.mismatch <= loose * worth or -move.descent <= FINE * enough
        fits = (idle >= 0).all() and idle.sum() <= tolerance * best.bound
        converged = bool(fits or (matched and -move.descent <= enough))
        if converged or seen.evaluations >= most:
            return best._replace(evaluations=seen.evaluations, converged=converged)
        seen = _look_at(pool, move.price, room, seen.evaluations + 1)
        if seen.bound > best.bound + ARMIJO * move.part * move.descent:
            longest = max(SHORTEST, 0.5 * min(longest, move.length))
        else:
            longest, best = min(LONGEST, 2.0 * longest), seen


def _look_at(pool: Pool, price: Floats, room: Floats, used: int) -> Dual:
    """The dual at prices (R,), with use and second derivative, tasks left out; `used`: the number of this look."""
    total, n = np.concatenate(pool.ask("respond", price)).sum(axis=0), len(room)  # (1 + R + R R,)
    none, nothing = np.zeros(0, dtype=np.int64), np.zeros(0)
    use, bend = np.append(total[1 : n + 1], 0.0), total[n + 1 :].reshape(n, n)
    look = Look(none.reshape(0, 2), none, nothing, none, nothing, nothing, use, bend)
    return Dual(float(total[0] + (price * room).sum()), price, look, used, converged=False)


def _new_bundle(n: int) -> Bundle:
    """Nothing kept, for n resources and no tasks."""
    many = n + KEPT
    return Bundle(np.zeros((many, n)), np.zeros(many), np.full(many, -1.0), np.zeros((many, 0), dtype=np.int64))


def _limits(options: Mapping[str, float]) -> tuple[int, float]:
    return int(options.get("evaluations", EVALUATIONS)), float(options.get("tolerance", TOLERANCE))
