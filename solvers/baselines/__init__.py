"""Baselines: the strong opponents that the joint solver is compared with (docs/policies.md).

Each is a pure function `(problem, *, warm=None, options=None) -> Solution`, registered in solvers/registry.py.
"""

from solvers.baselines.blind import compute_only, local
from solvers.baselines.decoupled import edge, equal_rate_admit, pf, pf_admit, pf_util
from solvers.baselines.greedy import greedy, greedy_residual

__all__ = [
    "compute_only",
    "edge",
    "equal_rate_admit",
    "greedy",
    "greedy_residual",
    "local",
    "pf",
    "pf_admit",
    "pf_util",
]
