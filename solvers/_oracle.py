"""The dual function: every task's best point at given prices, and what they use together (docs/model.md, section 3)."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers import _reference
from solvers._jit import COMPILED, lean, nopython
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

RENEW: Final = 0.7  # part of the screen's costs below which every point is looked at anew
NOBODY: Final = -2  # rival of a task that does not waver
AS_BEFORE: Final = -3  # rival of a task whose point was not compared with the others
SAMPLED: Final = 600  # tasks from which the second derivative is estimated, at least, evenly spaced by id
WIDTH: Final = 0.08  # of a task's greatest value: what two choices differ by when the task is said to waver


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
    """What a look at all points knows about other prices: costs are monotone and homogeneous in prices."""

    price: Floats  # (R,) of the look; zeros: none yet
    pick: Ints  # (N,)
    gain: Floats  # (N,) greatest net value of another point


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
    n_tasks = t.most.shape[0]
    return Screen(np.zeros(t.room.shape[0] - 1), np.full(n_tasks, -1, dtype=np.int64), np.zeros(n_tasks))


@nopython
def _still_sure(screen: Screen, price: Floats) -> float:
    """Part of the screen's costs that is certain at `price`, at most 1; 0 where it is time to look anew."""
    part, known = 1.0, False
    for r in range(price.shape[0]):
        if screen.price[r] > 0.0:
            known = True
            part = min(part, price[r] / screen.price[r])
    if known and part > RENEW:
        return part
    for r in range(price.shape[0]):
        screen.price[r] = price[r]
    return 0.0


@nopython
def _rank(t: Table, p: Prices, look: Look, screen: Screen, sure: float) -> None:  # noqa: C901, PLR0912 - see below
    """Every task's best point by lower bounds of the costs into look.pick, with its net value, and the next best one.

    Where what is certain of the others' costs makes them too dear for the point of last time, that point stays, and
    look.rival is AS_BEFORE. One loop without a call: for a point a call would cost more than its work.
    """
    first, value, mode, slot, root, cell = t.first, t.value, t.mode, t.slot, t.root, t.cell
    width, pick, net, rival, gain = WIDTH * t.most, look.pick, look.net, look.rival, look.gain
    proot, prigid, n_slots = p.root, p.rigid, t.root.shape[1]
    for i in range(pick.shape[0]):
        start, stop = first[i], first[i + 1]
        if sure > 0.0:
            others = sure * screen.gain[i] + (1.0 - sure) * t.most[i]
            j = screen.pick[i]
            if j < 0:
                if others <= -width[i]:
                    stop = start
            else:
                zero = one = rest = 0.0
                for s in range(n_slots):
                    price = proot[slot[j, s]]
                    zero += root[j, s] * price
                    one += cell[j, OTHER, s] * price
                    rest += prigid[slot[j, s]] * cell[j, RIGID, s]
                zero = max(zero, one)
                if value[j] - (rest + zero * zero) - max(0.0, others) >= width[i]:
                    stop = start
            if stop == start:
                pick[i], rival[i], gain[i] = j, AS_BEFORE, others
                continue
        best = second = -math.inf
        one_best = two_best = -1
        for j in range(start, stop):
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
            if worth > best:
                two_best, second = one_best, best
                one_best, best = j, worth
            elif worth > second:
                two_best, second = j, worth
        pick[i], net[i], rival[i], gain[i] = one_best, best, two_best, second


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
    known = look.rival[i] == AS_BEFORE
    if j < 0 or (not known and look.net[i] <= 0.0):
        look.margin[i] = width if known else max(0.0, min(width, -look.net[i]))
        look.rival[i] = NOBODY if look.margin[i] >= width else j
        look.pick[i], look.net[i], look.gain[i] = -1, 0.0, look.gain[i] if known else look.net[i]
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


@nopython
def _at_a_glance(t: Table, p: Prices, look: Look, rigid: Floats) -> float:  # noqa: C901 - one loop, as above
    """What tasks add whose best point is plain and meets no limit; margins of the others become -1.

    Of the sample those that waver are left to the others, too. The same as _choose and _respond, without a call: this
    and _rank are where the time goes. Returns the net values' sum.
    """
    pick, net, rival, gain, use, bend = look.pick, look.net, look.rival, look.gain, look.use, look.bend
    value, mode, slot, root, cell, most, margin = t.value, t.mode, t.slot, t.root, t.cell, t.most, look.margin
    proot, prigid, back, n, n_slots, order = p.root, p.rigid, p.back, t.room.shape[0] - 1, t.root.shape[1], t.order
    net_sum, every = 0.0, sampling(t)
    weight = float(every)
    for place in range(order.shape[0]):
        i, sampled = order[place], place % every == 0
        j, total, rest = pick[i], 0.0, 0.0
        margin[i] = -1.0
        if j < 0 or mode[j] == DOUBLE:
            continue
        for s in range(n_slots):
            total += root[j, s] * proot[slot[j, s]]
            rest += prigid[slot[j, s]] * cell[j, RIGID, s]
        gained = value[j] - (rest + total * total)
        wide, rest = WIDTH * most[i], gained - max(0.0, gain[i])
        inside = rest >= wide or (rest > 0.0 and not sampled)
        for s in range(n_slots):
            counted = root[j, s] * total * back[slot[j, s]]
            inside = inside and cell[j, LOW, s] <= counted <= cell[j, HIGH, s]
        if not inside:
            continue
        net[i], margin[i] = gained, min(wide, rest)
        if rest >= wide:
            rival[i] = NOBODY
        elif gain[i] <= 0.0:
            rival[i] = -1
        net_sum += gained
        for s in range(n_slots):
            r = slot[j, s]
            use[r] += root[j, s] * total * back[r]
            rigid[r] += cell[j, RIGID, s]
            if sampled and r < n:
                half = 0.5 * weight * root[j, s] * proot[r]
                bend[r, r] += half * total
                for z in range(n_slots):
                    if slot[j, z] < n:
                        bend[r, slot[j, z]] -= half * root[j, z] * proot[slot[j, z]]
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
    sure = _still_sure(screen, price)
    for r in range(n):
        bound += price[r] * t.room[r]
        look.use[r] = look.use[n] = 0.0
        for q in range(n):
            look.bend[r, q] = 0.0
    rank(t, p, look, screen, sure)
    if t.link.shape[0] == 0:
        bound += _at_a_glance(t, p, look, rigid)
    else:
        for i in range(look.margin.shape[0]):
            look.margin[i] = -1.0
    bound += _one_by_one(t, p, look, rigid, np.zeros(n), o)
    if sure == 0.0:
        for i in range(look.pick.shape[0]):
            screen.pick[i], screen.gain[i] = look.pick[i], look.gain[i]
    with_couplings(t, look.use)
    for r in range(n + 1):
        look.use[r] += rigid[r]
    return bound
