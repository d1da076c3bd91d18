"""Solvers by name. Adding one is one file and one line here; it is imported when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final, Protocol, cast

from solvers.errors import UnknownSolver
from solvers.problem import Floats, Problem
from solvers.solution import Solution


class Solver(Protocol):
    """A pure function: same problem, warm prices and options give the same solution, bit for bit."""

    def __call__(
        self, problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None
    ) -> Solution:
        """Solve. `warm`: (R,) prices of an earlier, similar problem; `options`: numbers the solver documents."""
        ...


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
}


def get(name: str) -> Solver:
    """Return the solver called `name`. Raises UnknownSolver, naming those there are."""
    try:
        module, function = SOLVERS[name].split(":")
    except KeyError:
        raise UnknownSolver(f"unknown solver '{name}'; there are: {', '.join(SOLVERS)}") from None
    return cast("Solver", getattr(importlib.import_module(module), function))
