"""After admission: what is left over, and whole PRBs (docs/model.md, section 5).

`share_out` is the second stage by itself, for plans of any solver. `round_prbs` makes the shares of one resource whole
numbers of physical resource blocks; a deadline is given up only where no rounding keeps it.
"""

from __future__ import annotations

import dataclasses
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from solvers.errors import BadProblem
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Certificate, Solution

EPS: Final = 1e-9  # of a PRB: what is whole but for rounding stays what it is
TOLERANCE: Final = 1e-12  # of room and deadlines


def share_out(problem: Problem, solution: Solution) -> Solution:
    """Give what the plan's promised tasks leave over to them: least sum of max over phases of latency / slack.

    Points and certificate stay. Returns the solution as it is where its promised tasks do not fit together or where
    it also serves tasks that it does not promise.
    """
    from solvers.price import serve

    if (solution.promised != (solution.chosen >= 0)).any():
        return solution
    served = serve(problem, solution.chosen, warm=solution.prices)
    return solution if served is None else dataclasses.replace(solution, share=served[0])


class _Column(NamedTuple):
    """The tasks that hold a share of the resource to be rounded."""

    task: Ints  # (K,)
    point: Ints  # (K,)
    slot: Ints  # (K,)
    weight: Floats  # (K,) what a share counts for
    exact: Floats  # (K,) PRBs of the share held
    least: Ints  # (K,) PRBs that keep deadlines and floor with the other shares as they are
    most: Ints  # (K,) of the cap


def round_prbs(problem: Problem, solution: Solution, resource: int, n_prb: int) -> tuple[Solution, Ints]:
    """Make the shares of `resource` multiples of 1 / n_prb; returns the solution and the PRBs of each task (N,).

    Promised deadlines hold afterwards too: shares are rounded up where they must be and down where they may be; if
    there are too few PRBs, a task gets one less and more of its other resources, as far as those have room. Where
    even that fails, tasks of the least value lose their promise (and the certificate its value) one by one.
    Raises BadProblem if n_prb < 1.
    """
    if n_prb < 1:
        raise BadProblem("n_prb", f"{n_prb} is not a number of PRBs")
    share, promised = solution.share.copy(), solution.promised.copy()
    column = _column(problem, solution, resource, n_prb)
    room = _room(problem, solution, resource, column) * n_prb
    prbs = column.least.copy()
    _borrow(problem, solution, resource, n_prb, column, prbs, room, share)
    for k in np.lexsort((column.task, problem.value[column.point])):
        fallback = min(int(np.floor(column.exact[k] + EPS)), int(column.most[k]))
        if fallback < prbs[k] and (prbs[k] > column.most[k] or _taken(column, prbs) > room + EPS):
            prbs[k], promised[column.task[k]] = fallback, False
    prbs += _extra(column, prbs, room)
    share[column.task, column.slot] = prbs / n_prb
    all_prbs = np.zeros(problem.n_tasks, dtype=np.int64)
    np.add.at(all_prbs, column.task, prbs)
    value = float(problem.value[solution.chosen[promised]].sum())
    certificate = Certificate(value, solution.certificate.bound)
    kept = dataclasses.replace(solution, share=share, promised=promised, certificate=certificate)
    return kept, all_prbs


def _column(problem: Problem, solution: Solution, resource: int, n_prb: int) -> _Column:
    tasks = np.flatnonzero(solution.chosen >= 0)
    points = solution.chosen[tasks]
    row, slot = np.nonzero(problem.slot[points] == resource)
    task, point = tasks[row], points[row]
    held = solution.share[task, slot]
    need = np.where(solution.promised[task], _needed(problem, point, slot, solution.share[task]), 0.0)
    most = np.floor(problem.cap[point, slot] * n_prb + EPS).astype(np.int64)
    least = np.ceil(np.minimum(need, 2.0) * n_prb - EPS).astype(np.int64)  # more than `most`: needs help or is lost
    return _Column(task, point, slot, problem.activity[point, slot], held * n_prb, least, most)


def _needed(problem: Problem, point: Ints, slot: Ints, share: Floats) -> Floats:
    """(K,) least share of each point's slot that keeps its deadlines, its other shares (K, S) given."""
    work = problem.work[point]  # (K, Q, S)
    here = np.arange(share.shape[1])[None, :] == slot[:, None]  # (K, S)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where((work > 0) & ~here[:, None, :], work / share[:, None, :], 0.0)
        left = problem.slack[point] - each.sum(axis=2)  # (K, Q)
        mine = work[np.arange(len(point)), :, slot]  # (K, Q)
        need = np.where(mine > 0, np.where(left > 0, mine / left, np.inf), 0.0)
    return np.maximum(problem.floor[point, slot], need.max(axis=1, initial=0.0))


def _room(problem: Problem, solution: Solution, resource: int, column: _Column) -> float:
    """Room for the column's shares: of the resource, and of those that its couplings load."""
    from solvers.check import usage

    tasks = np.flatnonzero(solution.chosen >= 0)
    used = usage(problem, solution.chosen[tasks], solution.share[tasks])
    mine = float((column.weight * solution.share[column.task, column.slot]).sum())
    room = mine + max(0.0, 1 - float(problem.background[resource]) - float(used[resource]))
    links = zip(problem.coupling_from, problem.coupling_to, problem.coupling_per_share, strict=True)
    for source, target, per_share in links:
        if source == resource and per_share > 0:
            spare = max(0.0, 1 - float(problem.background[target]) - float(used[target]))
            room = min(room, mine + spare / float(per_share))
    return room


def _taken(column: _Column, prbs: Ints) -> float:
    return float((column.weight * prbs).sum())


def _borrow(
    problem: Problem,
    solution: Solution,
    resource: int,
    n_prb: int,
    column: _Column,
    prbs: Ints,
    room: float,
    share: Floats,
) -> None:
    """Take a PRB from tasks above their cap, and from others while there are too few; pay with other resources."""
    from solvers.check import usage

    if _taken(column, prbs) <= room + EPS and not (prbs > column.most).any():
        return
    tasks = np.flatnonzero(solution.chosen >= 0)
    spare = 1 - problem.background - usage(problem, solution.chosen[tasks], solution.share[tasks])
    short = np.maximum(0.0, column.least - column.exact)  # rounded up by this much: the most first
    for k in np.lexsort((column.task, -short, column.least <= column.most)):
        if prbs[k] < 2 or (prbs[k] <= column.most[k] and _taken(column, prbs) <= room + EPS):
            continue
        trial = share[column.task[k]].copy()
        trial[column.slot[k]] = (prbs[k] - 1) / n_prb
        if _stretch(problem, int(column.point[k]), int(column.slot[k]), resource, trial, spare):
            share[column.task[k]] = trial
            prbs[k] -= 1


def _stretch(problem: Problem, point: int, slot: int, resource: int, x: Floats, spare: Floats) -> bool:
    """Raise the other shares x (S,) by one factor until the deadlines hold, out of spare (R,). False: cannot."""
    work, cap = problem.work[point], problem.cap[point]
    if x[slot] < problem.floor[point, slot]:
        return False
    factor = 1.0
    for q in range(work.shape[0]):
        others = [s for s in range(len(x)) if s != slot and work[q, s] > 0]
        here = work[q, slot] / x[slot] if work[q, slot] > 0 else 0.0
        rest = sum(work[q, s] / x[s] for s in others)
        left = problem.slack[point, q] - here
        if rest > left:
            if left <= 0:
                return False
            factor = max(factor, rest / left)
    raised = np.where(work.max(axis=0) > 0, x * factor, x)
    raised[slot] = x[slot]
    more = problem.activity[point] * (raised - x)
    for s in np.flatnonzero(more > 0):
        r = int(problem.slot[point, s])
        coupled = r in problem.coupling_from
        if raised[s] > cap[s] * (1 + TOLERANCE) or r == resource or coupled or more[s] > spare[r] + TOLERANCE:
            return False
    for s in np.flatnonzero(more > 0):
        spare[int(problem.slot[point, s])] -= more[s]
    x[:] = raised
    return True


def _extra(column: _Column, prbs: Ints, room: float) -> Ints:
    """(K,) PRBs on top, towards the exact shares, as far as there is room: whole parts first, then by remainder."""
    wish = np.clip(column.exact - prbs, 0.0, np.maximum(0, column.most - prbs))
    left = room - _taken(column, prbs)
    asked = float((column.weight * wish).sum())
    wish *= min(1.0, max(0.0, left) / asked) if asked > 0 else 1.0
    extra = np.floor(wish + EPS).astype(np.int64)
    left -= float((column.weight * extra).sum())
    rest: npt.NDArray[np.float64] = wish - extra
    for k in np.argsort(-rest, kind="stable"):
        if rest[k] > EPS and column.weight[k] <= left + EPS and prbs[k] + extra[k] < column.most[k]:
            extra[k] += 1
            left -= float(column.weight[k])
    return extra
