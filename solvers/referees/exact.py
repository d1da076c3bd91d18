"""The referee: CP-SAT on the grid that the radio really has (docs/exact.md).

The grid problem: shares are whole numbers of steps, 1 / prbs of a cell and 1 / steps of anything else. Its plans are
plans of the problem itself; its bound says nothing of plans off the grid. `solve` is registered as `exact`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from solvers.grid import solver as on_steps
from solvers.problem import Floats, Ints, Problem
from solvers.referees.columns import ExactColumns, Loads, loads, pareto_columns
from solvers.solution import Certificate, Solution, SolveStatus

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

LIMIT: Final = 60.0  # deterministic seconds: about as many of one core
GAP: Final = 0.0  # relative: prove it
WORKERS: Final = 1  # more searches would take turns: deterministic too, and slower on small cases (docs/exact.md)
SEED: Final = 1
SLIP: Final = 1e-9  # of the bound: what sums in another order may differ by
DIGITS: Final = 7  # of the greatest value that the objective keeps; values are rounded up, so the bound holds


def solve(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """Solve the grid problem. `warm`: (R,) prices for the grid solver (solvers/grid/solver.py), whose plan is the hint.

    Options: `prbs` per resource of kind comm (273), `steps` per other resource (100), `limit_s` of deterministic time
    (60), `gap` relative to the bound at which the search may stop (0), `workers` searches that take turns (1), `seed`
    (1). Status.OK: optimal within `gap`; Status.LIMIT: stopped before, value and bound hold all the same. The
    certificate's bound is of the grid problem: CP-SAT's, or the dual function's where that is less.
    Raises BadProblem for an option out of range and for points with too many elastic resources to list.
    """
    options = options or {}
    return solve_on_grid(problem, on_steps.grid_of(problem, options), warm=warm, options=options)


def solve_on_grid(
    problem: Problem, grid: Ints, *, warm: Floats | None = None, options: Mapping[str, float] | None = None
) -> Solution:
    """Solve with 1 / grid[r] as the step of resource r, grid (R,) >= 1; otherwise as `solve`."""
    core = core_of(problem, grid, warm)
    found = _searched(problem, core, options or {})
    on, bound, branches = core.known, min(core.bound, found.bound), found.branches
    if not core.load.fit(found.on):  # less than a unit too much for each task: once more, rounded the other way
        found = _searched(problem, core._replace(load=core.load.safe()), options or {})
        branches += found.branches
    if worth(problem, core.columns, found.on) > worth(problem, core.columns, on):
        on = found.on
    plan = plan_of(problem, grid, core.columns, on, bound)
    return dataclasses.replace(plan, status=found.status, evaluations=branches)


class OpenColumns(NamedTuple):
    """The columns that a plan better than the known one can hold, and what is known beforehand."""

    columns: ExactColumns
    load: Loads
    known: Ints  # (K,) columns of a plan
    bound: float  # on the value of any plan
    served: Ints  # tasks that every better plan serves


class _Found(NamedTuple):
    """What the search came to; the bound is of the model's units."""

    on: Ints  # (K,) columns
    bound: float
    status: SolveStatus
    branches: int


def _searched(problem: Problem, core: OpenColumns, options: Mapping[str, float]) -> _Found:
    scale = 10.0 ** (DIGITS - math.ceil(math.log10(max(float(problem.value.max(initial=0.0)), 1e-300))))
    model, picks = _model(problem, core, scale)
    solver, status = _search(model, options)
    if status is None:
        return _Found(core.known, math.inf, SolveStatus.LIMIT, solver.num_branches)
    on = np.flatnonzero([solver.boolean_value(pick) for pick in picks])
    return _Found(on, solver.best_objective_bound / scale, status, solver.num_branches)


def core_of(problem: Problem, grid: Ints, warm: Floats | None) -> OpenColumns:
    """Leave out columns that cost too much at the grid solver's prices to be in a plan better than the grid solver's.

    Taken on trust is neither: the plan is checked against the loads here, and with any prices the dual function of
    these columns and loads is a bound; a plan is worth that, less what is paid for idle room and what its tasks lose by
    columns that are not their best. Raises BadProblem for another grid and for points with too many elastic resources.
    """
    plan, prices = on_steps.priced_plan(problem, grid, warm=warm)
    columns = pareto_columns(problem, grid)
    load = loads(problem, grid, columns)
    size = len(columns.task)
    per_unit = np.where(load.capacity > 0, prices * (1.0 - problem.background) / np.maximum(load.capacity, 1), 0.0)
    cost = np.bincount(load.column, weights=per_unit[load.resource] * load.units, minlength=size)
    net = problem.value[columns.point] - cost
    best = np.zeros(problem.n_tasks)
    np.maximum.at(best, columns.task, net)
    bound = float(per_unit @ load.capacity + best.sum())
    known = _known(problem, grid, columns, plan)
    if not load.fit(known):
        known = known[:0]
    spare = bound - worth(problem, columns, known) + SLIP * max(1.0, bound)
    kept = np.flatnonzero(best[columns.task] - net <= spare)
    place = np.full(size, -1)
    place[kept] = np.arange(len(kept))
    held = place[load.column] >= 0
    less = load._replace(
        resource=load.resource[held], column=place[load.column[held]], part=load.part[held], units=load.units[held]
    )
    some = ExactColumns(columns.task[kept], columns.point[kept], columns.steps[kept])
    return OpenColumns(some, less, place[known], bound, np.flatnonzero(best > spare))


def _known(problem: Problem, grid: Ints, columns: ExactColumns, plan: Solution) -> Ints:
    """(K,) columns that a plan holds, those of its tasks that are among the columns."""
    steps, served = np.zeros(plan.share.shape, dtype=np.int64), np.flatnonzero(plan.chosen >= 0)
    steps[served] = np.rint(plan.share[served] * np.append(grid, 1)[problem.slot[plan.chosen[served]]])
    same = (columns.point == plan.chosen[columns.task]) & (columns.steps == steps[columns.task]).all(axis=1)
    return np.flatnonzero(same)


def worth(problem: Problem, columns: ExactColumns, on: Ints) -> float:
    """Value of the columns `on`."""
    return float(problem.value[columns.point[on]].sum())


def _model(problem: Problem, core: OpenColumns, scale: float) -> tuple[cp_model.CpModel, list[Any]]:
    """Choose at most one column per task, within the capacities, of the greatest value; the bound is a cut-off."""
    from ortools.sat.python import cp_model

    columns, load = core.columns, core.load
    model = cp_model.CpModel()
    picks = [model.new_bool_var("") for _ in range(len(columns.task))]
    first = np.searchsorted(columns.task, np.arange(problem.n_tasks + 1)).tolist()
    served = set(core.served.tolist())
    for i, (start, end) in enumerate(itertools.pairwise(first)):
        if i in served:
            model.add_exactly_one(picks[start:end])
        elif end > start:
            model.add_at_most_one(picks[start:end])
    order = np.argsort(load.resource, kind="stable")
    border = np.searchsorted(load.resource[order], np.arange(problem.n_resources + 1))
    for r in range(problem.n_resources):
        on = order[border[r] : border[r + 1]]
        used = cp_model.LinearExpr.weighted_sum([picks[k] for k in load.column[on]], load.units[on].tolist())
        if on.size:
            model.add(used <= int(load.capacity[r]))
    value = np.ceil(problem.value[columns.point] * scale - 1e-6).astype(np.int64)
    objective = cp_model.LinearExpr.weighted_sum(picks, value.tolist())
    model.add(objective <= math.ceil(core.bound * scale) + problem.n_tasks)  # each value may be rounded up by one
    model.maximize(objective)
    hint = np.zeros(len(picks), dtype=np.int64)
    hint[core.known] = 1
    for pick, hinted in zip(picks, hint.tolist(), strict=True):
        model.add_hint(pick, hinted)
    return model, picks


def _search(model: cp_model.CpModel, options: Mapping[str, float]) -> tuple[cp_model.CpSolver, SolveStatus | None]:
    """Run within deterministic time; whatever the machine, the answer is the same. None: no plan yet, nor a bound."""
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = on_steps.number(options, "limit_s", LIMIT, 1e-3)
    solver.parameters.relative_gap_limit = on_steps.number(options, "gap", GAP, 0.0)
    solver.parameters.num_workers = int(on_steps.number(options, "workers", WORKERS, 1))
    solver.parameters.interleave_search = True
    solver.parameters.cp_model_probing_level = 0  # finds nothing here and takes most of the time from 50 000 columns up
    solver.parameters.find_big_linear_overlap = False  # nor does this, for two of the first three seconds
    solver.parameters.symmetry_level = 0
    solver.parameters.random_seed = int(on_steps.number(options, "seed", SEED, 0))
    verdicts = {cp_model.OPTIMAL: SolveStatus.OK, cp_model.FEASIBLE: SolveStatus.LIMIT}
    return solver, verdicts.get(solver.solve(model))


def plan_of(problem: Problem, grid: Ints, columns: ExactColumns, on: Ints, bound: float) -> Solution:
    """Shares of the columns `on`."""
    chosen = np.full(problem.n_tasks, -1, dtype=np.int64)
    chosen[columns.task[on]] = columns.point[on]
    share = np.zeros((problem.n_tasks, problem.slot.shape[1]))
    share[columns.task[on]] = columns.steps[on] / np.append(grid, 1)[problem.slot[columns.point[on]]]
    value = float(problem.value[columns.point[on]].sum())
    certificate = Certificate(value, max(value, bound))
    prices = np.zeros(problem.n_resources)
    return Solution(SolveStatus.OK, "exact", chosen, share, chosen >= 0, prices, certificate, 0)
