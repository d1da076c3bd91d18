"""Baselines: the strong opponents that the joint solver is compared with (docs/policies.md).

Each is a pure function `(problem, *, warm=None, options=None) -> Solution`, registered in solvers/registry.py.
"""

from solvers.baselines.blind import compute_only, local
from solvers.baselines.deadline_split import deadline_split
from solvers.baselines.decoupled import edge, equal_rate_admit, pf, pf_admit, pf_util
from solvers.baselines.greedy import greedy, greedy_residual, weight_floor
from solvers.baselines.serving import engine, predicted

__all__ = [
    "compute_only",
    "deadline_split",
    "edge",
    "engine",
    "equal_rate_admit",
    "greedy",
    "greedy_residual",
    "local",
    "pf",
    "pf_admit",
    "pf_util",
    "predicted",
    "weight_floor",
]
