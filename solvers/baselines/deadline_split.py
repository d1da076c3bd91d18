"""Each deadline cut in two: a fixed part for the radio, the rest for the node, each side admitting by its own room.

The strongest policy that keeps the two sides apart: the radio gives each UE the rate that its part needs, the node the
pace (SMEC's idea; docs/policies.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from solvers.baselines.common import HOLDS, keep_held, newcomers, read_options, resources_of_kind, solution
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Solution


def deadline_split(
    problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None
) -> Solution:
    """First come first served, each at the point that takes least of cell and node together.

    Options: radio (0.5), the part of each slack that is the cell's; where a phase has work on one side only, all of it
    is that side's.
    """
    del warm
    radio = read_options(options, radio=0.5)["radio"]
    share, holds = _shares(problem, radio)
    chosen = keep_held(problem)
    # Whoever runs has what is rigid of his, promised or not; below 0 it belongs to a line that counts shares (tangents)
    running = np.flatnonzero(chosen >= 0)
    kept = np.maximum(problem.rigid[chosen[running]], 0.0)
    used = problem.background + _loads(problem, chosen[running], kept).sum(axis=0)
    promised = np.zeros(problem.n_tasks, dtype=np.bool_)
    for i in [*running[np.argsort(problem.order[running], kind="stable")].tolist(), *newcomers(problem).tolist()]:
        is_new = chosen[i] < 0
        rows = np.arange(problem.first[i], problem.first[i + 1]) if is_new else chosen[i : i + 1]
        rigid = problem.rigid[rows] if is_new else np.minimum(problem.rigid[rows], 0.0)
        loads = _loads(problem, rows, rigid, problem.activity[rows] * share[rows])  # (n, R)
        fits = holds[rows] & (problem.value[rows] > 0) & ((used + loads <= HOLDS) | (loads <= 0)).all(axis=1)
        if fits.any():
            best = int(np.argmin(np.where(fits, loads.sum(axis=1), np.inf)))
            chosen[i], promised[i] = int(rows[best]), True
            used += loads[best]
    given = np.zeros((problem.n_tasks, problem.slot.shape[1]))
    on = np.flatnonzero(chosen >= 0)
    given[on] = share[chosen[on]]
    late = on[~promised[on]]  # who runs and does not fit any more shares what is left
    points = chosen[late]
    left = (
        np.maximum(1.0 - used[problem.slot[points]], 0.0)
        / max(len(late), 1)
        / np.maximum(problem.activity[points], 1.0)
    )
    if problem.coupling_from.size:  # what these would pull along is not counted
        left[:] = 0.0
    given[late] = np.where(problem.slot[points] < problem.n_resources, np.minimum(given[late], left), 0.0)
    return solution(problem, "deadline-split", chosen, given, promised, evaluations=1)


def _loads(problem: Problem, points: Ints, rigid: Floats, elastic: Floats | None = None) -> Floats:
    """(n, R) what points (n,) take of each resource with rigid and elastic parts (n, S), couplings counted."""
    n, rows = problem.n_resources, np.arange(points.size)[:, None]
    total = np.zeros((points.size, n + 1))
    np.add.at(total, (rows, problem.slot[points]), rigid)
    if elastic is not None:
        pulls = np.zeros_like(total)
        np.add.at(pulls, (rows, problem.slot[points]), elastic)
        total += pulls
        columns = zip(problem.coupling_from, problem.coupling_to, problem.coupling_per_share, strict=True)
        for source, to, per_share in columns:
            total[:, to] += per_share * pulls[:, source]
    return total[:, :n]


def _shares(problem: Problem, radio: float) -> tuple[Floats, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
    """(J, S) shares with which each side keeps its part of every slack, and (J,) whether there are any."""
    comm = np.append(resources_of_kind(problem, "comm"), False)[problem.slot]  # (J, S)
    on_cell = np.where(comm[:, None, :], problem.work, 0.0).sum(axis=2)  # (J, Q)
    on_node = np.where(comm[:, None, :], 0.0, problem.work).sum(axis=2)
    part = np.where((on_cell > 0) & (on_node > 0), radio, 1.0)  # of the slack, the cell's
    slack = np.maximum(problem.slack, 0.0)[:, :, None]
    mine = np.where(comm[:, None, :], part[:, :, None], np.where(on_cell[:, :, None] > 0, 1 - radio, 1.0)) * slack
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.where(problem.work > 0, problem.work / mine, 0.0).max(axis=1)  # (J, S)
    share = np.maximum(needed, problem.floor)
    holds = (problem.slack >= 0).all(axis=1) & (share <= problem.cap * HOLDS).all(axis=1)
    return np.where(holds[:, None], share, 0.0), holds
