"""What the second stage decides on: the slots with work of the points chosen, side by side (stage.py).

The climb looks at all of them at every step, so what prices do not change is worked out once: work over slack, limits,
the room that rigid demand leaves, and which phase can be the later one. Slots without work are left out: more would
gain them nothing, so they hold their floors.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from solvers.jit import nopython
from solvers.objectives.task import ACTIVITY, CAP, FIELDS, FLOOR, A, Aim, E, mix
from solvers.problem import Floats, Ints

# What Stage.own holds of task i
WEIGHT: Final = 0
THETA: Final = 1  # part of the first phase in the mixture; 1 or 0 where one takes longer at any shares
BOTH: Final = 2  # 1: either phase may take longer
EASY: Final = 3  # 1: no energy, and every share counts
TIGHT: Final = 4  # bill of the shares that its deadline needs, where no limit is in the way
EASED: Final = 5  # ... and of those that its weight pays for
OWN: Final = 6


class StageProblem(NamedTuple):
    """A problem and the points chosen in it; arrays as in solvers/problem.py."""

    slack: Floats
    slot: Ints
    work: Floats
    floor: Floats
    cap: Floats
    activity: Floats
    rigid: Floats
    background: Floats
    coupling_from: Ints
    coupling_to: Ints
    coupling_per_share: Floats
    chosen: Ints  # (N,)
    weight: Floats  # (N,)
    power_w: Floats  # (R,) of a device on air there; 0 where energy does not count


class StageColumns(NamedTuple):
    """Tasks admitted i = 0 .. n - 1 with slots first[i] .. first[i + 1] - 1 of K."""

    first: Ints  # (n + 1,)
    resource: Ints  # (K,)
    cell: Floats  # (K, FIELDS)
    own: Floats  # (n, OWN)
    room: Floats  # (R,)
    pull: Floats  # (R, R) use of resource r by a share of s


@nopython
def _room(q: StageProblem) -> tuple[Floats, Floats]:
    """What rigid demand and floors without work leave (R,), and what a share of s takes of r (R, R)."""
    n = q.background.shape[0]
    pull, room = np.eye(n), 1.0 - q.background
    for c in range(q.coupling_from.shape[0]):
        pull[q.coupling_to[c], q.coupling_from[c]] += q.coupling_per_share[c]
    for j in q.chosen:
        for s in range(q.slot.shape[1] if j >= 0 else 0):
            if q.slot[j, s] < n:
                room[q.slot[j, s]] -= q.rigid[j, s]
                if q.work[j, 0, s] <= 0.0 and q.work[j, 1, s] <= 0.0:
                    for r in range(n):
                        room[r] -= pull[r, q.slot[j, s]] * q.activity[j, s] * q.floor[j, s]
    return room, pull


@nopython
def gather(q: StageProblem, aim: Aim) -> StageColumns:
    """Take the slots with work of the points chosen."""
    n, width, tasks = q.background.shape[0], q.slot.shape[1], 0
    for j in q.chosen:
        tasks += 1 if j >= 0 else 0
    first, resource = np.zeros(tasks + 1, dtype=np.int64), np.zeros(tasks * width, dtype=np.int64)
    cell, own = np.zeros((tasks * width, FIELDS)), np.zeros((tasks, OWN))
    i = k = 0
    joules = weights = 0.0
    for task in range(q.chosen.shape[0]):
        j = q.chosen[task]
        if j < 0:
            continue
        own[i, WEIGHT], own[i, EASY] = q.weight[task], 1.0
        weights += q.weight[task]
        over = under = False
        for s in range(width):
            if q.slot[j, s] >= n or (q.work[j, 0, s] <= 0.0 and q.work[j, 1, s] <= 0.0):
                continue
            resource[k] = q.slot[j, s]
            for p in range(2):
                cell[k, A + p] = q.work[j, p, s] / q.slack[j, p] if q.work[j, p, s] > 0.0 else 0.0
            cell[k, E] = q.power_w[resource[k]] * (q.work[j, 0, s] + q.work[j, 1, s]) * q.weight[task]
            cell[k, FLOOR], cell[k, CAP], cell[k, ACTIVITY] = q.floor[j, s], q.cap[j, s], q.activity[j, s]
            joules += cell[k, E]
            over, under = over or cell[k, A] > cell[k, A + 1], under or cell[k, A] < cell[k, A + 1]
            if cell[k, E] > 0.0 or not cell[k, ACTIVITY] > 0.0:
                own[i, EASY] = 0.0
            k += 1
        own[i, BOTH] = 1.0 if over and under else 0.0
        own[i, THETA] = 0.5 if over and under else 0.0 if under else 1.0
        i += 1
        first[i] = k
        mix(cell, first[i - 1], k, own[i - 1, THETA])
    if aim.tie > 0.0:
        for i in range(tasks):
            own[i, WEIGHT] *= aim.tie * joules / max(weights, 1e-300)
    room, pull = _room(q)
    return StageColumns(first, resource[:k], cell[:k], own, room, pull)


@nopython
def move(q: StageProblem, share: Floats, x: Floats, into_x: bool) -> None:
    """Copy slots with work from share (N, S) to x (K,) or back; those without work hold their floors."""
    k = 0
    for task in range(q.chosen.shape[0]):
        j = q.chosen[task]
        for s in range(share.shape[1] if j >= 0 else 0):
            if q.slot[j, s] >= q.background.shape[0]:
                continue
            if q.work[j, 0, s] <= 0.0 and q.work[j, 1, s] <= 0.0:
                share[task, s] = q.floor[j, s]
                continue
            if into_x:
                x[k] = share[task, s]
            else:
                share[task, s] = x[k]
            k += 1
