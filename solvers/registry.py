"""Solvers by name. Adding one is one file and one line here; it is imported when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final, cast

from solvers.errors import UnknownSolver
from solvers.problem import Floats, Problem
from solvers.solution import Solution
from solvers.solver import Solver

__all__ = ["SOLVERS", "Solver", "get", "solve"]


SOLVERS: Final[dict[str, str]] = {
    "joint": "solvers.joint:solve",
    "auto": "solvers.auto:solve",
    "exact": "solvers.referees.exact:solve",
    "grid": "solvers.grid.solver:solve",
    "greedy": "solvers.baselines:greedy",
    "greedy-residual": "solvers.baselines:greedy_residual",
    "pf": "solvers.baselines:pf",
    "pf-admit": "solvers.baselines:pf_admit",
    "pf-util": "solvers.baselines:pf_util",
    "equal-rate-admit": "solvers.baselines:equal_rate_admit",
    "compute-only": "solvers.baselines:compute_only",
    "edge": "solvers.baselines:edge",
    "local": "solvers.baselines:local",
    "engine": "solvers.baselines:engine",
    "predicted": "solvers.baselines:predicted",
    "deadline-split": "solvers.baselines:deadline_split",
    "weight-floor": "solvers.baselines:weight_floor",
}

FLOATING: Final = ("engine", "predicted")
"""Solvers that plan no steps: these are as long as it comes, up to the option `step_s`."""


def get(name: str) -> Solver:
    """Return the solver called `name`. Raises UnknownSolver, naming those there are."""
    try:
        module, function = SOLVERS[name].split(":")
    except KeyError:
        raise UnknownSolver(f"unknown solver '{name}'; there are: {', '.join(SOLVERS)}") from None
    return cast("Solver", getattr(importlib.import_module(module), function))


def solve(
    name: str, problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None
) -> Solution:
    """Solve with the solver called `name`, and choose the lengths of steps where resources serve in steps.

    Raises UnknownSolver.
    """
    from solvers import steps

    if name in FLOATING:
        return get(name)(problem, warm=warm, options=options)
    return steps.solve(get(name), problem, warm=warm, options=options)
