"""Seeded problems with many resources, of which every point uses a few at random: none of them is everybody's."""

from __future__ import annotations

import numpy as np

from solvers.problem import PHASES, Problem


def sparse_problem(
    seed: int,
    n_resources: int,
    n_tasks: int,
    *,
    n_points: int = 4,
    nodes: int = 3,
    cells: int = 0,
    load: float = 2.0,
    mixed: bool = False,
) -> Problem:
    """Tasks whose points each use `nodes` random resources, and where there are `cells` the cell of their task.

    The first `cells` resources are the cells. At load 1 even shares about serve everybody. `mixed`: weights 1 and 5,
    two phases, floors, rigid demand and background too.
    """
    rng = np.random.default_rng((seed, n_resources, n_tasks))
    width, rows = nodes + (1 if cells else 0), n_tasks * n_points
    order = rng.random((rows, n_resources - cells)).argpartition(nodes - 1, axis=1)[:, :nodes]
    slot = cells + np.sort(order, axis=1)
    if cells:
        slot = np.concatenate([np.repeat(rng.integers(0, cells, n_tasks), n_points)[:, None], slot], axis=1)
    many = np.where(slot < cells, cells, n_resources - cells) / np.where(slot < cells, 1, nodes)
    slack = np.full((rows, PHASES), np.inf)
    slack[:, 0] = rng.uniform(0.05, 1.0, rows)
    work = np.zeros((rows, PHASES, width))
    # at even shares a slot takes width x work / slack of its resource, and a resource serves n_tasks / many slots
    need = load * many / n_tasks / width * rng.lognormal(0.0, 0.5, (rows, width))
    work[:, 0] = need * slack[:, :1]
    value, floor, rigid = np.ones(rows), np.zeros((rows, width)), np.zeros((rows, width))
    background = np.zeros(n_resources)
    if mixed:
        value = np.repeat(rng.choice([1.0, 5.0], n_tasks), n_points) * rng.choice([1.0, 0.98, 0.9], rows)
        two = rng.random(rows) < 0.4
        slack[two, 1] = 0.1 * slack[two, 0]
        work[two, 1] = 0.1 * work[two, 0] * rng.lognormal(0.0, 0.4, (int(two.sum()), width))
        floor = np.minimum(0.9, 0.3 * need)
        rigid[:, -1] = 0.2 * need[:, -1]
        background = rng.uniform(0.0, 0.3, n_resources)
    return Problem(
        resource_ids=tuple(f"r{r:04d}" for r in range(n_resources)),
        kinds=("comm",) * cells + ("compute",) * (n_resources - cells),
        background=background,
        coupling_from=np.zeros(0, dtype=np.int64),
        coupling_to=np.zeros(0, dtype=np.int64),
        coupling_per_share=np.zeros(0),
        task_ids=tuple(f"t{i:06d}" for i in range(n_tasks)),
        first=np.arange(n_tasks + 1, dtype=np.int64) * n_points,
        point_ids=tuple(f"p{k}" for k in range(n_points)) * n_tasks,
        value=value,
        slack=slack,
        slot=slot.astype(np.int64),
        work=work,
        floor=floor,
        cap=np.ones((rows, width)),
        activity=np.ones((rows, width)),
        rigid=rigid,
        held=np.full(n_tasks, -1, dtype=np.int64),
        order=np.arange(n_tasks, dtype=np.int64),
        channel=np.full(n_tasks, np.nan),
    )
