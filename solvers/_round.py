"""Whole PRBs: shares of some resources made multiples of 1 / grid without losing deadlines (docs/model.md, section 5).

A task's *need* is what its other shares must be, all stretched or shrunk by one factor, so that its deadlines hold with
the PRBs that it has; with one other resource that is the exact least. PRBs start next to the wish (with few tasks below
it), then move (solvers/_market.py) until all needs fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from solvers._jit import cached, lean, nopython, source_digest
from solvers._market import few, hand_out, new_book, relieve
from solvers._prbs import SLIP, Plan, Served, Site, add, room_for, start
from solvers.problem import PHASES, Floats, Ints

Bools = npt.NDArray[np.bool_]


class Given(NamedTuple):
    """The points of the K admitted tasks, in the order of their ids, and the plan to be rounded. Used up."""

    task: Ints  # (K,) row of the plan
    slot: Ints  # (K, S)
    work: Floats  # (K, Q, S)
    slack: Floats  # (K, Q)
    floor: Floats  # (K, S)
    cap: Floats  # (K, S)
    activity: Floats  # (K, S)
    rigid: Floats  # (K, S)
    value: Floats  # (K,)
    share: Floats  # (K, S)
    promised: Bools  # (K,)


class Whole(NamedTuple):
    """The plan with whole PRBs, by task of the problem."""

    share: Floats  # (N, S)
    prbs: Ints  # (N, S)
    promised: Bools  # (N,)
    value: float  # of the promised


@lean
def _weigh(given: Given, t: Served, site: Site) -> None:
    """What the work takes of the slack: with one PRB on a grid, with the shares held now elsewhere."""
    for k in range(t.slot.shape[0]):
        t.limit[k] = np.inf
        slack = (given.slack[k, 0], given.slack[k, 1])
        t.rest[k, 0] = t.rest[k, 1] = 0.0  # the slack's memory
        for s in range(t.slot.shape[1]):
            r, wish = t.slot[k, s], t.wish[k, s]
            site.room[r] -= given.rigid[k, s]
            t.pull[k, s] = 0.0  # the rigid demand's
            for q in range(PHASES):
                if t.wait[k, q, s] > 0.0 and site.grid[r] > 0:
                    t.wait[k, q, s] *= site.grid[r] / slack[q]
                elif t.wait[k, q, s] > 0.0:
                    t.rest[k, q] += t.wait[k, q, s] / (slack[q] * wish) if wish > 0.0 else np.inf
                    t.wait[k, q, s], t.pull[k, s] = 0.0, wish
            if t.pull[k, s] > 0.0:
                t.limit[k] = min(t.limit[k], t.cap[k, s] * (1.0 + SLIP) / t.pull[k, s])
            if site.grid[r] == 0 and t.floor[k, s] > t.cap[k, s] * (1.0 + SLIP):
                t.limit[k] = -1.0


@lean
def _parts(t: Served, site: Site, plan: Plan, part: Floats) -> None:
    """Of each resource without a grid: part of the way from need to wish (R + 1,) that there is room for."""
    part[:] = 0.0
    for k in range(t.slot.shape[0]):
        for s in range(t.slot.shape[1]):
            part[t.slot[k, s]] += t.activity[k, s] * max(0.0, t.wish[k, s] - plan.share[k, s])
    for r in range(part.shape[0]):
        asked, left = part[r], max(0.0, room_for(site, plan.use, r))
        part[r] = 0.0 if site.grid[r] > 0 else min(1.0, left / asked) if asked > 0.0 else 1.0
        add(site, plan.use, r, part[r] * asked)


@nopython
def _written(t: Served, plan: Plan, part: Floats, n_tasks: int, value: float) -> Whole:
    """By task of the problem, other shares raised by their parts; `value`: 0."""
    shape = (n_tasks, t.slot.shape[1])
    share, prbs, promised = np.zeros(shape), np.zeros(shape, dtype=np.int64), np.zeros(n_tasks, dtype=np.bool_)
    for k in range(t.task.shape[0]):
        i = t.task[k]
        promised[i] = plan.promised[k] > 0
        value += t.value[k] if plan.promised[k] > 0 else 0.0
        for s in range(t.slot.shape[1]):
            more = part[t.slot[k, s]] * max(0.0, t.wish[k, s] - plan.share[k, s])
            share[i, s], prbs[i, s] = plan.share[k, s] + more, plan.prbs[k, s]
    return Whole(share, prbs, promised, value)


def _make(digest: int) -> Callable[[Given, Site, int], Whole]:
    """Return the compiled function; `digest` is part of its key in the cache."""

    @cached
    def round_shares(given: Given, site: Site, n_tasks: int) -> Whole:
        """Decide PRBs, other shares and promises. What is given and site.room are used up."""
        g, shape, n = given, given.slot.shape, site.room.shape[0]
        t = Served(
            g.task, g.slot, g.work, g.slack, np.empty(shape[0]), g.share, g.rigid, g.floor, g.cap, g.activity, g.value
        )
        _weigh(given, t, site)
        prbs, moves = np.zeros(shape, dtype=np.int64), np.zeros(shape[0], dtype=np.int64)
        promised = given.promised.astype(np.int64)
        plan = Plan(prbs, np.zeros(shape), promised, np.zeros(n), moves, np.zeros(shape[1]), np.zeros(n))
        start(t, site, plan, 0.0 if few(t) else 0.5)
        book = new_book(t, site, plan)
        relieve(t, site, plan, book)
        for r in range(n - 1):
            if site.grid[r] > 0:
                hand_out(t, site, plan, r, book)
        _parts(t, site, plan, plan.then)
        return _written(t, plan, plan.then, n_tasks, digest * 0.0)

    return round_shares


round_shares = _make(source_digest("_jit", "_prbs", "_market", "_round"))
