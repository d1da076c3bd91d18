"""Random problems for the solver tests: seeded, with floors, caps, rigid demand, two phases, couplings, activities."""

from __future__ import annotations

from typing import Any

import numpy as np

from solvers.problem import Problem

# A problem file with everything in it (docs/solve-format.md).
EXAMPLE: dict[str, Any] = {
    "v": 1,
    "resources": [{"id": "cell0/ul", "background": 0.1}, {"id": "node0"}, {"id": "node0/mem"}],
    "tasks": [
        {
            "id": "t1",
            "points": [
                {
                    "id": "k=4",
                    "value": 1.0,
                    "phases": [{"slack_s": 0.08, "work_s": {"cell0/ul": 0.002, "node0": 0.004}}],
                    "floor": {"cell0/ul": 0.01},
                    "cap": {"cell0/ul": 0.2},
                    "rigid": {"node0/mem": 0.05},
                    "activity": {"cell0/ul": 0.2},
                }
            ],
        },
        {"id": "t2", "points": []},
    ],
    "couplings": [{"from": "cell0/ul", "to": "node0", "per_share": 0.2}],
}


def random_problem(
    seed: int,
    n_tasks: int,
    n_points: int,
    n_resources: int,
    *,
    load: float = 2.0,
    coupled: bool = False,
    soft: bool = False,
    weights: tuple[float, ...] = (1.0,),
) -> Problem:
    """Tasks with n_points each; at load 1 an even split of slack and resources about serves everyone."""
    rng = np.random.default_rng(seed)
    n, width = n_tasks * n_points, min(n_resources, 3)
    share = load * n_resources / n_tasks  # of all resources together, for one task
    slot = np.full((n, width), n_resources, dtype=np.int64)
    work, slack = np.zeros((n, 2, width)), np.full((n, 2), np.inf)
    floor, cap = np.zeros((n, width)), np.ones((n, width))
    activity, rigid = np.ones((n, width)), np.zeros((n, width))
    value = np.zeros(n)
    weight = rng.choice(weights, n_tasks)
    for j in range(n):
        m = int(rng.integers(1, width + 1))
        slot[j, :m] = np.sort(rng.choice(n_resources, m, replace=False))
        slack[j, 0] = rng.uniform(0.02, 1.0)
        work[j, 0, :m] = slack[j, 0] * rng.lognormal(0, 0.7, m) / m**2 * share
        if rng.random() < 0.3:
            slack[j, 1] = slack[j, 0] * 0.1
            work[j, 1, :m] = slack[j, 1] * rng.lognormal(0, 0.7, m) / m**2 * share
        floor[j, :m] = np.minimum(0.9, work[j, 0, :m] / slack[j, 0] * rng.uniform(0, 1.2, m))
        if rng.random() < 0.2:
            cap[j, :m] = np.minimum(1.0, np.maximum(floor[j, :m], rng.uniform(0.1, 1.0, m)))
        if rng.random() < 0.3:
            rigid[j, 0] = rng.uniform(0, 1) * share / 3
        if soft:
            activity[j, :m] = rng.uniform(0.2, 1.0, m)
        value[j] = weight[j // n_points] * rng.choice([1.0, 0.98, 0.9])
    links = np.array([[0, n_resources - 1]] if coupled and n_resources > 1 else [], dtype=np.int64).reshape(-1, 2)
    return Problem(
        resource_ids=tuple(f"r{r}" for r in range(n_resources)),
        kinds=("compute",) * n_resources,
        background=rng.uniform(0, 0.3, n_resources),
        coupling_from=links[:, 0].copy(),
        coupling_to=links[:, 1].copy(),
        coupling_per_share=np.full(len(links), 0.2),
        task_ids=tuple(f"t{i:04d}" for i in range(n_tasks)),
        first=np.arange(n_tasks + 1, dtype=np.int64) * n_points,
        point_ids=tuple(f"p{j % n_points}" for j in range(n)),
        value=value,
        slack=slack,
        slot=slot,
        work=work,
        floor=floor,
        cap=cap,
        activity=activity,
        rigid=rigid,
        held=np.full(n_tasks, -1, dtype=np.int64),
        order=np.arange(n_tasks, dtype=np.int64),
        channel=np.full(n_tasks, np.nan),
    )
