"""Whole PRBs: shares of some resources made multiples of 1 / grid without losing deadlines (docs/model.md, section 5).

A task's *need* is what its other shares must be, all stretched or shrunk by one factor, so that its deadlines hold with
the PRBs that it has; with one other resource that is the exact least. PRBs start at the whole part of the wish, then
move (solvers/_market.py) until all needs fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from solvers._jit import cached, lean, nopython, source_digest
from solvers._market import Book, new_book, relieve
from solvers._prbs import EPS, SLIP, Plan, Served, Site, add, change, most_prbs, room_for, shed, start
from solvers.problem import Floats, Ints

Bools = npt.NDArray[np.bool_]


class Given(NamedTuple):
    """A problem's columns, and the plan to be rounded."""

    slot: Ints  # (J, S)
    work: Floats  # (J, Q, S)
    slack: Floats  # (J, Q)
    floor: Floats  # (J, S)
    cap: Floats  # (J, S)
    activity: Floats  # (J, S)
    rigid: Floats  # (J, S)
    value: Floats  # (J,)
    chosen: Ints  # (N,)
    share: Floats  # (N, S)
    promised: Bools  # (N,)


class Whole(NamedTuple):
    """The plan with whole PRBs, by task of the problem."""

    share: Floats  # (N, S)
    prbs: Ints  # (N, S)
    promised: Bools  # (N,)
    value: float  # of the promised


@nopython
def _served(given: Given, site: Site) -> tuple[Served, Ints]:
    """Columns of the admitted tasks, and which of them are promised; their rigid demand leaves site.room."""
    n_slots, many = given.slot.shape[1], 0
    for i in range(given.chosen.shape[0]):
        many += 1 if given.chosen[i] >= 0 else 0
    t = Served(
        np.empty(many, dtype=np.int64),
        np.empty((many, n_slots), dtype=np.int64),
        np.zeros((many, 2, n_slots)),
        np.empty((many, n_slots)),
        np.empty((many, n_slots)),
        np.empty((many, n_slots)),
        np.empty((many, n_slots)),
        np.empty(many),
    )
    promised, k = np.zeros(many, dtype=np.int64), 0
    for i in range(given.chosen.shape[0]):
        j = given.chosen[i]
        if j < 0:
            continue
        t.task[k], t.value[k], promised[k] = i, given.value[j], 1 if given.promised[i] else 0
        for s in range(n_slots):
            t.slot[k, s], t.wish[k, s], t.activity[k, s] = given.slot[j, s], given.share[i, s], given.activity[j, s]
            t.floor[k, s], t.cap[k, s] = given.floor[j, s], given.cap[j, s]
            site.room[given.slot[j, s]] -= given.rigid[j, s]
            for q in range(2):
                if given.work[j, q, s] > 0.0:
                    t.a[k, q, s] = given.work[j, q, s] / given.slack[j, q]
        k += 1
    return t, promised


@nopython
def _hand_out(t: Served, site: Site, plan: Plan, r: int, book: Book) -> None:
    """Give PRBs that are left, one to each task, to the greatest remainders of the wish."""
    low, many = book.start[r], book.start[r + 1] - book.start[r]
    rest = np.zeros(many)
    for e in range(many):
        k, s = book.task[low + e], book.slot[low + e]
        if t.activity[k, s] / site.grid[r] <= room_for(site, plan.use, r) + SLIP:
            rest[e] = min(1.0, most_prbs(t, site, k, s) - plan.prbs[k, s]) * (
                t.wish[k, s] * site.grid[r] - plan.prbs[k, s]
            )
    if many == 0 or rest.max() <= EPS:
        return
    for e in np.argsort(-rest, kind="mergesort"):
        k, s = book.task[low + e], book.slot[low + e]
        if rest[e] <= EPS:
            break
        if t.activity[k, s] / site.grid[r] <= room_for(site, plan.use, r) + SLIP:
            change(t, site, plan, k, s, 1)


@lean
def _top_up(t: Served, site: Site, plan: Plan, r: int, book: Book) -> None:
    """Raise shares of r from the need towards the wish, all by the same part of the way, as far as there is room."""
    asked = 0.0
    for e in range(book.start[r], book.start[r + 1]):
        k, s = book.task[e], book.slot[e]
        asked += t.activity[k, s] * max(0.0, t.wish[k, s] - plan.share[k, s])
    left = room_for(site, plan.use, r)
    part = min(1.0, max(0.0, left) / asked) if asked > 0.0 else 1.0
    for e in range(book.start[r], book.start[r + 1]):
        k, s = book.task[e], book.slot[e]
        if t.wish[k, s] > plan.share[k, s]:
            more = part * (t.wish[k, s] - plan.share[k, s])
            plan.share[k, s] += more
            add(site, plan.use, r, t.activity[k, s] * more)


@nopython
def _written(given: Given, t: Served, plan: Plan, value: float) -> Whole:
    """By task of the problem; `value`: 0."""
    share, prbs = np.zeros(given.share.shape), np.zeros(given.share.shape, dtype=np.int64)
    promised = np.zeros(given.chosen.shape[0], dtype=np.bool_)
    for k in range(t.task.shape[0]):
        promised[t.task[k]] = plan.promised[k] > 0
        value += t.value[k] if plan.promised[k] > 0 else 0.0
        for s in range(t.slot.shape[1]):
            share[t.task[k], s], prbs[t.task[k], s] = plan.share[k, s], plan.prbs[k, s]
    return Whole(share, prbs, promised, value)


def _make(digest: int) -> Callable[[Given, Site], Whole]:
    """Return the compiled function; `digest` is part of its key in the cache."""

    @cached
    def round_shares(given: Given, site: Site) -> Whole:
        """Decide PRBs, other shares and promises. site.room is used up; all else that is given is left as it is."""
        t, promised = _served(given, site)
        shape, n = t.slot.shape, site.room.shape[0]
        prbs, moves = np.zeros(shape, dtype=np.int64), np.zeros(shape[0], dtype=np.int64)
        plan = Plan(prbs, np.zeros(shape), promised, np.zeros(n), moves, np.zeros(shape[1]), np.zeros(n))
        book = new_book(t, site)
        start(t, site, plan)
        for r in range(n - 1):
            if site.grid[r] > 0:
                shed(t, site, plan, r)
        relieve(t, site, plan, book)
        for r in range(n - 1):
            if site.grid[r] > 0:
                _hand_out(t, site, plan, r, book)
        for r in range(n - 1):
            if site.grid[r] == 0:
                _top_up(t, site, plan, r, book)
        return _written(given, t, plan, digest * 0.0)

    return round_shares


round_shares = _make(source_digest("_jit", "_prbs", "_market", "_round"))
