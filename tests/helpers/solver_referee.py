"""Exhaustive search with code of its own: the choices of points that would be worth more than a plan's, and which fit.

Any choice that fits costs, at any prices, no more than the room is worth. So a grid of prices with lower bounds of
the costs leaves few choices worth more than the plan; each is then put to a convex solver.
"""

from __future__ import annotations

import itertools
from typing import Any

import cvxpy as cp
import numpy as np

from solvers.problem import Floats, Ints, Problem

HALVINGS = 44
EASY = 1e-7  # utilisation over 1 that the convex solver's tolerance explains


def grid(n_resources: int, steps: int) -> Floats:
    """(G, R) prices that add up to 1."""
    cells = [c for c in itertools.product(range(steps + 1), repeat=n_resources) if sum(c) == steps]
    return np.array(cells) / steps


def cost_floors(problem: Problem, prices: Floats) -> Floats:
    """(G, J) lower bounds on the cost of each point: each phase by itself, by bisection. inf where it cannot be."""
    room = np.append(1 - problem.background, np.inf)
    charge = np.append(prices, np.zeros((len(prices), 1)), axis=1)  # (G, R + 1)
    for a, b, kappa in zip(problem.coupling_from, problem.coupling_to, problem.coupling_per_share, strict=True):
        charge[:, a] += kappa * prices[:, b]
    pay = charge[:, problem.slot] * problem.activity  # (G, J, S)
    with np.errstate(divide="ignore", invalid="ignore"):
        cap = np.minimum(problem.cap, (room[problem.slot] - problem.rigid) / problem.activity)
        best = np.zeros(pay.shape[:2])
        for q in range(2):
            a = np.where(problem.work[:, q] > 0, problem.work[:, q] / problem.slack[:, q, None], 0.0)  # (J, S)
            best = np.maximum(best, (pay * _shares(a, pay, problem.floor, cap)).sum(axis=2))
            late = np.where(a > 0, a / cap, 0.0).sum(axis=1) > 1 + 1e-12
            best[:, late | (problem.floor > cap * (1 + 1e-12)).any(axis=1)] = np.inf
    rigid = np.append(prices, np.zeros((len(prices), 1)), axis=1)[:, problem.slot] * problem.rigid
    return best + rigid.sum(axis=2)


def _shares(a: Floats, pay: Floats, floor: Floats, cap: Floats) -> Floats:
    """(G, J, S) shares just below what one deadline needs, so that their cost is a lower bound."""
    low, high = np.full(pay.shape[:2], -60.0), np.full(pay.shape[:2], 60.0)
    reach = np.where(a > 0, np.sqrt(a / np.maximum(pay, 1e-30)), 0.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        x = np.clip(np.exp(middle)[..., None] * reach, floor, cap)
        late = np.where(a > 0, a / x, 0.0).sum(axis=2) > 1
        low, high = np.where(late, middle, low), np.where(late, high, middle)
    return np.clip(np.exp(low)[..., None] * reach, floor, cap)


def better_choices(problem: Problem, value: float, steps: int) -> Ints:
    """(M, N) choices of points worth more than `value` that no price of the grid forbids, the most valuable first."""
    prices = grid(problem.n_resources, steps)
    costs = cost_floors(problem, prices)  # (G, J)
    limit = (prices * (1 - problem.background)).sum(axis=1) * (1 + 1e-9)
    can = np.isfinite(costs[0])
    spans = [range(problem.first[i], problem.first[i + 1]) for i in range(problem.n_tasks)]
    most = [max((problem.value[j] for j in span if can[j]), default=0.0) for span in spans]
    paths, spent, worth = np.zeros((1, 0), dtype=np.int64), np.zeros((1, len(prices))), np.zeros(1)
    for i, span in enumerate(spans):
        rest, kept = sum(most[i + 1 :]), []
        for j in (-1, *(j for j in span if can[j])):
            more_spent = spent + (costs[:, j] if j >= 0 else 0.0)
            more_worth = worth + (problem.value[j] if j >= 0 else 0.0)
            ok = (more_worth + rest > value + 1e-9) & (more_spent <= limit).all(axis=1)
            kept.append((np.c_[paths[ok], np.full(ok.sum(), j)], more_spent[ok], more_worth[ok]))
        paths, spent, worth = (np.concatenate(part) for part in zip(*kept, strict=True))
    return np.asarray(paths[np.argsort(-worth, kind="stable")], dtype=np.int64)


def fits(problem: Problem, chosen: Ints) -> bool:
    """Whether shares exist that serve all chosen points (N,), by a second-order cone solver."""
    n = problem.n_resources
    over = cp.Variable()
    elastic: list[Any] = [0.0] * n
    rigid, limits = np.zeros(n), []
    for j in chosen[chosen >= 0]:
        slots = np.flatnonzero(problem.slot[j] < n)
        x = cp.Variable(len(slots))
        limits += [x >= problem.floor[j, slots], x <= problem.cap[j, slots]]
        for q in range(2):
            if np.isfinite(problem.slack[j, q]):
                a = problem.work[j, q, slots] / problem.slack[j, q]
                limits.append(cp.sum(cp.multiply(a, cp.inv_pos(x))) <= 1)
        for k, s in enumerate(slots):
            r = problem.slot[j, s]
            rigid[r] += problem.rigid[j, s]
            elastic[r] = elastic[r] + problem.activity[j, s] * x[k]
    total = list(elastic)
    for a, b, kappa in zip(problem.coupling_from, problem.coupling_to, problem.coupling_per_share, strict=True):
        total[b] = total[b] + kappa * elastic[a]
    limits += [total[r] + rigid[r] + problem.background[r] <= 1 + over for r in range(n)]
    cone = cp.Problem(cp.Minimize(over), limits)
    cone.solve(solver=cp.CLARABEL)
    return cone.status in ("optimal", "optimal_inaccurate") and float(over.value) <= EASY


def misses(problem: Problem, value: float) -> bool:
    """Whether some choice of points that fits is worth more than `value`."""
    choices = better_choices(problem, value, 40 if problem.n_resources == 2 else 10)
    return any(fits(problem, chosen) for chosen in choices)
