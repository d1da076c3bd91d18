"""The referee while it is quick, the price solver else (docs/exact.md). `solve` is registered as `auto`.

The price solver always answers first. Where its gap is open and the problem is small, the exact solver looks for a
better plan on its grid, within a budget that is counted, not timed: one problem has one answer on every machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import numpy as np

from solvers import joint
from solvers.errors import BadProblem
from solvers.price import solver as price
from solvers.problem import Floats, Problem
from solvers.solution import Certificate, Solution, SolveStatus

TASKS: Final = 40  # up to here the referee is asked ...
POINTS: Final = 600  # ... with so many points: its columns are listed in a tenth of a second
LIMIT: Final = 0.2  # of its deterministic seconds
CLOSED: Final = 1e-6  # of the bound: a gap that is none
BETTER: Final = 1e-9  # values that differ by less are the same


def solve(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """Solve by `joint`, and by `exact` as well where that is quick; `solver` of the solution says whose it is.

    `warm` and options as for `joint`, and `limit_s` for the referee (0.2 deterministic seconds; 0: it is not asked).
    The plan of `exact` is taken where it is worth more, its bound where that holds off its grid as well: where no point
    has elastic work or a floor. A bound of the referee has no prices: they are 0.
    """
    options = dict(options or {})
    limit = float(options.pop("limit_s", LIMIT))
    plan = joint.solve(problem, warm=warm, options=options)
    certificate = plan.certificate
    small = problem.n_tasks <= TASKS and problem.n_points <= POINTS
    if not small or limit <= 0 or certificate.gap <= CLOSED * max(1.0, certificate.bound):
        return plan
    return _better(problem, plan, limit)


def _better(problem: Problem, plan: Solution, limit: float) -> Solution:
    """Ask the referee; returns the plan that is worth more, with the lesser of the bounds that hold."""
    from solvers.referees import exact

    try:
        other = exact.solve(problem, options={"limit_s": limit})
    except BadProblem:  # points on more elastic resources than the referee lists
        return plan
    value, bound = plan.certificate.value, plan.certificate.bound
    on_grid = not ((problem.work > 0).any() or (problem.floor > 0).any())
    proven = min(bound, other.certificate.bound) if on_grid else bound
    if other.certificate.value <= value + BETTER and proven >= bound:
        return plan
    if other.certificate.value > value + BETTER:
        served = price.serve(problem, other.chosen)
        share = other.share if served is None else served[0]
        plan = dataclasses.replace(
            plan, chosen=other.chosen, share=share, promised=other.chosen >= 0, evaluations=other.evaluations
        )
    value = max(value, other.certificate.value)
    status = SolveStatus.OK if proven - value <= CLOSED * max(1.0, proven) else plan.status
    prices = plan.prices if proven >= bound else np.zeros_like(plan.prices)
    certificate = Certificate(value, max(value, proven))
    return dataclasses.replace(plan, status=status, solver="exact", prices=prices, certificate=certificate)
