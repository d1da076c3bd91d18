"""HiGHS as a mixed-integer program through MathOpt, on the grid of the exact solver: the benchmark's second referee.

The same columns, capacities and known plan as exact.py, another kind of search: branch and cut on the linear
relaxation. Its limit is one of wall time, so it takes part in comparisons and never decides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from solvers.grid.solver import grid_of, number
from solvers.problem import Floats, Problem
from solvers.referees.exact import OpenColumns, core_of, plan_of, worth
from solvers.solution import Solution, SolveStatus

if TYPE_CHECKING:
    from ortools.math_opt import model_pb2

LIMIT_S: Final = 60.0
LONGEST_S: Final = 86_400.0
GAP: Final = 1e-4  # relative: HiGHS' own default


def solve(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """Solve the grid problem; `warm` as for the exact solver.

    Options: `prbs` per resource of kind comm (273), `steps` per other resource (100), `limit_s` of wall time (60),
    `gap` relative (1e-4). Status.LIMIT: stopped at the limit with the best plan so far, that of the grid solver if
    there is no better one. The bound is of the grid problem: HiGHS', or the dual function's where that is less.
    Raises BadProblem as the exact solver does.
    """
    from ortools.math_opt.python import mathopt

    options = options or {}
    grid = grid_of(problem, options)
    core = core_of(problem, grid, warm)
    parameters = mathopt.SolveParameters(
        time_limit=np.timedelta64(round(1e3 * number(options, "limit_s", LIMIT_S, 1e-3, LONGEST_S)), "ms").item(),
        relative_gap_tolerance=number(options, "gap", GAP, 0.0),
    )
    model = mathopt.Model.from_model_proto(_model(problem, core))
    result = mathopt.solve(model, mathopt.SolverType.HIGHS, params=parameters)
    on = core.known
    if result.has_primal_feasible_solution():
        values = result.to_proto().solutions[0].primal_solution.variable_values
        found = np.sort(np.array(values.ids, dtype=np.int64)[np.array(values.values) > 0.5])
        better = worth(problem, core.columns, found) > worth(problem, core.columns, on)
        on = found if better and core.load.fit(found) else on
    plan = plan_of(problem, grid, core.columns, on, min(core.bound, result.best_objective_bound()))
    done = result.termination.reason == mathopt.TerminationReason.OPTIMAL
    return dataclasses.replace(plan, status=SolveStatus.OK if done else SolveStatus.LIMIT, solver="mip")


def _model(problem: Problem, core: OpenColumns) -> model_pb2.ModelProto:
    """Choose at most one column per task, within the capacities, of the greatest value: rows 0 to N - 1, then R."""
    from ortools.math_opt import model_pb2

    columns, load = core.columns, core.load
    many, n_tasks = len(columns.task), problem.n_tasks
    limits = np.concatenate([np.ones(n_tasks), load.capacity.astype(np.float64)])
    row = np.concatenate([columns.task, n_tasks + load.resource])
    column = np.concatenate([np.arange(many), load.column])
    entry = np.concatenate([np.ones(many), load.units.astype(np.float64)])
    order = np.lexsort((column, row))
    model = model_pb2.ModelProto()
    model.variables.ids.extend(range(many))
    model.variables.lower_bounds.extend(np.zeros(many))
    model.variables.upper_bounds.extend(np.ones(many))
    model.variables.integers.extend([True] * many)
    model.objective.maximize = True
    model.objective.linear_coefficients.ids.extend(range(many))
    model.objective.linear_coefficients.values.extend(problem.value[columns.point])
    model.linear_constraints.ids.extend(range(len(limits)))
    model.linear_constraints.lower_bounds.extend(np.full(len(limits), -math.inf))
    model.linear_constraints.upper_bounds.extend(limits)
    model.linear_constraint_matrix.row_ids.extend(row[order])
    model.linear_constraint_matrix.column_ids.extend(column[order])
    model.linear_constraint_matrix.coefficients.extend(entry[order])
    return model
