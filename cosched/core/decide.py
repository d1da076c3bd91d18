"""Solution -> Plan: leases, whole PRBs, reason codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from cosched.core.bids import is_screened
from cosched.core.columns import NODE, WEIGHT
from cosched.core.commands import Decision, Plan
from cosched.core.planner import Planned
from cosched.core.present import Present, as_asked, handed_over, make_room, present
from cosched.core.reasons import Reason
from cosched.core.settings import Settings
from cosched.core.state import State
from cosched.workloads.base import Bools, Floats, Ints
from solvers import steps
from solvers.objectives.second_stage import Goal, second_stage
from solvers.price.solver import point_costs
from solvers.problem import Problem
from solvers.solution import Solution

PRB_EPS: Final = 1e-9  # a share that is a whole number of PRBs but for rounding is that number
NODE_SLOT: Final = 1
LEAST_REST: Final = 1e-3  # of a node beside a task that needs all of it
LEAST_WEIGHT: Final = 1e-6  # in sharing out: a task may weigh nothing
LEAST_PRICE: Final = 1e-6  # free resources are divided as if they had a price


@dataclass(frozen=True, slots=True)
class Asked:
    """One Solve: what was asked, in terms of the site and of the solver."""

    planned: Planned
    problem: Problem  # the one that was solved: planned.problem, restricted and weighed as the policy wants it
    statistical: bool  # whether shares are used now and then, as the effective-bandwidth rule has it
    version: int  # of the state then
    short_bytes: Mapping[str, float]  # of memory that nodes lacked then

    def at(self, step_s: Floats, period_s: Floats) -> Asked:
        """The same at the lengths and periods of steps (R,) of an answer."""
        if self.problem.steps is None:
            return self
        change = steps.change(self.problem, self.problem.steps, step_s, period_s)
        planned = replace(self.planned, problem=change.of(self.planned.problem), wait_s=change.wait_s)
        return replace(self, planned=planned, problem=change.of(self.problem))


@dataclass(frozen=True, slots=True)
class Draft:
    """Who holds what: points (N,) as rows of the problem, shares (N, S), promises (N,)."""

    chosen: Ints
    share: Floats
    promised: Bools


def settle(state: State, asked: Asked, solution: Solution, node_bytes: Floats) -> Present:
    """Take of an answer what still holds. node_bytes (nodes,): memory for sessions that there is now."""
    layout = asked.planned.layout
    changed = state.version != asked.version
    now = present(state, layout, solution) if changed else as_asked(solution)
    chosen = _with_kept(asked, now)
    if not changed and chosen is solution.chosen:  # nobody stays whom the solver had no room for: its plan fits
        return now
    return make_room(layout, now, chosen, node_bytes, ask=state.short_bytes is not asked.short_bytes)


def make_plan(
    state: State,
    asked: Asked,
    now: Present,
    *,
    generation: int,
    at_s: float,
    settings: Settings,
    goal: Goal | None = None,
) -> Plan:
    """Turn a solution into leases. goal: of sharing out what is left over; it is not counted as used."""
    layout, solution = asked.planned.layout, now.solution
    draft = _draft(asked, now)
    has = np.flatnonzero(draft.chosen >= 0)
    rows, promised = draft.chosen[has], draft.promised[has]
    share = (draft if goal is None else _draft(asked, _shared_out(asked, now, goal))).share[has]
    used = usage(asked.problem, solution.chosen, solution.share)
    return Plan(
        generation=generation,
        at_s=at_s,
        valid_until_s=at_s + settings.lease_s,
        tasks=tuple([layout.names[i] for i in has.tolist()]),
        point=layout.row[rows],
        cell=layout.cell[has],
        share=share,
        node_weight=_node_weight_column(asked, has, rows, share[:, 1]),
        node=layout.points[rows, NODE].astype(np.int64),
        pace_s=np.where(np.isfinite(asked.planned.pace_s[has]), asked.planned.pace_s[has], 0.0),
        wait_s=asked.planned.wait_s[rows],
        step_s=_of_nodes(state, solution.step_s),
        period_s=_of_nodes(state, solution.period_s),
        prbs=_prbs(state, layout.cell[has], share[:, 0], promised),
        promised=promised,
        reserved=_reserved(asked, solution, draft, has),
        efficiency=asked.planned.efficiency[has],
        planned_use=used,
        variance=_variance(asked.planned, rows[promised], draft.share[has][promised]),
        prices=solution.prices,
        value=solution.certificate.value,
        bound=solution.certificate.bound,
        decisions=_decisions(state, asked, now, draft, used, at_s),
    )


def _of_nodes(state: State, of_resources: Floats) -> Floats:
    """(nodes,) of (R,)."""
    n_cells = len(state.site.cells)
    return of_resources[n_cells : n_cells + len(state.site.nodes)]


def _draft(asked: Asked, now: Present) -> Draft:
    """Complete the solution with running sessions that it has no room for.

    Such a session keeps its point and the share that it needs, so all of its weight slow down together; where tasks of
    more weight are in the plan it is served with what they leave. Sharing is work-conserving, so it may still make it,
    and its lease ends only when its promise is lost for certain.
    """
    solution, held = now.solution, asked.planned.layout.held
    chosen, share = _with_kept(asked, now), solution.share.copy()
    if chosen is solution.chosen:
        return Draft(chosen, solution.share, solution.promised)
    kept = np.flatnonzero(chosen != solution.chosen)
    own = _own_weights(asked)
    outweighed = own[kept] < own[solution.chosen >= 0].max(initial=0.0)
    needed = _needed_shares(asked.problem, solution.prices, held[kept], asked.planned.mean_use)
    share[kept] = np.where(outweighed[:, None], 0.0, needed)
    return Draft(chosen, share, solution.promised)


def _with_kept(asked: Asked, now: Present) -> Ints:
    """(N,) points of a solution, and of the running sessions that it has no room for; the solution's own without."""
    chosen, held = now.solution.chosen, asked.planned.layout.held
    is_kept = (chosen < 0) & (held >= 0) & ~now.left_out
    return np.where(is_kept, held, chosen) if is_kept.any() else chosen


def _shared_out(asked: Asked, now: Present, goal: Goal) -> Present:
    """Hand out what the admitted leave over, by their weights."""
    weight = np.maximum(_own_weights(asked), LEAST_WEIGHT)
    return replace(now, solution=second_stage(asked.problem, now.solution, goal, weight=weight))


def _own_weights(asked: Asked) -> Floats:
    """(N,) weights that the tasks came with."""
    return asked.planned.layout.task[:, WEIGHT]


def _needed_shares(problem: Problem, prices: Floats, points: Ints, mean_use: Floats) -> Floats:
    """(n, S) cheapest shares with which points (n,) hold their deadlines, their mean use where none do."""
    cost, share = point_costs(problem, np.maximum(prices, LEAST_PRICE))
    return np.where(np.isfinite(cost[points])[:, None], share[points], mean_use[points])


def usage(problem: Problem, chosen: Ints, share: Floats) -> Floats:
    """(R,) what a plan counts on every resource, background included.

    A line that stands for statistical use holds from the mean use (the floor) on, and falls below 0 under it: who is
    served with less uses all that he has, and no more.
    """
    used = np.zeros(problem.n_resources + 1)
    rows, held = chosen[chosen >= 0], share[chosen >= 0]
    counted = problem.activity[rows] * held + problem.rigid[rows]
    counted = np.where(held < problem.floor[rows], np.maximum(counted, held), counted)
    np.add.at(used, problem.slot[rows].ravel(), counted.ravel())
    return used[:-1] + problem.background


def _reserved(asked: Asked, solution: Solution, draft: Draft, tasks: Ints) -> Floats:
    """(n, S) what the plan counts for `tasks`; who stays though there is no room has the memory that he fills."""
    problem, rows = asked.planned.problem, draft.chosen[tasks]  # the solved one's rigid part may stand for shares
    share = draft.share[tasks]
    # who is late beyond remedy has a mean use below 0, and nobody uses more than he has
    use = np.clip(asked.planned.mean_use[rows], 0.0, share) if asked.statistical else share.copy()
    use[:, NODE_SLOT] += _queue_use(asked, tasks, rows)
    rigid = problem.rigid[rows]
    counted = np.repeat((solution.chosen[tasks] >= 0)[:, None], use.shape[1], axis=1)
    counted[:, 0] &= ~handed_over(asked.planned.layout)[tasks]
    rigid[:, NODE_SLOT] *= counted[:, NODE_SLOT]
    return np.where(counted, use, 0.0) + rigid


def _queue_use(asked: Asked, tasks: Ints, rows: Ints) -> Floats:
    """(n,) of their nodes for the prefills of those who run; what a newcomer adds to a queue is in its rigid part."""
    runs = asked.planned.layout.held[tasks] == rows
    return np.where(runs, asked.planned.queue_use[rows], 0.0)


def _node_weight_column(asked: Asked, tasks: Ints, rows: Ints, share: Floats) -> Floats:
    """Weights (n,) on their nodes of points `rows` of `tasks`. Shares that are reserved are weights as they are."""
    # steps and queue are no share, but it has its part of the node by them
    unshared = asked.planned.problem.rigid[rows, NODE_SLOT] + _queue_use(asked, tasks, rows)
    if not asked.statistical:
        return np.asarray(share + unshared)
    mean_use = asked.planned.mean_use[rows, NODE_SLOT] + unshared
    return node_weights(np.minimum(share + unshared, 1.0), mean_use, _own_weights(asked)[tasks])


def node_weights(share: Floats, mean_use: Floats, own: Floats) -> Floats:
    """Weights (n,) of generalised processor sharing that give tasks shares (n,) x of a node that they use at times.

    While it is served, a task with weight w gets w / (w + W), where W is what the others have on average, each busy for
    u / x of the time: so x takes w = x / (1 - x + u) in units of W, much more than x where x is large. (Generalised
    processor sharing: Parekh & Gallager 1993.) When a node is over-full that favours tight deadlines over loose ones,
    and the factor `own`, the task's own weight, the more valuable.
    """
    return np.asarray(own * share / np.maximum(1.0 - share + mean_use, LEAST_REST), dtype=np.float64)


def _variance(planned: Planned, rows: Ints, share: Floats) -> Floats:
    """(R,) sum of u (x - u) over points `rows`: the variance of the use of each resource (docs/model.md, section 6)."""
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


def _decisions(
    state: State, asked: Asked, now: Present, draft: Draft, used: Floats, at_s: float
) -> tuple[Decision, ...]:
    """Build one for every task that is new or moved."""
    layout = asked.planned.layout
    out = []
    stays = (draft.chosen == layout.held) & (layout.held >= 0)
    for i in np.flatnonzero(~(now.left_out | stays)).tolist():
        task, j, held = layout.tasks[i], int(draft.chosen[i]), int(layout.held[i])
        reason, binding = (Reason.MOVED if held >= 0 else Reason.ADMITTED), ""
        if task.point >= 0 and held < 0:  # it runs, and may not stay where it is
            reason = Reason.MOVED_NODE_LOST if j >= 0 else Reason.NODE_LOST
        elif j < 0:
            reason, binding = _refusal(state, asked, i, used)
        elif held < 0 and not draft.promised[i]:
            reason = Reason.UNPROMISED
        out.append(
            Decision(
                task=task.offer.task,
                reason=reason,
                point=int(layout.row[j]) if j >= 0 else -1,
                promised=bool(draft.promised[i]),
                table=task.table,
                efficiency_bps_hz=float(asked.planned.efficiency[i]),
                cell=int(layout.cell[i]),  # that it was planned in
                input_age_s=state.channel.age_s(task.ue, at_s),
                binding=binding,
            )
        )
    return tuple(out)


def _refusal(state: State, asked: Asked, i: int, used: Floats) -> tuple[Reason, str]:
    """Why newcomer i was refused, and the fullest resource that its points need."""
    problem = asked.planned.problem
    points = np.arange(problem.first[i], problem.first[i + 1])
    points = points[(problem.work[points].sum(axis=2) <= asked.planned.alone_slack[points]).all(axis=1)]
    slots = problem.slot[points]
    needed = np.unique(slots[slots < problem.n_resources])
    if not len(needed):
        lacks_layers = asked.planned.layout.tasks[i].lacks_layers(state.places)
        if lacks_layers:
            return Reason.REJECTED_NOT_LOADED, ""
        is_beside = asked.planned.device_load[i] > 0 and asked.planned.layout.tasks[i].point < 0
        return Reason.REJECTED_DEVICE_BUSY if is_beside else Reason.REJECTED_NO_POINT, ""
    fullest = problem.resource_ids[int(needed[np.argmax(used[needed])])]
    screened = is_screened(problem, asked.problem, slice(int(problem.first[i]), int(problem.first[i + 1])))
    return Reason.REJECTED_BID_PRICE if screened else Reason.REJECTED_NO_CAPACITY, fullest
