"""The referee's own reading of resources that serve in steps (docs/model.md, section 10), point by point.

Shares no code with solvers/steps.py and solvers/queues.py, only the arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import cast

import numpy as np

from solvers.problem import Floats, Problem, Steps
from solvers.solution import Solution


def at_steps(p: Problem, s: Solution, *, offered: bool = False) -> Problem:
    """The problem at the plan's lengths and periods, worked out point by point from what a step is.

    Of reads only those are counted that the chosen cause; with `offered` those that a bound has to count: what runs, or
    may come where several may, is read every period, and each newcomer pays for what he needs beyond.
    """
    steps = p.steps
    if steps is None:
        return p
    slack, rigid, background = p.slack.copy(), p.rigid.copy(), p.background.copy()
    work, floor = p.work.copy(), p.floor.copy()
    owner = np.repeat(np.arange(p.n_tasks), np.diff(p.first)).tolist()
    chosen = set(s.chosen.tolist())
    served = np.flatnonzero(steps.slot >= 0).tolist()
    place = {j: int(p.slot[j, steps.slot[j]]) for j in served}
    decoders = [j for j in served if steps.shared_s[j] > 0]
    rides = {
        j: _rides(p, j, _length(steps, j, float(s.step_s[place[j]])), float(s.period_s[place[j]])) for j in decoders
    }
    _take_waits(p, s, place, slack)
    for j in decoders:
        if not math.isfinite(float(s.step_s[place[j]])):
            slack[j] = -np.inf
        if rides[j] and not steps.streams[j]:
            slack[j, 1] -= float(s.period_s[place[j]]) / 2
        rigid[j, int(steps.slot[j])] += steps.demand[j]
    for r in set(place.values()):
        here, period = [j for j in decoders if place[j] == r], float(s.period_s[r])
        if offered:
            reads = _offered_reads(p, owner, here, period, rides, rigid)
        else:
            reads = _reads(steps, [j for j in here if j in chosen], period, rides)
        background[r] += reads
        waits = [j for j in served if place[j] == r and steps.queued[j]]
        if waits:
            line = _QueueCheck(
                p, r, float(s.step_s[r]), reads, [j for j in here if p.held[owner[j]] == j], rides, period
            )
            taken, adds = line.takes(waits)
            background[r] += taken - reads
            for j, added in adds.items():
                slot = int(steps.slot[j])
                work[j, 0, slot] = floor[j, slot] = 0.0
                slack[j, 0] = line.elsewhere_s(j) if math.isfinite(added) else -np.inf
                rigid[j, slot] += added if math.isfinite(added) else 0.0
    return dataclasses.replace(p, slack=slack, work=work, floor=floor, rigid=rigid, background=background, steps=None)


def _take_waits(p: Problem, s: Solution, place: dict[int, int], slack: Floats) -> None:
    """Take off slack (J, Q) what points wait for steps of the plan's lengths."""
    steps = cast("Steps", p.steps)
    for j, r in place.items():
        length = _length(steps, j, float(s.step_s[r]))
        if math.isfinite(length):
            slack[j] = [a - w * length for a, w in zip(p.slack[j], steps.wait[j], strict=True)]


class _QueueCheck:
    """What waits in order on resource r, second by second: at each due date all that is due by then must fit."""

    def __init__(
        self, p: Problem, r: int, step_s: float, reads: float, runs: list[int], rides: dict[int, bool], period: float
    ) -> None:
        self.p, self.r, self.step_s, self.reads = p, r, step_s if math.isfinite(step_s) else 0.0, reads
        self.steps = steps = cast("Steps", p.steps)
        self.owner = np.repeat(np.arange(p.n_tasks), np.diff(p.first)).tolist()
        going = [j for j in runs if math.isfinite(float(steps.lead_s[self.owner[j]]))]
        self.ahead = [(float(steps.lead_s[self.owner[j]]), j) for j in going if steps.streams[j]]
        asked = [j for j in going if not steps.streams[j] and rides[j]]
        self.steady = max(_greatest(steps, asked) / period, _alone(steps, runs, rides))

    def _parts(self, j: int) -> tuple[float, float, float]:
        """Work there, seconds until it is due, seconds for what it does elsewhere."""
        p, slot = self.p, int(self.steps.slot[j])
        roots = [math.sqrt(a) for a in p.work[j, 0]]
        others = sum(root for s, root in enumerate(roots) if s != slot)
        part, slack = others / sum(roots) if others > 0 else 0.0, float(p.slack[j, 0])
        waits = float(self.steps.wait[j, 0]) * _length(self.steps, j, self.step_s)
        return float(p.work[j, 0, slot]), (1 - part) * slack - waits, part * slack

    def _is_possible(self, j: int) -> bool:
        """Whether it would be in time alone; who runs has no step to wait for."""
        work, due, _ = self._parts(j)
        if self.p.held[self.owner[j]] == j:
            due += float(self.steps.wait[j, 0]) * _length(self.steps, j, self.step_s)
        return due >= work

    def elsewhere_s(self, j: int) -> float:
        """Slack that is left for the rest of the first phase."""
        return self._parts(j)[2] if float(self.p.work[j, 0].sum()) > self._parts(j)[0] else math.inf

    def _reads_until(self, t: float) -> float:
        """Seconds of reads by t that cannot be later."""
        steps, by_group = self.steps, dict[int, float]()
        for lead, j in self.ahead:
            need = float(steps.shared_s[j]) * max(0.0, t - lead) / float(steps.pace_s[j])
            by_group[int(steps.group[j])] = max(by_group.get(int(steps.group[j]), 0.0), need)
        return max(self.steady * t, sum(by_group.values()))

    def _most(self, points: list[int]) -> float:
        """Greatest part of the resource over the due dates of `points`."""
        parts = [self._parts(j)[:2] for j in points]
        worst = 0.0
        for _, due in parts:
            t = max(due, 1e-6)
            by_then = sum(min(work, max(d, 1e-6)) for work, d in parts if d <= due)
            worst = max(worst, (by_then + self._reads_until(t)) / t)
        return worst

    def _counted(self, run: list[int]) -> float:
        """Of the resource for those of the queue who run: no more than all else that runs leaves."""
        p, steps = self.p, self.steps
        rest = float(p.background[self.r])
        for i in range(p.n_tasks):
            j = int(p.held[i])
            if j < 0 or steps.slot[j] < 0 or int(p.slot[j, steps.slot[j]]) != self.r:
                continue
            slot, share = int(steps.slot[j]), 0.0
            if not steps.queued[j]:
                share = max(float(p.floor[j, slot]), self._share(j, slot))
            rest += float(p.rigid[j, slot] + p.activity[j, slot] * share + steps.demand[j])
        return min(max(self._most(run), self.reads), max(1.0 - rest, self.reads))

    def _share(self, j: int, slot: int) -> float:
        """With which j keeps its deadlines, as it is cheapest where all resources cost alike."""
        most = 0.0
        for work, slack, wait in zip(self.p.work[j], self.p.slack[j], self.steps.wait[j], strict=True):
            left = max(float(slack) - float(wait) * self.step_s, 1e-9)
            most = max(most, math.sqrt(work[slot]) * sum(math.sqrt(a) for a in work) / left)
        return min(most, 1.0)

    def takes(self, waits: list[int]) -> tuple[float, dict[int, float]]:
        """(background with reads, what each of `waits` adds to it: inf for who cannot be in time)."""
        possible = [j for j in waits if self._is_possible(j)]
        run = [j for j in possible if self.p.held[self.owner[j]] == j]
        come = [j for j in possible if j not in run]
        base, wanted = self._counted(run), max(self._most(run), self.reads)
        out = {j: 0.0 if j in run else math.inf for j in waits}
        several = len({self.owner[j] for j in come}) > 1
        for j in come:
            work, due, _ = self._parts(j)
            out[j] = max(0.0, (wanted + work / max(due, 1e-6) if several else self._most([*run, j])) - base)
        return base, out


def _is_like_held(p: Problem, j: int, held: int, here: list[int], rides: dict[int, bool]) -> bool:
    """Whether a point burdens its resource as the one does that its task holds."""
    if held not in here:
        return False
    steps = cast("Steps", p.steps)
    same = all(column[j] == column[held] for column in (steps.group, steps.pace_s, steps.streams))
    return same and rides[j] == rides[held] and bool(steps.shared_s[j] <= steps.shared_s[held])


def _length(steps: Steps, j: int, planned: float) -> float:
    """Seconds of a step that point j waits for: as planned, or as long as its own part makes it."""
    return max(planned, float(steps.shared_s[j] + steps.own_s[j]))


def _offered_reads(
    p: Problem, owner: list[int], here: list[int], period: float, rides: dict[int, bool], rigid: Floats
) -> float:
    """Reads that a bound counts on a resource for its decoders `here`; to `rigid` what each newcomer adds to that."""
    steps = cast("Steps", p.steps)
    runs = [j for j in here if p.held[owner[j]] == j]
    come = [j for j in here if j not in runs and not _is_like_held(p, j, int(p.held[owner[j]]), here, rides)]
    several = len({owner[j] for j in come}) > 1
    ride = [j for j in come if rides[j] and math.isfinite(period)] if several else []
    base = max(_greatest(steps, runs + ride) / period, _alone(steps, runs, rides))
    for j in come:
        mine = [k for k in (*runs, *ride) if steps.group[k] == steps.group[j]]
        others = _greatest(steps, [k for k in (*runs, *ride) if steps.group[k] != steps.group[j]]) / period
        if rides[j]:
            with_it = 0.0 if math.isinf(period) else others + _greatest(steps, [*mine, j]) / period
        elif steps.streams[j]:
            with_it = _greatest(steps, [*mine, j]) / float(steps.pace_s[j])
            with_it += base - _greatest(steps, mine) / period if several else others
        else:
            with_it = _alone(steps, [j], rides) + (base if several else _alone(steps, runs, rides))
        rigid[j, int(steps.slot[j])] += max(0.0, with_it - base)
    return base


def _reads(steps: Steps, chosen: list[int], period: float, rides: dict[int, bool]) -> float:
    """Part of a resource that reads take for the chosen: each group's as often as it needs, or those for some alone."""
    total = 0.0
    for group in {int(steps.group[j]) for j in chosen}:
        riders = [j for j in chosen if int(steps.group[j]) == group and (rides[j] or steps.streams[j])]
        often = min([period if rides[j] else float(steps.pace_s[j]) for j in riders], default=math.inf)
        total += _greatest(steps, riders) / often if riders else 0.0
    return max(total, _alone(steps, chosen, rides))


def _alone(steps: Steps, points: list[int], rides: dict[int, bool]) -> float:
    """Part of a resource that reads take which these decoders need for themselves."""
    return sum(float(steps.shared_s[j] / steps.pace_s[j]) for j in points if not (rides[j] or steps.streams[j]))


def _rides(p: Problem, j: int, length: float, period: float) -> bool:
    """Whether a decoder keeps its pace with reads of that period, if that leaves four times its work elsewhere."""
    steps = cast("Steps", p.steps)
    if float(steps.pace_s[j]) < period:
        return False
    waits = 0.0 if math.isinf(length) else float(steps.wait[j, 1]) * length
    return bool(steps.streams[j]) or 2 * (float(p.slack[j, 1]) - waits - 4 * float(p.work[j, 1].sum())) >= period


def _greatest(steps: Steps, points: Iterable[int]) -> float:
    """The greatest shared part of each group, added up."""
    greatest: dict[int, float] = {}
    for j in points:
        group = int(steps.group[j])
        greatest[group] = max(greatest.get(group, 0.0), float(steps.shared_s[j]))
    return sum(greatest.values())
