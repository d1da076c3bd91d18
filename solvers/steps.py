"""Resources that serve in steps: how often and how long these are, and the ordinary problem that is left then.

A server of language models runs step after step: one read of the weights, one token of every sequence that is ready,
a piece of whatever else waits (Yu et al., Orca, OSDI 2022). Two numbers of a resource say what that costs:

    period P    of the read: a sequence that wants a token every pi seconds rides along while pi >= P
    length L    of a step with everybody in it, w + sum q_i: what a token waits for

With w for the read and q_i for what sequence i adds to a step, the resource is used to

    w / P  +  sum of q_i / pi_i  +  what is done in pieces (shares, as ever)  <=  1

Who is generated for without being asked (a whole model on the server) rides where pi >= P. Who is asked for each token
comes when he comes: he waits for the next read, P / 2 on average, or, where his slack does not bear that, he has a read
started for himself: such reads take sum of w / pi, and the others ride in them as in any. So w / P is the greater of
the two, and a newcomer that makes it greater (he wants tokens more often than P, or a read for himself) pays for what
he adds. Whoever forces reads pays for them, at the prices of the resource, and given P and L all of it is linear: a
background, rigid demands, and so much less slack (docs/model.md). The certificate of a solution is for the lengths that
it names.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from solvers.problem import NEVER, Bools, Floats, Ints, Problem, Steps
from solvers.queues import Queue, Reads, queue, without_work
from solvers.solution import Solution
from solvers.solver import Solver

GRID: Final = 1.05  # a length over the next shorter one: steps change by less are no change
GRID_FROM_S: Final = 1e-3
LEAST_LENGTH: Final = 1.2  # of the bare step: room for pieces beside it
LEAST_AIR: Final = 4.0  # slack beside the wait for a read, in units of a token's work elsewhere, or nobody rides


def solve(
    solver: Solver, problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None
) -> Solution:
    """Solve with any solver; where resources serve in steps, say how long and how often these are planned.

    An option `step_s` fixes the length of all of them, in seconds: it is not handed to the solver.
    """
    if problem.steps is None:
        return solver(problem, warm=warm, options=options)
    options = dict(options or {})
    step_s, period_s = lengths(problem, options.pop("step_s", 0.0))
    found = solver(at(problem, step_s, period_s), warm=warm, options=options)
    return dataclasses.replace(found, step_s=step_s, period_s=period_s)


def lengths(problem: Problem, fixed_s: float = 0.0) -> tuple[Floats, Floats]:
    """(R,) lengths of steps and (R,) periods of reads that suit those who run; NEVER where nobody decodes or may.

    fixed_s: length of all steps, 0 = as long as all who run make it. A newcomer pays for what the period is shorter
    with him; of several at once each would, so for them it is a background, if who runs can bear it.
    """
    steps = problem.steps
    step_s, period_s = np.full(problem.n_resources, NEVER), np.full(problem.n_resources, NEVER)
    if steps is None:
        return step_s, period_s
    on = np.flatnonzero(steps.shared_s > 0)
    resource, owner = _resource(problem, steps, on), _owner(problem)[on]
    held = problem.held[owner] == on
    elsewhere = ~held & ((problem.held[owner] < 0) | (_resource_of_held(problem, steps, owner) != resource))
    for r in np.unique(resource):
        here = resource == r
        runs, come = on[here & held], on[here & elsewhere]
        bare = _shared(steps, runs if runs.size else on[here])
        length = fixed_s or _on_grid(max(LEAST_LENGTH * bare, bare + float(steps.own_s[runs].sum())))
        step_s[r], period_s[r] = length, _period(problem, steps, runs, length)
        if np.unique(owner[here & elsewhere]).size > 1:
            room = _room(problem, steps, int(r), length)
            period_s[r] = _with_several(steps, runs, come, room, float(period_s[r]))
    return step_s, period_s


def _resource_of_held(problem: Problem, steps: Steps, owner: Ints) -> Ints:
    """(n,) resource on which the tasks `owner` (n,) decode, -1 = on none."""
    held = problem.held[owner]
    slot = np.where(held >= 0, steps.slot[held], -1)
    return np.where(slot >= 0, problem.slot[held, np.maximum(slot, 0)], -1)


def _with_several(steps: Steps, runs: Ints, come: Ints, room: float, period_s: float) -> float:
    """Period of reads for those who decode (n,) and several that may (m,): as short as there is room for.

    It is background for all of them, whoever comes; who wants tokens more often pays for that himself.
    """
    read_s = float(_greatest(steps, np.concatenate([runs, come])).sum())
    for pace in np.unique(steps.pace_s[come]).tolist():
        if pace < period_s and read_s / pace <= room:
            return float(pace)
    return period_s


def _room(problem: Problem, steps: Steps, r: int, length_s: float) -> float:
    """Part of a resource that is left for reads beside all who run there, clips too."""
    served = np.flatnonzero(steps.slot >= 0)
    served = served[_resource(problem, steps, served) == r]
    runs = served[problem.held[_owner(problem)[served]] == served]
    slot = steps.slot[runs]
    share = np.maximum(problem.floor[runs, slot], _needed(problem, steps, runs, length_s))
    share = np.where(steps.queued[runs], 0.0, share)
    least = problem.rigid[runs, slot] + problem.activity[runs, slot] * share + steps.demand[runs]
    return 1.0 - float(problem.background[r]) - float(least.sum())


def _needed(problem: Problem, steps: Steps, runs: Ints, length_s: float) -> Floats:
    """(n,) share of the resource with which those who run keep their deadlines, cheapest where all cost alike."""
    root = np.sqrt(problem.work[runs])  # (n, Q, S)
    left = np.maximum(problem.slack[runs] - steps.wait[runs] * length_s, 1e-9)
    mine = np.take_along_axis(root, steps.slot[runs][:, None, None], axis=2)[:, :, 0]
    return np.asarray(np.minimum((mine * root.sum(axis=2) / left).max(axis=1, initial=0.0), 1.0))


class StepChange(NamedTuple):
    """What the lengths and periods of steps make of a problem, and of any other with the same points."""

    slack: Floats  # (J, Q) that is taken from it, for waiting
    rigid: Floats  # (J, S) that is added
    background: Floats  # (R,) likewise
    queue: Queue | None  # None: nobody waits in one

    @property
    def wait_s(self) -> Floats:
        """(J, Q) seconds that each phase waits, 0 where it cannot be served at all."""
        return np.where(np.isfinite(self.slack), self.slack, 0.0)

    def of(self, problem: Problem) -> Problem:
        """Return the ordinary problem."""
        slack, work, floor = problem.slack - self.slack, problem.work, problem.floor
        if self.queue is not None:  # it has no share: it is background, or a rigid demand
            work, floor = without_work(problem, self.queue.points, self.queue.slot)
            slack[self.queue.points, 0] = np.where(self.queue.lost, -np.inf, self.queue.elsewhere_s)
        return dataclasses.replace(
            problem,
            slack=slack,
            work=work,
            floor=floor,
            rigid=problem.rigid + self.rigid,
            background=problem.background + self.background,
            steps=None,
        )


def at(problem: Problem, step_s: Floats, period_s: Floats) -> Problem:
    """Return the ordinary problem at lengths (R,) and periods (R,) in seconds.

    A problem without steps is returned as it is.
    """
    return problem if problem.steps is None else change(problem, problem.steps, step_s, period_s).of(problem)


def change(problem: Problem, steps: Steps, step_s: Floats, period_s: Floats) -> StepChange:
    """What steps of lengths (R,) and reads of periods (R,) change; seconds."""
    served = np.flatnonzero(steps.slot >= 0)
    length = np.append(step_s, NEVER)[_resource(problem, steps, served)]
    slack, rigid = np.zeros_like(problem.slack), np.zeros_like(problem.rigid)
    longest = np.maximum(length, steps.shared_s[served] + steps.own_s[served])  # who is in one alone makes it so long
    slack[served] = steps.wait[served] * np.where(np.isinf(length), 0.0, longest)[:, None]
    on = np.flatnonzero(steps.shared_s > 0)
    few = _Decoders.of(problem, steps, on, step_s, period_s)
    slack[on, 1] += np.where(few.rides & ~steps.streams[on], few.period / 2, 0.0)
    slack[on[np.isinf(step_s[few.resource])], 1] = np.inf
    reads = _Reads.of(problem, steps, few, period_s)
    rigid[on, steps.slot[on]] = steps.demand[on] + np.where(few.comes, reads.of_newcomers(steps, few), 0.0)
    if not steps.queued.any():
        return StepChange(slack, rigid, reads.base, None)
    waits = np.zeros(problem.n_points)
    waits[served] = np.where(np.isinf(length), 0.0, longest)
    queues = _queues(problem, steps, few, reads, step_s, period_s, waits)
    rigid[queues.points, queues.slot] += queues.rigid
    return StepChange(slack, rigid, reads.base + queues.background, queues)


def _queues(
    problem: Problem, steps: Steps, few: _Decoders, reads: _Reads, step_s: Floats, period_s: Floats, waits_s: Floats
) -> Queue:
    """What waits in order on each resource, with the reads that cannot wait. waits_s (J,): a step's length."""
    decodes = (problem.held[few.owner] == few.points) & np.isfinite(steps.lead_s[few.owner])
    streams = steps.streams[few.points]
    of, room = {}, {}
    for r in np.unique(_resource(problem, steps, np.flatnonzero(steps.queued))).tolist():
        here = decodes & (few.resource == r)
        ahead, asked = few.points[here & streams], few.points[here & ~streams & few.rides]
        steady = max(_shared(steps, asked) / float(period_s[r]), float(reads.alone[r]))
        of[r] = Reads(
            float(reads.base[r]), steps.lead_s[few.owner[here & streams]], steps.pace_s[ahead], steps.shared_s[ahead],
            steps.group[ahead], steady,
        )  # fmt: skip
        room[r] = _room(problem, steps, r, float(step_s[r]) if np.isfinite(step_s[r]) else 0.0)
    return queue(problem, steps, waits_s, of, room)


@dataclass(frozen=True, slots=True)
class _Decoders:
    """Decoding points (n,) of a problem and how they stand to the reads of their resources."""

    points: Ints
    resource: Ints
    owner: Ints
    period: Floats
    rides: Bools  # whether they wait for a read of that period
    comes: Bools  # whether they are another burden than the point that their task holds

    @classmethod
    def of(cls, problem: Problem, steps: Steps, on: Ints, step_s: Floats, period_s: Floats) -> _Decoders:
        resource, owner = _resource(problem, steps, on), _owner(problem)[on]
        length = np.maximum(step_s[resource], steps.shared_s[on] + steps.own_s[on])
        period = period_s[resource]
        rides = can_ride(problem, on, length, period)
        return cls(on, resource, owner, period, rides, _comes(problem, steps, on, resource, owner, rides))


def _comes(problem: Problem, steps: Steps, points: Ints, resource: Ints, owner: Ints, rides: Bools) -> Bools:
    """(n,) whether a decoding point is another burden to its resource than the one that its task holds."""
    held = problem.held[owner]
    all_ride = np.zeros(problem.n_points, dtype=np.bool_)
    all_ride[points] = rides
    same = _resource_of_held(problem, steps, owner) == resource
    for column in (steps.group, steps.pace_s, steps.streams, all_ride):
        same &= column[points] == column[held]
    return np.asarray((held != points) & ~(same & (steps.shared_s[points] <= steps.shared_s[held])))


def _owner(problem: Problem) -> Ints:
    """(J,) task of each point."""
    return np.repeat(np.arange(problem.n_tasks), np.diff(problem.first))


def _resource(problem: Problem, steps: Steps, points: Ints) -> Ints:
    """(n,) that serves points (n,) in steps."""
    return np.asarray(problem.slot[points, steps.slot[points]])


@dataclass(frozen=True, slots=True)
class _Reads:
    """Part of each resource (R,) that reading weights takes: of those who run, and what more it is with a newcomer."""

    shared_s: Floats  # (R, groups) of the read that the period is of: the greatest part of each group
    alone: Floats  # (R,) reads that are started for somebody who cannot wait: others' steps are such as well
    base: Floats  # (R,) the greater of the two: whoever rides does so in any step
    several: Bools  # (R,) whether more than one may come

    @classmethod
    def of(cls, problem: Problem, steps: Steps, few: _Decoders, period_s: Floats) -> _Reads:
        """Of several newcomers each would pay for all that is read for all: it counts what riders need as well."""
        n = problem.n_resources
        shared = np.zeros((n, int(steps.group.max(initial=0)) + 1))
        alone, several = np.zeros(n), np.zeros(n, dtype=np.bool_)
        on, runs = few.points, problem.held[few.owner] == few.points
        rides = few.comes & few.rides & np.isfinite(few.period)
        by_himself = runs & ~few.rides & ~steps.streams[on]
        for r in np.unique(few.resource):
            here = few.resource == r
            comers = few.owner[here & few.comes]
            several[r] = bool(comers.size) and bool((comers != comers[0]).any())
            shared[r] = _greatest(steps, on[here & ((runs | rides) if several[r] else runs)])
            own = on[here & by_himself]
            alone[r] = float((steps.shared_s[own] / steps.pace_s[own]).sum())
        return cls(shared, alone, np.maximum(shared.sum(axis=1) / period_s, alone), several)

    def of_newcomers(self, steps: Steps, few: _Decoders) -> Floats:
        """(n,) what decoders (n,) add if they are the only ones that come; nothing for who rides on less."""
        points, resource, period = few.points, few.resource, few.period
        base, shared = self.base[resource], self.shared_s[resource]  # (n,), (n, groups)
        there = shared[np.arange(points.size), steps.group[points]]
        others = (shared.sum(axis=1) - there) / period  # groups are read each as often as it needs
        read_s = np.maximum(steps.shared_s[points], there)
        often = 1.0 / steps.pace_s[points]
        own = steps.shared_s[points] * often
        own += np.where(self.several[resource], 0.0, self.alone[resource] - base)
        more = np.where(np.isinf(period), 0.0, others + read_s / period - base)
        # of several each pays for all that his group is read more often: others' reads may end when they move
        alone_there = read_s * often - there / period
        sooner = np.where(self.several[resource], alone_there, others + read_s * often - base)
        return np.maximum(np.where(few.rides, more, np.where(steps.streams[points], sooner, own)), 0.0)


def can_ride(problem: Problem, points: Ints, length_s: Floats, period_s: Floats) -> Bools:
    """(n,) whether decoding points (n,) keep their pace with reads of periods (n,) and steps of lengths (n,)."""
    return np.asarray(longest_period_s(problem, points, length_s) >= period_s)


def longest_period_s(problem: Problem, points: Ints, length_s: Floats) -> Floats:
    """(n,) longest period of reads at which points (n,) keep their pace, in steps of lengths (n,)."""
    steps = problem.steps
    if steps is None:
        return np.full(points.size, NEVER)
    finite = np.where(np.isinf(length_s), 0.0, length_s)
    left = problem.slack[points, 1] - steps.wait[points, 1] * finite
    left = 2 * (left - LEAST_AIR * problem.work[points, 1].sum(axis=1))
    return np.asarray(np.where(steps.streams[points], steps.pace_s[points], np.minimum(left, steps.pace_s[points])))


def _period(problem: Problem, steps: Steps, runs: Ints, length_s: float) -> float:
    """Period at which those who run (n,) take least in all: at a longer one some read for themselves."""
    if not runs.size:
        return NEVER
    longest = longest_period_s(problem, runs, np.maximum(length_s, steps.shared_s[runs] + steps.own_s[runs]))
    streams = steps.streams[runs]
    most = float(steps.pace_s[runs[streams]].min(initial=NEVER))
    shared = _shared(steps, runs)
    alone = np.where(streams, 0.0, steps.shared_s[runs] / steps.pace_s[runs])
    choices = np.unique(longest[~streams & (longest >= length_s) & (longest < most)])
    choices = np.append(choices, most)
    cost = [max(shared / p, float(alone[longest < p].sum())) for p in choices]
    return float(choices[len(choices) - 1 - int(np.argmin(cost[::-1]))])


def _shared(steps: Steps, points: Ints) -> float:
    """Seconds of a read for points (n,)."""
    return float(_greatest(steps, points).sum())


def _greatest(steps: Steps, points: Ints) -> Floats:
    """(groups,) seconds of it: layers are nested, so the greatest part of each group serves all of it."""
    greatest = np.zeros(int(steps.group.max(initial=0)) + 1)
    np.maximum.at(greatest, steps.group[points], steps.shared_s[points])
    return greatest


def _on_grid(least_s: float) -> float:
    """The shortest length of a grid, the same for everybody, that is no shorter."""
    return float(GRID_FROM_S * GRID ** math.ceil(math.log(max(least_s, GRID_FROM_S) / GRID_FROM_S) / math.log(GRID)))
