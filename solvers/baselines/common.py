"""What all baselines share: their options, who is new, and the Solution that they return."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from solvers.errors import BadProblem
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Certificate, Solution, SolveStatus

Bools = npt.NDArray[np.bool_]

HOLDS: Final = 1.0 + 1e-9  # a deadline met with equality is met; below any planner's rounding


def read_options(given: Mapping[str, float] | None, **defaults: float) -> dict[str, float]:
    """Defaults updated by what is given. Raises BadProblem for an option that there is not, or one below 0."""
    options = dict(defaults)
    for name, value in (given or {}).items():
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(defaults) or 'none'}"
            raise BadProblem(f"options.{name}", f"this policy has no such option; {hint}")
        if not value >= 0:
            raise BadProblem(f"options.{name}", f"must be at least 0, not {value:g}")
        options[name] = float(value)
    return options


def resources_of_kind(problem: Problem, kind: str) -> Bools:
    """Which resources (R,) are of one of problem.KINDS."""
    return np.array([k == kind for k in problem.kinds], dtype=np.bool_)


def newcomers(problem: Problem) -> Ints:
    """Tasks that hold nothing yet, in order of arrival."""
    new = np.flatnonzero(problem.held < 0)
    return new[np.argsort(problem.order[new], kind="stable")]


def keep_held(problem: Problem) -> Ints:
    """Points (N,) of the tasks that are running, -1 for newcomers.

    A running task keeps its point. Only where rigid demand alone no longer fits (a node lost memory, sessions that are
    behind need more on average than there is) the latest arrivals go.
    """
    chosen = problem.held.copy()
    if not (chosen >= 0).any():
        return chosen
    while (over := rigid_use(problem, chosen) > 1 + 1e-9).any():
        running = np.flatnonzero(chosen >= 0)
        slot, rigid = problem.slot[chosen[running]], problem.rigid[chosen[running]]
        guilty = running[(np.append(over, False)[slot] & (rigid > 0)).any(axis=1)]
        if guilty.size == 0:  # the background alone is too much
            break
        chosen[guilty[np.argmax(problem.order[guilty])]] = -1
    return chosen


def rigid_use(problem: Problem, chosen: Ints) -> Floats:
    """Background plus rigid demand (R,) of the chosen points."""
    on = chosen[chosen >= 0]
    n = problem.n_resources
    rigid = np.bincount(problem.slot[on].ravel(), weights=problem.rigid[on].ravel(), minlength=n + 1)
    return problem.background + rigid[:n]


def trivial_bound(problem: Problem) -> float:
    """Sum of each task's best value: an upper bound that needs no prices."""
    start = problem.first[:-1][problem.first[:-1] < problem.first[1:]]
    if start.size == 0:
        return 0.0
    return float(np.maximum(np.maximum.reduceat(problem.value, start), 0.0).sum())


def solution(
    problem: Problem, solver: str, chosen: Ints, share: Floats, promised: Bools, *, evaluations: int
) -> Solution:
    """Solution whose value counts what is promised; no prices, and the trivial bound, which is the dual at prices 0."""
    value = float(problem.value[chosen[promised]].sum())
    return Solution(
        status=SolveStatus.OK,
        solver=solver,
        chosen=chosen,
        share=share,
        promised=promised,
        prices=np.zeros(problem.n_resources),
        certificate=Certificate(value=value, bound=max(value, trivial_bound(problem))),
        evaluations=evaluations,
    )
