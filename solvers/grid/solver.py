"""Plans on a grid: all shares are whole steps, 1 / grid of a resource each (PRBs, hundredths of a node).

Where a task holds few steps, a plan found without the grid and rounded afterwards loses much: half a step of four is an
eighth. So the choice is among whole steps from the start: every Pareto column of every task is listed, prices of steps
are found for them, and the plan is made of the columns that these prices nearly choose (docs/exact.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from solvers.errors import BadProblem
from solvers.grid.columns import FINE, list_columns, raw_arrays, steps_of
from solvers.grid.dual import minimise
from solvers.grid.search import search
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Certificate, Solution, SolveStatus
from solvers.tolerances import KEEP, OVER

PRBS: Final = 273  # of a cell: 100 MHz at 30 kHz, TS 38.101-1 Table 5.3.2-1
STEPS: Final = 100  # of a node
FINEST: Final = 1_000_000  # steps of a resource


def solve(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """Admit and choose whole steps. Options: `prbs` per resource of kind comm (273), `steps` per other resource (100).

    Otherwise as `solve_on_grid`.
    """
    return solve_on_grid(problem, grid_of(problem, options or {}), warm=warm)


def grid_of(problem: Problem, options: Mapping[str, float]) -> Ints:
    """Return the steps (R,) of each resource by the options `prbs` and `steps`. Raises BadProblem out of 1..1e6."""
    prbs, steps = (int(number(options, name, at, 1.0, FINEST)) for name, at in (("prbs", PRBS), ("steps", STEPS)))
    return np.array([prbs if kind == "comm" else steps for kind in problem.kinds], dtype=np.int64)


def number(options: Mapping[str, float], name: str, default: float, least: float, most: float = math.inf) -> float:
    """Return an option, `default` where it is not given. Raises BadProblem unless it is finite and least..most."""
    value = float(options.get(name, default))
    if not (least <= value <= most and value < math.inf):
        limits = f">= {least:g}" if most == math.inf else f"in {least:g}..{most:g}"
        raise BadProblem(f"options.{name}", f"{value:g} is not a number {limits}")
    return value


def solve_on_grid(problem: Problem, grid: Ints, *, warm: Floats | None = None) -> Solution:
    """Solve with 1 / grid[r] as the step of resource r, grid (R,) >= 1. `warm`: prices (R,) of `priced_plan`.

    The certificate's bound is proven for the grid problem, not for plans off the grid; prices are 0, since that bound
    is not the dual function of the problem without the grid. Deterministic, ties by task id, bounded by counts.
    Raises BadProblem for another grid and for points with too many elastic resources to list.
    """
    return priced_plan(problem, grid, warm=warm)[0]


def priced_plan(problem: Problem, grid: Ints, *, warm: Floats | None = None) -> tuple[Solution, Floats]:
    """Solve as `solve_on_grid`; returns also the prices (R,) of whole resources at which the bound holds."""
    if grid.shape != (problem.n_resources,) or not ((grid >= 1) & (grid <= FINEST)).all():
        raise BadProblem("grid", f"must be {problem.n_resources} numbers of steps in 1..{FINEST}")
    raw = raw_arrays(problem, grid)
    columns, unit = list_columns(problem, raw), raw.unit[:-1]
    whole = np.floor((raw.room[:-1] + OVER) * unit)  # steps: a part of one is of no use
    room = np.where(unit == FINE, raw.room[:-1] * unit, whole)
    dual = minimise(columns, room, (np.zeros_like(room) if warm is None else warm) / unit)
    fits = np.where(unit == FINE, (raw.room[:-1] + KEEP * OVER) * unit, whole)
    column = search(columns, fits, dual.price, dual.look)
    chosen = np.full(problem.n_tasks, -1, dtype=np.int64)
    share = np.zeros((problem.n_tasks, problem.slot.shape[1]))
    served = np.flatnonzero(column >= 0)
    task, column = raw.order[served], column[served]
    chosen[task] = columns.point[column]
    share[task] = steps_of(columns, column) / np.append(grid, 1)[problem.slot[chosen[task]]]
    value = float(sum(problem.value[chosen[task]].tolist()))
    certificate = Certificate(value, max(value, dual.bound))
    none = np.zeros(problem.n_resources)
    plan = Solution(SolveStatus.OK, "grid", chosen, share, chosen >= 0, none, certificate, dual.evaluations)
    return plan, dual.price * unit
