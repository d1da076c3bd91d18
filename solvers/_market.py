"""Whole PRBs of many tasks at once: each grid is a market, cleared again and again (solvers/_round.py).

At its price single PRBs go to whoever's other shares they lessen by more, from whoever loses less; shares are weighted
by how full their resource is. What stays overloaded then costs promises.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers._jit import inlined, lean, nopython
from solvers._prbs import (
    EPS,
    FAINT,
    SLIP,
    Plan,
    Served,
    Site,
    change,
    drop,
    exchange,
    least_prbs,
    most_prbs,
    need_of,
    overload,
    release,
    room_for,
)
from solvers.problem import Floats, Ints

LIGHT: Final = 1e-9  # activity below which a PRB weighs as if it were this
FEW: Final = 400  # tasks up to which single moves are tried, too
HALVINGS: Final = 40  # of a market's price, and of what a promise is worth
AROUND: Final = 0.05  # part by which a price moves from one market to the next, mostly
CLOSE: Final = 1e-7  # part of a price that it is known to
STEEP: Final = 3.0  # how weights answer to load: 1 % too much is 3 % more
LONGEST: Final = 2.0  # no logarithm of a weight moves by more at once
SETTLED: Final = 0.7  # part of an overload that a round of markets must take away, or promises go
PART: Final = 0.7  # of what is too much, that promises are taken for at once: the markets then find some room again


class Book(NamedTuple):
    """Who has a slot on each resource, and what single PRBs are worth to them, per use of the resource."""

    start: Ints  # (R + 2,) first entry of each resource
    task: Ints  # (K S,)
    slot: Ints  # (K S,)
    unit: Floats  # (K S,) use of a PRB
    seen: Ints  # (K S,) moves of the task when `saves` was found
    saves: Floats  # (K S, 2, S) use of each of its slots that one PRB more saves, one less; -inf: deadlines do not hold
    more: Floats  # (K S,) weighted use that one PRB more saves
    less: Floats  # (K S,) ... that one less costs; inf: its deadlines would not hold


@nopython
def new_book(t: Served, site: Site) -> Book:
    """Entries of each resource (padding included) in the order of the tasks."""
    n_tasks, n_slots = t.slot.shape
    start, size = np.zeros(site.grid.shape[0] + 1, dtype=np.int64), n_tasks * n_slots
    for k in range(n_tasks):
        for s in range(n_slots):
            start[t.slot[k, s] + 1] += 1
    start = np.cumsum(start)
    place, task, slot = start.copy(), np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    unit, seen = np.zeros(size), np.full(size, -1, dtype=np.int64)
    for k in range(n_tasks):
        for s in range(n_slots):
            r = t.slot[k, s]
            task[place[r]], slot[place[r]] = k, s
            unit[place[r]] = max(t.activity[k, s], LIGHT) / max(1, site.grid[r])
            place[r] += 1
    return Book(start, task, slot, unit, seen, np.zeros((size, 2, n_slots)), np.zeros(size), np.zeros(size))


@inlined
def _save(t: Served, site: Site, plan: Plan, e: int, book: Book) -> None:
    """Look at one PRB more and one less of entry e."""
    k, s = book.task[e], book.slot[e]
    book.seen[e] = plan.moves[k]
    for side in range(2):
        more = 1 - 2 * side
        then = plan.prbs[k, s] + more
        can = least_prbs(t, site, plan, k, s) <= then <= most_prbs(t, site, k, s)
        can = can and need_of(t, site, plan, k, s, more, plan.need)
        for z in range(t.slot.shape[1]):
            off = t.activity[k, z] * (plan.share[k, z] - plan.need[z]) / book.unit[e]
            book.saves[e, side, z] = off if can else -math.inf


@lean
def _offers(t: Served, site: Site, plan: Plan, weight: Floats, r: int, book: Book) -> float:
    """What one PRB of r more saves each task and one less costs it, per use of r; returns the greatest saving."""
    greatest, full = 0.0, plan.then
    for q in range(weight.shape[0]):
        full[q] = weight[q] if site.grid[q] == 0 else 0.0
    for c in range(site.link.shape[0]):
        if site.grid[site.link[c, 1]] == 0:
            full[site.link[c, 0]] += site.kappa[c] * weight[site.link[c, 1]]
    full[weight.shape[0]] = 0.0
    for e in range(book.start[r], book.start[r + 1]):
        k = book.task[e]
        if book.seen[e] != plan.moves[k]:
            _save(t, site, plan, e, book)
        more = less = 0.0
        for z in range(t.slot.shape[1]):
            w = full[t.slot[k, z]]
            if w > 0.0:
                more += w * book.saves[e, 0, z]
                less -= w * book.saves[e, 1, z]
        book.more[e], book.less[e] = more, less if book.saves[e, 1, 0] > -math.inf else math.inf
        greatest = max(greatest, more)
    return greatest


@lean
def _taken(r: int, price: float, book: Book) -> float:
    """Use of r that tasks take more, on balance, at a price."""
    net = 0.0
    for e in range(book.start[r], book.start[r + 1]):
        net += (book.unit[e] if book.more[e] > price else 0.0) - (book.unit[e] if book.less[e] < price else 0.0)
    return net


@lean
def _clearing(t: Served, site: Site, plan: Plan, weight: Floats, r: int, book: Book) -> float:
    """Least price found at which the tasks want no more of r than is free."""
    around = (1.0 - AROUND, 1.0 + AROUND)
    low, high, free = 0.0, _offers(t, site, plan, weight, r, book), max(0.0, room_for(site, plan.use, r) + SLIP)
    if _taken(r, low, book) <= free:
        return low
    for step in range(HALVINGS):
        middle = 0.5 * (low + high)
        if step < 2 and low < around[step] * weight[r] < high:
            middle = around[step] * weight[r]
        if high - low <= CLOSE * high:
            break
        if _taken(r, middle, book) <= free:
            high = middle
        else:
            low = middle
    return high


@lean
def _market(t: Served, site: Site, plan: Plan, weight: Floats, r: int, book: Book) -> float:
    """Move single PRBs of r from whoever loses less than the price to whoever saves more; returns the price."""
    price = _clearing(t, site, plan, weight, r, book)
    for e in range(book.start[r], book.start[r + 1]):
        if book.less[e] < price:
            change(t, site, plan, book.task[e], book.slot[e], -1)
    for tied in range(2):  # those who just pay the price come last
        least = price if tied == 0 else price * (1.0 - EPS)
        for e in range(book.start[r], book.start[r + 1]):
            k, s = book.task[e], book.slot[e]
            wants = book.more[e] > least and (book.more[e] > price or book.less[e] >= price)
            if wants and t.activity[k, s] / site.grid[r] <= room_for(site, plan.use, r) + SLIP:
                change(t, site, plan, k, s, 1)
                book.more[e] = 0.0
    return price


@lean
def _reweigh(site: Site, plan: Plan, weight: Floats) -> None:
    """Let weights of resources without a grid follow their load."""
    for r in range(weight.shape[0]):
        if site.grid[r] == 0 and site.room[r] > SLIP:
            step = STEEP * (plan.use[r] / site.room[r] - 1.0)
            weight[r] *= math.exp(min(LONGEST, max(-LONGEST, step)))


@lean
def _enough(rate: Floats, bill: Floats, high: float, excess: float) -> float:
    """Least rate found up to which the bills come to the excess; `high` where all of them do not."""
    low = 0.0
    for _ in range(HALVINGS):
        middle, saved = 0.5 * (low + high), 0.0
        for k in range(rate.shape[0]):
            saved += bill[k] if rate[k] <= middle else 0.0
        if saved >= excess:
            high = middle
        else:
            low = middle
    return high


@nopython
def _drop_many(t: Served, site: Site, plan: Plan, weight: Floats) -> bool:
    """Take the promises of those worth least for what they take, until it is a part of the overload. False: of none."""
    n_tasks, excess, high = t.slot.shape[0], 0.0, 0.0
    rate, bill = np.full(n_tasks, math.inf), np.zeros(n_tasks)
    for r in range(weight.shape[0]):
        excess += PART * weight[r] * max(0.0, plan.use[r] - site.room[r] - SLIP)
    for k in range(n_tasks):
        relief = 0.0
        for s in range(t.slot.shape[1]):
            r = t.slot[k, s]
            if r < weight.shape[0]:
                taken = weight[r] * t.activity[k, s] * plan.share[k, s]
                bill[k] += taken
                relief += taken if room_for(site, plan.use, r) < -SLIP else 0.0
        if plan.promised[k] and relief > 0.0:
            rate[k] = t.value[k] / bill[k]
            high = max(high, rate[k])
    high = _enough(rate, bill, high, excess)
    dropped = False
    for k in range(n_tasks):
        if excess > 0.0 and rate[k] <= high:
            excess -= bill[k]
            release(t, site, plan, k)
            dropped = True
    return dropped


@nopython
def _copy(source: Plan, to: Plan) -> None:
    to.prbs[:] = source.prbs
    to.share[:] = source.share
    to.use[:] = source.use
    for k in range(to.moves.shape[0]):
        to.moves[k] += 1


@nopython
def relieve(t: Served, site: Site, plan: Plan, book: Book) -> None:
    """Until all needs fit: markets; where these do not settle it, with few tasks one move, or else promises.

    Overload only falls: a round of markets that adds to it is taken back.
    """
    weight, before = np.zeros(site.room.shape[0] - 1), overload(site, plan.use, 0.0)
    for r in range(weight.shape[0]):
        weight[r] = max(site.price[r], FAINT * site.price.max()) if site.price.max() > 0.0 else 1.0
    kept = Plan(
        plan.prbs.copy(), plan.share.copy(), plan.promised, plan.use.copy(), plan.moves.copy(), plan.need, plan.then
    )
    while before > 0.0:
        _copy(plan, kept)
        for r in range(weight.shape[0]):
            if site.grid[r] > 0:
                weight[r] = _market(t, site, plan, weight, r, book)
        left = overload(site, plan.use, 0.0)
        _reweigh(site, plan, weight)
        if left > before:
            _copy(kept, plan)
            left = before
        if left > SETTLED * before:
            few = t.slot.shape[0] <= FEW
            helped = exchange(t, site, plan) if few else _drop_many(t, site, plan, weight)
            helped = helped or (few and drop(t, site, plan))
            if not helped:
                break
            left = overload(site, plan.use, 0.0)
        before = left
