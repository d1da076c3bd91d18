"""Weighted processor sharing, compiled: what each task gets when a resource is divided by rule, not by price.

Every user of resource r holds `weight x level[r]`, where the level uses up the resource (equal airtime is weight 1,
equal rate is weight 1 / spectral efficiency); nobody holds more than its cap, and what a cap leaves goes to the others.
The figure of merit of a task is its *lateness*: the greatest latency / slack over its phases, at most 1 when its
deadlines hold.

A load is (3, R): rigid demand, sum of activity x weight, and number of users of each resource.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from solvers.jit import cached, nopython
from solvers.problem import PHASES, Floats, Ints

Bools = npt.NDArray[np.bool_]

RIGID_TOLERANCE = 1e-12  # rounding of a sum of tens of fractions


class SharingTable(NamedTuple):
    """The Problem's columns that sharing reads, and the rule. Shapes as in Problem."""

    first: Ints
    slot: Ints
    work: Floats
    slack: Floats
    floor: Floats
    cap: Floats
    activity: Floats
    rigid: Floats
    value: Floats
    background: Floats
    coupling_from: Ints
    coupling_to: Ints
    coupling_per_share: Floats
    allowed: Bools  # (J,) points that this policy may choose
    weight: Floats  # (N,) of each task on comm resources; 1 on all others
    comm: Bools  # (R,)
    overbook: float  # each level is this times what fits


@nopython
def uses(t: SharingTable, j: int, s: int) -> bool:
    """Whether slot s of point j takes a share (padding and memory do not)."""
    if t.slot[j, s] >= t.background.size:
        return False
    return bool(t.work[j, 0, s] > 0 or t.work[j, 1, s] > 0 or t.floor[j, s] > 0)


@nopython
def weight_on(t: SharingTable, i: int, r: int) -> float:
    """Weight of task i on resource r."""
    return float(t.weight[i]) if t.comm[r] else 1.0


@nopython
def add(t: SharingTable, load: Floats, i: int, j: int, sign: float) -> None:
    """Put task i at point j on the load (sign 1) or take it off (sign -1)."""
    for s in range(t.slot.shape[1]):
        r = t.slot[j, s]
        if r < t.background.size:
            load[0, r] += sign * t.rigid[j, s]
            if uses(t, j, s):
                load[1, r] += sign * t.activity[j, s] * weight_on(t, i, r)
                load[2, r] += sign


@nopython
def fits(t: SharingTable, load: Floats, j: int) -> bool:
    """Whether the rigid demands fit on every resource of point j, which is on the load already."""
    for s in range(t.slot.shape[1]):
        r = t.slot[j, s]
        if r < t.background.size and t.rigid[j, s] > 0 and t.background[r] + load[0, r] > 1 + RIGID_TOLERANCE:
            return False
    return True


@nopython
def lateness(t: SharingTable, j: int, share: Floats) -> float:
    """Greatest latency / slack of point j at shares (S,); also floor / share, for a queue must be stable."""
    worst = 0.0
    for s in range(share.size):
        if uses(t, j, s):
            if share[s] <= 0:
                return np.inf
            worst = max(worst, t.floor[j, s] / share[s])
    for q in range(PHASES):
        latency = 0.0
        for s in range(share.size):
            if t.slot[j, s] < t.background.size and t.work[j, q, s] > 0:
                latency += t.work[j, q, s] / share[s]
        if latency > t.slack[j, q] <= 0 or t.slack[j, q] < 0:
            return np.inf
        if latency > 0:
            worst = max(worst, latency / t.slack[j, q])
    return worst


@nopython
def left_for(t: SharingTable, load: Floats, r: int) -> float:
    """Part of r that is shared out: coupled resources are counted as fully granted."""
    left = 1 - t.background[r] - load[0, r]
    for c in range(t.coupling_to.size):
        source = t.coupling_from[c]
        if t.coupling_to[c] == r and load[2, source] > 0:
            left -= t.coupling_per_share[c] * max(0.0, 1 - t.background[source] - load[0, source])
    return float(max(0.0, left))


@nopython
def expected_lateness(t: SharingTable, load: Floats, i: int, j: int, share: Floats) -> float:
    """Lateness of task i at point j, which is on the load; `share` (S,) is scratch and holds its shares after."""
    for s in range(share.size):
        share[s] = 0.0
        if uses(t, j, s):
            r = t.slot[j, s]
            level = left_for(t, load, r) / load[1, r] if load[1, r] > 0 else np.inf
            share[s] = min(t.cap[j, s], t.overbook * level * weight_on(t, i, r))
    return float(lateness(t, j, share))


@cached
def best_point(t: SharingTable, load: Floats, i: int) -> int:
    """Point of task i (not on the load) that is least late if it joins; ties go to value. -1 = none can be served."""
    best, best_late, best_value = -1, np.inf, -np.inf
    joined, share = np.empty_like(load), np.empty(t.slot.shape[1])
    for j in range(t.first[i], t.first[i + 1]):
        if not t.allowed[j]:
            continue
        joined[:] = load
        add(t, joined, i, j, 1.0)
        if not fits(t, joined, j):
            continue
        late = expected_lateness(t, joined, i, j, share)
        if late < best_late or (late == best_late < np.inf and t.value[j] > best_value):
            best, best_late, best_value = j, late, t.value[j]
    return best


@cached
def load_of(t: SharingTable, chosen: Ints) -> Floats:
    """Load (3, R) of the chosen points."""
    load = np.zeros((3, t.background.size))
    for i in range(chosen.size):
        if chosen[i] >= 0:
            add(t, load, i, chosen[i], 1.0)
    return load


@cached
def best_response(t: SharingTable, chosen: Ints, movers: Ints, rounds: int) -> None:
    """Let the tasks of `movers`, one after another, take their best point, until nobody moves (or `rounds`)."""
    load = load_of(t, chosen)
    for _ in range(rounds):
        moved = False
        for i in movers:
            before = chosen[i]
            if before >= 0:
                add(t, load, i, before, -1.0)
            chosen[i] = best_point(t, load, i)
            if chosen[i] >= 0:
                add(t, load, i, chosen[i], 1.0)
            moved = moved or chosen[i] != before
        if not moved:
            break


@nopython
def _fill(t: SharingTable, chosen: Ints, share: Floats, load: Floats, left: Floats, stage: Bools) -> None:
    """Share out `left` (R,) among the users of the resources in `stage`; what caps leave goes to the rest."""
    weight = load[1].copy()
    for _ in range(chosen.size + 1):
        capped = False
        level = np.where(weight > RIGID_TOLERANCE, left / np.maximum(weight, RIGID_TOLERANCE), np.inf)
        for i in range(chosen.size):
            for s in range(share.shape[1]):
                j = chosen[i]
                if j < 0 or share[i, s] >= 0 or not uses(t, j, s) or not stage[t.slot[j, s]]:
                    continue
                r = t.slot[j, s]
                if level[r] * weight_on(t, i, r) >= t.cap[j, s]:
                    share[i, s] = t.cap[j, s]
                    left[r] = max(0.0, left[r] - t.activity[j, s] * t.cap[j, s])
                    weight[r] -= t.activity[j, s] * weight_on(t, i, r)
                    capped = True
        if not capped:
            break
    for i in range(chosen.size):
        for s in range(share.shape[1]):
            j = chosen[i]
            if j >= 0 and share[i, s] < 0 and uses(t, j, s) and stage[t.slot[j, s]]:
                share[i, s] = level[t.slot[j, s]] * weight_on(t, i, t.slot[j, s])


@cached
def lateness_of_all(t: SharingTable, chosen: Ints, share: Floats) -> Floats:
    """Lateness (N,) of each chosen point at shares (N, S), inf where none is chosen."""
    late = np.full(chosen.size, np.inf)
    for i in range(chosen.size):
        if chosen[i] >= 0:
            late[i] = lateness(t, chosen[i], share[i])
    return late


@cached
def shared_out(t: SharingTable, chosen: Ints) -> tuple[Floats, Floats]:
    """Shares (N, S) of the chosen points and the lateness (N,) that follows, inf for tasks not chosen.

    Resources that take a coupled load are shared out after those that cause it.
    """
    load = load_of(t, chosen)
    share = np.full((chosen.size, t.slot.shape[1]), -1.0)
    target = np.zeros(t.background.size, dtype=np.bool_)
    for c in range(t.coupling_to.size):
        target[t.coupling_to[c]] = True
    left = np.empty(t.background.size)
    for r in range(left.size):
        left[r] = t.overbook * left_for(t, load, r)
    _fill(t, chosen, share, load, left, ~target)
    if t.coupling_to.size > 0:
        _fill(t, chosen, share, load, left, target)
    share = np.maximum(share, 0.0)
    return share, lateness_of_all(t, chosen, share)
