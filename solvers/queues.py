"""Work that waits on a resource for what is due before, and what that takes of it (docs/model.md, section 10).

Prefills of sessions that a node serves alone come at once and are due at one instant each. Done in the order in which
they are due they are all in time if, and only if, for every t what is due by then and what else must be done by then
fits into t (the demand bound of Baruah, Rosier & Howell, 1990):

    D(t) + R(t)  <=  (1 - rest) t

D is the work that is queued. R are reads of weights: who decodes and is ahead of his promise can wait with them. So the
queue takes E = max over t of (D(t) + R(t)) / t, no less than reads take in the long run, and all of that is background.
A newcomer pays, as a rigid demand, for what E grows by with him; where several may come, each for his own work over the
time that he has, which together is never less. Who runs and could not be in time even alone is no part of the queue and
is promised nothing. Of the others nobody is given up: where they want more than there is room for, all else that runs
has its room, the queue the rest, and a newcomer pays for what is lacking as well.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

import numpy as np

from solvers.problem import Bools, Floats, Ints, Problem, Steps

SOONEST_S: Final = 1e-6  # what is due now or was due before counts as due then


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits in order (points (q,), in a slot each), and what that comes to."""

    points: Ints  # (q,)
    slot: Ints  # (q,) of the resource on which they wait
    elsewhere_s: Floats  # (q,) of their slack that is left for the work on other resources, inf where there is none
    rigid: Floats  # (q,) of the resource that a newcomer takes
    lost: Bools  # (q,) cannot be in time, even alone
    background: Floats  # (R,) of resources, over what reads take in the long run


@dataclass(frozen=True, slots=True)
class Reads:
    """Reads of one resource: who decodes there and rides at his own pace, and what all others need, a second each."""

    long_run: float
    lead_s: Floats  # (d,) until the next token of each is due
    pace_s: Floats  # (d,)
    shared_s: Floats  # (d,)
    group: Ints  # (d,)
    steady: float  # whoever is asked for each token comes when he comes: reads of that period, whatever others do

    def until(self, t_s: Floats) -> Floats:
        """(t,) seconds of reads that cannot wait for longer than t_s (t,)."""
        least = self.steady * t_s
        if not self.lead_s.size:
            return least
        late = np.maximum(t_s[:, None] - self.lead_s, 0.0) / self.pace_s  # (t, d) tokens
        each = late * self.shared_s
        total = np.zeros_like(t_s)
        for group in np.unique(self.group):  # layers are nested: a read for one serves all of his group
            total += each[:, self.group == group].max(axis=1)
        return np.asarray(np.maximum(total, least))


def queue(problem: Problem, steps: Steps, length_s: Floats, reads: dict[int, Reads], room: dict[int, float]) -> Queue:
    """Work out the queues of all resources.

    length_s (J,): of a step that a point waits for. reads: of each resource with queued points; room: what of it is
    left for reads and queue beside all else that runs.
    """
    points = np.flatnonzero(steps.queued)
    slot = steps.slot[points]
    owner = np.searchsorted(problem.first, points, side="right") - 1
    resource, runs = problem.slot[points, slot], problem.held[owner] == points
    work = problem.work[points, 0, slot]
    part = _part_elsewhere(problem.work[points, 0], work)
    slack = problem.slack[points, 0]
    due_s = (1.0 - part) * slack - steps.wait[points, 0] * length_s[points]
    # who runs may be in the next piece of a step, whatever its length
    lost = np.where(runs, (1.0 - part) * slack, due_s) < work
    rigid, background = np.zeros(points.size), np.zeros(problem.n_resources)
    for r in np.unique(resource).tolist():
        at, read = (resource == r) & ~lost, reads[r]
        mine, come = np.flatnonzero(at & runs), np.flatnonzero(at & ~runs)
        wanted = max(_density(work[mine], due_s[mine], read), read.long_run)
        counted = min(wanted, max(room[r], read.long_run))
        background[r] = counted - read.long_run
        if np.unique(owner[come]).size > 1:
            rigid[come] = wanted + work[come] / np.maximum(due_s[come], SOONEST_S) - counted
            continue
        for k in come.tolist():
            with_it = _density(np.append(work[mine], work[k]), np.append(due_s[mine], due_s[k]), read)
            rigid[k] = max(0.0, with_it - counted)
    return Queue(points, slot, np.where(part > 0, part * slack, np.inf), rigid, lost, background)


def _part_elsewhere(work: Floats, here: Floats) -> Floats:
    """(q,) of the time of work (q, S) that is for other resources than the one with work `here` (q,).

    The time is divided as it is cheapest where all resources cost alike.
    """
    root = np.sqrt(work).sum(axis=1)
    part = np.divide(root - np.sqrt(here), root, out=np.zeros_like(root), where=root > 0)
    return np.where(work.sum(axis=1) > here, part, 0.0)  # not what rounding leaves


def _density(work: Floats, has_s: Floats, reads: Reads) -> float:
    """Greatest part of the resource that work (n,) with so much time (n,) takes, with the reads of its time."""
    if not work.size:
        return 0.0
    order = np.argsort(has_s, kind="stable")
    until = np.maximum(has_s[order], SOONEST_S)
    due = np.cumsum(np.minimum(work[order], until))  # who is late counts with all of the time that he has
    return float(((due + reads.until(until)) / until).max())


def without_work(problem: Problem, points: Ints, slot: Ints) -> tuple[Floats, Floats]:
    """Return work (J, Q, S) and floors (J, S) in which points (q,) do nothing in a slot (q,) in their first phase."""
    work, floor = problem.work.copy(), problem.floor.copy()
    work[points, 0, slot], floor[points, slot] = 0.0, 0.0
    return work, floor


def unqueued(problem: Problem, steps: Steps) -> Problem:
    """Return the problem in which what waits takes nothing of its resource: for plans that overbook on purpose."""
    points = np.flatnonzero(steps.queued)
    work, floor = without_work(problem, points, steps.slot[points])
    slack, wait = problem.slack.copy(), steps.wait.copy()
    slack[points[work[points, 0].sum(axis=1) <= 0], 0] = np.inf
    wait[points, 0] = 0.0
    steps = dataclasses.replace(steps, queued=np.zeros_like(steps.queued), wait=wait)
    return dataclasses.replace(problem, work=work, floor=floor, slack=slack, steps=steps)
