"""What a solver is: the one signature that all of them have (solvers/registry.py names them)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from solvers.problem import Floats, Problem
from solvers.solution import Solution


class Solver(Protocol):
    """A pure function: same problem, warm prices and options give the same solution, bit for bit."""

    def __call__(
        self, problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None
    ) -> Solution:
        """Solve. `warm`: (R,) prices of an earlier, similar problem; `options`: numbers the solver documents."""
        ...
