"""Plans on a grid: shares of some resources are whole steps, 1 / grid each (PRBs, hundredths of a node).

Where a task holds few steps, a plan found without the grid and rounded afterwards loses much: half a step of four is an
eighth. So points are chosen with the grid in mind: a slot with work holds a step at least, and a part of a step is set
aside for rounding. How large a part pays is not known beforehand; a few are tried and the best plan kept.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np

from solvers import price
from solvers.problem import Floats, Ints, Problem
from solvers.share import round_grid
from solvers.solution import Certificate, Solution

SET_ASIDE: Final = (0.0, 0.1, 0.2, 0.3, 0.4)  # of a step, tried in turn


def solve(problem: Problem, grid: Ints, *, warm: Floats | None = None) -> Solution:
    """Admit, choose points and whole steps. grid (R,): steps of each resource, 0 where any share will do.

    The certificate's bound is that of the problem without the grid, so it holds for plans on any grid, and prices are
    where it does. Deterministic; of equal plans the one with less set aside.
    """
    bound, prices = price.dual_bound(problem, warm=warm)
    plans = [round_grid(problem, price.solve(with_steps(problem, grid, part)), grid)[0] for part in SET_ASIDE]
    best = max(plans, key=lambda plan: plan.certificate.value)  # the first of equals
    certificate = Certificate(best.certificate.value, bound)
    return dataclasses.replace(best, solver="grid", prices=prices, certificate=certificate)


def with_steps(problem: Problem, grid: Ints, part: float) -> Problem:
    """Give every slot with work a floor of one step, and a rigid demand of a part of one. grid (R,): 0, any share."""
    with np.errstate(divide="ignore"):
        step = np.append(np.where(grid > 0, 1.0 / grid, 0.0), 0.0)[problem.slot]  # (J, S)
    step = np.where((problem.work > 0).any(axis=1), step, 0.0)
    floor = np.maximum(problem.floor, np.minimum(step, problem.cap))
    return dataclasses.replace(problem, floor=floor, rigid=problem.rigid + part * step)
