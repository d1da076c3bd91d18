"""The dual function: every task's best point at given prices, and what they use together (docs/model.md, section 3).

At prices the tasks separate: each takes the point of most value less cost, or none. Points are ranked by lower bounds
of their costs, one product a slot; only the best by that is priced exactly, and where another's bound then beats it,
all points of that task are gone through. So nothing is missed, and little is computed twice. A look also says what the
minimiser needs beside the bound: the use (the slope), who wavers between two choices, and the second derivative. In
that a jump of a wavering task counts as spread over a width of margins, and it comes from a sample of tasks: it only
steers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from solvers.jit import fetch, inlined, lean, nopython
from solvers.price.point import Point, legs, price_point
from solvers.price.screen import Screen, holds, renew
from solvers.price.tables import (
    AWAY,
    DEAD,
    DOUBLE,
    HIGH,
    LOW,
    PAIR,
    PLAIN,
    RIGID,
    WIDTH,
    Prices,
    Table,
    at_least,
    prices_of,
    with_couplings,
)
from solvers.problem import Floats, Ints

NOBODY: Final = -2  # rival of a task that does not waver
SAMPLED: Final = 500  # tasks from which the second derivative is estimated, at least, evenly spaced by id
AHEAD: Final = 12  # tasks by which memory is asked for before it is needed


class Evaluation(NamedTuple):
    """What one evaluation saw."""

    at: Ints  # (N, 2) place of the best point and of the next best in the screen's lists, -1: none; scratch
    pick: Ints  # (N,) best point, -1: none is worth its cost
    net: Floats  # (N,) its value less its cost, 0 for none
    rival: Ints  # (N,) point, or none (-1), that the task may waver to; NOBODY
    gain: Floats  # (N,) greatest net value of another point, at most
    margin: Floats  # (N,) how much the next best choice is worse; WIDTH x most where it is at least that
    use: Floats  # (R + 1,) of the best points
    bend: Floats  # (R, R) second derivative in log prices, the jumps of wavering tasks smoothed


@nopython
def new_look(t: Table) -> Evaluation:
    """Nothing seen."""
    n, n_tasks = t.room.shape[0] - 1, t.most.shape[0]
    at, none = np.full((n_tasks, 2), -1, dtype=np.int64), np.full(n_tasks, -1, dtype=np.int64)
    net, gain, margin = np.zeros(n_tasks), np.zeros(n_tasks), np.zeros(n_tasks)
    return Evaluation(at, none, net, none.copy(), gain, margin, np.zeros(n + 1), np.zeros((n, n)))


def _ranking(width: int) -> Callable[[Table, Prices, Screen, Evaluation], None]:
    """Make rank for points of `width` slots, 0: any number."""

    @nopython
    def rank(t: Table, p: Prices, screen: Screen, look: Evaluation) -> None:
        start, point, mode, slot, root = screen.start, screen.point, screen.mode, screen.slot, screen.root
        value, proot, n_slots = screen.value, p.root, width if width > 0 else t.root.shape[1]
        at, pick, net, rival, gain, most = look.at, look.pick, look.net, look.rival, look.gain, t.most
        for i in range(pick.shape[0]):
            best = second = -math.inf
            one_best = two_best = -1
            for m in range(start[i], start[i + 1]):
                zero = 0.0
                for s in range(n_slots):
                    zero += root[m, s] * proot[slot[m, s]]
                worth = value[m] - zero * zero
                if mode[m] != PLAIN:
                    worth = value[m] - at_least(t, point[m], p)
                if worth > second:
                    if worth > best:
                        two_best, second = one_best, best
                        one_best, best = m, worth
                    else:
                        two_best, second = m, worth
            at[i, 0], at[i, 1], net[i] = one_best, two_best, best
            gain[i] = max(second, max(0.0, best) - AWAY * most[i])
            pick[i] = point[one_best] if one_best >= 0 else -1
            rival[i] = point[two_best] if two_best >= 0 else -1

    return rank


_rank_pairs, _rank_any = _ranking(PAIR), _ranking(0)


@nopython
def _rank(t: Table, p: Prices, screen: Screen, look: Evaluation) -> None:
    """Every task's best point by lower bounds of the costs into look.pick, with its net value, and the next best one.

    Points that are not listed are worse than the best by AWAY x most at least.
    """
    if t.root.shape[1] == PAIR:
        _rank_pairs(t, p, screen, look)
    else:
        _rank_any(t, p, screen, look)


@lean
def _exact_best(t: Table, i: int, p: Prices, o: Point) -> tuple[int, float]:
    """Task i's best point and net value, (-1, 0) if none is worth its cost; of equal ones the first."""
    pick, top = -1, 0.0
    for j in range(t.first[i], t.first[i + 1]):
        if t.mode[j] != DEAD and t.value[j] - at_least(t, j, p) > top:
            net = t.value[j] - price_point(t, i, j, p, o)
            if net > top:
                pick, top = j, net
    return pick, top


@lean
def _choose(t: Table, i: int, p: Prices, look: Evaluation, o: Point) -> None:
    """Make sure of what _rank found for task i; its counted shares stay in the scratch."""
    j, width = look.pick[i], WIDTH * t.most[i]
    if j < 0 or look.net[i] <= 0.0:
        look.margin[i] = max(0.0, min(width, -look.net[i]))
        look.rival[i] = NOBODY if look.margin[i] >= width else j
        look.pick[i], look.net[i], look.gain[i] = -1, 0.0, look.net[i]
        return
    net = t.value[j] - price_point(t, i, j, p, o)
    if net < max(0.0, look.gain[i]):
        best = look.net[i]
        look.pick[i], net = _exact_best(t, i, p, o)
        if look.pick[i] != j:
            look.rival[i], look.gain[i] = j, best
        if look.pick[i] >= 0:
            price_point(t, i, look.pick[i], p, o)
    look.net[i] = net
    look.margin[i] = max(0.0, min(width, net - max(0.0, look.gain[i]) if look.pick[i] >= 0 else -look.gain[i]))
    if look.margin[i] >= width:
        look.rival[i] = NOBODY
    elif look.pick[i] >= 0 and look.gain[i] <= 0.0:
        look.rival[i] = -1


@lean
def _pay(t: Table, j: int, o: Point, p: Prices, sign: float, paid: Floats) -> None:
    """Add what the point in the scratch pays to each resource, rigid demand too, to paid (R,)."""
    for m in range(legs(t, o, p)):
        paid[o.leg[m]] += sign * o.paid[m]
    if t.mode[j] != PLAIN:
        for s in range(o.y.shape[0]):
            if o.slot[s] < paid.shape[0]:
                paid[o.slot[s]] += sign * p.rigid[o.slot[s]] * t.cell[j, RIGID, s]


@lean
def _waver(t: Table, i: int, look: Evaluation, rival: int, many: float, p: Prices, o: Point, paid: Floats) -> None:
    """Add to look.bend, `many` times, that task i may change to the rival, or to none; its point is in the scratch.

    A jump of the use at equal net values, spread over margins up to WIDTH: a triangular kernel.
    """
    n = paid.shape[0]
    for r in range(n):
        paid[r] = 0.0
    if look.pick[i] >= 0:
        _pay(t, look.pick[i], o, p, 1.0, paid)
        _respond(t, look.pick[i], many, p, o, look.bend)
    if rival >= 0:
        price_point(t, i, rival, p, o)
        _pay(t, rival, o, p, -1.0, paid)
    width = WIDTH * t.most[i]
    weight = many * (1.0 - look.margin[i] / width) / width
    for r in range(n):
        if paid[r] != 0.0:
            for q in range(n):
                look.bend[r, q] += weight * paid[r] * paid[q]


@lean
def _respond(t: Table, j: int, many: float, p: Prices, o: Point, bend: Floats) -> None:
    """Add to bend, `many` times, how the shares in the scratch move with prices, use falling as their root.

    Uses the scratch up.
    """
    free = 0.0
    for s in range(o.y.shape[0]):
        if not t.cell[j, LOW, s] < o.y[s] < t.cell[j, HIGH, s]:
            o.y[s] = 0.0
    found, half = legs(t, o, p), 0.5 * many
    for m in range(found):
        free += o.paid[m]
    for m in range(found):
        bend[o.leg[m], o.leg[m]] += half * o.paid[m]
        for z in range(found):
            bend[o.leg[m], o.leg[z]] -= half * o.paid[m] * o.paid[z] / max(free, 1e-300)


@nopython
def sampling(t: Table) -> int:
    """One task of so many is in the sample."""
    every: int = max(1, t.most.shape[0] // SAMPLED)
    return every


@inlined
def _within(t: Table, p: Prices, screen: Screen, m: int, total: float, n_slots: int) -> bool:
    """Whether the shares of the listed point m, which binds in one phase, meet no limit; total: root of its bill."""
    inside, j = True, screen.point[m]
    for s in range(n_slots):
        counted = screen.root[m, s] * total * p.back[screen.slot[m, s]]
        inside = inside and t.cell[j, LOW, s] <= counted <= t.cell[j, HIGH, s]
    return inside


@inlined
def _total(p: Prices, screen: Screen, m: int, n_slots: int) -> float:
    """Root of what the shares of the listed point m cost where they meet no limit."""
    total = 0.0
    for s in range(n_slots):
        total += screen.root[m, s] * p.root[screen.slot[m, s]]
    return total


@inlined
def _tilt(t: Table, p: Prices, screen: Screen, m: int, other: int, weight: float, bend: Floats, n_slots: int) -> None:
    """As _waver, for listed points within their limits, the other one plain or none (-1)."""
    slot, root, n = screen.slot, screen.root, bend.shape[0]
    one, two = _total(p, screen, m, n_slots), _total(p, screen, other, n_slots) if other >= 0 else 0.0
    rigid = screen.mode[m] != PLAIN
    for a in range(2 * n_slots if other >= 0 else n_slots):
        s = a % n_slots
        r = slot[m if a < n_slots else other, s]
        if r >= n:
            continue
        here = root[m, s] * one * p.root[r] if a < n_slots else -root[other, s] * two * p.root[r]
        if rigid and a < n_slots:
            here += p.rigid[r] * t.cell[screen.point[m], RIGID, s]
        for b in range(2 * n_slots if other >= 0 else n_slots):
            z = b % n_slots
            q = slot[m if b < n_slots else other, z]
            if q < n:
                there = root[m, z] * one * p.root[q] if b < n_slots else -root[other, z] * two * p.root[q]
                if rigid and b < n_slots:
                    there += p.rigid[q] * t.cell[screen.point[m], RIGID, z]
                bend[r, q] += weight * here * there


@inlined
def _count(
    t: Table,
    p: Prices,
    screen: Screen,
    m: int,
    total: float,
    many: float,
    look: Evaluation,
    rigid: Floats,
    n_slots: int,
) -> None:
    """Add the use of the listed point m, within its limits, and `many` times how it moves with prices."""
    slot, root, use, bend, j = screen.slot, screen.root, look.use, look.bend, screen.point[m]
    for s in range(n_slots):
        r = slot[m, s]
        use[r] += root[m, s] * total * p.back[r]
        if screen.mode[m] != PLAIN:
            rigid[r] += t.cell[j, RIGID, s]
        if many > 0.0 and r < bend.shape[0]:
            half = 0.5 * many * root[m, s] * p.root[r]
            bend[r, r] += half * total
            for z in range(n_slots):
                if slot[m, z] < bend.shape[0]:
                    bend[r, slot[m, z]] -= half * root[m, z] * p.root[slot[m, z]]


@inlined
def _glance(
    t: Table, p: Prices, screen: Screen, i: int, many: float, look: Evaluation, rigid: Floats, n_slots: int
) -> float:
    """What task i adds if its best point binds in one phase and meets no limit; else its margin becomes -1.

    `many`: tasks that it stands for in the second derivative, or 0.
    """
    worth: float = look.net[i]
    m, wide = look.at[i, 0], WIDTH * t.most[i]
    if m < 0 or worth <= -wide:
        look.margin[i], look.pick[i], look.gain[i], look.net[i], look.rival[i] = wide, -1, worth, 0.0, NOBODY
        return 0.0
    look.margin[i] = -1.0
    if screen.mode[m] == DOUBLE:
        return 0.0
    total = _total(p, screen, m, n_slots)
    rest = worth - max(0.0, look.gain[i]) if worth > 0.0 else -worth
    other = look.at[i, 1] if worth > 0.0 and look.gain[i] > 0.0 else -1
    wavers = many > 0.0 and rest < wide
    simple = (worth <= 0.0 or rest > 0.0) and _within(t, p, screen, m, total, n_slots)
    if wavers and other >= 0:
        simple = simple and screen.mode[other] == PLAIN
        simple = simple and _within(t, p, screen, other, _total(p, screen, other, n_slots), n_slots)
    if not simple:
        return 0.0
    if wavers:
        _tilt(t, p, screen, m, other, many * (1.0 - rest / wide) / wide, look.bend, n_slots)
    look.margin[i] = min(wide, rest)
    if worth <= 0.0:
        look.rival[i] = look.pick[i] if rest < wide else NOBODY
        look.pick[i], look.gain[i], look.net[i] = -1, worth, 0.0
        return 0.0
    if rest >= wide:
        look.rival[i] = NOBODY
    elif look.gain[i] <= 0.0:
        look.rival[i] = -1
    _count(t, p, screen, m, total, many, look, rigid, n_slots)
    return worth


def _glancing(width: int) -> Callable[[Table, Prices, Screen, Evaluation, Floats], float]:
    """Make at_a_glance for points of `width` slots, 0: any number."""

    @lean
    def at_a_glance(t: Table, p: Prices, screen: Screen, look: Evaluation, rigid: Floats) -> float:
        order, pick, rival, cell = t.order, look.pick, look.rival, t.cell
        net_sum, every, n_tasks, n_slots = 0.0, sampling(t), t.order.shape[0], width if width > 0 else t.root.shape[1]
        for place in range(n_tasks):
            later = order[min(place + AHEAD, n_tasks - 1)]
            if pick[later] >= 0:
                fetch(cell, pick[later])
            if every == 1 and rival[later] >= 0:
                fetch(cell, rival[later])
            many = float(every) if place % every == 0 else 0.0
            net_sum += _glance(t, p, screen, order[place], many, look, rigid, n_slots)
        return net_sum

    return at_a_glance


_at_a_glance_pairs, _at_a_glance_any = _glancing(PAIR), _glancing(0)


@nopython
def _at_a_glance(t: Table, p: Prices, screen: Screen, look: Evaluation, rigid: Floats) -> float:
    """What tasks add whose best point binds in one phase and meets no limit; margins of the others become -1.

    The same as _choose, _respond and _waver, without a call: this and _rank are where the time goes. Of the sample
    those that waver to a point that is not so simple are left to the others, too. Returns the net values' sum.
    """
    if t.root.shape[1] == PAIR:
        return _at_a_glance_pairs(t, p, screen, look, rigid)
    return _at_a_glance_any(t, p, screen, look, rigid)


@lean
def _one_by_one(t: Table, p: Prices, look: Evaluation, rigid: Floats, paid: Floats, o: Point) -> float:
    """What the other tasks add; returns their net values."""
    net_sum, every = 0.0, sampling(t)
    weight = float(every)
    for place in range(t.order.shape[0]):
        i = t.order[place]
        if look.margin[i] >= 0.0:
            continue
        _choose(t, i, p, look, o)
        j = look.pick[i]
        if j >= 0:
            net_sum += look.net[i]
            for s in range(o.y.shape[0]):
                look.use[o.slot[s]] += o.y[s]
                rigid[o.slot[s]] += t.cell[j, RIGID, s]
        if place % every != 0:
            continue
        if look.rival[i] > NOBODY:
            _waver(t, i, look, look.rival[i], weight, p, o, paid)
        elif j >= 0:
            _respond(t, j, weight, p, o, look.bend)
    return net_sum


@nopython
def evaluate(t: Table, price: Floats, screen: Screen, look: Evaluation, o: Point) -> float:
    """Dual function at prices (R,): a bound on the value of any plan. `screen` saves work from one call to the next."""
    n = price.shape[0]
    p, rigid, bound = prices_of(t, price), np.zeros(n + 1), 0.0
    for r in range(n):
        bound += price[r] * t.room[r]
        look.use[r] = look.use[n] = 0.0
        for q in range(n):
            look.bend[r, q] = 0.0
    if not holds(screen, price):
        renew(t, price, p, screen)
    _rank(t, p, screen, look)
    if t.link.shape[0] == 0:
        bound += _at_a_glance(t, p, screen, look, rigid)
    else:
        for i in range(look.margin.shape[0]):
            look.margin[i] = -1.0
    bound += _one_by_one(t, p, look, rigid, np.zeros(n), o)
    with_couplings(t, look.use)
    for r in range(n + 1):
        look.use[r] += rigid[r]
    return bound
