"""Greedy: joint like the price solver, but first come first served (docs/policies.md).

Each newcomer takes the point that is cheapest for it, at flat or at residual-capacity prices; it is refused only when
no point fits even with everybody's shares re-balanced. So it lacks just what prices bring: to choose *whom* to serve
and to choose points with the others in mind. What is left over is shared out as the price solver does it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import numpy as np

from solvers.baselines import first_come as _greedy
from solvers.baselines import sharing as _sharing
from solvers.baselines.common import HOLDS, keep_held, newcomers, read_options, resources_of_kind, solution
from solvers.baselines.decoupled import table_of
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Solution

TRIES: Final = 8  # more than 2 changed nothing on random problems
ROUNDS: Final = 24  # of price updates; 60 gave 0.15% more value on random problems, 4 gave 0.4% less


def greedy(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """First come first served, each at its cheapest point at flat prices (all resources equal).

    Options: tries (8) points per newcomer for which everybody's shares are re-balanced before it is refused, 0 = none;
    rounds (24) of price updates in a re-balancing; second_stage (1): 0 leaves what is left over unshared.
    """
    del warm
    return _greedy_at(problem, "greedy", options, residual=False)


def greedy_residual(
    problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None
) -> Solution:
    """First come first served at residual-capacity prices: price of r = 1 / (what is left of r). Options: as greedy."""
    del warm
    return _greedy_at(problem, "greedy-residual", options, residual=True)


def weight_floor(
    problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None
) -> Solution:
    """Greedy, but newcomers of less than the greatest weight are refused while a resource is used beyond a floor.

    Options: use (0.6), the planned use of a cell or node from which on they are; and those of greedy.
    """
    del warm
    rest = dict(options or {})
    floor = read_options({k: rest.pop(k) for k in ("use",) if k in rest}, use=0.6)["use"]
    worth = np.zeros(problem.n_tasks)
    np.maximum.at(worth, np.repeat(np.arange(problem.n_tasks), np.diff(problem.first)), problem.value)
    running = _greedy_at(_without(problem, newcomers(problem)), "weight-floor", rest, residual=False)
    shared = ~resources_of_kind(problem, "memory")
    if (_use(problem, running)[shared] >= floor).any():
        heaviest = problem.steps.weight if problem.steps is not None else worth
        light = newcomers(problem)[heaviest[newcomers(problem)] < heaviest.max(initial=0.0) * (1 - 1e-3)]
        problem = _without(problem, light)
    return _greedy_at(problem, "weight-floor", rest, residual=False)


def _without(problem: Problem, tasks: Ints) -> Problem:
    """The same, but these tasks have no point of any value."""
    value = problem.value.copy()
    for i in tasks.tolist():
        value[problem.first[i] : problem.first[i + 1]] = 0.0
    return dataclasses.replace(problem, value=value)


def _use(problem: Problem, plan: Solution) -> Floats:
    """(R,) planned use, background included."""
    on = np.flatnonzero(plan.chosen >= 0)
    rows = plan.chosen[on]
    counted = problem.activity[rows] * plan.share[on] + problem.rigid[rows]
    used = np.bincount(problem.slot[rows].ravel(), weights=counted.ravel(), minlength=problem.n_resources + 1)
    return np.asarray(problem.background + used[:-1], dtype=np.float64)


def _greedy_at(problem: Problem, name: str, options: Mapping[str, float] | None, *, residual: bool) -> Solution:
    settings = read_options(options, tries=TRIES, rounds=ROUNDS, second_stage=1)
    rule = _greedy.Rule(residual, int(settings["tries"]), int(settings["rounds"]))
    table = table_of(problem)
    chosen, share, firm, done = _greedy.first_come_first_served(table, keep_held(problem), newcomers(problem), rule)
    if settings["second_stage"] and bool(firm[chosen >= 0].all()):
        share = _second_stage(problem, chosen, share)
    late = _sharing.lateness_of_all(table, chosen, share)
    return solution(problem, name, chosen, share, late <= HOLDS, evaluations=1 + done)


def _second_stage(problem: Problem, chosen: Ints, share: Floats) -> Floats:
    """Shares (N, S) with what is left over given out; as they are where the price solver does not find them to fit."""
    from solvers.price.solver import serve  # compiled on first use: only where it is needed

    served = serve(problem, chosen)
    return share if served is None else served[0]
