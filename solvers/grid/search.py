"""A plan on the grid from the columns that prices nearly choose: repair, then moves of one task or two (docs/exact.md).

Whole steps leave gaps that no price closes, so the plan is improved by trying; only columns of little regret take part,
and looks are counted. While the search runs, room that is left is credited with a part of its price: a swap that frees
a third of a step is worth something, since two more like it let a task in. The part falls to nothing, and only value
counts at the end.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers.grid.columns import FINE, GridColumns
from solvers.grid.dual import GridEvaluation
from solvers.jit import cached, lean, nopython
from solvers.problem import Floats, Ints
from solvers.tolerances import SAME, UNIT_SLIP

CREDITS: Final = (0.8, 0.4, 0.0)  # parts of the prices, in turn
KEPT: Final = 1_000  # columns that take part, and ...
KEPT_EACH: Final = 2  # ... so many more for each task
BUCKETS: Final = 4_096  # of regrets up to the greatest value, to find which are the least
LOOKS: Final = 100_000  # at tasks and columns, and ...
LOOKS_EACH: Final = 100  # ... so many more for each task
TOO_MUCH: Final = 2.0 * FINE  # units that no resource has: more is not counted, so that sums of whole numbers hold it


class Choices(NamedTuple):
    """K choices of N tasks: each task's first is not to be served, the others are columns."""

    first: Ints  # (N + 1,)
    column: Ints  # (K,) -1: not served
    value: Floats  # (K,)
    bill: Floats  # (K,) what is taken, at the prices
    resource: Ints  # (K, W) taken from, -1: none
    units: Ints  # (K, W) taken, rounded up


class GridPlan(NamedTuple):
    """What is being decided, and by what; written in place."""

    now: Ints  # (N,) choice of each task
    free: Ints  # (R,) units, < 0: too many are taken
    worth: Floats  # (K,) value less the part of the bill that counts
    order: Ints  # (K,) each task's choices, the best first
    user: Ints  # (R, N) tasks that take from each resource, in any order
    users: Ints  # (R,) how many these are
    place: Ints  # (N, W) where a task stands there, for each that its choice takes from
    over: Ints  # (W,) resources of which the change that is looked at takes too much
    looks: Ints  # (1,) that are left


@lean
def _regrets(c: GridColumns, price: Floats, net: Floats, regret: Floats, bill: Floats) -> None:
    """What each column costs at the prices, and what its task loses by it there (C,)."""
    first, start, entry, resource, base, per_x, per_y = c.first, c.start, c.entry, c.resource, c.base, c.per_x, c.per_y
    value, x, y = c.value, c.x, c.y
    for i in range(net.shape[0]):
        for m in range(first[i], first[i + 1]):
            fixed, a, b = 0.0, 0.0, 0.0
            for e in range(entry[m], entry[m + 1]):
                pay = price[resource[e]]
                fixed += pay * base[e]
                a += pay * per_x[e]
                b += pay * per_y[e]
            for k in range(start[m], start[m + 1]):
                bill[k] = fixed + a * x[k] + b * y[k]
                regret[k] = net[i] - value[k] + bill[k]


@lean
def _write(o: Choices, at: int, c: GridColumns, m: int, k: int, bill: float) -> None:
    """Choice `at` is column k of run m."""
    o.column[at], o.value[at], o.bill[at] = k, c.value[k], bill
    for e in range(c.entry[m], c.entry[m + 1]):
        w = e - c.entry[m]
        o.resource[at, w] = c.resource[e]
        units = c.base[e] + c.per_x[e] * c.x[k] + c.per_y[e] * c.y[k] - UNIT_SLIP
        o.units[at, w] = math.ceil(min(units, TOO_MUCH))


@lean
def _limit(regret: Floats, many: int, most: float, count: Ints) -> float:
    """Greatest regret, up to `most`, that about `many` columns do not exceed; count (B,): how many are how far."""
    for k in range(regret.shape[0]):
        b = int(regret[k] / most * count.shape[0])
        if b < count.shape[0]:
            count[max(0, b)] += 1
    part: float = most / count.shape[0]
    left, b = many, 0
    while b < count.shape[0] and count[b] <= left:
        left -= count[b]
        b += 1
    return part * b


@nopython
def _choices(c: GridColumns, price: Floats, net: Floats, many: int, most: float) -> Choices:
    """Choices of all tasks: about `many` columns, those with the least regret."""
    n_tasks, n = net.shape[0], c.x.shape[0]
    regret, bill = np.zeros(n), np.zeros(n)
    _regrets(c, price, net, regret, bill)
    limit = _limit(regret, many, most, np.zeros(BUCKETS, dtype=np.int64)) if most > 0.0 else 0.0
    width, size, at = 1, n_tasks, 0
    for m in range(c.entry.shape[0] - 1):
        width = max(width, c.entry[m + 1] - c.entry[m])
    for k in range(n):
        if regret[k] <= limit:
            size += 1
    first, column = np.zeros(n_tasks + 1, dtype=np.int64), np.zeros(size, dtype=np.int64) - 1
    resource, units = np.zeros((size, width), dtype=np.int64) - 1, np.zeros((size, width), dtype=np.int64)
    o = Choices(first, column, np.zeros(size), np.zeros(size), resource, units)
    for i in range(n_tasks):
        at += 1
        for m in range(c.first[i], c.first[i + 1]):
            for k in range(c.start[m], c.start[m + 1]):
                if regret[k] <= limit:
                    _write(o, at, c, m, k, bill[k])
                    at += 1
        first[i + 1] = at
    return o


@lean
def _shift(resource: Ints, units: Ints, free: Ints, k: int, sign: int) -> None:
    """Give back (1) or take (-1) what choice k takes."""
    for w in range(resource.shape[1]):
        if resource[k, w] >= 0:
            free[resource[k, w]] += sign * units[k, w]


@lean
def _fits(resource: Ints, units: Ints, free: Ints, k: int) -> bool:
    fits = True
    for w in range(resource.shape[1]):
        fits = fits and (resource[k, w] < 0 or units[k, w] <= free[resource[k, w]])
    return fits


@lean
def _taken(resource: Ints, units: Ints, k: int, r: int) -> int:
    """Units of resource r that choice k takes."""
    taken = 0
    for w in range(resource.shape[1]):
        if resource[k, w] == r:
            taken += units[k, w]
    return taken


@lean
def _overload(free: Ints, price: Floats) -> float:
    """What all units taken too many cost."""
    total = 0.0
    for r in range(free.shape[0]):
        if free[r] < 0:
            total -= price[r] * free[r]
    return total


@lean
def _leave(o: Choices, p: GridPlan, i: int) -> None:
    """Task i is no user of the resources of its choice any more: the last user there takes its place."""
    for w in range(o.resource.shape[1]):
        r = o.resource[p.now[i], w]
        if r >= 0:
            p.users[r] -= 1
            last, at = p.user[r, p.users[r]], p.place[i, w]
            p.user[r, at] = last
            for v in range(o.resource.shape[1]):
                if o.resource[p.now[last], v] == r:
                    p.place[last, v] = at


@lean
def _put(o: Choices, p: GridPlan, i: int, k: int) -> None:
    """Task i takes choice k."""
    _leave(o, p, i)
    _shift(o.resource, o.units, p.free, p.now[i], 1)
    _shift(o.resource, o.units, p.free, k, -1)
    p.now[i] = k
    for w in range(o.resource.shape[1]):
        r = o.resource[k, w]
        if r >= 0:
            p.user[r, p.users[r]], p.place[i, w] = i, p.users[r]
            p.users[r] += 1


@lean
def _relief(o: Choices, p: GridPlan, price: Floats, i: int, over: float) -> tuple[float, int]:
    """Change of task i that loses least for what it takes off the overload: (loss per relief, choice), -1: none."""
    first, resource, units, free, worth = o.first, o.resource, o.units, p.free, p.worth
    least, best, now = math.inf, -1, p.now[i]
    _shift(resource, units, free, now, 1)
    for k in range(first[i], first[i + 1]):
        _shift(resource, units, free, k, -1)
        rest = _overload(free, price)
        _shift(resource, units, free, k, 1)
        if rest < over and worth[now] - worth[k] < least * (over - rest):
            least, best = (worth[now] - worth[k]) / (over - rest), k
    _shift(resource, units, free, now, -1)
    return least, best


@lean
def _repair(o: Choices, p: GridPlan, price: Floats) -> None:
    """Change one task after the other until all fits: it does when nobody is served any more."""
    over = _overload(p.free, price)
    while over > 0.0:
        least, task, choice = math.inf, -1, -1
        for i in range(p.now.shape[0]):
            helps = False
            for w in range(o.resource.shape[1]):
                r = o.resource[p.now[i], w]
                helps = helps or (r >= 0 and p.free[r] < 0)
            if helps:
                loss, k = _relief(o, p, price, i, over)
                if k >= 0 and loss < least:
                    least, task, choice = loss, i, k
        _put(o, p, task, choice)
        over = _overload(p.free, price)


@lean
def _credit(o: Choices, p: GridPlan, part: float) -> None:
    """Count a part of the bills, and sort each task's choices by what they are worth then."""
    for k in range(o.value.shape[0]):
        p.worth[k] = o.value[k] - part * o.bill[k]
    for i in range(p.now.shape[0]):
        for k in range(o.first[i], o.first[i + 1]):
            place = k
            while place > o.first[i] and p.worth[p.order[place - 1]] < p.worth[k]:
                p.order[place] = p.order[place - 1]
                place -= 1
            p.order[place] = k


@lean
def _upside(o: Choices, p: GridPlan) -> float:
    """What a task that is served could gain at most by another choice of its own."""
    most = 0.0
    for i in range(p.now.shape[0]):
        if o.column[p.now[i]] >= 0:
            most = max(most, p.worth[p.order[o.first[i]]] - p.worth[p.now[i]])
    return most


@lean
def _partner(o: Choices, p: GridPlan, i: int, least: float, n_over: int) -> tuple[int, int]:
    """Another task and its choice that make room where too much is taken and gain most, more than `least`; -1: none."""
    first, resource, units = o.first, o.resource, o.units
    now, free, worth, order, over = p.now, p.free, p.worth, p.order, p.over
    task, choice, many = -1, -1, p.users[over[0]]
    for z in range(many):
        k = p.user[over[0], z]
        mine = now[k]
        if k == i or worth[order[first[k]]] - worth[mine] <= least:
            continue
        helps = True
        for y in range(n_over):
            helps = helps and free[over[y]] + _taken(resource, units, mine, over[y]) >= 0
        if not helps:
            continue
        _shift(resource, units, free, mine, 1)
        for place in range(first[k], first[k + 1]):
            j = order[place]
            many += 1
            gain = worth[j] - worth[mine]
            if gain < least or (gain == least and not k < task):
                break
            if _fits(resource, units, free, j):
                least, task, choice = gain, k, j
                break
        _shift(resource, units, free, mine, -1)
    p.looks[0] -= many
    return task, choice


@lean
def _better(o: Choices, p: GridPlan, i: int, upside: float, same: float) -> bool:
    """Improve task i, alone or with another one that makes room: False, it is as it was."""
    mine, free, over, resource, units = p.now[i], p.free, p.over, o.resource, o.units
    for place in range(o.first[i], o.first[i + 1]):
        j = p.order[place]
        gain = p.worth[j] - p.worth[mine]
        if gain + upside <= same or p.looks[0] <= 0:
            return False
        p.looks[0] -= 1
        _shift(resource, units, free, mine, 1)
        _shift(resource, units, free, j, -1)
        many, task, choice = 0, -1, -1
        for w in range(resource.shape[1]):
            r = resource[j, w]
            if r >= 0 and free[r] < 0:
                over[many] = r
                many += 1
        if many > 0:
            task, choice = _partner(o, p, i, same - gain, many)
        _shift(resource, units, free, j, 1)
        _shift(resource, units, free, mine, -1)
        if task >= 0:
            _put(o, p, task, choice)
        if task >= 0 or (many == 0 and gain > same):
            _put(o, p, i, j)
            return True
    return False


@lean
def _improve(o: Choices, p: GridPlan, same: float) -> None:
    """Moves of one task or two until none is better, or the looks are used up."""
    moved, upside = True, _upside(o, p)
    while moved and p.looks[0] > 0:
        moved = False
        for i in range(p.now.shape[0]):
            while _better(o, p, i, upside, same):
                moved, upside = True, _upside(o, p)


@nopython
def _new_plan(o: Choices, free: Ints, looks: int) -> GridPlan:
    """Nobody served; free (R,) is taken over."""
    n, n_tasks, size, width = free.shape[0], o.first.shape[0] - 1, o.column.shape[0], o.resource.shape[1]
    now, order = np.zeros(n_tasks, dtype=np.int64), np.zeros(size, dtype=np.int64)
    user, place = np.zeros((n, n_tasks), dtype=np.int64), np.zeros((n_tasks, width), dtype=np.int64)
    users, over, left = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64), np.zeros(1, dtype=np.int64)
    left[0] = looks
    for i in range(n_tasks):
        now[i] = o.first[i]
    return GridPlan(now, free, np.zeros(size), order, user, users, place, over, left)


@cached
def _search(c: GridColumns, free: Ints, price: Floats, net: Floats, pick: Ints) -> Ints:
    """Write each task's column in place of its pick (N,)."""
    n_tasks, most = net.shape[0], 0.0
    for k in range(c.value.shape[0]):
        most = max(most, c.value[k])
    o = _choices(c, price, net, KEPT + KEPT_EACH * n_tasks, most)
    p = _new_plan(o, free, LOOKS + LOOKS_EACH * n_tasks)
    for i in range(n_tasks):
        for k in range(o.first[i], o.first[i + 1]):
            if o.column[k] == pick[i] and pick[i] >= 0:
                _put(o, p, i, k)
    for part in CREDITS:
        _credit(o, p, part)
        _repair(o, p, price)
        _improve(o, p, SAME * most)
    for i in range(n_tasks):
        pick[i] = o.column[p.now[i]]
    return pick


def search(c: GridColumns, room: Floats, price: Floats, look: GridEvaluation) -> Ints:
    """Return the column of each task (N,), -1: none, within room (R,) units, from a look at prices (R,) of a unit.

    A part of a unit is of no use: what a task takes is rounded up.
    """
    with np.errstate(all="ignore"):  # as in compiled code
        return _search(c, np.floor(room + UNIT_SLIP).astype(np.int64), price, look.net, look.pick.copy())
