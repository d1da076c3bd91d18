"""Solution -> Plan: leases, whole PRBs, reason codes."""

from __future__ import annotations

from typing import Final

import numpy as np

from cosched.core.commands import Decision, Plan
from cosched.core.planner import SLOTS, Planned
from cosched.core.settings import Settings
from cosched.core.state import State
from cosched.workloads.base import Floats, Ints
from solvers.problem import Problem
from solvers.solution import Solution

FULL: Final = 0.98  # a resource counts as binding from this use on
PRB_EPS: Final = 1e-9  # a share that is a whole number of PRBs but for rounding is that number


def usage(problem: Problem, chosen: Ints, share: Floats) -> Floats:
    """(R,) what a plan counts on every resource, background included."""
    used = np.zeros(problem.n_resources + 1)
    rows = chosen[chosen >= 0]
    counted = problem.activity[rows] * share[chosen >= 0] + problem.rigid[rows]
    np.add.at(used, problem.slot[rows].ravel(), counted.ravel())
    return used[:-1] + problem.background


def make_plan(
    state: State,
    planned: Planned,
    problem: Problem,
    solution: Solution,
    *,
    generation: int,
    at_s: float,
    settings: Settings,
) -> Plan:
    """Turn a solution into leases.

    problem: the one that was solved (restricted or not). A running session that the solver could not fit keeps its
    point with a share of its mean use: sharing is work-conserving, so it may still make it, and its lease ends only
    when its promise is lost for certain.
    """
    layout = planned.layout
    chosen, share, promised = solution.chosen, solution.share, solution.promised
    kept = np.flatnonzero((chosen < 0) & (layout.held >= 0))
    if len(kept):
        chosen, share = chosen.copy(), share.copy()
        chosen[kept] = layout.held[kept]
        share[kept] = planned.mean_use[layout.held[kept]]
    has = np.flatnonzero(chosen >= 0)
    rows = chosen[has]
    share = share[has]
    prbs = _prbs(state, layout.cell[has], share[:, 0], promised[has])
    used = usage(problem, solution.chosen, solution.share)
    return Plan(
        generation=generation,
        at_s=at_s,
        valid_until_s=at_s + settings.lease_s,
        tasks=tuple(layout.names[i] for i in has),
        point=layout.row[rows],
        share=share,
        prbs=prbs,
        promised=promised[has],
        planned_use=used,
        prices=solution.prices,
        value=solution.certificate.value,
        bound=solution.certificate.bound,
        decisions=_decisions(state, planned, problem, chosen, used, at_s),
    )


def _prbs(state: State, cell: Ints, share: Floats, promised: Floats) -> Floats:
    """Whole PRBs of a promised share, rounded up: a deadline is never lost to rounding.

    The sum may pass the cell's PRBs by less than one per session: shares are weights of a work-conserving sharing.
    """
    total = np.array([c.ul_prbs for c in state.site.cells], dtype=np.float64)[cell] if len(cell) else np.zeros(0)
    exact = share * total
    return np.where(promised & (share > 0), np.maximum(np.ceil(exact - PRB_EPS), 1.0), exact)


def _decisions(
    state: State, planned: Planned, problem: Problem, chosen: Ints, used: Floats, at_s: float
) -> tuple[Decision, ...]:
    layout = planned.layout
    changed = np.flatnonzero(chosen != layout.held)
    fresh = np.flatnonzero((layout.held < 0) & (chosen < 0))
    out = []
    for i in sorted({*changed.tolist(), *fresh.tolist()}):
        task = layout.tasks[i]
        point = int(layout.row[chosen[i]]) if chosen[i] >= 0 else -1
        reason, binding = ("moved" if layout.held[i] >= 0 else "admitted"), ""
        if point < 0:
            reason, binding = _refusal(problem, i, used)
        out.append(
            Decision(
                task=task.offer.task, reason=reason, point=point, table=task.table,
                efficiency_bps_hz=float(planned.efficiency[i]), cell=task.cell,
                input_age_s=state.channel.age_s(task.ue, at_s), binding=binding,
            )
        )  # fmt: skip
    return tuple(out)


def _refusal(problem: Problem, i: int, used: Floats) -> tuple[str, str]:
    """Why newcomer i was refused, and the fullest resource that its points need."""
    points = slice(int(problem.first[i]), int(problem.first[i + 1]))
    alone = problem.work[points].sum(axis=2) <= problem.slack[points]  # every resource to itself
    if not alone.all(axis=1).any():
        return "rejected_no_point", ""
    slots = problem.slot[points][alone.all(axis=1)]
    needed = np.unique(slots[slots < problem.n_resources])
    if not len(needed):
        return "rejected_policy", ""
    fullest = int(needed[np.argmax(used[needed])])
    return "rejected_no_capacity", problem.resource_ids[fullest]


def variance_of_use(planned: Planned, solution: Solution) -> Floats:
    """(R,) sum of u (x - u) over the chosen points: the variance of the use of each resource (model.md 2a)."""
    variance = np.zeros(planned.problem.n_resources + 1)
    rows = solution.chosen[solution.chosen >= 0]
    u = planned.mean_use[rows]
    x = solution.share[solution.chosen >= 0]
    np.add.at(variance, planned.problem.slot[rows].ravel(), (u * np.maximum(x - u, 0.0)).ravel())
    return variance[:-1]


__all__ = ["SLOTS", "make_plan", "usage", "variance_of_use"]
