"""Greedy admission, compiled: points at given prices, then at re-balanced ones. Entry: `first_come_first_served`.

Cheapest shares at given prices come from the price solver's oracle (solvers/_kernel.py). What is decided here: who runs
on at which shares, which point a newcomer takes, and whether shares can be re-balanced so that everybody fits.

A running task is never dropped. When the channel has worsened so far that not all deadlines can be held, some stop
being *firm*: nothing is promised to them, and they get what the firm ones and the newcomers leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from solvers._jit import cached, nopython, source_digest
from solvers._kernel import DEAD, Raw, Table, cheapest, demand, latency, prepare, prices_of
from solvers.problem import Floats, Ints

Bools = npt.NDArray[np.bool_]

FULL: Final = 1e-9  # by so much a resource may be over 1: below any planner's rounding
LEAST_LEFT: Final = 1e-3  # residual prices stay finite: a full resource costs 1000 times an empty one
LEAST_PRICE: Final = 1e-9  # relative to the dearest: a free resource still has a finite cheapest share
STEP: Final = 1.5  # exponent of the price update; 2 is exact for identical tasks without floors, but overshoots
STEP_LIMIT: Final = 8.0
RESIDUAL_ROUNDS: Final = 3  # prices follow shares and shares prices; three times is near enough


class Rule(NamedTuple):
    """How greedy behaves."""

    residual: bool  # ask at 1 / capacity left instead of at flat prices
    tries: int  # points per newcomer for which balancing is tried
    rounds: int  # of price updates in a balancing


class Plan(NamedTuple):
    """What is decided so far; arrays are brought up to date in place."""

    chosen: Ints  # (N,) points, -1 = none
    firm: Bools  # (N,) deadlines are held
    share: Floats  # (N, S)
    use: Floats  # (R + 1,) with what tasks that are not firm ask for; background left out
    price: Floats  # (R,) last balanced


@nopython
def _copy(plan: Plan) -> Plan:
    return Plan(plan.chosen.copy(), plan.firm.copy(), plan.share.copy(), plan.use.copy(), plan.price.copy())


@nopython
def _overwrite(plan: Plan, other: Plan) -> None:
    plan.chosen[:], plan.firm[:], plan.share[:] = other.chosen, other.firm, other.share
    plan.use[:], plan.price[:] = other.use, other.price


@nopython
def _over(t: Table, use: Floats) -> bool:
    """Whether a resource is used beyond its room."""
    for r in range(use.size - 1):
        if use[r] > t.room[r] + FULL:
            return True
    return False


@nopython
def _residual(t: Table, use: Floats) -> Floats:
    """1 / what is left of each resource, (R,)."""
    n = use.size - 1
    return 1 / np.maximum(t.room[:n] - use[:n], LEAST_LEFT)


@nopython
def _worth(t: Table, price: Floats) -> float:
    """What all resources cost at the prices, with the rounding that _over forgives."""
    return float(np.sum(price * (t.room[: price.size] + FULL)))


@nopython
def _price_all(t: Table, plan: Plan) -> float:
    """Cheapest shares of all firm tasks at plan.price; everybody's use. Returns what it costs, a lower bound."""
    p, fixed = prices_of(t, plan.price), np.zeros(plan.share.shape[1], dtype=np.int64)
    plan.use[:] = 0.0
    for i in range(plan.chosen.size):
        if plan.chosen[i] >= 0 and not plan.firm[i]:
            demand(t, plan.chosen[i], plan.share[i], plan.use)
    cost = float(np.sum(plan.price * plan.use[: plan.price.size]))
    for i in range(plan.chosen.size):
        if plan.chosen[i] >= 0 and plan.firm[i]:
            cost += cheapest(t, plan.chosen[i], p, plan.share[i], fixed)[0]
            demand(t, plan.chosen[i], plan.share[i], plan.use)
    return cost


@nopython
def _balance(t: Table, plan: Plan, rounds: int) -> bool:
    """Look, from plan.price on, for prices at which the firm tasks' cheapest shares fit. True: the plan has them.

    Stops early when the cost at some prices exceeds what all resources are worth: no shares fit then (weak duality).
    """
    for _ in range(rounds):
        cost = _price_all(t, plan)
        if not _over(t, plan.use):
            return True
        if cost > _worth(t, plan.price):
            return False
        for r in range(plan.price.size):
            load = plan.use[r] / t.room[r] if t.room[r] > 0 else STEP_LIMIT
            plan.price[r] *= min(STEP_LIMIT, max(1 / STEP_LIMIT, load**STEP))
        plan.price[:] = np.maximum(plan.price / plan.price.max(), LEAST_PRICE)
    return False


@nopython
def _costs(t: Table, i: int, price: Floats, shares: Floats) -> Floats:
    """Cost (J_i,) of each point of task i, inf where it cannot hold; the cheapest shares go to `shares` (J_i, S)."""
    p, fixed = prices_of(t, price), np.zeros(shares.shape[1], dtype=np.int64)
    costs = np.full(shares.shape[0], math.inf)
    for k in range(costs.size):
        if t.mode[t.first[i] + k] != DEAD:
            costs[k] = cheapest(t, t.first[i] + k, p, shares[k], fixed)[0]
    return costs


@nopython
def _take_what_fits(t: Table, i: int, plan: Plan, price: Floats) -> bool:
    """Admit task i at its cheapest point at `price` whose cheapest shares fit beside the present ones."""
    shares = np.zeros((t.first[i + 1] - t.first[i], plan.share.shape[1]))
    costs = _costs(t, i, price, shares)
    for k in np.argsort(costs, kind="mergesort"):
        if costs[k] == math.inf:
            break
        after = plan.use.copy()
        demand(t, t.first[i] + k, shares[k], after)
        fits = True
        for r in range(after.size - 1):
            fits = fits and (after[r] <= t.room[r] + FULL or after[r] <= plan.use[r])
        if fits:
            plan.chosen[i], plan.firm[i] = t.first[i] + k, True
            plan.share[i], plan.use[:] = shares[k], after
            return True
    return False


@nopython
def _take_balanced(t: Table, i: int, plan: Plan, rule: Rule) -> int:
    """Admit task i at the cheapest of some points for which everybody's shares can be balanced; balancings done.

    Points that cost more than what is left of the worth of all resources cannot fit: they are not tried.
    """
    if rule.tries == 0 or _over(t, plan.use):
        return 0
    trial = _copy(plan)
    spare = _worth(t, plan.price) - _price_all(t, trial)
    shares = np.zeros((t.first[i + 1] - t.first[i], plan.share.shape[1]))
    costs, done = _costs(t, i, plan.price, shares), 0
    for k in np.argsort(costs, kind="mergesort"):
        if done == rule.tries or costs[k] > spare:
            break
        done += 1
        trial.chosen[i], trial.firm[i], trial.price[:] = t.first[i] + k, True, plan.price
        if _balance(t, trial, rule.rounds):
            _overwrite(plan, trial)
            break
    return done


@nopython
def _share_held(t: Table, raw: Raw, plan: Plan, rule: Rule) -> None:
    """Shares of the running tasks at flat or residual prices, balanced where those do not fit.

    Where even that fails, the dearest per value stop being firm until the others fit.
    """
    for i in range(plan.chosen.size):
        plan.firm[i] = plan.chosen[i] >= 0 and t.mode[plan.chosen[i]] != DEAD
    for _ in range(RESIDUAL_ROUNDS if rule.residual else 0):
        _price_all(t, plan)
        plan.price[:] = _residual(t, plan.use)
    while not _balance(t, plan, rule.rounds):
        i = _dearest(t, plan)
        if i < 0:
            break
        plan.firm[i], plan.share[i] = False, 0.0
    _ask(t, raw, plan)
    _price_all(t, plan)


@nopython
def _dearest(t: Table, plan: Plan) -> int:
    """Firm task with the greatest cost per value at the plan's prices, -1 when there is none."""
    worst, most = -1, -1.0
    p, fixed, x = prices_of(t, plan.price), np.zeros(plan.share.shape[1], dtype=np.int64), np.zeros(plan.share.shape[1])
    for i in range(plan.chosen.size):
        if plan.firm[i]:
            cost = cheapest(t, plan.chosen[i], p, x, fixed)[0] / t.value[plan.chosen[i]]
            if cost > most:
                worst, most = i, cost
    return worst


@nopython
def _ask(t: Table, raw: Raw, plan: Plan) -> None:
    """What tasks that are not firm ask for: their cheapest shares, or an equal part where none would do."""
    p, fixed = prices_of(t, plan.price), np.zeros(plan.share.shape[1], dtype=np.int64)
    users = np.zeros(t.room.size)
    for j in plan.chosen[plan.chosen >= 0]:
        for s in range(fixed.size):
            users[t.slot[j, s]] += 1
    for i in range(plan.chosen.size):
        j = plan.chosen[i]
        if j < 0 or plan.firm[i]:
            continue
        if t.mode[j] != DEAD:
            cheapest(t, j, p, plan.share[i], fixed)
            continue
        for s in range(fixed.size):
            asks = raw.work[j, 0, s] > 0 or raw.work[j, 1, s] > 0 or raw.floor[j, s] > 0
            plan.share[i, s] = min(raw.cap[j, s], 1 / users[t.slot[j, s]]) if asks else 0.0
            if t.slot[j, s] == t.room.size - 1:
                plan.share[i, s] = 0.0


@nopython
def _leave_rest(t: Table, plan: Plan) -> None:
    """Scale what tasks that are not firm ask for down to what is left, each as its scarcest resource asks."""
    nothing = np.zeros(plan.share.shape[1])
    firm, asked = np.zeros(t.room.size), np.zeros(t.room.size)
    for i in range(plan.chosen.size):
        if plan.chosen[i] >= 0:
            demand(t, plan.chosen[i], plan.share[i] if plan.firm[i] else nothing, firm)
            if not plan.firm[i]:
                _elastic(t, plan.chosen[i], plan.share[i], asked)
    for i in range(plan.chosen.size):
        if plan.chosen[i] >= 0 and not plan.firm[i]:
            mine, scale = np.zeros(t.room.size), 1.0
            _elastic(t, plan.chosen[i], plan.share[i], mine)
            for r in range(t.room.size - 1):
                if mine[r] > 0:
                    scale = min(scale, max(0.0, t.room[r] - firm[r]) / asked[r])
            plan.share[i] *= scale


@nopython
def _elastic(t: Table, j: int, x: Floats, use: Floats) -> None:
    """Add to `use` (R + 1,) what the shares x of point j take, without its rigid demand."""
    demand(t, j, x, use)
    for s in range(x.size):
        use[t.slot[j, s]] -= t.rigid[j, s]


@nopython
def _holds(t: Table, plan: Plan) -> Bools:
    """Whose deadlines hold (N,) at the shares of the plan."""
    holds = np.zeros(plan.chosen.size, dtype=np.bool_)
    for i in range(holds.size):
        j = plan.chosen[i]
        if j >= 0 and t.mode[j] != DEAD:
            holds[i] = max(latency(t, j, 0, plan.share[i]), latency(t, j, 1, plan.share[i])) <= 1 + FULL
            for s in range(t.slot.shape[1]):
                holds[i] = holds[i] and plan.share[i, s] >= t.floor[j, s] * (1 - FULL)
    return holds


def _entry() -> Callable[[Raw, Ints, Ints, Rule], tuple[Ints, Floats, Bools, int]]:
    digest = source_digest()  # numba's cache looks at this file only: see solvers/_jit.py

    @cached
    def run(raw: Raw, held: Ints, arrivals: Ints, rule: Rule) -> tuple[Ints, Floats, Bools, int]:
        t, n, done = prepare(raw), held.size, digest * 0
        firm, share = np.zeros(n, dtype=np.bool_), np.zeros((n, raw.slot.shape[1]))
        plan = Plan(held.copy(), firm, share, np.zeros(t.room.size), np.ones(t.room.size - 1))
        _share_held(t, raw, plan, rule)
        for i in arrivals:
            price = _residual(t, plan.use) if rule.residual else np.ones(t.room.size - 1)
            if not _take_what_fits(t, i, plan, price):
                done += _take_balanced(t, i, plan, rule)
        _leave_rest(t, plan)
        return plan.chosen, plan.share, _holds(t, plan), done

    return run


first_come_first_served: Final = _entry()
"""(raw problem, points held (N,), arrivals in order, rule) -> points (N,), shares (N, S), whose deadlines hold (N,),
balancings done."""
