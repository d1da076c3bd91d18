"""From prices to a plan where resources are many: tasks are put in one by one, each beside all others as they stand.

Whether a set of points fits together asks, in solvers/_fit.py, for matrices of resources x resources. Here a task's
shares are the cheapest within what is left on its resources, so a plan fits at every moment. Prices follow what is
left: a resource that is not full costs next to nothing, and a round in which everybody is taken out and put back
in moves use from where it is scarce to where it is not. Who is not served then may push out one that is, if that one
finds another place, or is worth less.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers._jit import lean, nopython
from solvers._kernel import ACTIVITY, DEAD, DOUBLE, EDGE, RIGID, Prices, Table, at_least, prices_of
from solvers._point import A, ACT, CAP, FLOOR, Point, bill, cheapest, load, stretch
from solvers._search import SAME
from solvers._sparse_dual import BEYOND, HEATS, Blur, nets, new_blur
from solvers.problem import Floats, Ints

CREDITS: Final = (1.0, 1.0, 1.0, 0.5, 0.5, 0.0)  # a round each: part of the price that what a task leaves is worth
DRIFT: Final = 5.0  # growth of the log price of a resource of which more is taken than planned, per part of it
SCARCE: Final = 20.0  # ... of one of which less is left, once everybody has been asked
SWING: Final = 3.0  # no log price is further from that of the bound
PLAIN_PRICE: Final = 0.02  # of the mean price: what even a resource that the bound finds worthless costs when full
VICTIMS: Final = 16  # that one point may try to push out
LOOKS: Final = 20  # at tasks to push out, per task and round, on average


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
    return Pack(chosen, share, t.room.copy(), base, t.room.copy(), np.full(1, DRIFT), scratch[0], scratch[1], np.zeros(1))


@lean
def _reprice(t: Table, k: Pack, r: int, p: Prices) -> None:
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
def _shift(t: Table, k: Pack, j: int, share: Floats, sign: float, p: Prices) -> None:
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
                _reprice(t, k, t.link[c, 1], p)
        _reprice(t, k, r, p)


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
def _cost(t: Table, k: Pack, i: int, j: int, p: Prices, o: Point) -> float:
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
def _place(t: Table, k: Pack, i: int, j: int, share: Floats, p: Prices) -> bool:
    """Give task i point j with shares (S,); False, and nothing done, where that overfills a resource."""
    _shift(t, k, j, share, -1.0, p)
    if _overfilled(t, k, j):
        _shift(t, k, j, share, 1.0, p)
        return False
    k.chosen[i] = j
    for s in range(share.shape[0]):
        k.share[i, s] = share[s]
    return True


@lean
def _take_out(t: Table, k: Pack, i: int, keep: Floats, p: Prices) -> int:
    """Take task i out; returns its point, its shares go into keep (S,)."""
    j = k.chosen[i]
    for s in range(keep.shape[0]):
        keep[s] = k.share[i, s]
        k.share[i, s] = 0.0
    k.chosen[i] = -1
    _shift(t, k, j, keep, 1.0, p)
    return int(j)


@lean
def _best_place(t: Table, k: Pack, i: int, credit: float, p: Prices, o: Point) -> int:
    """Task i's point of the greatest value less `credit` times its cost that fits, its shares in k.spare; -1: none."""
    best, top = -1, -math.inf
    for j in range(t.first[i], t.first[i + 1]):
        if t.mode[j] == DEAD or t.value[j] - credit * at_least(t, j, p) <= top:
            continue
        cost = _cost(t, k, i, j, p, o)
        if cost < math.inf and t.value[j] - credit * cost > top:
            best, top = j, t.value[j] - credit * cost
            for s in range(o.x.shape[0]):
                k.spare[s] = o.x[s]
    k.spare_net[0] = top
    return best


@lean
def _expect(t: Table, k: Pack, i: int, price: Prices, heat: float, b: Blur, p: Prices, o: Point) -> None:
    """Take what task i is to have on average, its choice blurred at the prices of the bound, from what is expected."""
    warm, first = heat * t.most[i], t.first[i]
    top, whole = nets(t, i, price, BEYOND * warm, b, o), 0.0
    for m in range(t.first[i + 1] - first):
        whole += math.exp((b.net[m] - top) / warm)
    whole += math.exp(-top / warm)
    for m in range(t.first[i + 1] - first):
        part = math.exp((b.net[m] - top) / warm) / whole
        if part > 0.0:
            for s in range(t.slot.shape[1]):
                r = t.slot[first + m, s]
                k.expected[r] -= part * (b.counted[m, s] + t.cell[first + m, RIGID, s])
                for c in range(t.link.shape[0]):
                    if t.link[c, 0] == r:
                        k.expected[t.link[c, 1]] -= part * t.kappa[c] * b.counted[m, s]
                        _reprice(t, k, t.link[c, 1], p)
                _reprice(t, k, r, p)


@nopython
def _first_round(t: Table, k: Pack, rank: Ints, price: Floats, p: Prices, o: Point) -> None:
    """Serve who is worth his cost, in turn; prices keep what is taken near the fractional plan of those asked so far."""
    bound, b = prices_of(t, price), new_blur(t)
    for i in rank:
        _expect(t, k, i, bound, HEATS[-1], b, p, o)
        j = _best_place(t, k, i, 1.0, p, o)
        if j >= 0 and k.spare_net[0] > 0.0:
            _place(t, k, i, j, k.spare, p)
    k.steep[0] = SCARCE
    for r in range(k.expected.shape[0]):
        k.expected[r] = 0.0


@nopython
def _round(t: Table, k: Pack, rank: Ints, credit: float, p: Prices, o: Point) -> None:
    """Take everybody out and put him back in, one by one, where he costs least; those not served as well."""
    for i in rank:
        old = _take_out(t, k, i, k.keep, p) if k.chosen[i] >= 0 else -1
        j = _best_place(t, k, i, credit, p, o)
        if (j < 0 or not _place(t, k, i, j, k.spare, p)) and old >= 0:
            _place(t, k, i, old, k.keep, p)


@nopython
def _members(t: Table, k: Pack, rank: Ints) -> tuple[Ints, Ints]:
    """Tasks served on each resource, those worth least for what they take first: (R + 2,) starts, tasks."""
    start = np.zeros(k.base.shape[0] + 3, dtype=np.int64)
    for i in range(k.chosen.shape[0]):
        if k.chosen[i] >= 0:
            for s in range(t.slot.shape[1]):
                start[t.slot[k.chosen[i], s] + 2] += 1
    for r in range(1, start.shape[0]):
        start[r] += start[r - 1]
    task = np.empty(start[-1], dtype=np.int64)
    for place in range(rank.shape[0] - 1, -1, -1):
        i = rank[place]
        if k.chosen[i] >= 0:
            for s in range(t.slot.shape[1]):
                r = t.slot[k.chosen[i], s]
                task[start[r + 1]] = i
                start[r + 1] += 1
    return start, task


@lean
def _lacking(t: Table, k: Pack, j: int, s: int, o: Point) -> float:
    """What slot s of the loaded point j needs at least, beyond what is left, where the others take all there is."""
    rest_a = rest_b = 1.0
    for z in range(o.x.shape[0]):
        r = o.slot[z]
        if z != s and r < k.base.shape[0]:
            cap = min(o.cell[CAP, z], (k.left[r] - t.cell[j, RIGID, z]) / o.cell[ACT, z])
            if cap <= 0.0 or cap < o.cell[FLOOR, z]:
                if o.cell[A, z] > 0.0 or o.cell[A + 1, z] > 0.0 or cap < o.cell[FLOOR, z]:
                    return math.inf
                continue
            rest_a -= o.cell[A, z] / cap
            rest_b -= o.cell[A + 1, z] / cap
    if rest_a <= 0.0 or rest_b <= 0.0:
        return math.inf
    need = max(o.cell[FLOOR, s], o.cell[A, s] / rest_a, o.cell[A + 1, s] / rest_b)
    if need > o.cell[CAP, s]:
        return math.inf
    return float(need * o.cell[ACT, s] + t.cell[j, RIGID, s] - k.left[o.slot[s]])


@lean
def _takes(t: Table, k: Pack, i: int, r: int) -> float:
    """What task i takes of r; 0 where it is not served."""
    taken, j = 0.0, k.chosen[i]
    if j >= 0:
        for s in range(t.slot.shape[1]):
            if t.slot[j, s] == r:
                taken += t.cell[j, ACTIVITY, s] * k.share[i, s] + t.cell[j, RIGID, s]
    return taken


@lean
def _push_out(t: Table, k: Pack, i: int, j: int, other: int, p: Prices, o: Point) -> bool:
    """Serve task i by point j in place of another task, which finds a place elsewhere or is worth less."""
    had = _take_out(t, k, other, k.keep, p)
    loss = t.value[had]
    if _cost(t, k, i, j, p, o) < math.inf and _place(t, k, i, j, o.x, p):
        to = _best_place(t, k, other, 0.0 if loss - t.value[j] > SAME else 1.0, p, o)
        if to >= 0 and t.value[j] + t.value[to] - loss > SAME and _place(t, k, other, to, k.spare, p):
            return True
        if t.value[j] - loss > SAME:
            return True
        _take_out(t, k, i, k.spare, p)
    _place(t, k, other, had, k.keep, p)
    return False


@lean
def _squeeze_in(
    t: Table, k: Pack, i: int, start: Ints, task: Ints, looks: int, p: Prices, o: Point
) -> int:
    """Try to serve task i, which has no place, by pushing somebody out; returns the looks that are left."""
    for j in range(t.first[i], t.first[i + 1]):
        if t.mode[j] == DEAD:
            continue
        load(t, j, o)
        if _cost(t, k, i, j, p, o) < math.inf and _place(t, k, i, j, o.x, p):
            return looks
        for s in range(t.slot.shape[1]):
            r, tried = t.slot[j, s], 0
            if r >= k.base.shape[0]:
                continue
            load(t, j, o)
            lacking = _lacking(t, k, j, s, o)
            for m in range(start[r], start[r + 1]) if lacking < math.inf else range(0):
                other = task[m]
                if tried >= VICTIMS or looks <= 0:
                    break
                if other == i or _takes(t, k, other, r) < lacking:
                    continue
                tried += 1
                looks -= 1
                if _push_out(t, k, i, j, other, p, o):
                    return looks
    return looks


@nopython
def _recount(t: Table, k: Pack, p: Prices) -> None:
    """What is left, summed anew: what came and went leaves the last bits wrong."""
    for r in range(k.left.shape[0]):
        k.left[r] = t.room[r]
    for i in t.order:
        if k.chosen[i] >= 0:
            _shift(t, k, k.chosen[i], k.share[i], -1.0, p)
    for r in range(k.base.shape[0]):
        _reprice(t, k, r, p)


@nopython
def _ranked(t: Table, net: Floats, cost: Floats) -> Ints:
    """Tasks that can be served, the most value for their cost first, equals by id."""
    score, many = np.zeros(t.most.shape[0]), 0
    who = np.empty(t.most.shape[0], dtype=np.int64)
    for i in t.order:
        if t.most[i] > 0.0:
            who[many] = i
            score[many] = -(net[i] + cost[i]) / max(cost[i], 1e-12 * t.most[i])
            many += 1
    return who[np.argsort(score[:many], kind="mergesort")]


@nopython
def _asking(t: Table, price: Floats, net: Floats, cost: Floats) -> None:
    """Every task's best net value (N,) at prices (R,), which may be below 0, and what that point costs (N,)."""
    p = prices_of(t, price)
    for i in range(t.most.shape[0]):
        net[i], cost[i] = -math.inf, 0.0
        for j in range(t.first[i], t.first[i + 1]):
            if t.mode[j] != DEAD:
                least = at_least(t, j, p)
                if t.value[j] - least > net[i]:
                    net[i], cost[i] = t.value[j] - least, least


@nopython
def _value(t: Table, k: Pack) -> float:
    total = 0.0
    for i in t.order:
        if k.chosen[i] >= 0:
            total += t.value[k.chosen[i]]
    return total


@nopython
def pack(t: Table, price: Floats, o: Point) -> Pack:
    """Plan from the prices (R,) of the bound."""
    k, n_tasks = new_pack(t, price), t.most.shape[0]
    net, cost = np.empty(n_tasks), np.empty(n_tasks)
    _asking(t, price, net, cost)
    rank, p = _ranked(t, net, cost), prices_of(t, k.base)
    chosen, share, best = k.chosen.copy(), k.share.copy(), 0.0
    for r in range(k.base.shape[0]):
        _reprice(t, k, r, p)
    _first_round(t, k, rank, price, p, o)
    for credit in CREDITS:
        _recount(t, k, p)
        _round(t, k, rank, credit, p, o)
        start, task = _members(t, k, rank)
        looks = LOOKS * n_tasks
        for i in rank:
            if k.chosen[i] < 0 and looks > 0:
                looks = _squeeze_in(t, k, i, start, task, looks, p, o)
        value = _value(t, k)
        if value > best:
            best = value
            chosen[:], share[:] = k.chosen, k.share
    k.chosen[:], k.share[:] = chosen, share
    return k
