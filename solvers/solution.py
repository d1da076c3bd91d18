"""What a solver returns, and the certificate that comes with it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from solvers.problem import Floats, Ints


class SolveStatus(enum.StrEnum):
    """`ok`: a feasible plan with a certificate (also when nobody is admitted). `limit`: feasible, but cut short."""

    OK = "ok"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Certificate:
    """Value of the plan, proven upper bound on the value of any plan, and their difference."""

    value: float
    bound: float

    def __post_init__(self) -> None:
        """Plain numbers, whoever computed them: a NumPy scalar is none to what writes JSON and journals."""
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "bound", float(self.bound))

    @property
    def gap(self) -> float:
        """How far from optimal the plan can be at most, in units of value."""
        return max(0.0, self.bound - self.value)


@dataclass(frozen=True, slots=True)
class Solution:
    """A plan for a Problem: one point or none per task, and the shares that it holds.

    chosen (N,): global point index, -1 = not admitted. share (N, S): in the slot order of the chosen point, 0 for
    padding and for tasks not admitted. promised (N,): the plan says that this task's deadlines hold (policies
    without admission control serve tasks that they do not promise). prices (R,): zero for solvers without prices.
    step_s, period_s (R,): length of a step of each resource and how often weights are read, in seconds, for which all
    of this holds; inf where nobody decodes, empty where nothing serves in steps.
    """

    status: SolveStatus
    solver: str
    chosen: Ints
    share: Floats
    promised: npt.NDArray[np.bool_]
    prices: Floats
    certificate: Certificate
    evaluations: int
    step_s: Floats = field(default_factory=lambda: np.zeros(0))
    period_s: Floats = field(default_factory=lambda: np.zeros(0))
