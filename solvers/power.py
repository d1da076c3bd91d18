"""Power-limited uplinks in the price solver (docs/model.md, section 9).

A device whose transmit power is at its limit has the rate b log2(1 + P h / (N0 b)) on a band b: more bandwidth helps it
less and less. With share x of the cell, s = P h / (N0 B) the signal to noise if it spread its power over the whole
cell, and a = bits / (B log2(1 + s)) its time at full share, it takes

    t(x) = a log(1 + s) / (x log(1 + s / x))  =  a log(1 + s) u / log(1 + s u),   u = 1 / x

1. v / log(1 + v) is increasing and concave for v >= 0 (it is the integral of (1 + v)^y over y in 0 .. 1, each of
   which is). So t, as a function of u, lies below its tangent at any u0, `t0 - a0 u0 + a0 u`: latency a0 / x of the
   form that the solver knows, the rest taken off the slack. A plan of the tangent problem is a plan of the true one.
2. At prices p let x be a point's cheapest true shares. t is convex in x, so its Karush-Kuhn-Tucker conditions are
   sufficient, and they only see t and its slope at x, which a tangent taken there has too. So x is also cheapest in
   the tangent problem, at the same cost: both duals are equal at p. Elsewhere the tangent's costs are higher and its
   dual is lower: prices that are least for tangents taken at them are least for the true dual.
3. The true dual, from each point's least cost by a solve in one variable, bounds the true value at any prices. It is
   the certificate's bound, so that it is proven wherever the tangents were taken.

Both phases' work on a slot scales by the same factor, 1 / efficiency, so a slot has one s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from solvers.errors import BadProblem
from solvers.latency import seconds
from solvers.objectives.second_stage import Goal
from solvers.problem import Floats, Problem
from solvers.registry import Solver
from solvers.solution import Certificate, Solution

ROUNDS: Final = 6  # of tangents; 2 to 4 are used
SHARE_ROUNDS: Final = 3  # of tangents when shares are handed out: more change little
STILL: Final = 1e-4  # of the bound: when a round lowers it by less, the next would hardly find more
BACK: Final = (0.0, *(10.0**-k for k in range(9, 0, -1)), 1.0)  # way back from a cone solver's shares to those that fit


def tangents(problem: Problem, snr: Floats, at: Floats) -> Problem:
    """Return the problem whose latencies are tangents, in 1 / share, at shares `at` (J, S) > 0: never below the true.

    snr: (J, S) received signal to noise with power spread over the whole resource; inf: rate in proportion to share.
    """
    limited = checked(problem, snr)
    s, x = np.where(limited, snr, 1.0), np.where(limited & (at > 0), at, 1.0)
    v = s / x
    rise = np.log1p(v)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(v < 1e-4, 0.5 - v / 6, (1.0 - v / (1.0 + v) / rise) / rise)  # of v / log(1 + v)
    factor = np.where(limited, np.log1p(s) * slope, 1.0)  # (J, S) of work
    rest = np.where(limited, np.log1p(s) * (v / rise / s - slope / x), 0.0)  # (J, S) of work, whatever the share
    return dataclasses.replace(
        problem,
        work=problem.work * factor[:, None, :],
        slack=problem.slack - (problem.work * rest[:, None, :]).sum(axis=2),
    )


def cheapest(problem: Problem, snr: Floats, prices: Floats) -> tuple[Floats, Floats]:
    """At prices (R,): each point's least true cost (J,), inf where it cannot be served, and the shares (J, S) of it."""
    from solvers import power_point as _power

    checked(problem, snr)
    charge = np.append(prices, 0.0)
    np.add.at(charge, problem.coupling_from, problem.coupling_per_share * prices[problem.coupling_to])
    cap, served = _limits(problem, snr)
    with np.errstate(divide="ignore", invalid="ignore"):
        a = np.where(problem.work > 0, problem.work / problem.slack[:, :, None], 0.0)
    cost, share = np.where(served, 0.0, np.inf), cap.copy()
    pay = problem.activity * charge[problem.slot]
    columns = (a, snr, pay, problem.floor, np.maximum(cap, problem.floor))
    points = _power.Points(*(np.array(c, dtype=np.float64, order="C") for c in columns))
    with np.errstate(all="ignore"):
        _power.cheapest(points, share, cost)
    rigid = (np.append(prices, 0.0)[problem.slot] * problem.rigid).sum(axis=1)
    return cost + rigid, share


def dual_value(problem: Problem, prices: Floats, cost: Floats) -> float:
    """Return the bound that prices (R,) prove, from the least costs (J,) at them."""
    net = np.append(np.maximum(0.0, problem.value - cost), 0.0)  # a 0 behind, for tasks without points
    best = np.where(np.diff(problem.first) > 0, np.maximum.reduceat(net, problem.first[:-1]), 0.0)
    return float((prices * np.maximum(0.0, 1.0 - problem.background)).sum() + best.sum())


def solve(
    problem: Problem,
    snr: Floats,
    solver: Solver,
    *,
    warm: Floats | None = None,
    options: Mapping[str, float] | None = None,
) -> Solution:
    """Solve with tangents at all points' cheapest shares, take them again at the prices found, and so on.

    Returns the best plan found, true latencies within its slacks, and the least bound, proven by the true dual at the
    prices returned. snr as in `tangents`. Raises BadProblem.
    """
    prices = np.ones(problem.n_resources) if warm is None or not (warm > 0).any() else warm
    plans: list[Solution] = []
    bound, proof = np.inf, np.zeros(problem.n_resources)
    _, at = cheapest(problem, snr, prices)
    for _ in range(ROUNDS):
        found = solver(tangents(problem, snr, at), warm=warm, options=options)
        plans.append(found)
        warm = found.prices
        cost, at = cheapest(problem, snr, warm)
        proven, before = dual_value(problem, warm, cost), bound
        if proven < bound:
            bound, proof = proven, warm
        if proven >= before - STILL * abs(proven) or not (warm > 0).any():
            break
    best = max(plans, key=lambda plan: plan.certificate.value)
    return dataclasses.replace(best, prices=proof, certificate=Certificate(best.certificate.value, bound))


def _silent(_line: str) -> None:
    """Nobody listens."""


def second_stage(
    problem: Problem, snr: Floats, solution: Solution, goal: Goal, tell: Callable[[str], None] = _silent
) -> Solution:
    """Share out what the plan leaves over, by the goal: with true latencies, by the cone solver (objectives/convex.py).

    Its shares may break limits by 1e-8; they go back towards the plan's, which hold them all, until nothing is broken.
    Where it finds no optimum the fast path's shares stand, by the dual method on tangents, and `tell` hears it.
    """
    from solvers import check
    from solvers.objectives import convex

    if (solution.promised != (solution.chosen >= 0)).any():
        return solution
    try:
        share, _ = convex.second_stage(problem, solution.chosen, objective=goal, snr=snr)
    except convex.Unsolved as error:
        tell(f"{error}; the shares are the fast path's, by tangents: every limit holds, the goal nearly")
        share = by_tangents(problem, snr, solution, goal)
    for part in BACK:
        mine = dataclasses.replace(solution, share=share + part * (solution.share - share))
        if not check.verify(problem, mine, dual=False, snr=snr):
            return mine
    return solution


def by_tangents(problem: Problem, snr: Floats, solution: Solution, goal: Goal) -> Floats:
    """Shares (N, S) by the dual method on tangents taken at the shares before: every limit holds after each round.

    The goal is nearly that of the true latencies: a tangent's constant part is taken off the deadline.
    """
    from solvers.objectives import second_stage as proportional

    plan, on = solution, np.flatnonzero(solution.chosen >= 0)
    for _ in range(SHARE_ROUNDS):
        at = np.ones(problem.slot.shape)
        at[plan.chosen[on]] = np.where(plan.share[on] > 0, plan.share[on], 1.0)
        plan = proportional.second_stage(tangents(problem, snr, at), plan, goal)
    return plan.share


def checked(problem: Problem, snr: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """(J, S) slots that power limits. Raises BadProblem."""
    if snr.shape != problem.slot.shape:
        raise BadProblem("snr", f"has shape {snr.shape}, not {problem.slot.shape}")
    if not (snr > 0).all():
        raise BadProblem("snr", "must be > 0, inf where the rate is in proportion to the share")
    return np.isfinite(snr)


def _limits(p: Problem, snr: Floats) -> tuple[Floats, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
    """(J, S) greatest shares of a point alone on the site, and (J,) whether it holds its deadlines with them."""
    room = np.maximum(0.0, 1.0 - p.background)
    here = np.append(room, np.inf)[p.slot]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        cap = np.minimum(p.cap, np.where(p.activity > 0, np.maximum(0.0, here - p.rigid) / p.activity, np.inf))
        for a, b, kappa in zip(p.coupling_from, p.coupling_to, p.coupling_per_share, strict=True):
            alone = np.where(p.activity * kappa > 0, room[b] / (p.activity * kappa), np.inf)
            cap = np.where(p.slot == a, np.minimum(cap, alone), cap)
        shape = p.work.shape
        late = seconds(p.work, np.broadcast_to(snr[:, None], shape), np.broadcast_to(cap[:, None], shape)).sum(axis=2)
    edge = 1 + 1e-12
    in_time = (late <= p.slack * edge).all(axis=1) & (p.slack >= 0).all(axis=1)
    return cap, in_time & (p.floor <= cap * edge).all(axis=1) & (p.rigid <= here + 1e-12).all(axis=1)
