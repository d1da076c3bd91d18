"""The dual function: every task's best point at given prices, and what they use together (docs/model.md, section 3)."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers import _reference
from solvers._jit import COMPILED, inlined, lean, nopython
from solvers._kernel import (
    DEAD,
    DOUBLE,
    HIGH,
    LOW,
    OTHER,
    PLAIN,
    RIGID,
    Prices,
    Table,
    at_least,
    prices_of,
    with_couplings,
)
from solvers._point import Point, legs, price_point
from solvers.problem import Floats, Ints

REACH: Final = 0.1  # part by which prices may move until every point is looked at anew
NOBODY: Final = -2  # rival of a task that does not waver
SAMPLED: Final = 600  # tasks from which the second derivative is estimated, at least, evenly spaced by id
WIDTH: Final = 0.08  # of a task's greatest value: what two choices differ by when the task is said to waver
AWAY: Final = 1.000001 * WIDTH  # what points that the screen leaves out are worse by


class Look(NamedTuple):
    """What one evaluation saw."""

    pick: Ints  # (N,) best point, -1: none is worth its cost
    net: Floats  # (N,) its value less its cost, 0 for none
    rival: Ints  # (N,) point, or none (-1), that the task may waver to; NOBODY
    gain: Floats  # (N,) greatest net value of another point, at most
    margin: Floats  # (N,) how much the next best choice is worse; WIDTH x most where it is at least that
    use: Floats  # (R + 1,) of the best points
    bend: Floats  # (R, R) second derivative in log prices, the jumps of wavering tasks smoothed


class Screen(NamedTuple):
    """What a look at all points says about prices near by: costs are monotone and homogeneous in prices."""

    price: Floats  # (R,) of the look; zeros: none yet
    start: Ints  # (N + 1,)
    point: Ints  # (J,) of each task those that may be its best, or near it, while prices move by REACH at most
    worth: Floats  # (most points of a task,) scratch


@nopython
def new_look(t: Table) -> Look:
    """Nothing seen."""
    n, n_tasks = t.room.shape[0] - 1, t.most.shape[0]
    none = np.full(n_tasks, -1, dtype=np.int64)
    net, gain, margin = np.zeros(n_tasks), np.zeros(n_tasks), np.zeros(n_tasks)
    return Look(none, net, none.copy(), gain, margin, np.zeros(n + 1), np.zeros((n, n)))


@nopython
def new_screen(t: Table) -> Screen:
    """Nothing known."""
    start, point = np.zeros(t.most.shape[0] + 1, dtype=np.int64), np.empty(t.value.shape[0], dtype=np.int64)
    longest = 0
    for i in range(t.most.shape[0]):
        longest = max(longest, t.first[i + 1] - t.first[i])
    return Screen(np.zeros(t.room.shape[0] - 1), start, point, np.zeros(longest))


@nopython
def _is_near(screen: Screen, price: Floats) -> bool:
    """Whether the screen holds at `price`; else that is noted as the price of the next one."""
    near, known = True, False
    for r in range(price.shape[0]):
        known = known or screen.price[r] > 0.0
        near = near and abs(price[r] - screen.price[r]) <= REACH * screen.price[r]
    if known and near:
        return True
    for r in range(price.shape[0]):
        screen.price[r] = price[r]
    return False


@nopython
def _rank(t: Table, p: Prices, look: Look, screen: Screen, near: bool) -> None:  # noqa: C901 - see below
    """Every task's best point by lower bounds of the costs into look.pick, with its net value, and the next best one.

    Points that the screen leaves out are worse than the best by AWAY x most at least. One loop without a call: for
    a point a call would cost more than its work.
    """
    first, value, mode, slot, root, cell = t.first, t.value, t.mode, t.slot, t.root, t.cell
    pick, net, rival, gain, most = look.pick, look.net, look.rival, look.gain, t.most
    proot, prigid, n_slots, begin, listed, worths, many = (
        p.root,
        p.rigid,
        t.root.shape[1],
        screen.start,
        screen.point,
        screen.worth,
        0,
    )
    for i in range(pick.shape[0]):
        best = second = -math.inf
        one_best = two_best = -1
        start, stop = (begin[i], begin[i + 1]) if near else (first[i], first[i + 1])
        for m in range(start, stop):
            j = listed[m] if near else m
            worths[0 if near else m - start] = -math.inf
            if mode[j] == DEAD:
                continue
            zero = 0.0
            for s in range(n_slots):
                zero += root[j, s] * proot[slot[j, s]]
            worth = value[j] - zero * zero
            if mode[j] != PLAIN:
                one = rest = 0.0
                for s in range(n_slots):
                    one += cell[j, OTHER, s] * proot[slot[j, s]]
                    rest += prigid[slot[j, s]] * cell[j, RIGID, s]
                zero = max(zero, one)
                worth = value[j] - (rest + zero * zero)
            worths[0 if near else m - start] = worth
            if worth > best:
                two_best, second = one_best, best
                one_best, best = j, worth
            elif worth > second:
                two_best, second = j, worth
        pick[i], net[i], rival[i], gain[i], away = one_best, best, two_best, second, AWAY * most[i]
        if near:
            gain[i] = max(second, max(0.0, best) - away)
            continue
        least = max(0.0, best - REACH * (value[one_best] - best) if best > 0.0 else 0.0) - away
        for m in range(stop - start):
            listed[many] = start + m
            many += 1 if REACH * value[start + m] + (1.0 - REACH) * worths[m] >= least else 0
        begin[i + 1] = many


# Without the compiler the loop over all points would be slow: NumPy takes its place (solvers/_reference.py).
rank = _rank if COMPILED else _reference.rank


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
def _choose(t: Table, i: int, p: Prices, look: Look, o: Point) -> None:
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
def _waver(t: Table, i: int, look: Look, rival: int, many: float, p: Prices, o: Point, paid: Floats) -> None:
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
def _tilt(t: Table, p: Prices, j: int, other: int, weight: float, bend: Floats) -> bool:
    """As _waver, for points within their limits, the other one plain or none (-1). False: that is not so; no change."""
    slot, root, cell, n = t.slot, t.root, t.cell, bend.shape[0]
    one = two = 0.0
    for s in range(root.shape[1]):
        one += root[j, s] * p.root[slot[j, s]]
        two += root[other, s] * p.root[slot[other, s]] if other >= 0 else 0.0
    for s in range(root.shape[1] if other >= 0 else 0):
        counted = root[other, s] * two * p.back[slot[other, s]]
        if not cell[other, LOW, s] <= counted <= cell[other, HIGH, s]:
            return False
    for a in range(2 * root.shape[1]):
        for b in range(2 * root.shape[1]):
            s, z = a // 2, b // 2
            r, q = slot[j if a % 2 == 0 else other, s], slot[j if b % 2 == 0 else other, z]
            if r < n and q < n and (other >= 0 or (a % 2 == 0 and b % 2 == 0)):
                here = root[j, s] * one * p.root[r] + p.rigid[r] * cell[j, RIGID, s] if a % 2 == 0 else 0.0
                there = root[j, z] * one * p.root[q] + p.rigid[q] * cell[j, RIGID, z] if b % 2 == 0 else 0.0
                here -= root[other, s] * two * p.root[r] if a % 2 == 1 else 0.0
                there -= root[other, z] * two * p.root[q] if b % 2 == 1 else 0.0
                bend[r, q] += weight * here * there
    return True


@inlined
def _count(t: Table, p: Prices, j: int, total: float, many: float, look: Look, rigid: Floats) -> None:
    """Add the use of point j, within its limits, and `many` times how it moves with prices; total: root of its bill."""
    slot, root, use, bend = t.slot, t.root, look.use, look.bend
    for s in range(root.shape[1]):
        r = slot[j, s]
        use[r] += root[j, s] * total * p.back[r]
        rigid[r] += t.cell[j, RIGID, s]
        if many > 0.0 and r < bend.shape[0]:
            half = 0.5 * many * root[j, s] * p.root[r]
            bend[r, r] += half * total
            for z in range(root.shape[1]):
                if slot[j, z] < bend.shape[0]:
                    bend[r, slot[j, z]] -= half * root[j, z] * p.root[slot[j, z]]


@nopython
def _at_a_glance(t: Table, p: Prices, look: Look, rigid: Floats) -> float:  # noqa: C901, PLR0912 - one loop, as above
    """What tasks add whose best point is plain and meets no limit; margins of the others become -1.

    The same as _choose, _respond and _waver, without a call: this and _rank are where the time goes. Of the sample
    those that waver to a point that is not so simple are left to the others, too. Returns the net values' sum.
    """
    pick, net, rival, gain, margin = look.pick, look.net, look.rival, look.gain, look.margin
    most, value = t.most, t.value
    mode, slot, root, cell, n_slots, order = t.mode, t.slot, t.root, t.cell, t.root.shape[1], t.order
    proot, prigid, back = p.root, p.rigid, p.back
    net_sum, every = 0.0, sampling(t)
    weight = float(every)
    for place in range(order.shape[0]):
        i, sampled = order[place], place % every == 0
        j, total, rest = pick[i], 0.0, 0.0
        margin[i] = -1.0
        if j < 0 or net[i] <= -WIDTH * most[i]:
            margin[i], pick[i], gain[i], net[i], rival[i] = WIDTH * most[i], -1, net[i], 0.0, NOBODY
            continue
        if mode[j] == DOUBLE:
            continue
        for s in range(n_slots):
            total += root[j, s] * proot[slot[j, s]]
            rest += prigid[slot[j, s]] * cell[j, RIGID, s]
        gained = value[j] - (rest + total * total)
        wide, rest = WIDTH * most[i], gained - max(0.0, gain[i])
        if gained <= 0.0:
            rest = -gained
        other = rival[i] if gained > 0.0 and gain[i] > 0.0 else -1
        wavers = sampled and rest < wide
        inside = rest > 0.0 or gained <= 0.0
        if wavers and other >= 0 and mode[other] != PLAIN:
            continue
        for s in range(n_slots):
            counted = root[j, s] * total * back[slot[j, s]]
            inside = inside and cell[j, LOW, s] <= counted <= cell[j, HIGH, s]
        if not inside:
            continue
        if wavers:
            tilt = weight * (1.0 - rest / wide) / wide
            if not _tilt(t, p, j, other, tilt, look.bend):
                continue
        if gained <= 0.0:
            margin[i], rival[i] = min(wide, rest), j if rest < wide else NOBODY
            pick[i], gain[i], net[i] = -1, net[i], 0.0
            continue
        net[i], margin[i] = gained, min(wide, rest)
        if rest >= wide:
            rival[i] = NOBODY
        elif gain[i] <= 0.0:
            rival[i] = -1
        net_sum += gained
        _count(t, p, j, total, weight if sampled else 0.0, look, rigid)
    return net_sum


@lean
def _one_by_one(t: Table, p: Prices, look: Look, rigid: Floats, paid: Floats, o: Point) -> float:
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
def evaluate(t: Table, price: Floats, screen: Screen, look: Look, o: Point) -> float:
    """Dual function at prices (R,): a bound on the value of any plan. `screen` saves work from one call to the next."""
    n = price.shape[0]
    p, rigid, bound = prices_of(t, price), np.zeros(n + 1), 0.0
    near = _is_near(screen, price)
    for r in range(n):
        bound += price[r] * t.room[r]
        look.use[r] = look.use[n] = 0.0
        for q in range(n):
            look.bend[r, q] = 0.0
    rank(t, p, look, screen, near)
    if t.link.shape[0] == 0:
        bound += _at_a_glance(t, p, look, rigid)
    else:
        for i in range(look.margin.shape[0]):
            look.margin[i] = -1.0
    bound += _one_by_one(t, p, look, rigid, np.zeros(n), o)
    with_couplings(t, look.use)
    for r in range(n + 1):
        look.use[r] += rigid[r]
    return bound
