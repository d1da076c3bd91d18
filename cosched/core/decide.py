"""Solution -> Plan: leases, whole PRBs, best effort, reason codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from cosched.core.commands import Decision, Plan
from cosched.core.planner import Planned
from cosched.core.policy import Policy
from cosched.core.reasons import Reason
from cosched.core.settings import Settings
from cosched.core.state import State
from cosched.workloads.base import Bools, Floats, Ints
from solvers.price import point_costs
from solvers.problem import Problem
from solvers.solution import Solution

PRB_EPS: Final = 1e-9  # a share that is a whole number of PRBs but for rounding is that number
LEAST_PRICE: Final = 1e-6  # free resources are divided as if they had a price


@dataclass(frozen=True, slots=True)
class Asked:
    """One Solve: what was asked, in terms of the site and of the solver."""

    planned: Planned
    problem: Problem  # the one that was solved: planned.problem, restricted and weighed as the policy wants it
    policy: Policy


@dataclass(frozen=True, slots=True)
class Draft:
    """Who holds what: points (N,) as rows of the problem, shares (N, S), promises (N,)."""

    chosen: Ints
    share: Floats
    promised: Bools


def make_plan(
    state: State, asked: Asked, solution: Solution, *, generation: int, at_s: float, settings: Settings
) -> Plan:
    """Turn a solution into leases."""
    layout = asked.planned.layout
    draft = _draft(asked, solution, settings)
    has = np.flatnonzero(draft.chosen >= 0)
    rows, share, promised = draft.chosen[has], draft.share[has], draft.promised[has]
    used = usage(asked.problem, solution.chosen, solution.share)
    return Plan(
        generation=generation,
        at_s=at_s,
        valid_until_s=at_s + settings.lease_s,
        tasks=tuple(layout.names[i] for i in has),
        point=layout.row[rows],
        share=share,
        prbs=_prbs(state, layout.cell[has], share[:, 0], promised),
        promised=promised,
        planned_use=used,
        variance=_variance(asked.planned, rows[promised], share[promised]),
        prices=solution.prices,
        value=solution.certificate.value,
        bound=solution.certificate.bound,
        decisions=_decisions(state, asked, draft, used, at_s),
    )


def _draft(asked: Asked, solution: Solution, settings: Settings) -> Draft:
    """Complete the solution with those that it has no room for but that are served all the same.

    A running session keeps its point: sharing is work-conserving, so it may still make it, and its lease ends only
    when its promise is lost for certain. One with a promise keeps the weight that it needs; one without gets what is
    left, and so do newcomers where the policy takes best effort in.
    """
    held, problem = asked.planned.layout.held, asked.problem
    chosen, share, promised = solution.chosen.copy(), solution.share.copy(), solution.promised.copy()
    kept = np.flatnonzero((chosen < 0) & (held >= 0))
    chosen[kept] = held[kept]
    promised[kept] = [asked.planned.layout.tasks[i].promised for i in kept]
    guests = _guests(asked, chosen, settings) if asked.policy.best_effort else {}
    for i, j in guests.items():
        chosen[i], promised[i] = j, False
    extra = np.array([*kept.tolist(), *guests], dtype=np.int64)
    if len(extra):
        needed = _needed_shares(problem, solution.prices, chosen[extra], asked.planned.mean_use)
        share[extra] = needed * np.where(promised[extra], 1.0, settings.best_effort_weight)[:, None]
    return Draft(chosen, share, promised)


def _needed_shares(problem: Problem, prices: Floats, points: Ints, mean_use: Floats) -> Floats:
    """(n, S) cheapest shares with which points (n,) hold their deadlines, their mean use where none do."""
    cost, share = point_costs(problem, np.maximum(prices, LEAST_PRICE))
    return np.where(np.isfinite(cost[points])[:, None], share[points], mean_use[points])


def _guests(asked: Asked, chosen: Ints, settings: Settings) -> dict[int, int]:
    """Refused newcomer -> the point that it is served with as far as there is room: best effort.

    Room: the mean use of all, at their deadlines' pace, stays within best_effort_use. Of the points that would be in
    time with the site to themselves it gets the one that is lightest on the fullest resource.
    """
    p, mean_use = asked.planned.problem, asked.planned.mean_use
    refused = np.flatnonzero(chosen < 0)
    if not len(refused):
        return {}
    load = mean_use + p.rigid  # (J, S)
    used = np.append(p.background, 0.0)
    np.add.at(used, p.slot[chosen[chosen >= 0]].ravel(), load[chosen[chosen >= 0]].ravel())
    guests: dict[int, int] = {}
    for i in refused.tolist():
        points = np.arange(p.first[i], p.first[i + 1])
        points = points[(p.work[points].sum(axis=2) <= p.slack[points]).all(axis=1)]
        after = (used[p.slot[points]] + load[points]).max(axis=1, initial=0.0)  # (points,) fullest resource then
        if len(points) and after.min() <= settings.best_effort_use:
            guests[i] = int(points[np.argmin(after)])
            np.add.at(used, p.slot[guests[i]], load[guests[i]])
            used[-1] = 0.0  # padding
    return guests


def usage(problem: Problem, chosen: Ints, share: Floats) -> Floats:
    """(R,) what a plan counts on every resource, background included."""
    used = np.zeros(problem.n_resources + 1)
    rows = chosen[chosen >= 0]
    counted = problem.activity[rows] * share[chosen >= 0] + problem.rigid[rows]
    np.add.at(used, problem.slot[rows].ravel(), counted.ravel())
    return used[:-1] + problem.background


def _variance(planned: Planned, rows: Ints, share: Floats) -> Floats:
    """(R,) sum of u (x - u) over points `rows`: the variance of the use of each resource (model.md 2a)."""
    variance = np.zeros(planned.problem.n_resources + 1)
    u = planned.mean_use[rows]
    np.add.at(variance, planned.problem.slot[rows].ravel(), (u * np.maximum(share - u, 0.0)).ravel())
    return variance[:-1]


def _prbs(state: State, cell: Ints, share: Floats, promised: Bools) -> Floats:
    """Whole PRBs of a promised share, rounded up: a deadline is never lost to rounding.

    The sum may pass the cell's PRBs by less than one per session: shares are weights of a work-conserving sharing.
    """
    exact = share * np.array([c.ul_prbs for c in state.site.cells], dtype=np.float64)[cell]
    return np.where(promised & (share > 0), np.maximum(np.ceil(exact - PRB_EPS), 1.0), exact)


def _decisions(state: State, asked: Asked, draft: Draft, used: Floats, at_s: float) -> tuple[Decision, ...]:
    """Build one for every task that is new, moved, or has got a promise that it did not have."""
    layout = asked.planned.layout
    out = []
    for i, task in enumerate(layout.tasks):
        j, held = int(draft.chosen[i]), int(layout.held[i])
        promoted = asked.policy.best_effort and bool(draft.promised[i]) and not task.promised
        if j == held and held >= 0 and not promoted:
            continue
        reason, binding = _reason(draft, i, held), ""
        if j < 0:
            reason, binding = _refusal(asked.planned.problem, i, used)
        out.append(
            Decision(
                task=task.offer.task,
                reason=reason,
                point=int(layout.row[j]) if j >= 0 else -1,
                promised=bool(draft.promised[i]),
                table=task.table,
                efficiency_bps_hz=float(asked.planned.efficiency[i]),
                cell=task.cell,
                input_age_s=state.channel.age_s(task.ue, at_s),
                binding=binding,
            )
        )
    return tuple(out)


def _reason(draft: Draft, i: int, held: int) -> str:
    if held < 0:
        return Reason.ADMITTED if draft.promised[i] else Reason.BEST_EFFORT
    return Reason.MOVED if draft.chosen[i] != held else Reason.PROMOTED


def _refusal(problem: Problem, i: int, used: Floats) -> tuple[str, str]:
    """Why newcomer i was refused, and the fullest resource that its points need."""
    points = np.arange(problem.first[i], problem.first[i + 1])
    points = points[(problem.work[points].sum(axis=2) <= problem.slack[points]).all(axis=1)]
    slots = problem.slot[points]
    needed = np.unique(slots[slots < problem.n_resources])
    if not len(needed):
        return Reason.REJECTED_NO_POINT, ""
    return Reason.REJECTED_NO_CAPACITY, problem.resource_ids[int(needed[np.argmax(used[needed])])]
