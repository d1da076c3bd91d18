"""`joint`: the price solver, or where resources are many the one without matrices of resources x resources.

Which one it was stands in the plan: `joint`, or `joint-sparse` from `MANY` resources up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from solvers.price import solver as price
from solvers.problem import Floats, Problem
from solvers.solution import Solution
from solvers.sparse import solver as sparse

MANY: Final = 256  # resources: below, the price solver's plans are worth more, in seconds; above, they fall apart


def is_sparse(problem: Problem) -> bool:
    """Whether a problem is one for the solver of many resources."""
    return problem.n_resources >= MANY


def solve(
    problem: Problem,
    *,
    warm: Floats | None = None,
    options: Mapping[str, float] | None = None,
    tables: price.Tables | None = None,
) -> Solution:
    """Admit, choose points and share out; arguments and options as of `solvers.price.solver.solve`.

    From 256 resources up `evaluations` is 300 by default, and `nodes` and `tolerance` mean nothing.
    """
    if not is_sparse(problem):
        return price.solve(problem, warm=warm, options=options, tables=tables)
    ready = tables or price.Tables(problem, warm)
    return sparse.solution(problem, sparse.run(ready.table, _start(problem, warm), options or {}, plan=True))


def dual_bound(problem: Problem, *, warm: Floats | None = None) -> tuple[float, Floats]:
    """Return (a proven upper bound on the value of any plan, the prices (R,) at which it holds)."""
    if not is_sparse(problem):
        return price.dual_bound(problem, warm=warm)
    found = sparse.run(price.Tables(problem).table, _start(problem, warm), {}, plan=False)
    return found.bound, found.price


def load(problem: Problem) -> None:
    """Load the solver of many resources, by a solve of a small problem: not compiled yet, that takes minutes."""
    sparse.run(price.Tables(problem).table, np.zeros(problem.n_resources), {}, plan=True)


def _start(problem: Problem, warm: Floats | None) -> Floats:
    """Prices (R,) to start from; zeros, as for a cold start, where there are none or not all are finite."""
    if warm is None or not np.isfinite(warm).all():
        return np.zeros(problem.n_resources)
    return np.ascontiguousarray(warm, dtype=np.float64)
