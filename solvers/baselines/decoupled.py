"""Decoupled baselines that share by rule: pf, pf-admit, pf-util, equal-rate-admit and edge (docs/policies.md).

All work on weighted processor sharing (sharing.py); they differ in the weights, in the points allowed and in who is
let in. Tasks that are running keep their point and are never dropped for a newcomer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import numpy as np

from solvers.baselines import sharing as _sharing
from solvers.baselines.common import HOLDS, Bools, keep_held, newcomers, read_options, resources_of_kind, solution
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Solution

ROUNDS: Final = 8  # of best responses; two did on random problems, a cycle is cut here
BATCHES: Final = 32  # a crowd of late tasks is dropped a 32nd at a time

Array = TypeVar("Array", Floats, Ints)

Guilty = Callable[[Ints, Floats, Ints], Ints]
"""(chosen (N,), lateness (N,), members) -> the members that must not all stay, the worst first."""


def table_of(
    problem: Problem, *, overbook: float = 1.0, allowed: Bools | None = None, weight: Floats | None = None
) -> _sharing.SharingTable:
    """Columns for the compiled sharing; by default equal airtime and all points that are worth something."""
    return _sharing.SharingTable(
        first=_plain(problem.first),
        slot=_plain(problem.slot),
        work=_plain(problem.work),
        slack=_plain(problem.slack),
        floor=_plain(problem.floor),
        cap=_plain(problem.cap),
        activity=_plain(problem.activity),
        rigid=_plain(problem.rigid),
        value=_plain(problem.value),
        background=_plain(problem.background),
        coupling_from=_plain(problem.coupling_from),
        coupling_to=_plain(problem.coupling_to),
        coupling_per_share=_plain(problem.coupling_per_share),
        allowed=problem.value > 0 if allowed is None else allowed,
        weight=np.ones(problem.n_tasks) if weight is None else weight,
        comm=resources_of_kind(problem, "comm"),
        overbook=overbook,
    )


def _plain(array: Array) -> Array:
    """Hand on what compiled code takes without being compiled again: contiguous and writable."""
    return array if array.flags.c_contiguous and array.flags.writeable else np.array(array, order="C")


def pf(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """Proportional fair, aware of the radio only: everybody is served, with equal airtime and equal compute.

    Options: overbook (1). The comm-aware-only opponent of the codesign example (docs/policies.md).
    """
    del warm
    table = table_of(problem, overbook=read_options(options, overbook=1.0)["overbook"])
    return _serve_all(problem, table, "pf")


def edge(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """Everybody offloads as far as the task allows, with equal airtime and compute. Options: overbook (1)."""
    del warm
    overbook = read_options(options, overbook=1.0)["overbook"]
    return _serve_all(problem, table_of(problem, overbook=overbook, allowed=_most_offloaded(problem)), "edge")


def pf_admit(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """Proportional fair with admission by deadline: the most late go until all that remain are in time.

    Options: overbook (1), the number of times each resource is given away, as shares are weights and tasks are active
    part of the time. A newcomer comes in when it and every running task that was in time without it are in time.
    """
    del warm
    table = table_of(problem, overbook=read_options(options, overbook=1.0)["overbook"])
    chosen, runs = _admit_by_deadline(problem, table, newcomers(problem))
    return _finish(problem, table, chosen, "pf-admit", runs)


def pf_util(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """Proportional fair with admission by mean utilisation: at most `rho` of each resource, own deadline in time.

    Options: rho (0.8) the utilisation allowed, background included; overbook (1). Mean use is the floor (request rate x
    work) or the rigid demand, whichever is greater. Running tasks that a newcomer makes late do not keep it out.
    """
    del warm
    chosen_options = read_options(options, rho=0.8, overbook=1.0)
    table = table_of(problem, overbook=chosen_options["overbook"])
    rule = _by_utilisation(problem, chosen_options["rho"])
    chosen, runs = _admit(problem, table, newcomers(problem), rule)
    return _finish(problem, table, chosen, "pf-util", runs)


def equal_rate_admit(
    problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None
) -> Solution:
    """Best channel first, equal rates on the cell (share ~ 1 / spectral efficiency), equal compute, by deadline.

    Options: overbook (1). Two admissions are tried, one at a time from the best channel down and dropping the most
    late; the better one is kept. With identical tasks this is as good as the joint optimum to within some percent.
    """
    del warm
    overbook = read_options(options, overbook=1.0)["overbook"]
    efficiency = known_efficiency(problem)
    table = table_of(problem, overbook=overbook, weight=1.0 / efficiency)
    arrivals = newcomers(problem)
    best_first = arrivals[np.argsort(-efficiency[arrivals], kind="stable")]
    chosen, runs = _admit_by_deadline(problem, table, best_first)
    if arrivals.size > 1:
        other, more = _one_by_one(problem, table, best_first)
        chosen = max(chosen, other, key=lambda plan: _worth(problem, plan))
        runs += more
    return _finish(problem, table, chosen, "equal-rate-admit", runs)


def known_efficiency(problem: Problem) -> Floats:
    """Spectral efficiency (N,) with unknown ones at the median of the known (1 where none is known)."""
    known = problem.channel[np.isfinite(problem.channel) & (problem.channel > 0)]
    usual = float(np.median(known)) if known.size else 1.0
    return np.where(np.isfinite(problem.channel) & (problem.channel > 0), problem.channel, usual)


def _serve_all(problem: Problem, table: _sharing.SharingTable, name: str) -> Solution:
    chosen = keep_held(problem)
    _sharing.best_response(table, chosen, newcomers(problem), ROUNDS)
    return _finish(problem, table, chosen, name, 1)


def _finish(problem: Problem, table: _sharing.SharingTable, chosen: Ints, name: str, runs: int) -> Solution:
    share, late = _sharing.shared_out(table, chosen)
    return solution(problem, name, chosen, share, late <= HOLDS, evaluations=runs)


def _most_offloaded(problem: Problem) -> Bools:
    """Points (J,) with the most compute work, on each node, that their task has."""
    compute = np.append(resources_of_kind(problem, "compute"), False)
    work = np.where(compute[problem.slot], problem.work.max(axis=1), 0.0)  # (J, S)
    task = np.repeat(np.arange(problem.n_tasks), np.diff(problem.first))
    key = task[:, None] * (problem.n_resources + 1) + problem.slot  # one per task and resource
    most = np.zeros(problem.n_tasks * (problem.n_resources + 1))
    np.maximum.at(most, key, work)
    offloads = ((work > 0) & (work >= most[key] * (1 - 1e-9))).any(axis=1)
    can = np.zeros(problem.n_tasks, dtype=np.bool_)
    np.logical_or.at(can, task, offloads)
    return np.asarray((offloads | ~can[task]) & (problem.value > 0))


def _worth(problem: Problem, chosen: Ints) -> float:
    return float(problem.value[chosen[chosen >= 0]].sum())


def _admit_by_deadline(problem: Problem, table: _sharing.SharingTable, arrivals: Ints) -> tuple[Ints, int]:
    """Drop the most late and, where values differ, also admit from the most valuable down; the better plan."""
    held = keep_held(problem)
    late_before = _sharing.shared_out(table, held)[1]
    protected = np.flatnonzero((held >= 0) & (late_before <= HOLDS))
    best, runs = _admit(problem, table, arrivals, _by_deadline(protected))
    value = _best_value(problem)[arrivals]
    if arrivals.size > 1 and np.ptp(value) > 0:
        crowded = keep_held(problem)
        _sharing.best_response(table, crowded, arrivals, ROUNDS)
        late = _sharing.shared_out(table, crowded)[1][arrivals]
        other, more = _one_by_one(problem, table, arrivals[np.lexsort((late, -value))])
        best, runs = max(best, other, key=lambda plan: _worth(problem, plan)), runs + more
    return best, runs


def _best_value(problem: Problem) -> Floats:
    value = np.zeros(problem.n_tasks)
    np.maximum.at(value, np.repeat(np.arange(problem.n_tasks), np.diff(problem.first)), problem.value)
    return value


def _by_deadline(protected: Ints) -> Guilty:
    def guilty(chosen: Ints, late: Floats, members: Ints) -> Ints:
        bad = _late_or_out(chosen, late, members)
        if not bad.any() and (late[protected] > HOLDS).any():
            bad = late[members] > 0  # all but those that use nothing shared
        score = np.round(late[members], 9)  # equals stay equal, whatever the rounding
        worst = np.argsort(-score[::-1], kind="stable")  # of equals, the last one goes first
        return members[::-1][worst][bad[::-1][worst]]

    return guilty


def _late_or_out(chosen: Ints, late: Floats, members: Ints) -> Bools:
    """Members that are late; where none is, those that found no room and may now be told so."""
    out = chosen[members] < 0
    late_inside = (late[members] > HOLDS) & ~out
    return late_inside if late_inside.any() else out


def _by_utilisation(problem: Problem, rho: float) -> Guilty:
    counted = np.append(~resources_of_kind(problem, "memory"), False)
    mean_use = np.maximum(problem.floor, problem.rigid)

    def guilty(chosen: Ints, late: Floats, members: Ints) -> Ints:
        bad = _late_or_out(chosen, late, members)
        if bad.any():
            return members[bad][np.argsort(-late[members[bad]], kind="stable")]
        over = utilisation(problem, chosen, mean_use) > rho
        use = np.where(
            (np.append(over, False) & counted)[problem.slot[chosen[members]]], mean_use[chosen[members]], 0.0
        )
        heaviest = use.sum(axis=1)
        return members[np.argsort(-heaviest, kind="stable")][: int((heaviest > 0).sum())]

    return guilty


def utilisation(problem: Problem, chosen: Ints, use: Floats) -> Floats:
    """Use (R,) of the chosen points with `use` (J, S) per slot, couplings and background added."""
    on, n = chosen[chosen >= 0], problem.n_resources
    total = np.bincount(problem.slot[on].ravel(), weights=use[on].ravel(), minlength=n + 1)[:n]
    coupled = np.bincount(
        problem.coupling_to, weights=problem.coupling_per_share * total[problem.coupling_from], minlength=n
    )
    return problem.background + total + coupled


def _admit(problem: Problem, table: _sharing.SharingTable, arrivals: Ints, rule: Guilty) -> tuple[Ints, int]:
    """All come in, the guilty go, the worst first, and whoever still fits comes back. Returns points (N,) and runs."""
    chosen, members, dropped, runs = keep_held(problem), arrivals, np.zeros(0, dtype=np.int64), 0
    while members.size:
        _sharing.best_response(table, chosen, members, ROUNDS)
        guilty = rule(chosen, _sharing.shared_out(table, chosen)[1], members)
        runs += 1
        if guilty.size == 0:
            break
        out = guilty[: 1 + guilty.size // BATCHES]
        chosen[out] = -1
        dropped = np.concatenate((dropped, out))
        members = members[~np.isin(members, out)]
    if arrivals.size > 1:
        for i in dropped[::-1]:
            members = _let_in(table, chosen, members, int(i), rule)
        runs += dropped.size
    return chosen, runs


def _let_in(table: _sharing.SharingTable, chosen: Ints, members: Ints, i: int, rule: Guilty) -> Ints:
    """Admit task i to `chosen` if nobody is guilty then; the members that there are now."""
    chosen[i] = _sharing.best_point(table, _sharing.load_of(table, chosen), i)
    if chosen[i] < 0:
        return members
    joined = np.append(members, i)
    if rule(chosen, _sharing.shared_out(table, chosen)[1], joined).size:
        chosen[i] = -1
        return members
    return joined


def _one_by_one(problem: Problem, table: _sharing.SharingTable, arrivals: Ints) -> tuple[Ints, int]:
    """Admit in the order given; when one does not fit, all newcomers choose their points again before it is refused."""
    chosen = keep_held(problem)
    late = _sharing.shared_out(table, chosen)[1]
    rule = _by_deadline(np.flatnonzero((chosen >= 0) & (late <= HOLDS)))
    members = np.zeros(0, dtype=np.int64)
    for i in arrivals:
        before = members.size
        members = _let_in(table, chosen, members, int(i), rule)
        if members.size > before:
            continue
        trial, joined = chosen.copy(), np.append(members, i)
        _sharing.best_response(table, trial, joined, ROUNDS)
        if rule(trial, _sharing.shared_out(table, trial)[1], joined).size == 0:
            chosen, members = trial, joined
    return chosen, int(arrivals.size)
