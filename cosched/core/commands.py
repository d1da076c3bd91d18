"""What the core wants done."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cosched.core.policy import Policy
from cosched.errors import hold
from cosched.workloads.base import PointTable
from solvers.problem import Floats, Ints, Problem


@dataclass(frozen=True, slots=True)
class Solve:
    """Solve `problem` with the policy's solver and answer with Solved(request).

    A Solve while another is open takes its place: the answer to the first is no longer wanted.
    """

    request: int
    problem: Problem
    policy: Policy
    warm: Floats


@dataclass(frozen=True, slots=True)
class Decision:
    """One task's decision when it changes: admitted, moved to another point, refused, lease not renewed."""

    task: str
    reason: str  # code of cosched/core/reasons.py
    point: int  # row of the task's PointTable, -1 = none
    table: PointTable
    efficiency_bps_hz: float  # the estimate that it was decided with
    promised: bool = False  # False with a point: best effort
    cell: int = -1  # of the UE when it was decided
    input_age_s: float = 0.0  # of the UE's last valid radio sample
    binding: str = ""  # the resource that was full, for a refusal


@dataclass(frozen=True, slots=True)
class Plan:
    """All leases from one generation on. Rows are the tasks that hold one, in order of admission (N rows)."""

    generation: int  # only grows
    at_s: float
    valid_until_s: float
    tasks: tuple[str, ...]
    point: Ints  # (N,) row of the task's PointTable
    cell: Ints  # (N,) that it was planned in
    share: Floats  # (N, 3) of cell uplink, node, node memory
    node_weight: Floats  # (N,) with which the node shares itself out so that everybody gets his share of it
    node: Ints  # (N,) below 0: the device alone
    pace_s: Floats  # (N,) seconds a token that is counted on, 0 where nothing is decoded
    wait_s: Floats  # (N, 2) of each phase for steps of the node
    step_s: Floats  # (nodes,) planned length of a step, inf where nobody decodes
    period_s: Floats  # (nodes,) ... and how often its weights are read at most
    prbs: Floats  # (N,) whole PRBs where the policy promises, else the fractional equal share
    promised: npt.NDArray[np.bool_]  # (N,)
    reserved: Floats  # (N, 3) of cell uplink, node, node memory: what is counted for the task, on average or for good
    efficiency: Floats  # (N,) bit/s/Hz planned with
    planned_use: Floats  # (R,) what the plan counts of each resource
    variance: Floats  # (R,) of that use, of the promised ones
    prices: Floats  # (R,)
    value: float
    bound: float
    decisions: tuple[Decision, ...]  # what changed

    @property
    def longest_step_s(self) -> Floats:
        """(N,) of each task's node, 0 where nobody decodes."""
        of_nodes = np.where(np.isfinite(self.step_s), self.step_s, 0.0)
        return np.append(of_nodes, 0.0)[np.where(self.node < 0, len(of_nodes), self.node)]

    def validate(self) -> None:
        """Hold the rows against each other; what the state must have to say to them, the state knows. Raises Broken."""
        n, told = len(self.tasks), [d.task for d in self.decisions]
        hold(len(set(self.tasks)) == n, "a task is planned twice:", sorted(self.tasks))
        hold(len(set(told)) == len(told), "a task is decided twice in one plan:", sorted(told))
        hold(self.at_s < self.valid_until_s, "plan", self.generation, "is over when it begins")
        rows = "point", "cell", "share", "node_weight", "node", "pace_s", "wait_s", "prbs", "promised", "reserved"
        for name in (*rows, "efficiency"):
            hold(len(getattr(self, name)) == n, "plan", self.generation, "has not one", name, "a task")
        for name in ("step_s", "period_s"):
            hold((getattr(self, name) > 0).all(), "in plan", self.generation, name, "is not above 0")
        hold((self.point >= 0).all(), "a task is planned without a point:", self.point)
        numbers = "share", "prbs", "node_weight", "pace_s", "wait_s", "planned_use", "reserved", "variance", "prices"
        for name in (*numbers, "efficiency"):
            array = getattr(self, name)
            hold((np.isfinite(array) & (array >= 0)).all(), "in plan", self.generation, name, "is no number:", array)
        holders = {d.task for d in self.decisions if d.point >= 0}
        hold(holders <= set(self.tasks), "admitted, and not planned:", sorted(holders - set(self.tasks)))


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Put a plan into force."""

    plan: Plan


Command = Solve | Dispatch
