"""Whole PRBs: shares of some resources made multiples of 1 / grid without losing deadlines (docs/model.md, section 5).

A task's *need* is what its other shares must be, all stretched or shrunk by one factor, so that its deadlines hold with
the PRBs that it has; with one other resource that is the exact least. PRBs start at the whole part of the wish, then go
one at a time to whoever's need lightens the overload most, from whoever's need it costs least, until all needs fit.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers._jit import cached, nopython
from solvers.problem import Floats, Ints

EPS: Final = 1e-9  # of a PRB: what is whole but for rounding stays what it is
SLIP: Final = 5e-10  # of a resource and of a deadline: half of what solvers.check forgives
FAINT: Final = 1e-6  # weight of need that overloads nothing, in the choice between moves
FEW: Final = 400  # tasks up to which single moves are tried, too
MISSES: Final = 8  # moves of a trade that may come to nothing before it ends
GAIN: Final = 1e-12  # of a resource: a move that relieves less is none


class Served(NamedTuple):
    """The K admitted tasks. a: work / slack; wish: the shares that they hold now."""

    slot: Ints  # (K, S) R = padding
    a: Floats  # (K, Q, S)
    wish: Floats  # (K, S)
    floor: Floats  # (K, S)
    cap: Floats  # (K, S)
    activity: Floats  # (K, S)
    value: Floats  # (K,)


class Site(NamedTuple):
    """Resources. grid: PRBs of each, 0 = any share; room: left by background and rigid demand."""

    grid: Ints  # (R + 1,)
    room: Floats  # (R + 1,) inf for padding
    link: Ints  # (C, 2) couplings: from, to
    kappa: Floats  # (C,)


class Plan(NamedTuple):
    """What is being decided, written in place."""

    prbs: Ints  # (K, S)
    share: Floats  # (K, S) PRBs / grid, or the need
    promised: Ints  # (K,) 1 = its deadlines hold
    use: Floats  # (R + 1,)


@nopython
def _add(site: Site, use: Floats, r: int, amount: float) -> None:
    use[r] += amount
    for c in range(site.link.shape[0]):
        if site.link[c, 0] == r:
            use[site.link[c, 1]] += site.kappa[c] * amount


@nopython
def _room_for(site: Site, use: Floats, r: int) -> float:
    """Room for more of r, its couplings counted."""
    left: float = site.room[r] - use[r]
    for c in range(site.link.shape[0]):
        if site.link[c, 0] == r and site.kappa[c] > 0.0:
            left = min(left, (site.room[site.link[c, 1]] - use[site.link[c, 1]]) / site.kappa[c])
    return left


@nopython
def _stretch(t: Served, site: Site, k: int, out: Floats) -> float:
    """Least factor on the wishes without a grid that holds the deadlines beside the grid slots `out`; inf: none."""
    factor = 0.0
    for q in range(t.a.shape[1]):
        fixed = rest = 0.0
        for z in range(out.shape[0]):
            if t.a[k, q, z] > 0.0:
                if site.grid[t.slot[k, z]] > 0:
                    fixed += t.a[k, q, z] / out[z]
                else:
                    rest += t.a[k, q, z] / t.wish[k, z]
        if not fixed <= 1.0 + SLIP or (rest > 0.0 and not fixed < 1.0):
            return math.inf
        if rest > 0.0:
            factor = max(factor, rest / (1.0 - fixed))
    return factor


@nopython
def _need(t: Served, site: Site, plan: Plan, k: int, s: int, more: int, out: Floats) -> bool:
    """Shares (S,) of task k with `more` PRBs in slot s: grid slots as they are, the others as little as they may be.

    False: no stretch of the others within their caps holds the deadlines.
    """
    for z in range(out.shape[0]):
        g = site.grid[t.slot[k, z]]
        out[z] = (plan.prbs[k, z] + (more if z == s else 0)) / g if g > 0 else 0.0
    if plan.promised[k] == 0:
        return True
    factor = _stretch(t, site, k, out)
    for z in range(out.shape[0]):
        if site.grid[t.slot[k, z]] == 0:
            has_work = max(t.a[k, 0, z], t.a[k, 1, z]) > 0.0
            least = max(t.floor[k, z], factor * t.wish[k, z] if has_work else 0.0)
            if not least <= t.cap[k, z] * (1.0 + SLIP):
                return False
            out[z] = min(least, t.cap[k, z])
    return factor < math.inf


@nopython
def _overload(site: Site, use: Floats, faint: float) -> float:
    """Overload of all resources together, and a faint weight on need that overloads nothing."""
    total = 0.0
    for r in range(use.shape[0] - 1):
        total += max(0.0, use[r] - site.room[r] - SLIP)
        if site.grid[r] == 0:
            total += faint * use[r]
    return total


@nopython
def _least(t: Served, site: Site, plan: Plan, k: int, s: int) -> int:
    return math.ceil(t.floor[k, s] * site.grid[t.slot[k, s]] - EPS) if plan.promised[k] else 0


@nopython
def _most(t: Served, site: Site, k: int, s: int) -> int:
    most: int = math.floor(t.cap[k, s] * site.grid[t.slot[k, s]] + EPS)
    return most


@nopython
def _apply(t: Served, site: Site, plan: Plan, k: int, share: Floats, use: Floats) -> None:
    """Write into `use` the plan's use with task k at `share` instead."""
    for r in range(use.shape[0]):
        use[r] = plan.use[r]
    for z in range(share.shape[0]):
        _add(site, use, t.slot[k, z], t.activity[k, z] * (share[z] - plan.share[k, z]))


@nopython
def _set(t: Served, site: Site, plan: Plan, k: int, s: int, more: int) -> bool:
    """Change the PRBs of slot s (0: only take the need afresh). False: not possible, nothing changed."""
    share, use = np.empty(t.slot.shape[1]), np.empty(plan.use.shape[0])
    if not _need(t, site, plan, k, s, more, share):
        return False
    _apply(t, site, plan, k, share, use)
    plan.prbs[k, s] += more
    plan.share[k, :] = share
    plan.use[:] = use
    return True


@nopython
def _start(t: Served, site: Site, plan: Plan) -> None:
    """Whole parts of the wish; more where the others' caps leave no other way to a deadline."""
    for k in range(t.slot.shape[0]):
        for s in range(t.slot.shape[1]):
            g = site.grid[t.slot[k, s]]
            if g > 0:
                most = _most(t, site, k, s)
                if _least(t, site, plan, k, s) > most:
                    plan.promised[k] = 0
                whole = math.floor(t.wish[k, s] * g + EPS)
                plan.prbs[k, s] = min(most, max(whole, _least(t, site, plan, k, s)))
        while not _set(t, site, plan, k, 0, 0):
            s = _slowest(t, site, plan, k)
            if s < 0:
                plan.promised[k] = 0
            else:
                plan.prbs[k, s] += 1


@nopython
def _slowest(t: Served, site: Site, plan: Plan, k: int) -> int:
    """Grid slot below its cap on which task k waits longest; -1: none."""
    slot, longest = -1, 0.0
    for s in range(t.slot.shape[1]):
        if site.grid[t.slot[k, s]] > 0 and plan.prbs[k, s] < _most(t, site, k, s):
            wait = max(t.a[k, 0, s], t.a[k, 1, s]) * site.grid[t.slot[k, s]]
            if wait > 0.0 and (plan.prbs[k, s] == 0 or wait / plan.prbs[k, s] > longest):
                slot, longest = s, wait / plan.prbs[k, s] if plan.prbs[k, s] > 0 else math.inf
    return slot


@nopython
def _best(t: Served, site: Site, plan: Plan, r: int, more: int, limit: float) -> tuple[int, int, float]:
    """Task and slot for which one PRB of r more (or less: -1) leaves the least excess; weighs at most `limit`."""
    share, use = np.empty(t.slot.shape[1]), np.empty(plan.use.shape[0])
    best, where, least = -1, 0, math.inf
    for k in range(t.slot.shape[0]):
        for s in range(t.slot.shape[1]):
            if t.slot[k, s] != r or t.activity[k, s] > limit * site.grid[r] + EPS:
                continue
            after = plan.prbs[k, s] + more
            if not _least(t, site, plan, k, s) <= after <= _most(t, site, k, s):
                continue
            if _need(t, site, plan, k, s, more, share):
                _apply(t, site, plan, k, share, use)
                left = _overload(site, use, FAINT)
                if left < least:
                    best, where, least = k, s, left
    return best, where, least


@nopython
def _drop(t: Served, site: Site, plan: Plan) -> bool:
    """Take the promise of the task worth least for what it takes of overloaded resources. False: there is none."""
    worst, least = -1, math.inf
    for k in range(t.slot.shape[0]):
        if plan.promised[k]:
            relief = 0.0
            for s in range(t.slot.shape[1]):
                if _room_for(site, plan.use, t.slot[k, s]) < -SLIP:
                    relief += t.activity[k, s] * plan.share[k, s]
            if relief > 0.0 and t.value[k] / relief < least:
                worst, least = k, t.value[k] / relief
    if worst >= 0:
        plan.promised[worst] = 0
        _set(t, site, plan, worst, 0, 0)
    return worst >= 0


@nopython
def _shed(t: Served, site: Site, plan: Plan, r: int) -> None:
    """Take PRBs of r until it is not overloaded by itself."""
    while plan.use[r] > site.room[r] + SLIP:
        k, s, _ = _best(t, site, plan, r, -1, math.inf)
        if (k < 0 or not _set(t, site, plan, k, s, -1)) and not _drop(t, site, plan):
            break


@nopython
def _hand_out(t: Served, site: Site, plan: Plan, r: int) -> None:
    """Give PRBs that are left, one to each task, to the greatest remainders of the wish."""
    rest = np.zeros(t.slot.shape[0] * t.slot.shape[1])
    for k in range(t.slot.shape[0]):
        for s in range(t.slot.shape[1]):
            if t.slot[k, s] == r and plan.prbs[k, s] < _most(t, site, k, s):
                rest[k * t.slot.shape[1] + s] = t.wish[k, s] * site.grid[r] - plan.prbs[k, s]
    for i in np.argsort(-rest, kind="mergesort"):
        k, s = i // t.slot.shape[1], i % t.slot.shape[1]
        if rest[i] <= EPS:
            break
        if t.activity[k, s] / site.grid[r] <= _room_for(site, plan.use, r) + SLIP:
            _set(t, site, plan, k, s, 1)


@nopython
def _give(t: Served, site: Site, plan: Plan, r: int, limit: float, before: float) -> bool:
    """One PRB of r to whom it relieves most. False: nobody, or the overload stays `before`; nothing changed."""
    k, s, _ = _best(t, site, plan, r, 1, limit)
    if k < 0 or not _set(t, site, plan, k, s, 1):
        return False
    if _overload(site, plan.use, 0.0) < before - GAIN:
        return True
    _set(t, site, plan, k, s, -1)
    return False


@nopython
def _exchange(t: Served, site: Site, plan: Plan) -> bool:
    """Move one PRB to where it relieves most, from what is free or from where it costs least. False: none helps."""
    before = _overload(site, plan.use, 0.0)
    for r in range(plan.use.shape[0] - 1):
        if site.grid[r] == 0:
            continue
        free = max(0.0, _room_for(site, plan.use, r) + SLIP)
        if _give(t, site, plan, r, free, before):
            return True
        k, s, _ = _best(t, site, plan, r, -1, math.inf)
        if k >= 0 and _set(t, site, plan, k, s, -1):
            if _overload(site, plan.use, 0.0) < before - GAIN:
                return True
            if _give(t, site, plan, r, free + t.activity[k, s] / site.grid[r], before):
                return True
            _set(t, site, plan, k, s, 1)
    return False


@nopython
def _effects(t: Served, site: Site, plan: Plan, r: int, more: int, after: Floats) -> None:
    """Excess (K x S,) that one PRB of r more (or less: -1) for each task and slot would leave; inf: not possible."""
    share, use = np.empty(t.slot.shape[1]), np.empty(plan.use.shape[0])
    for k in range(t.slot.shape[0]):
        for s in range(t.slot.shape[1]):
            i = k * t.slot.shape[1] + s
            after[i] = math.inf
            if t.slot[k, s] == r:
                then = plan.prbs[k, s] + more
                within = _least(t, site, plan, k, s) <= then <= _most(t, site, k, s)
                if within and _need(t, site, plan, k, s, more, share):
                    _apply(t, site, plan, k, share, use)
                    after[i] = _overload(site, use, FAINT)


@nopython
def _move(t: Served, site: Site, plan: Plan, to: int, source: int) -> bool:
    """One PRB to a task's slot from another's (k x S + s; -1: from what is free). False: that relieves nothing."""
    n_slots, before = t.slot.shape[1], _overload(site, plan.use, 0.0)
    if source >= 0 and not _set(t, site, plan, source // n_slots, source % n_slots, -1):
        return False
    if _set(t, site, plan, to // n_slots, to % n_slots, 1):
        if _overload(site, plan.use, 0.0) < before - GAIN:
            return True
        _set(t, site, plan, to // n_slots, to % n_slots, -1)
    if source >= 0:
        _set(t, site, plan, source // n_slots, source % n_slots, 1)
    return False


@nopython
def _trade(t: Served, site: Site, plan: Plan, r: int) -> None:
    """Move many PRBs of r at once, by what each would do alone: from where it costs least to where it relieves most.

    The same moves as _exchange makes one at a time, looked for once for all of them.
    """
    size, n_slots = t.slot.shape[0] * t.slot.shape[1], t.slot.shape[1]
    now, more, less = _overload(site, plan.use, FAINT), np.empty(size), np.empty(size)
    _effects(t, site, plan, r, 1, more)
    _effects(t, site, plan, r, -1, less)
    givers, place, failed = np.argsort(less, kind="mergesort"), 0, 0
    for to in np.argsort(more, kind="mergesort"):
        if not more[to] < now or failed >= MISSES or _overload(site, plan.use, 0.0) <= 0.0:
            break
        source = -1
        if t.activity[to // n_slots, to % n_slots] / site.grid[r] > _room_for(site, plan.use, r) + SLIP:
            while place < size and givers[place] // n_slots == to // n_slots:
                place += 1
            if place >= size or not more[to] + less[givers[place]] < 2.0 * now:
                break
            source = givers[place]
            place += 1
            if t.activity[source // n_slots, source % n_slots] < t.activity[to // n_slots, to % n_slots] - EPS:
                failed += 1
                continue
        if not _move(t, site, plan, to, source):
            failed += 1


@nopython
def _relieve(t: Served, site: Site, plan: Plan) -> None:
    """Until all needs fit: many moves at once; where these do not halve the overload, one move, or one promise less.

    With many tasks a promise goes rather than that single moves, each a look at all of them, are tried for each PRB.
    """
    before = _overload(site, plan.use, 0.0)
    while before > 0.0:
        for r in range(site.room.shape[0] - 1):
            if site.grid[r] > 0 and _overload(site, plan.use, 0.0) > 0.0:
                _trade(t, site, plan, r)
        left = _overload(site, plan.use, 0.0)
        if left > 0.5 * before and not (t.slot.shape[0] <= FEW and _exchange(t, site, plan)):
            if not _drop(t, site, plan):
                break
            left = _overload(site, plan.use, 0.0)
        before = left


@nopython
def _top_up(t: Served, site: Site, plan: Plan, r: int) -> None:
    """Raise shares of r from the need towards the wish, all by the same part of the way, as far as there is room."""
    asked = 0.0
    for k in range(t.slot.shape[0]):
        for s in range(t.slot.shape[1]):
            if t.slot[k, s] == r:
                asked += t.activity[k, s] * max(0.0, t.wish[k, s] - plan.share[k, s])
    left = _room_for(site, plan.use, r)
    part = min(1.0, max(0.0, left) / asked) if asked > 0.0 else 1.0
    for k in range(t.slot.shape[0]):
        for s in range(t.slot.shape[1]):
            if t.slot[k, s] == r and t.wish[k, s] > plan.share[k, s]:
                more = part * (t.wish[k, s] - plan.share[k, s])
                plan.share[k, s] += more
                _add(site, plan.use, r, t.activity[k, s] * more)


@cached
def round_shares(t: Served, site: Site, promised: Ints) -> Plan:
    """Decide PRBs, other shares and promises. Everything given is left as it is."""
    n_tasks, n_slots = t.slot.shape
    zero = np.zeros((n_tasks, n_slots))
    plan = Plan(np.zeros((n_tasks, n_slots), dtype=np.int64), zero, promised.copy(), np.zeros(site.room.shape[0]))
    _start(t, site, plan)
    for r in range(site.room.shape[0] - 1):
        if site.grid[r] > 0:
            _shed(t, site, plan, r)
            _hand_out(t, site, plan, r)
    _relieve(t, site, plan)
    for r in range(site.room.shape[0] - 1):
        if site.grid[r] > 0:
            _hand_out(t, site, plan, r)
    for r in range(site.room.shape[0] - 1):
        if site.grid[r] == 0:
            _top_up(t, site, plan, r)
    return plan
