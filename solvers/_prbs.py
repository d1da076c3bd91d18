"""Whole PRBs of single tasks: what they need with them, and moves of one PRB or promise (solvers/_round.py)."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from solvers._jit import inlined, lean
from solvers.problem import PHASES, Floats, Ints

EPS: Final = 1e-9  # of a PRB: what is whole but for rounding stays what it is
SLIP: Final = 5e-10  # of a resource and of a deadline: half of what solvers.check forgives
FAINT: Final = 1e-6  # weight of need that overloads nothing, in the choice between moves
GAIN: Final = 1e-12  # of a resource: a move that relieves less is none


class Served(NamedTuple):
    """The K admitted tasks, in the order of their ids."""

    task: Ints  # (K,) row of the plan
    slot: Ints  # (K, S) R = padding
    wait: Floats  # (K, Q, S) part of the slack that the work takes with one PRB; 0 where there is no grid
    rest: Floats  # (K, Q) part that the work without a grid takes, with the shares held now
    limit: Floats  # (K,) factor on these shares that their caps allow; -1: not even their floors are within the caps
    wish: Floats  # (K, S) the shares held now
    pull: Floats  # (K, S) ... of the work without a grid, else 0
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
    price: Floats  # (R,) at which the shares were found; only ratios count, zeros: not known


class Plan(NamedTuple):
    """What is being decided, written in place."""

    prbs: Ints  # (K, S)
    share: Floats  # (K, S) PRBs / grid, or the need
    promised: Ints  # (K,) 1 = its deadlines hold
    use: Floats  # (R + 1,)
    moves: Ints  # (K,) how often its shares were changed
    need: Floats  # (S,) scratch
    then: Floats  # (R + 1,) scratch


@inlined
def add(site: Site, use: Floats, r: int, amount: float) -> None:
    use[r] += amount
    for c in range(site.link.shape[0]):
        if site.link[c, 0] == r:
            use[site.link[c, 1]] += site.kappa[c] * amount


@lean
def room_for(site: Site, use: Floats, r: int) -> float:
    """Room for more of r, its couplings counted."""
    left: float = site.room[r] - use[r]
    for c in range(site.link.shape[0]):
        if site.link[c, 0] == r and site.kappa[c] > 0.0:
            left = min(left, (site.room[site.link[c, 1]] - use[site.link[c, 1]]) / site.kappa[c])
    return left


@inlined
def stretch(t: Served, plan: Plan, k: int, s: int, more: int) -> float:
    """Least factor on the shares without a grid that holds the deadlines with `more` PRBs in slot s; inf: none."""
    if plan.promised[k] == 0:
        return 0.0
    factor = 0.0
    for q in range(PHASES):
        fixed, rest = 0.0, t.rest[k, q]
        for z in range(t.slot.shape[1]):
            if t.wait[k, q, z] > 0.0:
                prbs = plan.prbs[k, z] + (more if z == s else 0)
                fixed += t.wait[k, q, z] / prbs if prbs > 0 else math.inf
        if not fixed <= 1.0 + SLIP or (rest > 0.0 and not fixed < 1.0):
            return math.inf
        if rest > 0.0:
            factor = max(factor, rest / (1.0 - fixed))
    return factor if factor <= t.limit[k] else math.inf


@inlined
def elsewhere(t: Served, plan: Plan, k: int, z: int, factor: float) -> float:
    """Share of a slot without a grid at a factor."""
    return min(t.cap[k, z], max(t.floor[k, z], factor * t.pull[k, z])) if plan.promised[k] else 0.0


@inlined
def need_of(t: Served, site: Site, plan: Plan, k: int, s: int, more: int, out: Floats) -> bool:
    """Shares (S,) of task k with `more` PRBs in slot s: grid slots as they are, the others as little as they may be.

    False: no stretch of the others within their caps holds the deadlines.
    """
    factor = stretch(t, plan, k, s, more)
    if not factor < math.inf:
        return False
    for z in range(out.shape[0]):
        g = site.grid[t.slot[k, z]]
        if g > 0:
            out[z] = (plan.prbs[k, z] + (more if z == s else 0)) / g
        else:
            out[z] = elsewhere(t, plan, k, z, factor)
    return True


@lean
def overload(site: Site, use: Floats, faint: float) -> float:
    """Overload of all resources together, and a faint weight on need that overloads nothing."""
    total = 0.0
    for r in range(use.shape[0] - 1):
        total += max(0.0, use[r] - site.room[r] - SLIP)
        if site.grid[r] == 0:
            total += faint * use[r]
    return total


@lean
def least_prbs(t: Served, site: Site, plan: Plan, k: int, s: int) -> int:
    return math.ceil(t.floor[k, s] * site.grid[t.slot[k, s]] - EPS) if plan.promised[k] else 0


@lean
def most_prbs(t: Served, site: Site, k: int, s: int) -> int:
    most: int = math.floor(t.cap[k, s] * site.grid[t.slot[k, s]] + EPS)
    return most


@lean
def _apply(t: Served, site: Site, plan: Plan, k: int, share: Floats, use: Floats) -> None:
    """Write into `use` the plan's use with task k at `share` instead."""
    for r in range(use.shape[0]):
        use[r] = plan.use[r]
    for z in range(share.shape[0]):
        add(site, use, t.slot[k, z], t.activity[k, z] * (share[z] - plan.share[k, z]))


@lean
def change(t: Served, site: Site, plan: Plan, k: int, s: int, more: int) -> bool:
    """Change the PRBs of slot s (0: only take the need afresh). False: not possible, nothing changed."""
    if not need_of(t, site, plan, k, s, more, plan.need):
        return False
    plan.prbs[k, s] += more
    for z in range(plan.need.shape[0]):
        add(site, plan.use, t.slot[k, z], t.activity[k, z] * (plan.need[z] - plan.share[k, z]))
        plan.share[k, z] = plan.need[z]
    plan.moves[k] += 1
    return True


@lean
def start(t: Served, site: Site, plan: Plan, up: float) -> None:
    """Whole parts of the wish and `up`; more where the others' caps leave no other way to a deadline."""
    for k in range(t.slot.shape[0]):
        for s in range(t.slot.shape[1]):
            g = site.grid[t.slot[k, s]]
            if g > 0:
                most = most_prbs(t, site, k, s)
                if least_prbs(t, site, plan, k, s) > most:
                    plan.promised[k] = 0
                whole = math.floor(t.wish[k, s] * g + up + EPS)
                plan.prbs[k, s] = min(most, max(whole, least_prbs(t, site, plan, k, s)))
        while not need_of(t, site, plan, k, 0, 0, plan.need):
            s = _slowest(t, site, plan, k)
            if s < 0:
                plan.promised[k] = 0
            else:
                plan.prbs[k, s] += 1
        for z in range(t.slot.shape[1]):
            plan.share[k, z] = plan.need[z]
            add(site, plan.use, t.slot[k, z], t.activity[k, z] * plan.need[z])


@lean
def _slowest(t: Served, site: Site, plan: Plan, k: int) -> int:
    """Grid slot below its cap on which task k waits longest; -1: none."""
    slot, longest = -1, 0.0
    for s in range(t.slot.shape[1]):
        if site.grid[t.slot[k, s]] > 0 and plan.prbs[k, s] < most_prbs(t, site, k, s):
            wait = max(t.wait[k, 0, s], t.wait[k, 1, s])
            if wait > 0.0 and (plan.prbs[k, s] == 0 or wait / plan.prbs[k, s] > longest):
                slot, longest = s, wait / plan.prbs[k, s] if plan.prbs[k, s] > 0 else math.inf
    return slot


@lean
def _best(t: Served, site: Site, plan: Plan, r: int, more: int, limit: float) -> tuple[int, int, float]:
    """Task and slot for which one PRB of r more (or less: -1) leaves the least excess; weighs at most `limit`."""
    best, where, least = -1, 0, math.inf
    for k in range(t.slot.shape[0]):
        for s in range(t.slot.shape[1]):
            if t.slot[k, s] != r or t.activity[k, s] > limit * site.grid[r] + EPS:
                continue
            after = plan.prbs[k, s] + more
            if not least_prbs(t, site, plan, k, s) <= after <= most_prbs(t, site, k, s):
                continue
            if need_of(t, site, plan, k, s, more, plan.need):
                _apply(t, site, plan, k, plan.need, plan.then)
                left = overload(site, plan.then, FAINT)
                if left < least:
                    best, where, least = k, s, left
    return best, where, least


@lean
def release(t: Served, site: Site, plan: Plan, k: int) -> None:
    """Take a task's promise and its PRBs."""
    plan.promised[k] = 0
    for s in range(t.slot.shape[1]):
        plan.prbs[k, s] = 0
    change(t, site, plan, k, 0, 0)


@lean
def drop(t: Served, site: Site, plan: Plan) -> bool:
    """Take the promise of the task worth least for what it takes of overloaded resources. False: there is none."""
    worst, least = -1, math.inf
    for k in range(t.slot.shape[0]):
        if plan.promised[k]:
            relief = 0.0
            for s in range(t.slot.shape[1]):
                if room_for(site, plan.use, t.slot[k, s]) < -SLIP:
                    relief += t.activity[k, s] * plan.share[k, s]
            if relief > 0.0 and t.value[k] / relief < least:
                worst, least = k, t.value[k] / relief
    if worst >= 0:
        release(t, site, plan, worst)
    return worst >= 0


@lean
def shed(t: Served, site: Site, plan: Plan, r: int) -> None:
    """Take PRBs of r until it is not overloaded by itself."""
    while plan.use[r] > site.room[r] + SLIP:
        k, s, _ = _best(t, site, plan, r, -1, math.inf)
        if (k < 0 or not change(t, site, plan, k, s, -1)) and not drop(t, site, plan):
            break


@lean
def _give(t: Served, site: Site, plan: Plan, r: int, limit: float, before: float) -> bool:
    """One PRB of r to whom it relieves most. False: nobody, or the overload stays `before`; nothing changed."""
    k, s, _ = _best(t, site, plan, r, 1, limit)
    if k < 0 or not change(t, site, plan, k, s, 1):
        return False
    if overload(site, plan.use, 0.0) < before - GAIN:
        return True
    change(t, site, plan, k, s, -1)
    return False


@lean
def exchange(t: Served, site: Site, plan: Plan) -> bool:
    """Move one PRB to where it relieves most, from what is free or from where it costs least. False: none helps."""
    before = overload(site, plan.use, 0.0)
    for r in range(plan.use.shape[0] - 1):
        if site.grid[r] == 0:
            continue
        free = max(0.0, room_for(site, plan.use, r) + SLIP)
        if _give(t, site, plan, r, free, before):
            return True
        k, s, _ = _best(t, site, plan, r, -1, math.inf)
        if k >= 0 and change(t, site, plan, k, s, -1):
            if overload(site, plan.use, 0.0) < before - GAIN:
                return True
            if _give(t, site, plan, r, free + t.activity[k, s] / site.grid[r], before):
                return True
            change(t, site, plan, k, s, 1)
    return False
