"""Seeded problems for the solver benchmark: a city's tasks on 4 cells and 4 nodes, and a channel that moves.

Every task is attached to one cell and may use any node: 8 splits x 4 nodes = 32 points. A split that runs more on
the device leaves less for the air and for the node, but more of the deadline is gone (workloads/video.py has the
same trade). Resources grow with the number of tasks, so that the load is what it is asked to be at any size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

import numpy as np

from solvers.problem import PHASES, Floats, Ints, Problem

CELLS: Final = 4
NODES: Final = 4
SPLITS: Final = 8
LOAD: Final = 2.5  # demand over capacity at even shares: about three quarters of the tasks can be served
CHANGE: Final = 0.1  # relative change of a task's spectral efficiency from one tick to the next, one sigma
SPREAD: Final = 0.3  # ... and around its mean
DEADLINES_S: Final = np.array([0.1, 0.2, 0.5, 1.0])
DEVICE_FLOP_S: Final = np.array([1e12, 5e12, 5e12])  # phone, Jetson class, laptop (scenarios.md)
NODE_SPEED: Final = np.array([1.0, 0.8, 1.25, 0.5])  # of the nodes, relative
DECODE_PART: Final = 0.1  # of the deadline: what a second phase (a token) is allowed
QUALITY: Final = np.array([1.0, 0.995, 0.99, 0.985, 0.98, 0.975, 0.97, 0.965])  # of the splits of a mixed task
TWO_PHASES: Final = 0.4  # part of the tasks of a mixed problem


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """A problem at the mean channel, and which task a point is of."""

    problem: Problem
    owner: Ints  # (J,)


def make(n_tasks: int, seed: int, *, mixed: bool = False, load: float = LOAD) -> Instance:
    """Return an instance. `mixed`: weights 1 and 5, qualities, two phases, floors and rigid demand as well.

    `load`: demand over capacity at even shares; at 1.3 nearly everybody can be served.
    """
    rng = np.random.default_rng((seed, n_tasks, int(mixed)))
    n_points, width = NODES * SPLITS, 2
    cell, device = rng.integers(0, CELLS, n_tasks), rng.integers(0, len(DEVICE_FLOP_S), n_tasks)
    deadline = rng.choice(DEADLINES_S, n_tasks)
    whole = 0.5 * deadline * DEVICE_FLOP_S[device] * rng.lognormal(0.0, 0.4, n_tasks)  # FLOP of a task
    bits = rng.lognormal(0.0, 0.6, n_tasks) * deadline  # relative; the load sets the scale
    node, split = np.repeat(np.arange(NODES), SPLITS), np.tile(np.arange(SPLITS), NODES)  # (32,)
    done = split / SPLITS  # part that runs on the device
    slack = deadline[:, None] - 0.01 - (whole / DEVICE_FLOP_S[device])[:, None] * done
    shrunk = np.exp(-3.0 * done * rng.uniform(0.3, 1.0, (n_tasks, 1)))  # activations get smaller with depth
    air = bits[:, None] * shrunk * rng.uniform(0.8, 1.25, (n_tasks, n_points))
    compute = (whole[:, None] * (1.0 - done)) / NODE_SPEED[node]
    work = np.zeros((n_tasks, n_points, PHASES, width))
    for s, (amount, many) in enumerate(((air, CELLS), (compute, NODES))):
        need = np.where(slack > 0.0, amount / np.maximum(slack, 1e-3), 0.0)
        # At even shares a point takes 2 x work / slack of both resources; all nodes together serve a task's nodes.
        work[:, :, 0, s] = amount * load * many / (2.0 * n_tasks * np.median(need[need > 0.0]))
    value, limit = np.ones((n_tasks, n_points)), np.full((n_tasks, n_points, PHASES), np.inf)
    limit[:, :, 0] = slack
    floor, rigid = np.zeros((n_tasks, n_points, width)), np.zeros((n_tasks, n_points, width))
    if mixed:
        value = rng.choice([1.0, 5.0], n_tasks)[:, None] * QUALITY[split]
        two = rng.random(n_tasks) < TWO_PHASES
        limit[two, :, 1] = DECODE_PART * slack[two]
        work[two, :, 1, :] = (
            DECODE_PART * work[two, :, 0, :] * rng.lognormal(0.0, 0.4, (int(two.sum()), n_points, width))
        )
        floor = np.where(slack[:, :, None] > 0.0, 0.3 * work[:, :, 0, :] / np.maximum(slack, 1e-3)[:, :, None], 0.0)
        floor = np.minimum(floor, 1.0)
        rigid[:, :, 1] = 0.1 * load * NODES / n_tasks * rng.uniform(0.0, 1.0, (n_tasks, 1))
    owner = np.repeat(np.arange(n_tasks), n_points)
    slot = np.stack([np.repeat(cell, n_points), CELLS + np.tile(node, n_tasks)], axis=1)
    return Instance(_problem(n_tasks, value, limit, slot, work, floor, rigid), owner)


def _problem(
    n_tasks: int, value: Floats, slack: Floats, slot: Ints, work: Floats, floor: Floats, rigid: Floats
) -> Problem:
    n_points, width = NODES * SPLITS, 2
    rows = n_tasks * n_points
    return Problem(
        resource_ids=(*(f"cell{c}/ul" for c in range(CELLS)), *(f"node{n}" for n in range(NODES))),
        kinds=("comm",) * CELLS + ("compute",) * NODES,
        background=np.zeros(CELLS + NODES),
        coupling_from=np.zeros(0, dtype=np.int64),
        coupling_to=np.zeros(0, dtype=np.int64),
        coupling_per_share=np.zeros(0),
        task_ids=tuple(f"t{i:07d}" for i in range(n_tasks)),
        first=np.arange(n_tasks + 1, dtype=np.int64) * n_points,
        point_ids=tuple(f"k{j % SPLITS}n{j // SPLITS}" for j in range(n_points)) * n_tasks,
        value=np.ascontiguousarray(value.reshape(rows)),
        slack=slack.reshape(rows, PHASES),
        slot=np.ascontiguousarray(slot, dtype=np.int64),
        work=work.reshape(rows, PHASES, width),
        floor=floor.reshape(rows, width),
        cap=np.ones((rows, width)),
        activity=np.ones((rows, width)),
        rigid=rigid.reshape(rows, width),
        held=np.full(n_tasks, -1, dtype=np.int64),
        order=np.arange(n_tasks, dtype=np.int64),
        channel=np.full(n_tasks, np.nan),
    )


def channels(n_tasks: int, seed: int) -> Iterator[Floats]:
    """Yield what the air costs each task (N,), relative to the mean: first order autoregressive in its logarithm."""
    rng = np.random.default_rng((seed, n_tasks))
    level = rng.normal(0.0, SPREAD, n_tasks)
    keep = float(np.sqrt(1.0 - (CHANGE / SPREAD) ** 2))
    while True:
        yield np.exp(level)
        level = keep * level + rng.normal(0.0, CHANGE, n_tasks)


def at_channel(instance: Instance, cost: Floats) -> Problem:
    """Return the problem at a channel: work on the air, and the floor that follows from it, times cost (N,)."""
    factor = cost[instance.owner]
    work, floor = instance.problem.work.copy(), instance.problem.floor.copy()
    work[:, :, 0] *= factor[:, None]
    floor[:, 0] = np.minimum(1.0, floor[:, 0] * factor)
    return dataclasses.replace(instance.problem, work=work, floor=floor)
