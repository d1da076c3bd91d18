"""A plan in the making where resources are many: tasks are put in one by one, each beside all others as they stand.

Whether a set of points fits together asks, in price/fit.py, for matrices of resources x resources. Here a task's
shares are the cheapest within what is left on its resources, so a plan fits at every moment. Prices follow what is
left: what is scarce costs more than at the bound's prices, what is not costs less.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers.jit import lean, nopython
from solvers.price.point import ACT, CAP, FLOOR, A, Point, bill, cheapest, load, stretch
from solvers.price.tables import ACTIVITY, DEAD, DOUBLE, RIGID, Prices, Table, at_least
from solvers.problem import Floats, Ints
from solvers.tolerances import EDGE

DRIFT: Final = 5.0  # growth of the log price of a resource of which more is taken than planned, per part of it
SWING: Final = 3.0  # no log price is further from that of the bound
PLAIN_PRICE: Final = 0.02  # of the mean price: what even a resource that the bound finds worthless costs when full


class Pack(NamedTuple):
    """A plan that fits; written in place."""

    chosen: Ints  # (N,) point or -1
    share: Floats  # (N, S)
    left: Floats  # (R + 1,) room that nobody has
    base: Floats  # (R,) prices where as much is left as expected
    expected: Floats  # (R + 1,) room that is to be left by now
    steep: Floats  # (1,) how prices follow what is left
    keep: Floats  # (S,) scratch: shares of a task that was taken out
    spare: Floats  # (S,) scratch: shares of the best point so far
    spare_net: Floats  # (1,) scratch: its value less its cost


@nopython
def new_pack(t: Table, price: Floats) -> Pack:
    """Nobody served; `price` (R,) of the bound."""
    n, n_tasks, n_slots = price.shape[0], t.most.shape[0], t.root.shape[1]
    worth = room = 0.0
    for r in range(n):
        worth += price[r] * t.room[r]
        room += t.room[r]
    base = np.zeros(n)
    for r in range(n):
        base[r] = price[r] + (PLAIN_PRICE * worth / room if worth > 0.0 else 1.0)
    chosen, share = np.full(n_tasks, -1, dtype=np.int64), np.zeros((n_tasks, n_slots))
    scratch = np.zeros((2, n_slots))
    return Pack(
        chosen, share, t.room.copy(), base, t.room.copy(), np.full(1, DRIFT), scratch[0], scratch[1], np.zeros(1)
    )


@lean
def reprice(t: Table, k: Pack, r: int, p: Prices) -> None:
    """Price of r by what is left of it, in all that p holds."""
    if r >= k.base.shape[0]:
        return
    over = k.steep[0] * (k.expected[r] - k.left[r]) / t.room[r] if t.room[r] > 0.0 else 0.0
    p.rigid[r] = k.base[r] * math.exp(min(SWING, max(-SWING, over)))
    _share_price(t, r, p)
    for c in range(t.link.shape[0]):
        if t.link[c, 1] == r:
            _share_price(t, t.link[c, 0], p)


@lean
def _share_price(t: Table, r: int, p: Prices) -> None:
    p.share[r] = p.rigid[r]
    for c in range(t.link.shape[0]):
        if t.link[c, 0] == r:
            p.share[r] += t.kappa[c] * p.rigid[t.link[c, 1]]
    p.root[r] = math.sqrt(p.share[r])
    p.back[r] = 1.0 / p.root[r] if p.root[r] > 0.0 else math.inf


@lean
def shift(t: Table, k: Pack, j: int, share: Floats, sign: float, p: Prices) -> None:
    """Give back (+1) or take (-1) what point j takes with its shares (S,); prices follow."""
    for s in range(share.shape[0]):
        r = t.slot[j, s]
        if r >= k.base.shape[0]:
            continue
        counted = t.cell[j, ACTIVITY, s] * share[s]
        k.left[r] += sign * (counted + t.cell[j, RIGID, s])
        for c in range(t.link.shape[0]):
            if t.link[c, 0] == r:
                k.left[t.link[c, 1]] += sign * t.kappa[c] * counted
                reprice(t, k, t.link[c, 1], p)
        reprice(t, k, r, p)


@lean
def _capped(t: Table, k: Pack, j: int, o: Point) -> bool:
    """Lower the caps of the loaded point j to what is left; False: it does not fit, whatever its shares."""
    late_a = late_b = 0.0
    for s in range(o.x.shape[0]):
        r = o.slot[s]
        if r >= k.base.shape[0]:
            continue
        free = k.left[r] - t.cell[j, RIGID, s]
        if free < -EDGE * t.room[r]:
            return False
        cap = min(o.cell[CAP, s], max(0.0, free) / o.cell[ACT, s])
        for c in range(t.link.shape[0]):
            if t.link[c, 0] == r and t.kappa[c] > 0.0:
                cap = min(cap, max(0.0, k.left[t.link[c, 1]]) / (t.kappa[c] * o.cell[ACT, s]))
        if cap < o.cell[FLOOR, s]:
            return False
        o.cell[CAP, s] = cap
        late_a += o.cell[A, s] / cap if o.cell[A, s] > 0.0 else 0.0
        late_b += o.cell[A + 1, s] / cap if o.cell[A + 1, s] > 0.0 else 0.0
    return late_a <= 1.0 and late_b <= 1.0


@lean
def _overfilled(t: Table, k: Pack, j: int) -> bool:
    """Whether something that point j takes is overfilled now: two of its slots may load one resource."""
    for s in range(t.slot.shape[1]):
        r = t.slot[j, s]
        if r < k.base.shape[0]:
            if k.left[r] < -EDGE:
                return True
            for c in range(t.link.shape[0]):
                if t.link[c, 0] == r and k.left[t.link[c, 1]] < -EDGE:
                    return True
    return False


@lean
def cost_of(t: Table, k: Pack, i: int, j: int, p: Prices, o: Point) -> float:
    """What point j of task i costs beside all others, its shares into o.x; inf: it does not fit."""
    load(t, j, o)
    if not _capped(t, k, j, o):
        return math.inf
    theta, _ = cheapest(o, t.mode[j] == DOUBLE, t.theta[i], p)
    if t.mode[j] == DOUBLE:
        t.theta[i] = theta
        stretch(o)
    cost = bill(o, p, o.x)
    for s in range(o.x.shape[0]):
        cost += p.rigid[o.slot[s]] * t.cell[j, RIGID, s]
    return cost


@lean
def place(t: Table, k: Pack, i: int, j: int, share: Floats, p: Prices) -> bool:
    """Give task i point j with shares (S,); False, and nothing done, where that overfills a resource."""
    shift(t, k, j, share, -1.0, p)
    if _overfilled(t, k, j):
        shift(t, k, j, share, 1.0, p)
        return False
    k.chosen[i] = j
    for s in range(share.shape[0]):
        k.share[i, s] = share[s]
    return True


@lean
def take_out(t: Table, k: Pack, i: int, keep: Floats, p: Prices) -> int:
    """Take task i out; returns its point, its shares go into keep (S,)."""
    j = k.chosen[i]
    for s in range(keep.shape[0]):
        keep[s] = k.share[i, s]
        k.share[i, s] = 0.0
    k.chosen[i] = -1
    shift(t, k, j, keep, 1.0, p)
    return int(j)


@lean
def best_place(t: Table, k: Pack, i: int, credit: float, p: Prices, o: Point) -> int:
    """Task i's point of the greatest value less `credit` times its cost that fits, its shares in k.spare; -1: none."""
    best, top = -1, -math.inf
    for j in range(t.first[i], t.first[i + 1]):
        if t.mode[j] == DEAD or t.value[j] - credit * at_least(t, j, p) <= top:
            continue
        cost = cost_of(t, k, i, j, p, o)
        if cost < math.inf and t.value[j] - credit * cost > top:
            best, top = j, t.value[j] - credit * cost
            for s in range(o.x.shape[0]):
                k.spare[s] = o.x[s]
    k.spare_net[0] = top
    return best
