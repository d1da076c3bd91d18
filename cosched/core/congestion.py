"""Congestion prices: what a newcomer's point costs those who come after it.

While a site has room every price of the present problem is zero, and the best-looking point is then the one of best
quality, however much of the cell it takes. So a newcomer's points are weighed at prices that grow with how full each
resource is planned: with room to spare quality decides, and the fuller it is the more the load does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cosched.core.planner import Planned
from cosched.core.settings import Settings
from cosched.workloads.base import Floats
from solvers import steps
from solvers.price.solver import point_costs
from solvers.problem import Problem

LEAST_USE = 0.02  # an empty resource is not free: of two equally good points the lighter one is taken


def weighed(problem: Problem, planned: Planned, use: Floats, settings: Settings) -> Problem:
    """Return the problem with newcomers' points valued at v / (1 + cost at congestion prices).

    use (R,): what the plan in force counts. Every point keeps a positive value: nobody is refused for a price here.
    """
    layout = planned.layout
    new = layout.held[layout.owner] < 0
    if not new.any():
        return problem
    shared = np.array([kind != "memory" for kind in problem.kinds])
    prices = np.where(shared, settings.congestion_price * np.clip(use, LEAST_USE, 1.0), 0.0)
    cost, _ = point_costs(steps.at(problem, *steps.lengths(problem)), prices)
    cost = np.where(np.isfinite(cost), cost, 0.0)
    return replace(problem, value=np.where(new, problem.value / (1.0 + cost), problem.value))
