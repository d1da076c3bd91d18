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
    elsewhere,
    exchange,
    least_prbs,
    most_prbs,
    overload,
    release,
    room_for,
    shed,
    stretch,
)
from solvers.problem import Floats, Ints

LIGHT: Final = 1e-9  # activity below which a PRB weighs as if it were this
FEW: Final = 400  # tasks up to which single moves are tried, too
HALVINGS: Final = 40  # of a market's price, and of what a promise is worth
AROUND: Final = 0.05  # part by which a price moves from one market to the next, mostly
CLOSE: Final = 1e-7  # part of a price that it is known to
STEEP: Final = 3.5  # how weights answer to load: 1 % too much is 3.5 % more
LONGEST: Final = 2.0  # no logarithm of a weight moves by more at once
SETTLED: Final = 0.7  # part of an overload that a round of markets must take away, or promises go
PART: Final = 0.7  # of what is too much, that promises are taken for at once: the markets then find some room again


class Book(NamedTuple):
    """Who has a slot with a grid, by resource and task (E entries), and what single PRBs are worth, per use of it."""

    start: Ints  # (R + 2,) first entry of each resource
    task: Ints  # (E,)
    slot: Ints  # (E,)
    where: Ints  # (S, E) resource of each slot of the task
    unit: Floats  # (E,) use of a PRB
    seen: Ints  # (E,) moves of the task when `saves` was found
    bar: Floats  # (2, E) 0; -inf: no PRB more would do, inf: ... no PRB less
    saves: Floats  # (2, S, E) use of each of its slots that one PRB more saves, one less
    more: Floats  # (E,) weighted use that one PRB more saves
    less: Floats  # (E,) ... that one less costs
    log: Ints  # (2 E,) moves of a round: entry, or its complement where it is one PRB less
    key: Floats  # (2 E + K,) scratch
    amount: Floats  # (2 E + K,) scratch


@inlined
def _look(t: Served, site: Site, plan: Plan, e: int, book: Book) -> None:
    """Look at one PRB more and one less of entry e."""
    k, s = book.task[e], book.slot[e]
    here, unit, low, high = plan.prbs[k, s], book.unit[e], math.inf, math.inf
    if here < most_prbs(t, site, k, s):
        high = stretch(t, plan, k, s, 1)
    if here > least_prbs(t, site, plan, k, s):
        low = stretch(t, plan, k, s, -1)
    book.seen[e] = plan.moves[k]
    book.bar[0, e], book.bar[1, e] = 0.0 if high < math.inf else -math.inf, 0.0 if low < math.inf else math.inf
    for z in range(t.slot.shape[1]):
        g, share, use = site.grid[t.slot[k, z]], plan.share[k, z], t.activity[k, z] / unit
        one = use / g if z == s else 0.0
        book.saves[0, z, e], book.saves[1, z, e] = -one, one
        if g == 0:
            book.saves[0, z, e] = use * (share - elsewhere(t, plan, k, z, high)) if high < math.inf else 0.0
            book.saves[1, z, e] = use * (share - elsewhere(t, plan, k, z, low)) if low < math.inf else 0.0


@nopython
def new_book(t: Served, site: Site, plan: Plan) -> Book:
    """Entries of each resource with a grid, in the order of the tasks."""
    n_tasks, n_slots = t.slot.shape
    start = np.zeros(site.grid.shape[0] + 1, dtype=np.int64)
    for k in range(n_tasks):
        for s in range(n_slots):
            start[t.slot[k, s] + 1] += 1 if site.grid[t.slot[k, s]] > 0 else 0
    start = np.cumsum(start)
    size = start[-1]
    book = Book(
        start,
        np.empty(size, dtype=np.int64),
        np.empty(size, dtype=np.int64),
        np.empty((n_slots, size), dtype=np.int64),
        np.empty(size),
        np.empty(size, dtype=np.int64),
        np.empty((2, size)),
        np.empty((2, n_slots, size)),
        np.empty(size),
        np.empty(size),
        np.empty(2 * size, dtype=np.int64),
        np.empty(2 * size + n_tasks),
        np.empty(2 * size + n_tasks),
    )
    _enter(t, site, plan, start.copy(), book)
    return book


@lean
def _enter(t: Served, site: Site, plan: Plan, place: Ints, book: Book) -> None:
    """Fill in the entries, each where `place` says, and look at them."""
    for k in range(t.slot.shape[0]):
        for s in range(t.slot.shape[1]):
            r = t.slot[k, s]
            if site.grid[r] > 0:
                e = place[r]
                place[r] += 1
                book.task[e], book.slot[e], book.unit[e] = k, s, max(t.activity[k, s], LIGHT) / site.grid[r]
                for z in range(t.slot.shape[1]):
                    book.where[z, e] = t.slot[k, z]
                _look(t, site, plan, e, book)


@lean
def _full_weights(site: Site, weight: Floats, out: Floats) -> None:
    """Weight of each slot's use (R + 1,): that of resources without a grid, couplings counted."""
    for q in range(weight.shape[0]):
        out[q] = weight[q] if site.grid[q] == 0 else 0.0
    for c in range(site.link.shape[0]):
        if site.grid[site.link[c, 1]] == 0:
            out[site.link[c, 0]] += site.kappa[c] * weight[site.link[c, 1]]
    out[weight.shape[0]] = 0.0


@lean
def _offers(t: Served, site: Site, plan: Plan, full: Floats, r: int, book: Book) -> None:
    """What one PRB of r more saves each task and one less costs it, per use of r."""
    first, last = book.start[r], book.start[r + 1]
    for e in range(first, last):
        if book.seen[e] != plan.moves[book.task[e]]:
            _look(t, site, plan, e, book)
        book.more[e], book.less[e] = book.bar[0, e], book.bar[1, e]
    for z in range(t.slot.shape[1]):
        for e in range(first, last):
            w = full[book.where[z, e]]
            book.more[e] += w * book.saves[0, z, e]
            book.less[e] -= w * book.saves[1, z, e]


@lean
def _threshold(key: Floats, amount: Floats, many: int, low: float, high: float, room: float) -> float:
    """Least key above which the amounts come to no more than the room; all keys lie in (low, high]. Uses items up."""
    for _ in range(HALVINGS):
        if many < 2 or high - low <= CLOSE * high:
            break
        middle, above = 0.5 * (low + high), 0.0
        for i in range(many):
            above += amount[i] if key[i] > middle else 0.0
        fits, kept = above <= room, 0
        if fits:
            high, room = middle, room - above
        else:
            low = middle
        for i in range(many):
            key[kept], amount[kept] = key[i], amount[i]
            kept += 1 if (key[i] > middle) != fits else 0
        many = kept
    greatest = low
    for i in range(many):
        greatest = max(greatest, key[i])
    return greatest


@lean
def _between(r: int, low: float, high: float, book: Book) -> tuple[float, float, int]:
    """Use of r that tasks take more, on balance, at prices `high` and `low`; and how many moves (into key, amount)."""
    at_high, between, many = 0.0, 0.0, 0
    for e in range(book.start[r], book.start[r + 1]):
        more, less, unit = book.more[e], book.less[e], book.unit[e]
        at_high += (unit if more > high else 0.0) - (unit if less <= high else 0.0)
        if low < more <= high:
            book.key[many], book.amount[many] = more, unit
            between += unit
            many += 1
        if low < less <= high:
            book.key[many], book.amount[many] = less, unit
            between += unit
            many += 1
    return at_high, at_high + between, many


@lean
def _greatest(r: int, high: float, book: Book) -> float:
    """Greatest price at which a PRB of r moves, or `high`."""
    for e in range(book.start[r], book.start[r + 1]):
        high = max(high, book.more[e], book.less[e] if book.less[e] < math.inf else high)
    return high


@lean
def _clearing(r: int, guess: float, free: float, book: Book) -> float:
    """Least price at which the tasks want no more of r than is free, or give back what is too much."""
    low, high = guess * (1.0 - AROUND), guess * (1.0 + AROUND)
    for _ in range(3):
        at_high, at_low, many = _between(r, low, high, book)
        if at_high > free:
            low, high = high, _greatest(r, high, book)
        elif at_low <= free:
            if low <= 0.0:
                return 0.0
            low, high = 0.0, low
        else:
            return _threshold(book.key, book.amount, many, low, high, free - at_high)
    return high


@lean
def _move(t: Served, site: Site, plan: Plan, e: int, more: int, done: int, book: Book) -> int:
    """One PRB more or less for entry e, where that is still possible; returns the moves so far."""
    if not change(t, site, plan, book.task[e], book.slot[e], more):
        return done
    _look(t, site, plan, e, book)
    book.log[done] = e if more > 0 else ~e
    return done + 1


@lean
def _take(t: Served, site: Site, plan: Plan, r: int, price: float, done: int, book: Book) -> int:
    """Take single PRBs of r from whoever loses less than the price; returns the moves so far."""
    for e in range(book.start[r], book.start[r + 1]):
        if book.less[e] < price:
            done = _move(t, site, plan, e, -1, done, book)
            book.less[e] = math.inf
    for e in range(book.start[r], book.start[r + 1]):  # those who lose just the price come last
        if plan.use[r] <= site.room[r] + SLIP:
            break
        if book.less[e] <= price * (1.0 + EPS):
            done = _move(t, site, plan, e, -1, done, book)
    return done


@lean
def _give(t: Served, site: Site, plan: Plan, r: int, price: float, done: int, book: Book) -> int:
    """Give single PRBs of r to whoever saves more than the price and there is room for; returns the moves so far."""
    tied = 0
    for e in range(book.start[r], book.start[r + 1]):
        if book.more[e] <= price * (1.0 - EPS) or (book.more[e] <= price and book.less[e] < price):
            continue
        if book.more[e] <= price:  # those who save just the price come last
            book.key[tied] = e
            tied += 1
        elif book.unit[e] <= room_for(site, plan.use, r) + SLIP:
            done = _move(t, site, plan, e, 1, done, book)
    for i in range(tied):
        e = int(book.key[i])
        if book.unit[e] <= room_for(site, plan.use, r) + SLIP:
            done = _move(t, site, plan, e, 1, done, book)
    return done


@lean
def _free(site: Site, plan: Plan, r: int) -> float:
    """What is left of r and of what it is coupled to; negative: what of r itself is too much."""
    left = site.room[r] - plan.use[r] + SLIP
    free: float = min(left, max(0.0, room_for(site, plan.use, r) + SLIP))
    return free


@lean
def _markets(t: Served, site: Site, plan: Plan, weight: Floats, book: Book) -> int:
    """Clear every grid once, at weights that thereby become its prices; returns how many PRBs moved."""
    done = 0
    for r in range(weight.shape[0]):
        if site.grid[r] > 0:
            _full_weights(site, weight, plan.then)
            _offers(t, site, plan, plan.then, r, book)
            weight[r] = _clearing(r, weight[r], _free(site, plan, r), book)
            done = _take(t, site, plan, r, weight[r], done, book)
            done = _give(t, site, plan, r, weight[r], done, book)
    return done


@lean
def _reweigh(site: Site, plan: Plan, weight: Floats) -> None:
    """Let weights of resources without a grid follow their load."""
    for r in range(weight.shape[0]):
        if site.grid[r] == 0 and site.room[r] > SLIP:
            step = STEEP * (plan.use[r] / site.room[r] - 1.0)
            weight[r] *= math.exp(min(LONGEST, max(-LONGEST, step)))


@lean
def _short(site: Site, plan: Plan, weight: Floats) -> float:
    """Weighted use beyond the weighted room.

    Where it is positive after markets no exchange mends it: at its price everybody takes what weighs least.
    """
    total = 0.0
    for r in range(weight.shape[0]):
        total += weight[r] * (plan.use[r] - site.room[r] - SLIP)
    return total


@nopython
def _drop_many(t: Served, site: Site, plan: Plan, weight: Floats, short: float, book: Book) -> bool:
    """Take promises of those worth least for what they take: as `short` proves, else of who is on what is overloaded.

    False: of none.
    """
    toll, bill = np.zeros(t.slot.shape[0]), np.zeros(t.slot.shape[0])  # toll: bill per value
    full, excess, most, many, anybody = plan.then, short, 0.0, 0, short > 0.0
    full[weight.shape[0]] = 0.0
    for r in range(weight.shape[0]):
        over = max(0.0, plan.use[r] - site.room[r] - SLIP)
        excess += PART * weight[r] * over if not anybody else 0.0
        full[r] = weight[r] if over > 0.0 else -weight[r]
    for k in range(t.slot.shape[0]):
        relief = anybody
        for s in range(t.slot.shape[1]):
            w = full[t.slot[k, s]]
            bill[k] += abs(w) * t.activity[k, s] * plan.share[k, s]
            relief = relief or w > 0.0
        if plan.promised[k] and relief:
            toll[k] = bill[k] / t.value[k]
            most = max(most, toll[k])
            book.key[many], book.amount[many] = toll[k], bill[k]
            many += 1
    least, dropped = _threshold(book.key, book.amount, many, 0.0, most, excess), False
    for k in range(t.slot.shape[0]):
        if toll[k] > 0.0 and toll[k] >= least and excess > 0.0:
            excess -= bill[k]
            release(t, site, plan, k)
            dropped = True
    return dropped


@lean
def _take_back(t: Served, site: Site, plan: Plan, done: int, book: Book) -> None:
    """Undo the moves of a round; plan.use stays to be put right."""
    for i in range(done - 1, -1, -1):
        e, more = (book.log[i], -1) if book.log[i] >= 0 else (~book.log[i], 1)
        change(t, site, plan, book.task[e], book.slot[e], more)


@lean
def few(t: Served) -> bool:
    """Whether single moves are tried, too: then PRBs start from below."""
    n_tasks: int = t.slot.shape[0]
    return n_tasks <= FEW


@nopython
def _settle(t: Served, site: Site, plan: Plan, weight: Floats, before: float, book: Book) -> float:
    """One round: markets, and where they do not settle it, with few tasks one move, or else promises.

    Returns what is overloaded then, -1 if nothing helps. A round of markets that adds to `before` is taken back.
    """
    use = plan.use.copy()
    done = _markets(t, site, plan, weight, book)
    left, short = overload(site, plan.use, 0.0), _short(site, plan, weight)
    _reweigh(site, plan, weight)
    if left > before:
        _take_back(t, site, plan, done, book)
        plan.use[:] = use
        left = before
    stuck, helped = left > SETTLED * before, True
    if stuck and few(t):
        helped = exchange(t, site, plan) or drop(t, site, plan)
    elif left > 0.0 and not few(t) and (stuck or short > 0.0):
        helped = _drop_many(t, site, plan, weight, max(0.0, short), book)
    return overload(site, plan.use, 0.0) if helped else -1.0


@nopython
def relieve(t: Served, site: Site, plan: Plan, book: Book) -> None:
    """Until all needs fit: markets, single moves, promises. Overload only falls, but for the first round of many."""
    weight, most = np.ones(site.room.shape[0] - 1), site.price.max()
    for r in range(weight.shape[0]):
        if most > 0.0:
            weight[r] = max(site.price[r], FAINT * most)
        if few(t) and site.grid[r] > 0:
            shed(t, site, plan, r)
    left = overload(site, plan.use, 0.0)
    if left > 0.0 and not few(t):
        left = _settle(t, site, plan, weight, math.inf, book)
    while left > 0.0:
        left = _settle(t, site, plan, weight, left, book)


@lean
def hand_out(t: Served, site: Site, plan: Plan, r: int, book: Book) -> None:
    """Give PRBs that are left, one to each task, to the greatest remainders of the wish."""
    greatest, left = 0.0, room_for(site, plan.use, r) + SLIP
    for e in range(book.start[r], book.start[r + 1]):
        k, s, rest = book.task[e], book.slot[e], 0.0
        if book.unit[e] <= left and plan.prbs[k, s] < most_prbs(t, site, k, s):
            rest = t.wish[k, s] * site.grid[r] - plan.prbs[k, s]
        book.more[e], book.less[e] = rest if rest > EPS else 0.0, math.inf
        greatest = max(greatest, book.more[e])
    if greatest > 0.0:
        price = _clearing(r, greatest / (1.0 + AROUND), left, book)
        _give(t, site, plan, r, price, 0, book)
