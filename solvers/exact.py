"""The referee: CP-SAT on the grid that the radio really has (docs/exact.md).

The grid problem: shares are whole numbers of steps, 1 / prbs of a cell and 1 / steps of anything else. Its plans are
plans of the problem itself; its bound says nothing of plans off the grid. `solve` is registered as `exact`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from solvers._columns import Columns, Loads, loads, pareto_columns
from solvers.errors import BadProblem
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Certificate, Solution, Status

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

PRBS: Final = 273  # of a cell: 100 MHz at 30 kHz, TS 38.101-1 Table 5.3.2-1
STEPS: Final = 100  # of a node
LIMIT: Final = 60.0  # deterministic seconds: about as many of one core
GAP: Final = 0.0  # relative: prove it
WORKERS: Final = (
    1  # more searches would take turns: deterministic too, and slower on all that was tried (docs/exact.md)
)
SEED: Final = 1
DIGITS: Final = 7  # of the greatest value that the objective keeps; values are rounded up, so the bound holds


def solve(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """Solve the grid problem. `warm`: (R,) prices for the price solver, whose plan is the hint.

    Options: `prbs` per resource of kind comm (273), `steps` per other resource (100), `limit_s` of deterministic time
    (60), `gap` relative to the bound at which the search may stop (0), `workers` searches that take turns (1), `seed`
    (1). Status.OK: optimal within `gap`; Status.LIMIT: stopped before, value and bound hold all the same. The
    certificate's bound is CP-SAT's proven one, of the grid problem, or the price solver's where that is less.
    Raises BadProblem for an option out of range and for points with too many elastic resources to list.
    """
    options = options or {}
    prbs, steps = int(options.get("prbs", PRBS)), int(options.get("steps", STEPS))
    grid = np.array([prbs if kind == "comm" else steps for kind in problem.kinds], dtype=np.int64)
    return solve_on_grid(problem, grid, warm=warm, options=options)


def solve_on_grid(
    problem: Problem, grid: Ints, *, warm: Floats | None = None, options: Mapping[str, float] | None = None
) -> Solution:
    """Solve with 1 / grid[r] as the step of resource r, grid (R,) >= 1; otherwise as `solve`."""
    from solvers import price

    if grid.shape != (problem.n_resources,) or (grid < 1).any():
        raise BadProblem("grid", f"must be {problem.n_resources} numbers of steps >= 1")
    joint = price.solve(problem, warm=warm)
    columns = pareto_columns(problem, grid)
    load = loads(problem, grid, columns)
    hint = greedy_columns(problem, columns, load, joint)
    scale = 10.0 ** (DIGITS - math.ceil(math.log10(max(float(problem.value.max(initial=0.0)), 1e-300))))
    model, picks = _model(problem, columns, load, scale, joint.certificate.bound)
    for k, pick in enumerate(picks):
        model.add_hint(pick, bool(hint[k]))
    solver, status = _search(model, options or {})
    bound = joint.certificate.bound
    if status is None:
        on = np.flatnonzero(hint)
    else:
        on = np.flatnonzero([solver.boolean_value(pick) for pick in picks])
        bound = min(bound, solver.best_objective_bound / scale)
    plan = _plan(problem, grid, columns, on, bound)
    return dataclasses.replace(plan, status=status or Status.LIMIT, evaluations=solver.num_branches)


def greedy_columns(problem: Problem, columns: Columns, load: Loads, plan: Solution) -> Ints:
    """(C,) 1 where a column is taken: tasks of the plan first, the cheapest at its prices first, while they fit."""
    use = np.zeros((len(columns.task), problem.n_resources), dtype=np.int64)  # (C, R) units
    use[load.column, load.resource] = load.units
    cost = use @ (np.maximum(plan.prices, 1e-12) / np.maximum(load.capacity, 1))  # (C,)
    first = np.searchsorted(columns.task, np.arange(problem.n_tasks + 1))
    net = np.full(problem.n_tasks, np.inf)
    np.minimum.at(net, columns.task, cost)
    left, taken = load.capacity.copy(), np.zeros(len(columns.task), dtype=np.int64)
    for i in np.lexsort((net, plan.chosen < 0)):
        mine = np.arange(first[i], first[i + 1])
        mine = mine[(use[mine] <= left).all(axis=1)]
        if mine.size:
            best = mine[np.lexsort((mine, cost[mine] - problem.value[columns.point[mine]]))[0]]
            taken[best] = 1
            left -= use[best]
    return taken


def _model(
    problem: Problem, columns: Columns, load: Loads, scale: float, ceiling: float
) -> tuple[cp_model.CpModel, list[Any]]:
    """Choose at most one column per task, within the capacities, of the greatest value; `ceiling` bounds that."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    picks = [model.new_bool_var("") for _ in range(len(columns.task))]
    first = np.searchsorted(columns.task, np.arange(problem.n_tasks + 1)).tolist()
    for start, end in itertools.pairwise(first):
        if end > start:
            model.add_at_most_one(picks[start:end])
    order = np.argsort(load.resource, kind="stable")
    border = np.searchsorted(load.resource[order], np.arange(problem.n_resources + 1))
    for r in range(problem.n_resources):
        on = order[border[r] : border[r + 1]]
        used = cp_model.LinearExpr.weighted_sum([picks[k] for k in load.column[on]], load.units[on].tolist())
        if on.size:
            model.add(used <= int(load.capacity[r]))
    worth = np.ceil(problem.value[columns.point] * scale - 1e-6).astype(np.int64)
    objective = cp_model.LinearExpr.weighted_sum(picks, worth.tolist())
    model.add(objective <= math.ceil(ceiling * scale) + problem.n_tasks)  # each value may be rounded up by one
    model.maximize(objective)
    return model, picks


def _search(model: cp_model.CpModel, options: Mapping[str, float]) -> tuple[cp_model.CpSolver, Status | None]:
    """Run within deterministic time; whatever the machine, the answer is the same. None: no plan yet, nor a bound."""
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = _number(options, "limit_s", LIMIT, 1e-3)
    solver.parameters.relative_gap_limit = _number(options, "gap", GAP, 0.0)
    solver.parameters.num_workers = int(_number(options, "workers", WORKERS, 1))
    solver.parameters.interleave_search = True
    solver.parameters.cp_model_probing_level = 0  # finds nothing here and takes most of the time from 50 000 columns up
    solver.parameters.symmetry_level = 0
    solver.parameters.random_seed = int(_number(options, "seed", SEED, 0))
    verdicts = {cp_model.OPTIMAL: Status.OK, cp_model.FEASIBLE: Status.LIMIT}
    return solver, verdicts.get(solver.solve(model))


def _number(options: Mapping[str, float], name: str, default: float, least: float) -> float:
    value = float(options.get(name, default))
    if not least <= value < math.inf:
        raise BadProblem(f"options.{name}", f"{value:g} is not a number >= {least:g}")
    return value


def _plan(problem: Problem, grid: Ints, columns: Columns, on: Ints, bound: float) -> Solution:
    """Shares of the columns `on`."""
    chosen = np.full(problem.n_tasks, -1, dtype=np.int64)
    chosen[columns.task[on]] = columns.point[on]
    share = np.zeros((problem.n_tasks, problem.slot.shape[1]))
    share[columns.task[on]] = columns.steps[on] / np.append(grid, 1)[problem.slot[columns.point[on]]]
    value = float(problem.value[columns.point[on]].sum())
    certificate = Certificate(value, max(value, bound))
    prices = np.zeros(problem.n_resources)
    return Solution(Status.OK, "exact", chosen, share, chosen >= 0, prices, certificate, 0)
