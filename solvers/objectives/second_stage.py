"""The second stage by objective: what admission leaves over, shared out at the points chosen (docs/exact.md).

Objectives: the sum of latencies over deadlines, their maximum, alpha-fair slack, energy on air. One dual method serves
them all (solvers/objectives/stage.py); solvers/objectives/convex.py states the same programs for a cone solver.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from solvers.errors import BadProblem
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Solution

TRANSMIT_W: Final = 0.2  # 23 dBm: UE power class 3, TS 38.101-1 Table 6.2.1-1
TIE: Final = 0.01  # of the energy at full shares, times mean lateness: energy alone leaves compute shares undecided
HEADROOM: Final = 1e-2  # relative slack added to everybody's, so that a task without any has a finite utility


class Objective(enum.StrEnum):
    """What is minimised, over tasks i with late_i = max over phases of latency / deadline <= 1."""

    LATENCY = "latency"  # sum of weight_i late_i
    MAX_LATENCY = "max-latency"  # max of late_i
    ALPHA_FAIR = "alpha-fair"  # minus the sum of weight_i U(1 + HEADROOM - late_i), U of Mo & Walrand 2000
    ENERGY = "energy"  # sum of weight_i x power x time on air, and a little latency (TIE)


@dataclass(frozen=True, slots=True)
class Goal:
    """An objective with its numbers. alpha >= 0: 1 is proportional fairness. power_w: of a device that is on air."""

    objective: Objective = Objective.LATENCY
    alpha: float = 1.0
    power_w: float = TRANSMIT_W


@dataclass(frozen=True, slots=True)
class Leftover:
    """The shares to decide: K slots with work of the n tasks admitted.

    a (Q, K): work / deadline; energy (K,): joules at full share; fixed (N, S): shares of slots without work, their
    floors; room (R,): what everything else leaves; pull (R, R): use of resource r by a share of s.
    """

    task: Ints  # (K,) of the problem
    slot: Ints  # (K,)
    owner: Ints  # (K,) 0 .. n - 1
    resource: Ints  # (K,)
    a: Floats
    energy: Floats
    floor: Floats  # (K,)
    cap: Floats  # (K,)
    activity: Floats  # (K,)
    weight: Floats  # (n,)
    fixed: Floats
    room: Floats
    pull: Floats


def parse_goal(text: str) -> Goal:
    """Read "latency", "max-latency", "alpha-fair", "alpha-fair:2" or "energy". Raises BadProblem with the names."""
    name, _, number = text.partition(":")
    try:
        objective = Objective(name)
        alpha = float(number or 1.0)
    except ValueError:
        names = ", ".join(Objective)
        raise BadProblem("objective", f"'{text}' is none of {names} (alpha-fair:2 sets alpha)") from None
    if not 0 <= alpha < math.inf or (number and objective is not Objective.ALPHA_FAIR):
        raise BadProblem("objective", f"'{text}': alpha is a number >= 0, of alpha-fair only")
    return Goal(objective, alpha)


def leftover(problem: Problem, chosen: Ints, goal: Goal, weight: Floats | None = None) -> Leftover:
    """Gather what the second stage decides on. weight (N,) > 0, 1 by default."""
    tasks = np.flatnonzero(chosen >= 0)
    point, n = chosen[tasks], problem.n_resources
    has_work = (problem.work[point] > 0).any(axis=1) & (problem.slot[point] < n)  # (n, S)
    pull = np.eye(n)
    np.add.at(pull, (problem.coupling_to, problem.coupling_from), problem.coupling_per_share)
    fixed = np.zeros((problem.n_tasks, problem.slot.shape[1]))
    fixed[tasks] = np.where(has_work, 0.0, problem.floor[point])
    owner, slot = np.nonzero(has_work)
    j = point[owner]
    resource = problem.slot[j, slot]
    with np.errstate(divide="ignore", invalid="ignore"):
        a = np.where(problem.work[j] > 0, problem.work[j] / problem.slack[j][:, :, None], 0.0)
    comm = np.array([kind == "comm" for kind in problem.kinds], dtype=np.float64)
    weights = np.ones(problem.n_tasks) if weight is None else np.asarray(weight, dtype=np.float64)
    at, energy = np.arange(len(j)), np.zeros(len(j))
    if goal.objective is Objective.ENERGY:
        energy = goal.power_w * comm[resource] * problem.work[j, :, slot].sum(axis=1) * weights[tasks[owner]]
        weights = weights * (TIE * energy.sum() / max(weights[tasks].sum(), 1e-300))
    return Leftover(
        task=tasks[owner],
        slot=slot,
        owner=owner,
        resource=resource,
        a=np.ascontiguousarray(a[at, :, slot].T),
        energy=energy,
        floor=problem.floor[j, slot],
        cap=problem.cap[j, slot],
        activity=problem.activity[j, slot],
        weight=weights[tasks],
        fixed=fixed,
        room=1.0 - problem.background - _fixed_use(problem, point, fixed[tasks], pull),
        pull=pull,
    )


def _fixed_use(problem: Problem, point: Ints, fixed: Floats, pull: Floats) -> Floats:
    """(R,) of rigid demand and of floors without work."""
    n, slot = problem.n_resources, problem.slot[point].ravel()
    rigid = np.bincount(slot, weights=problem.rigid[point].ravel(), minlength=n + 1)[:n]
    elastic = np.bincount(slot, weights=(problem.activity[point] * fixed).ravel(), minlength=n + 1)[:n]
    return np.asarray(rigid + (pull * elastic).sum(axis=1), dtype=np.float64)


def value_of(left: Leftover, goal: Goal, x: Floats) -> float:
    """Objective at shares x (K,)."""
    with np.errstate(divide="ignore"):
        late = np.stack([np.bincount(left.owner, weights=a / x, minlength=len(left.weight)) for a in left.a]).max(
            axis=0
        )
    if goal.objective is Objective.MAX_LATENCY:
        return float(late.max(initial=0.0))
    if goal.objective in {Objective.LATENCY, Objective.ENERGY}:
        return float((left.weight * late).sum() + (left.energy / x).sum())
    spare = np.maximum(1.0 + HEADROOM - late, 0.0)
    with np.errstate(divide="ignore"):
        utility = np.log(spare) if goal.alpha == 1.0 else spare ** (1.0 - goal.alpha) / (1.0 - goal.alpha)
    return -float((left.weight * utility).sum())


KINDS: Final = {Objective.LATENCY: 0, Objective.ENERGY: 0, Objective.ALPHA_FAIR: 1, Objective.MAX_LATENCY: 2}


def second_stage(problem: Problem, solution: Solution, goal: Goal, *, weight: Floats | None = None) -> Solution:
    """Share out what the plan's promised tasks leave over, by the goal. Points, prices and certificate stay.

    weight (N,) > 0, 1 by default. Every deadline and limit that held before holds afterwards. Returns the solution as
    it is where it also serves tasks that it does not promise.
    """
    if (solution.promised != (solution.chosen >= 0)).any():
        return solution
    share, _ = share_by(problem, solution, goal, weight=weight)
    return dataclasses.replace(solution, share=share)


def _is_awaited(problem: Problem, chosen: Ints) -> bool:
    """Whether any chosen point has a deadline on work."""
    point = chosen[chosen >= 0]
    return bool((np.isfinite(problem.slack[point]) & (problem.work[point] > 0).any(axis=2)).any())


def share_by(problem: Problem, solution: Solution, goal: Goal, *, weight: Floats | None = None) -> tuple[Floats, float]:
    """Shares (N, S) by the goal, and a proven lower bound on its value; the objective's own is `value_of`."""
    from solvers.jit import plain
    from solvers.objectives.columns import StageProblem
    from solvers.objectives.stage import share_out
    from solvers.objectives.task import Aim

    if not (solution.chosen >= 0).any():
        return solution.share, 0.0
    if goal.objective is not Objective.ENERGY and not _is_awaited(problem, solution.chosen):
        left = leftover(problem, solution.chosen, goal, weight)
        return solution.share, value_of(left, goal, np.ones(len(left.task)))  # latency counts for nobody
    p, energy = problem, goal.objective is Objective.ENERGY
    on_air = [goal.power_w if energy and kind == "comm" else 0.0 for kind in p.kinds]
    weights = np.ones(p.n_tasks) if weight is None else np.asarray(weight, dtype=np.float64)
    columns = (p.slack, p.slot, p.work, p.floor, p.cap, p.activity, p.rigid, p.background)
    couplings = (p.coupling_from, p.coupling_to, p.coupling_per_share)
    asked = StageProblem(*(plain(a) for a in (*columns, *couplings, solution.chosen, weights, np.array(on_air))))
    aim = Aim(KINDS[goal.objective], float(goal.alpha), HEADROOM, TIE if energy else 0.0)
    with np.errstate(all="ignore"):  # 1 / 0 is inf, as in compiled code
        share, bound, _ = share_out(asked, aim, plain(solution.share))
    return share, bound
