"""Baselines that look at one side only, or at none: compute-only and local (docs/policies.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from solvers.baselines import sharing as _sharing
from solvers.baselines.common import (
    HOLDS,
    Bools,
    keep_held,
    newcomers,
    read_options,
    resources_of_kind,
    rigid_use,
    solution,
)
from solvers.baselines.decoupled import known_efficiency, table_of
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Solution

TRIALS: Final = 24  # numbers of newcomers that compute-only plans for


def local(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """Serve only what a device can do alone: points that use nothing shared. No options.

    Tasks that are running keep their point, with equal shares, whatever it is.
    """
    del warm
    read_options(options)
    takes = (problem.slot < problem.n_resources) & (
        (problem.work.max(axis=1) > 0) | (problem.floor > 0) | (problem.rigid > 0)
    )
    table = table_of(problem, allowed=~takes.any(axis=1) & (problem.value > 0))
    chosen = keep_held(problem)
    _sharing.best_response(table, chosen, newcomers(problem), 1)
    share, late = _sharing.shared_out(table, chosen)
    return solution(problem, "local", chosen, share, late <= HOLDS, evaluations=1)


def compute_only(
    problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None
) -> Solution:
    """Admission and split by compute alone, at a nominal rate; the cell is then shared by equal airtime.

    Every task is taken to have the nominal spectral efficiency and an equal part of its cell. What that leaves of a
    deadline tells how much of a node each point needs; the least needs come in first, for the number of newcomers
    with which most come in. Options: nominal_efficiency (0 = median of the problem's) in bit/s/Hz; overbook (1).
    """
    del warm
    settings = read_options(options, nominal_efficiency=0.0, overbook=1.0)
    efficiency = known_efficiency(problem)
    nominal = settings["nominal_efficiency"] or (float(np.median(efficiency)) if efficiency.size else 1.0)
    view = _View.of(problem, efficiency / nominal, settings["overbook"])
    arrivals, best, most = newcomers(problem), keep_held(problem), 0
    counts = _trial_counts(arrivals.size)
    for count in counts:
        chosen = _admit(view, arrivals, int(count))
        admitted = int((chosen[arrivals] >= 0).sum())
        if admitted > most:
            best, most = chosen, admitted
    return _serve(view, best, int(counts.size))


@dataclass(frozen=True, slots=True)
class _View:
    """What compute-only believes. Per point and slot (J, S), with all tasks at the nominal efficiency."""

    problem: Problem
    network: Bools  # (J, S) slots shared equally: cells and links
    compute: Bools  # (J, S)
    work: Floats  # (J, Q, S)
    room: Floats  # (R + 1,) what is given away: overbook times the room left by the background; padding has all
    overbook: float

    @classmethod
    def of(cls, problem: Problem, relative: Floats, overbook: float) -> _View:
        """`relative` (N,): each task's efficiency over the nominal one; work on the cell scales with it."""
        task = np.repeat(np.arange(problem.n_tasks), np.diff(problem.first))
        comm = np.append(resources_of_kind(problem, "comm"), False)[problem.slot]
        compute = np.append(resources_of_kind(problem, "compute"), False)[problem.slot]
        used = problem.work.max(axis=1) > 0
        network = used & ~compute & (problem.slot < problem.n_resources)
        work = np.where(comm[:, None, :], problem.work * relative[task, None, None], problem.work)
        room = np.append(overbook * np.maximum(1 - problem.background, 0.0), np.inf)
        return cls(problem, network, used & compute, work, room, overbook)

    def users(self, chosen: Ints) -> Floats:
        """How many of the chosen points (N,) use each resource as a network, (R + 1,)."""
        on = chosen[chosen >= 0]
        return np.bincount(self.problem.slot[on][self.network[on]], minlength=self.room.size).astype(np.float64)

    def needs(self, users: Floats) -> Floats:
        """Shares (J, S) of compute that each point needs when `users` (R + 1,) share each network equally.

        inf where the nominal rate leaves no time. On several nodes at once: cheapest at equal prices.
        """
        equal = np.minimum(self.room / np.maximum(users, 1.0), 1.0)[self.problem.slot]  # (J, S)
        on_air = np.where(self.network[:, None, :], self.work / np.maximum(equal, 1e-12)[:, None, :], 0.0).sum(axis=2)
        left = self.problem.slack - on_air  # (J, Q)
        root = np.sqrt(np.where(self.compute[:, None, :], self.work, 0.0))  # (J, Q, S)
        with np.errstate(divide="ignore", invalid="ignore"):
            need = root * root.sum(axis=2, keepdims=True) / np.maximum(left, 0.0)[:, :, None]
        need = np.where(root > 0, need, 0.0).max(axis=1)
        need = np.where(self.compute, np.maximum(need, self.problem.floor), 0.0)
        hopeless = (left < 0).any(axis=1)[:, None] | (need > self.problem.cap)
        return np.where(hopeless, np.inf, need)


def _trial_counts(n: int) -> Ints:
    """How many newcomers to plan for: at most TRIALS numbers of 1 .. n, the least first."""
    return np.unique(np.linspace(1, n, min(n, TRIALS)).round().astype(np.int64))


def _admit(view: _View, arrivals: Ints, count: int) -> Ints:
    """Points (N,) when `count` newcomers are planned for: the least needs first, while they fit."""
    problem, chosen = view.problem, keep_held(view.problem)
    allowed = view.users(chosen) + _spread(view, arrivals, count)
    need = view.needs(allowed)
    held = chosen[chosen >= 0]
    left = view.room - _granted(view, held, np.where(np.isfinite(need[held]), need[held], 0.0))
    left -= np.append(view.overbook * _coupled(problem, allowed), 0.0)
    places = np.append((allowed - view.users(chosen))[:-1], np.inf)
    taken = np.where(np.isfinite(need), problem.activity * need, np.inf) + view.overbook * problem.rigid  # (J, S)
    total = np.where(problem.value > 0, need.sum(axis=1), np.inf)
    least = [total[problem.first[i] : problem.first[i + 1]].min(initial=np.inf) for i in arrivals]
    for i in arrivals[np.argsort(least, kind="stable")]:
        points = np.arange(problem.first[i], problem.first[i + 1])
        slot = problem.slot[points]
        fits = ((taken[points] <= left[slot]) | (taken[points] <= 0)).all(axis=1) & np.isfinite(total[points])
        fits &= ((places[slot] >= 1) | ~view.network[points]).all(axis=1)
        if fits.any():
            j = int(points[np.argmin(np.where(fits, total[points], np.inf))])
            chosen[i] = j
            np.subtract.at(left, problem.slot[j], taken[j])
            np.subtract.at(places, problem.slot[j], view.network[j].astype(np.float64))
    return chosen


def _spread(view: _View, arrivals: Ints, count: int) -> Floats:
    """How many of `count` newcomers to expect on each network resource, (R + 1,), rounded up.

    Each newcomer counts on a resource with the part of its points that use it.
    """
    problem, expected = view.problem, np.zeros(view.room.size)
    for i in arrivals:
        points = slice(problem.first[i], problem.first[i + 1])
        on = np.bincount(problem.slot[points][view.network[points]], minlength=expected.size)
        most = max(1, int(view.network[points].any(axis=1).sum()))
        expected += on / most
    return np.ceil(expected * count / max(1, arrivals.size) - 1e-9)


def _granted(view: _View, points: Ints, need: Floats) -> Floats:
    """Compute shares and rigid demand (R + 1,) of the points.

    Shares are given away `overbook` times over; what is rigid (memory) is held and can be given away once only.
    """
    problem = view.problem
    weight = problem.activity[points] * need + view.overbook * problem.rigid[points]
    total = np.bincount(problem.slot[points].ravel(), weights=weight.ravel(), minlength=view.room.size)
    total[-1] = 0.0
    return np.asarray(total, dtype=np.float64)


def _coupled(problem: Problem, users: Floats) -> Floats:
    """Part of the nodes (R,) that goes to used cells coupled to them, when those are wholly granted."""
    source = problem.coupling_from
    granted = np.where(users[source] > 0, np.maximum(1 - problem.background[source], 0.0), 0.0)
    taken = np.bincount(
        problem.coupling_to, weights=problem.coupling_per_share * granted, minlength=problem.n_resources
    )
    return np.asarray(taken, dtype=np.float64)


def _serve(view: _View, chosen: Ints, runs: int) -> Solution:
    """Equal airtime, compute in proportion to the needs; promised is what holds at the real efficiencies."""
    problem = view.problem
    table = table_of(problem, overbook=view.overbook)
    share, _ = _sharing.shared_out(table, chosen)
    on = np.flatnonzero(chosen >= 0)
    points = chosen[on]
    users = np.bincount(problem.slot[points].ravel(), minlength=view.room.size)
    need = view.needs(view.users(chosen))[points]
    need = np.where(
        np.isfinite(need), need, np.where(view.compute[points], 1 / np.maximum(users, 1)[problem.slot[points]], 0.0)
    )
    elastic = _granted(view, points, need) - _granted(view, points, np.zeros_like(need))
    left = 1 - rigid_use(problem, chosen) - _coupled(problem, view.users(chosen))
    scale = view.overbook * np.append(np.maximum(left, 0.0), 0.0) / np.maximum(elastic, 1e-12)
    mine = np.minimum(problem.cap[points], need * scale[problem.slot[points]])
    share[on] = np.where(view.compute[points], mine, share[on])
    late = _sharing.lateness_of_all(table, chosen, share)
    return solution(problem, "compute-only", chosen, share, late <= HOLDS, evaluations=runs)
