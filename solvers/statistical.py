"""Statistical admission: the effective-bandwidth rule as an ordinary problem (docs/model.md, section 6).

A task that holds share x of a resource uses it only part of the time, u on average (u = rate x work <= x); a
work-conserving scheduler gives the rest to others. With independent on-off use the sum has mean `sum u` and variance
`sum u (x - u)`, and the rule is

    sum u + z sqrt(sum u (x - u)) <= 1 - background        (Guerin, Ahmadi & Naghshineh 1991, stationary form)

The root is concave in the shares: its tangent at any V0 > 0 lies above it, so a plan that keeps the tangent keeps the
rule, and the tangent is linear in x: activity `z u / (2 sqrt V0)`, rigid demand `u - z u^2 / (2 sqrt V0)`, and
background `z sqrt(V0) / 2`. Anywhere is safe, near the plan's own variance it is also tight.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np

from solvers.errors import BadProblem
from solvers.problem import Floats, Problem
from solvers.registry import Solver
from solvers.solution import Solution

LEAST_VARIANCE: Final = 0.01  # where the tangent is taken on a resource that nobody uses: a spread of a tenth of it
NEWCOMERS: Final = 0.5  # part of the tasks without a held point that the first tangent allows for
SHARED: Final = ("comm", "compute", "other")  # memory is held, not used now and then


def restrict(problem: Problem, mean_use: Floats, *, z: float = 1.25, variance0: Floats | None = None) -> Problem:
    """Return the problem whose plans keep the effective-bandwidth rule with confidence z.

    mean_use: (J, S) u of each slot as a fraction of its resource, nan = hard reservation (a guaranteed task).
    variance0: (R,) > 0 variance at which the tangent is taken; without it, guessed from held points and newcomers.
    Memory and hard slots stay as they are, and so does a resource that no statistical slot is on; a slot whose mean use
    is more than its cap is hard: below its mean use the tangent counts nothing or less. A floor below the mean use is
    raised to it. Bounds of the returned problem hold for it, not for the rule. Raises BadProblem.
    """
    soft = _soft(problem, mean_use)  # (J, S)
    if not (np.isfinite(z) and z >= 0):
        raise BadProblem("z", f"{z:g} is not a number >= 0")
    v0 = first_variance(problem, mean_use) if variance0 is None else np.asarray(variance0, dtype=np.float64)
    if v0.shape != (problem.n_resources,) or not (np.isfinite(v0) & (v0 > 0)).all():
        raise BadProblem("variance0", f"must be {problem.n_resources} numbers > 0")
    least = np.where(soft, mean_use, 0.0)
    soft &= least <= problem.cap
    u = np.where(soft, mean_use, 0.0)
    slope = z / (2 * np.sqrt(np.append(v0, 1.0)[problem.slot]))  # (J, S)
    used = np.zeros(problem.n_resources + 1, dtype=bool)
    used[problem.slot[soft]] = True
    return dataclasses.replace(
        problem,
        background=problem.background + np.where(used[:-1], z * np.sqrt(v0) / 2, 0.0),
        floor=np.maximum(problem.floor, least),
        activity=np.where(soft, problem.activity * slope * u, problem.activity),
        rigid=np.where(soft, problem.rigid + u - slope * u * u, problem.rigid),
    )


def solve_effective(
    problem: Problem, mean_use: Floats, solver: Solver, *, z: float = 1.25, warm: Floats | None = None
) -> tuple[Solution, Problem]:
    """Solve under the rule, take the tangent again at the plan found, solve once more; returns the better one.

    The problem returned with it is the restricted one that the solution's certificate speaks of.
    """
    restricted = restrict(problem, mean_use, z=z)
    found = solver(restricted, warm=warm)
    v0 = np.maximum(variance(problem, mean_use, found), LEAST_VARIANCE)
    again = restrict(problem, mean_use, z=z, variance0=v0)
    second = solver(again, warm=found.prices)
    if second.certificate.value >= found.certificate.value:
        return second, again
    return found, restricted


def variance(problem: Problem, mean_use: Floats, solution: Solution) -> Floats:
    """(R,) sum of u (x - u) over the statistical slots of a plan."""
    tasks = np.flatnonzero(solution.chosen >= 0)
    points = solution.chosen[tasks]
    soft = _soft(problem, mean_use)[points]
    u = np.where(soft, mean_use[points], 0.0)
    spread = u * np.maximum(0.0, solution.share[tasks] - u)
    total = np.bincount(problem.slot[points].ravel(), weights=spread.ravel(), minlength=problem.n_resources + 1)
    return np.asarray(total[:-1], dtype=np.float64)


def first_variance(problem: Problem, mean_use: Floats) -> Floats:
    """(R,) a guess: held points, and half the newcomers at their average point, each with its slack split evenly."""
    soft = _soft(problem, mean_use)
    u = np.where(soft, mean_use, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        need = np.where(problem.work > 0, problem.work / problem.slack[:, :, None], 0.0)  # (J, Q, S)
    need = need.max(axis=1) * (problem.work > 0).any(axis=1).sum(axis=1, keepdims=True)
    x = np.clip(np.where(np.isfinite(need), need, 1.0), u, np.maximum(problem.cap, u))
    spread = u * (x - u)  # (J, S)
    weight = np.zeros(problem.n_points)
    for i in range(problem.n_tasks):
        points = slice(int(problem.first[i]), int(problem.first[i + 1]))
        if problem.held[i] >= 0:
            weight[problem.held[i]] = 1.0
        else:
            weight[points] = NEWCOMERS / max(1, points.stop - points.start)
    total = np.bincount(
        problem.slot.ravel(), weights=(weight[:, None] * spread).ravel(), minlength=problem.n_resources + 1
    )
    return np.maximum(LEAST_VARIANCE, total[:-1])


def _soft(problem: Problem, mean_use: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """(J, S) slots that the rule applies to. Raises BadProblem."""
    if mean_use.shape != problem.slot.shape:
        raise BadProblem("mean_use", f"has shape {mean_use.shape}, not {problem.slot.shape}")
    if (mean_use < 0).any() or np.isinf(mean_use).any():
        raise BadProblem("mean_use", "must be >= 0, or nan for a hard reservation")
    kinds = np.array([kind in SHARED for kind in problem.kinds] + [False])
    return np.asarray(kinds[problem.slot] & ~np.isnan(mean_use), dtype=np.bool_)
