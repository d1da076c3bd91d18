"""From prices to a plan where resources are many (docs/model.md, section 4).

Who is worth his cost is put in first, in turn, with prices that keep what is taken near the blurred, fractional plan.
Then, round after round: shares move to common prices at which room is left everywhere, without which all ends in a
deadlock (where all is full, nobody can take more of one resource to give back another); whoever fits into the room
is put in; for whoever nearly fits the others on his resources move to where more is left. In the last rounds who has
no place may push out one who finds another, or is worth less.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from solvers.jit import lean, nopython
from solvers.price.fit import Set, elastic_room, new_set, put, scaled, serve, worth_of
from solvers.price.point import ACT, CAP, FLOOR, A, Point, load
from solvers.price.search import value_of
from solvers.price.settle import _write
from solvers.price.tables import ACTIVITY, DEAD, RIGID, Prices, Table, at_least, prices_of
from solvers.problem import Floats, Ints
from solvers.sparse.dual import BEYOND, HEATS, MEMORY, Blur, Tail, descent, moved, nets, new_blur, remember
from solvers.sparse.plan import Pack, best_place, cost_of, new_pack, place, reprice, shift, take_out
from solvers.tolerances import ENOUGH, MOVE_SLIP, SAME, SPARSE_ARMIJO, SPARSE_RIDGE

ROUNDS: Final = 10  # of balancing and putting in
UPGRADES: Final = 3  # the last rounds, in which tasks may get more valuable points and push others out
BALANCE: Final = 25  # looks at those served for prices that leave room everywhere
SCARCE: Final = 20.0  # growth of a log price per part of a resource that is not left, once everybody has been asked
VICTIMS: Final = 16  # that one point may try to push out
PUSH: Final = 0.2  # part of a resource that somebody else is to have: what is there costs more by so much
LOOKS: Final = 20  # at tasks to push out, per task and round, on average


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
                        reprice(t, k, t.link[c, 1], p)
                reprice(t, k, r, p)


@nopython
def _first_round(t: Table, k: Pack, rank: Ints, price: Floats, p: Prices, o: Point) -> None:
    """Serve who is worth his cost, in turn; prices keep what is taken near the fractional plan of those asked."""
    bound, b = prices_of(t, price), new_blur(t)
    for i in rank:
        _expect(t, k, i, bound, HEATS[-1], b, p, o)
        j = best_place(t, k, i, 1.0, p, o)
        if j >= 0 and k.spare_net[0] > 0.0:
            place(t, k, i, j, k.spare, p)
    k.steep[0] = SCARCE
    for r in range(k.expected.shape[0]):
        k.expected[r] = 0.0


@nopython
def _upgrade(t: Table, k: Pack, rank: Ints, p: Prices, o: Point) -> None:
    """Give everybody who is served the most valuable point that fits."""
    for i in rank:
        if k.chosen[i] >= 0 and t.value[k.chosen[i]] < t.most[i] - SAME:
            old = take_out(t, k, i, k.keep, p)
            j = best_place(t, k, i, 0.0, p, o)
            if j < 0 or t.value[j] <= t.value[old] + SAME or not place(t, k, i, j, k.spare, p):
                place(t, k, i, old, k.keep, p)


@nopython
def _balance(t: Table, k: Pack, z: Set, price: Floats, o: Point) -> None:
    """Move shares towards the cheapest ones at common prices (R,) at which room is left everywhere; prices move, too.

    One by one tasks end in a deadlock: where all is full nobody can take more of one resource to give back another.
    The prices are those of the second stage (solvers/price/settle.py), by the steps of solvers/sparse/dual.py.
    """
    n, looks = price.shape[0], 0
    for i in range(k.chosen.shape[0]):
        put(t, z, i, k.chosen[i])
    elastic_room(t, z)
    tail = Tail(np.zeros((MEMORY, n)), np.zeros((MEMORY, n)), np.zeros(MEMORY))
    slope, then, step, new, bend = np.zeros(n), np.zeros(n), np.zeros(n), price.copy(), np.zeros(n)
    c = scaled(t, z, new, serve(t, z, prices_of(t, new), o), o)
    price[:] = new
    height, head = c.height - worth_of(z, price), _pulled(z, price, slope, bend) * 0
    while looks < BALANCE:
        falls, part, before = descent(tail, head, slope, bend, step), 1.0, height
        if falls >= 0.0:
            tail.scale[:] = 0.0
            falls = descent(tail, head, slope, bend, step)
        for _ in range(3):
            moved(t, price, step, part, new)
            height = serve(t, z, prices_of(t, new), o).height - worth_of(z, new)
            looks += 1
            if height >= before - SPARSE_ARMIJO * part * falls:
                break
            part *= 0.3
        _pulled(z, new, then, bend)
        head = remember(tail, head, price, new, slope, then)
        price[:], slope[:] = new, then
    _write(t, z, price, False, z.share, o)
    _towards(t, k, z.share)


@nopython
def _pulled(z: Set, price: Floats, slope: Floats, bend: Floats) -> int:
    """Slope and diagonal of the second derivative (R,) of minus the second stage's dual in log prices."""
    for r in range(price.shape[0]):
        slope[r] = price[r] * (z.room[r] - z.use[1, r])
        bend[r] = 0.5 * z.pull[r, r] + SPARSE_RIDGE * price[r] * z.room[r]
    return 0


@nopython
def _towards(t: Table, k: Pack, share: Floats) -> None:
    """Move shares towards others (N, S) as far as all fits: what both keep, everything between them keeps."""
    n, part = k.left.shape[0], 1.0
    other = np.zeros(n)
    for i in t.order:
        j = k.chosen[i]
        for s in range(share.shape[1] if j >= 0 else 0):
            r, more = t.slot[j, s], t.cell[j, ACTIVITY, s] * (share[i, s] - k.share[i, s])
            other[r] += more
            for c in range(t.link.shape[0]):
                if t.link[c, 0] == r:
                    other[t.link[c, 1]] += t.kappa[c] * more
    for r in range(n - 1):
        free = max(0.0, k.left[r]) + MOVE_SLIP * t.room[r]
        if other[r] > free:
            part = min(part, free / other[r])
    for i in range(share.shape[0]):
        for s in range(share.shape[1] if k.chosen[i] >= 0 else 0):
            k.share[i, s] += part * (share[i, s] - k.share[i, s])


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
    for m in range(rank.shape[0] - 1, -1, -1):
        i = rank[m]
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
    had = take_out(t, k, other, k.keep, p)
    loss = t.value[had]
    if cost_of(t, k, i, j, p, o) < math.inf and place(t, k, i, j, o.x, p):
        to = best_place(t, k, other, 0.0 if loss - t.value[j] > SAME else 1.0, p, o)
        if to >= 0 and t.value[j] + t.value[to] - loss > SAME and place(t, k, other, to, k.spare, p):
            return True
        if t.value[j] - loss > SAME:
            return True
        take_out(t, k, i, k.spare, p)
    place(t, k, other, had, k.keep, p)
    return False


@lean
def _shifted(t: Table, k: Pack, i: int, p: Prices, o: Point) -> None:
    """Let task i have what costs least by now and is worth no less than what it has."""
    old, best, least = take_out(t, k, i, k.keep, p), -1, math.inf
    for j in range(t.first[i], t.first[i + 1]):
        if t.mode[j] == DEAD or t.value[j] < t.value[old] - SAME or at_least(t, j, p) >= least:
            continue
        cost = cost_of(t, k, i, j, p, o)
        if cost < least:
            best, least = j, cost
            for s in range(o.x.shape[0]):
                k.spare[s] = o.x[s]
    if best < 0 or not place(t, k, i, best, k.spare, p):
        place(t, k, i, old, k.keep, p)


@lean
def _make_room(t: Table, k: Pack, i: int, j: int, start: Ints, task: Ints, p: Prices, o: Point) -> bool:
    """Serve task i by point j after the others on its resources have moved to where more is left, as far as needed."""
    for s in range(t.slot.shape[1]):
        r = t.slot[j, s]
        k.expected[r] = PUSH * t.room[r]
        reprice(t, k, r, p)
    done = False
    for s in range(t.slot.shape[1]):
        r = t.slot[j, s]
        for m in range(start[r], start[r + 1]) if r < k.base.shape[0] and not done else range(0):
            if not done and _takes(t, k, task[m], r) > 0.0:
                _shifted(t, k, task[m], p, o)
                done = cost_of(t, k, i, j, p, o) < math.inf and place(t, k, i, j, o.x, p)
    for s in range(t.slot.shape[1]):
        r = t.slot[j, s]
        k.expected[r] = 0.0
        reprice(t, k, r, p)
    return done


@lean
def _squeeze_in(t: Table, k: Pack, i: int, start: Ints, task: Ints, looks: int, p: Prices, o: Point) -> int:
    """Try to serve task i, which has no place, by pushing somebody out; returns the looks that are left."""
    for j in range(t.first[i], t.first[i + 1]):
        if t.mode[j] == DEAD:
            continue
        load(t, j, o)
        if cost_of(t, k, i, j, p, o) < math.inf and place(t, k, i, j, o.x, p):
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
            shift(t, k, k.chosen[i], k.share[i], -1.0, p)
    for r in range(k.base.shape[0]):
        reprice(t, k, r, p)


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
def _asking(t: Table, price: Floats, net: Floats, cost: Floats, likely: Ints) -> None:
    """Every task's best net value (N,) at prices (R,), which may be below 0, what that point costs, and which it is."""
    p = prices_of(t, price)
    for i in range(t.most.shape[0]):
        net[i], cost[i] = -math.inf, 0.0
        for j in range(t.first[i], t.first[i + 1]):
            if t.mode[j] != DEAD:
                least = at_least(t, j, p)
                if t.value[j] - least > net[i]:
                    net[i], cost[i], likely[i] = t.value[j] - least, least, j


@nopython
def _idle(t: Table, k: Pack) -> float:
    """Part of the worth of all room that is left."""
    left = worth = 0.0
    for r in range(k.base.shape[0]):
        left += k.base[r] * k.left[r]
        worth += k.base[r] * t.room[r]
    return left / worth if worth > 0.0 else 0.0


@nopython
def _put_in(t: Table, k: Pack, rank: Ints, likely: Ints, p: Prices, o: Point) -> None:
    """Serve whom there is room for, then whom room can be made for, while enough is left."""
    for i in rank:
        if k.chosen[i] < 0:
            j = best_place(t, k, i, 1.0, p, o)
            if j >= 0:
                place(t, k, i, j, k.spare, p)
    start, task = _members(t, k, rank)
    for i in rank:
        if k.chosen[i] < 0 and _idle(t, k) > ENOUGH:
            _make_room(t, k, i, likely[i], start, task, p, o)


@nopython
def pack(t: Table, price: Floats, o: Point) -> Pack:
    """Plan from the prices (R,) of the bound."""
    k, n_tasks, z = new_pack(t, price), t.most.shape[0], new_set(t)
    net, cost, likely = np.empty(n_tasks), np.empty(n_tasks), np.full(n_tasks, -1, dtype=np.int64)
    _asking(t, price, net, cost, likely)
    rank, p = _ranked(t, net, cost), prices_of(t, k.base)
    chosen, share, best, balanced = k.chosen.copy(), k.share.copy(), 0.0, k.base.copy()
    for r in range(k.base.shape[0]):
        reprice(t, k, r, p)
    _first_round(t, k, rank, price, p, o)
    for turn in range(ROUNDS):
        _recount(t, k, p)
        _balance(t, k, z, balanced, o)
        _recount(t, k, p)
        _put_in(t, k, rank, likely, p, o)
        if turn >= ROUNDS - UPGRADES:
            _upgrade(t, k, rank, p, o)
            start, task = _members(t, k, rank)
            looks = LOOKS * n_tasks
            for i in rank:
                if k.chosen[i] < 0 and looks > 0:
                    looks = _squeeze_in(t, k, i, start, task, looks, p, o)
        value = value_of(t, k.chosen)
        if value > best:
            best = value
            chosen[:], share[:] = k.chosen, k.share
    k.chosen[:], k.share[:] = chosen, share
    return k
