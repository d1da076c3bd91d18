"""Small problems with steps: one cell, two nodes, a point written as what it is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from solvers import steps
from solvers.problem import NEVER, Devices, Floats, Problem, Steps

CELL, NODE, OTHER = range(3)


@dataclasses.dataclass(frozen=True)
class Point:
    """One way to serve a task: air_s of each phase on the air, on its node in steps; shared_s = 0: it is a frame."""

    shared_s: float = 0.01
    own_s: float = 0.002
    pace_s: float = 0.1
    streams: bool = True
    wait: tuple[float, float] = (1.0, 1.0)
    group: int = 0
    node: int = NODE
    slack_s: tuple[float, float] = (1.0, 0.1)
    air_s: tuple[float, float] = (0.01, 0.0)
    node_s: float = 0.02  # of the first phase
    floor: float = 0.0  # of the node
    held: bool = False
    value: float = 1.0
    device_s: float = 0.0  # of the first phase, contained in what the slack allows for
    device_use: float = 0.0  # part of its UE's device
    queued: bool = False  # its first phase waits for what is due before
    lead_s: float = math.inf  # of a task that runs: until its next token is due

    @property
    def demand(self) -> float:
        return self.own_s / self.pace_s if self.shared_s > 0 else 0.0


def problem_of(
    tasks: list[list[Point]],
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ues: tuple[int, ...] | None = None,
) -> Problem:
    """One cell and two nodes. ues: whose each task is, where devices count."""
    points = [p for task in tasks for p in task]
    n = len(points)
    work = np.zeros((n, 2, 2))
    work[:, :, 0], work[:, 0, 1] = [p.air_s for p in points], [p.node_s for p in points]
    floor = np.zeros((n, 2))
    floor[:, 1] = [p.floor for p in points]
    first = np.concatenate([[0], np.cumsum([len(task) for task in tasks])]).astype(np.int64)
    held = [next((int(first[i]) + k for k, p in enumerate(task) if p.held), -1) for i, task in enumerate(tasks)]
    return Problem(
        resource_ids=("cell", "node", "other"),
        kinds=("comm", "compute", "compute"),
        background=np.array(background),
        coupling_from=np.zeros(0, dtype=np.int64),
        coupling_to=np.zeros(0, dtype=np.int64),
        coupling_per_share=np.zeros(0),
        task_ids=tuple(f"t{i}" for i in range(len(tasks))),
        first=first,
        point_ids=tuple(f"p{j}" for j in range(n)),
        value=np.array([p.value for p in points]),
        slack=np.array([p.slack_s for p in points]),
        slot=np.stack([np.zeros(n, dtype=np.int64), np.array([p.node for p in points])], axis=1),
        work=work,
        floor=floor,
        cap=np.ones((n, 2)),
        activity=np.ones((n, 2)),
        rigid=np.zeros((n, 2)),
        held=np.array(held, dtype=np.int64),
        order=np.arange(len(tasks)),
        channel=np.full(len(tasks), np.nan),
        devices=None if ues is None else Devices(np.array(ues), np.array([p.device_use for p in points])),
        steps=Steps(
            slot=np.ones(n, dtype=np.int64),
            shared_s=np.array([p.shared_s for p in points]),
            own_s=np.array([p.own_s for p in points]),
            pace_s=np.array([p.pace_s for p in points]),
            streams=np.array([p.streams for p in points]),
            demand=np.array([p.demand for p in points]),
            wait=np.array([p.wait for p in points]),
            group=np.array([p.group for p in points]),
            weight=np.ones(len(tasks)),
            queued=np.array([p.queued for p in points], dtype=np.bool_),
            lead_s=np.array([next((p.lead_s for p in task if p.held), math.inf) for task in tasks]),
        ),
    )


def on_nodes(node_s: float, other_s: float = NEVER) -> Floats:
    return np.array([NEVER, node_s, other_s])


def made(tasks: list[list[Point]], length_s: float, period_s: float) -> Problem:
    return steps.at(problem_of(tasks), on_nodes(length_s), on_nodes(period_s))


RUNS = Point(held=True)


def random_tasks(rng: np.random.Generator, n: int, *, groups: int = 1, running: float = 0.5) -> list[list[Point]]:
    """Sessions that a node serves alone, split ones and clips; some run."""
    tasks = []
    for _ in range(n):
        is_clip, group = bool(rng.random() < 0.2), int(rng.integers(groups))
        pace_s = float(rng.choice([0.04, 0.06, 0.1, 0.2]))
        task = []
        for _ in range(int(rng.integers(1, 4))):
            streams = bool(rng.random() < 0.4)
            task.append(
                Point(
                    shared_s=0.0 if is_clip else float(rng.uniform(0.004, 0.015)),
                    own_s=0.0 if is_clip else float(rng.uniform(0.0003, 0.004)),
                    pace_s=pace_s,
                    streams=streams or is_clip,
                    wait=(0.5, 0.0) if is_clip else (1.0, float(rng.choice([1.0, 1.5]))),
                    group=group,
                    node=int(rng.integers(NODE, OTHER + 1)),
                    slack_s=(pace_s, math.inf) if is_clip else (float(rng.uniform(0.3, 2.0)), pace_s - 0.005),
                    air_s=(
                        float(rng.uniform(0.001, 0.05)) * pace_s,
                        0.0 if streams else float(rng.uniform(1e-4, 4e-3)),
                    ),
                    node_s=float(rng.uniform(0.001, 0.2)) * (pace_s if is_clip else 1.0),
                    floor=float(rng.uniform(0.0, 0.05)),
                    value=float(rng.choice([1.0, 0.95, 0.9])),
                )
            )
        if rng.random() < running:
            k = int(rng.integers(len(task)))
            task = [dataclasses.replace(p, held=j == k, value=p.value + 1.0) for j, p in enumerate(task)]
        tasks.append(task)
    return tasks


def beside_each_other(tasks: list[list[Point]], ues: tuple[int, ...]) -> list[list[Point]]:
    """Tasks as their UEs' devices let them be planned, in order: docs/model.md, section 11.

    Who comes earlier and runs is first; a point for which nothing is left has no slack.
    """
    running = [next((p for p in task if p.held), None) for task in tasks]
    out = []
    for i, task in enumerate(tasks):
        held = running[i]
        own = held.device_use if held is not None else 0.0
        others = [p.device_use for k, p in enumerate(running) if p is not None and k != i and ues[k] == ues[i]]
        comes = any(r is None and ues[k] == ues[i] for k, r in enumerate(running))
        load = sum(p.device_use for k, p in enumerate(running[:i]) if p is not None and ues[k] == ues[i])
        points = []
        for p in task:
            full = sum(others) > 0 or comes if held is not None else sum(others) + p.device_use > 1
            late_s = math.inf if p.device_use > own and full else p.device_s * (1 / (1 - min(load, 0.99)) - 1)
            points.append(dataclasses.replace(p, slack_s=(p.slack_s[0] - late_s, p.slack_s[1])))
        out.append(points)
    return out
