"""Greedy: joint like the price solver, but first come first served (docs/policies.md).

Each newcomer takes the point that is cheapest for it, at flat or at residual-capacity prices; it is refused only when
no point fits even with everybody's shares re-balanced. So it lacks just what prices bring: to choose *whom* to serve
and to choose points with the others in mind.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from solvers._kernel import Raw
from solvers.baselines import _greedy
from solvers.baselines._common import keep_held, newcomers, read_options, solution
from solvers.problem import Floats, Problem
from solvers.solution import Solution


def greedy(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """First come first served, each at its cheapest point at flat prices (all resources equal).

    Options: tries (8) points per newcomer for which everybody's shares are re-balanced before it is refused, 0 = none;
    rounds (24) of price updates in a re-balancing.
    """
    del warm
    return _greedy_at(problem, "greedy", options, residual=False)


def greedy_residual(
    problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None
) -> Solution:
    """First come first served at residual-capacity prices: price of r = 1 / (what is left of r). Options: as greedy."""
    del warm
    return _greedy_at(problem, "greedy-residual", options, residual=True)


def _greedy_at(problem: Problem, name: str, options: Mapping[str, float] | None, *, residual: bool) -> Solution:
    settings = read_options(options, tries=8.0, rounds=24.0)
    rule = _greedy.Rule(residual, int(settings["tries"]), int(settings["rounds"]))
    chosen, share, holds, done = _greedy.first_come_first_served(
        raw_of(problem), keep_held(problem), newcomers(problem), rule
    )
    return solution(problem, name, chosen, share, holds, evaluations=1 + done)


def raw_of(problem: Problem) -> Raw:
    """Arrays for the compiled code."""
    return Raw(
        background=problem.background,
        source=problem.coupling_from,
        target=problem.coupling_to,
        kappa=problem.coupling_per_share,
        first=problem.first,
        order=np.arange(problem.n_tasks),
        value=problem.value,
        slack=problem.slack,
        slot=problem.slot,
        work=problem.work,
        floor=problem.floor,
        cap=problem.cap,
        activity=problem.activity,
        rigid=problem.rigid,
    )
