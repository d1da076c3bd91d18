"""Greedy admission, compiled. Entry: `first_come_first_served`.

A newcomer first tries its points, the cheapest first, with its cheapest shares beside everybody's present ones; then
with everybody's shares re-balanced, which is a search for prices at which the cheapest shares of all fit.

A running task is never dropped. When the channel has worsened so far that not all deadlines can be held, some tasks
stop being *firm*: nothing is promised to them, and they get what the firm ones leave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from solvers.baselines.cheapest import LEAST_PRICE, ROUNDING, cheapest
from solvers.baselines.sharing import Bools, SharingTable, uses
from solvers.jit import cached, nopython, source_digest
from solvers.problem import Floats, Ints

LEAST_LEFT: Final = 1e-3  # residual prices stay finite: a full resource costs 1000 times an empty one
RESIDUAL_ROUNDS: Final = 3  # residual prices follow shares and shares prices; three times is near enough
STEP: Final = 1.5  # exponent of the price update; 2 is exact for identical tasks without bounds, but overshoots
STEP_LIMIT: Final = 8.0


class Rule(NamedTuple):
    """How greedy behaves."""

    residual: bool  # ask at 1 / capacity left instead of at flat prices
    tries: int  # points per newcomer for which balancing is tried
    rounds: int  # of price updates in a balancing


class FirstComePlan(NamedTuple):
    """What is decided so far; arrays are brought up to date in place."""

    chosen: Ints  # (N,) points, -1 = none
    firm: Bools  # (N,) deadlines are held; the others keep the shares they have
    share: Floats  # (N, S)
    use: Floats  # (R,) background left out
    price: Floats  # (R,) where a balancing ended last
    room: Floats  # (R,) 1 - background


@nopython
def _copy(source: FirstComePlan, target: FirstComePlan) -> None:
    for i in range(source.chosen.size):
        target.chosen[i], target.firm[i] = source.chosen[i], source.firm[i]
        target.share[i] = source.share[i]
    for r in range(source.use.size):
        target.use[r], target.price[r] = source.use[r], source.price[r]


@nopython
def _add_use(t: SharingTable, j: int, share: Floats, rigid: float, use: Floats) -> None:
    """Add to `use` (R,) what point j takes at shares (S,): shares, couplings and `rigid` times its rigid demand."""
    for s in range(share.size):
        r = t.slot[j, s]
        if r < use.size:
            taken = t.activity[j, s] * share[s]
            use[r] += taken + rigid * t.rigid[j, s]
            for c in range(t.coupling_from.size):
                if t.coupling_from[c] == r:
                    use[t.coupling_to[c]] += t.coupling_per_share[c] * taken


@nopython
def _over(plan: FirstComePlan) -> bool:
    """Whether a resource is used beyond its room."""
    over = False
    for r in range(plan.use.size):
        over = over or plan.use[r] > plan.room[r] + ROUNDING
    return over


@nopython
def _worth(plan: FirstComePlan, price: Floats) -> float:
    """Sum of what all resources cost at prices (R,), with the rounding that _over forgives."""
    total = 0.0
    for r in range(price.size):
        total += price[r] * (plan.room[r] + ROUNDING)
    return total


@nopython
def _least(costs: Floats) -> int:
    """Index of the least cost, the first of equals; -1 when only inf is left."""
    best = -1
    for k in range(costs.size):
        if costs[k] < np.inf and (best < 0 or costs[k] < costs[best]):
            best = k
    return best


@nopython
def _rule_prices(plan: FirstComePlan, rule: Rule) -> Floats:
    """(R,) all equal, or 1 / what is left of each resource."""
    price = np.ones(plan.room.size)
    if rule.residual:
        for r in range(price.size):
            price[r] = 1 / max(plan.room[r] - plan.use[r], LEAST_LEFT)
    return price


@nopython
def _price_all(t: SharingTable, plan: FirstComePlan, price: Floats) -> float:
    """Cheapest shares of all firm tasks at prices (R,), use of everybody. Returns what all of it costs."""
    plan.use[:] = 0.0
    for i in range(plan.chosen.size):
        if plan.chosen[i] >= 0 and not plan.firm[i]:
            _add_use(t, plan.chosen[i], plan.share[i], 1.0, plan.use)
    cost = 0.0
    for r in range(price.size):
        cost += price[r] * plan.use[r]
    for i in range(plan.chosen.size):
        if plan.chosen[i] >= 0 and plan.firm[i]:
            cost += cheapest(t, plan.chosen[i], price, plan.share[i])
            _add_use(t, plan.chosen[i], plan.share[i], 1.0, plan.use)
    return cost


@nopython
def _balance(t: SharingTable, plan: FirstComePlan, rounds: int) -> bool:
    """Search, from plan.price on, prices at which the firm tasks' cheapest shares fit. True: the plan has them.

    Stops early when the cost at some prices exceeds what all resources are worth: no shares fit then (weak duality).
    """
    for _ in range(rounds):
        cost = _price_all(t, plan, plan.price)
        if not _over(plan):
            return True
        if cost > _worth(plan, plan.price):
            return False
        dearest = 0.0
        for r in range(plan.price.size):
            load = plan.use[r] / plan.room[r] if plan.room[r] > 0 else STEP_LIMIT
            plan.price[r] *= min(STEP_LIMIT, max(1 / STEP_LIMIT, load**STEP))
            dearest = max(dearest, plan.price[r])
        for r in range(plan.price.size):
            plan.price[r] = max(plan.price[r] / dearest, LEAST_PRICE)
    return False


@nopython
def _costs(t: SharingTable, i: int, price: Floats, shares: Floats) -> Floats:
    """Cost (J_i,) of each point of task i, inf where it is not allowed or cannot hold; `shares` (J_i, S) for it."""
    costs = np.full(shares.shape[0], np.inf)
    for k in range(costs.size):
        if t.allowed[t.first[i] + k]:
            costs[k] = cheapest(t, t.first[i] + k, price, shares[k])
    return costs


@nopython
def _take_what_fits(t: SharingTable, i: int, plan: FirstComePlan, price: Floats, shares: Floats) -> bool:
    """Admit task i at its cheapest point whose cheapest shares fit beside the present ones."""
    costs = _costs(t, i, price, shares)
    for _ in range(costs.size):
        k = _least(costs)
        if k < 0:
            break
        costs[k], more, fits = np.inf, np.zeros(plan.use.size), True
        _add_use(t, t.first[i] + k, shares[k], 1.0, more)
        for r in range(more.size):
            fits = fits and (more[r] <= 0 or plan.use[r] + more[r] <= plan.room[r] + ROUNDING)
        if fits:
            plan.chosen[i], plan.firm[i], plan.share[i] = t.first[i] + k, True, shares[k]
            _add_use(t, t.first[i] + k, shares[k], 1.0, plan.use)
            return True
    return False


@nopython
def _make_room(t: SharingTable, i: int, plan: FirstComePlan, trial: FirstComePlan, rule: Rule, shares: Floats) -> int:
    """Admit task i at the cheapest point for which everybody's shares can be balanced; balancings done.

    Points that cost more than what the present tasks leave of the worth of all resources cannot fit: not tried.
    """
    if rule.tries == 0 or _over(plan):
        return 0
    _copy(plan, trial)
    spare = _worth(plan, plan.price) - _price_all(t, trial, plan.price)
    costs, done = _costs(t, i, plan.price, shares), 0
    while done < rule.tries:
        k = _least(costs)
        if k < 0 or costs[k] > spare:
            break
        costs[k], done = np.inf, done + 1
        trial.chosen[i], trial.firm[i], trial.price[:] = t.first[i] + k, True, plan.price
        if _balance(t, trial, rule.rounds):
            _copy(trial, plan)
            break
    return done


@nopython
def _share_held(t: SharingTable, plan: FirstComePlan, rule: Rule) -> None:
    """Shares of the running tasks at the rule's prices, balanced where those do not fit.

    Where even that fails, the dearest per value stop being firm until the others fit.
    """
    for i in range(plan.chosen.size):
        j = plan.chosen[i]
        plan.firm[i] = j >= 0 and cheapest(t, j, plan.price, plan.share[i]) < np.inf
        plan.share[i] = 0.0
    for _ in range(RESIDUAL_ROUNDS if rule.residual else 0):
        _price_all(t, plan, plan.price)
        plan.price[:] = _rule_prices(plan, rule)
    while not _balance(t, plan, rule.rounds):
        i = _dearest(t, plan)
        if i < 0:
            break
        plan.firm[i], plan.share[i] = False, 0.0
    if _some_weak(plan):
        _ask(t, plan)
        _leave_rest(t, plan)
        _price_all(t, plan, plan.price)


@nopython
def _some_weak(plan: FirstComePlan) -> bool:
    """Whether a running task is not firm."""
    weak = False
    for i in range(plan.chosen.size):
        weak = weak or (plan.chosen[i] >= 0 and not plan.firm[i])
    return weak


@nopython
def _dearest(t: SharingTable, plan: FirstComePlan) -> int:
    """Firm task with the greatest cost per value at the plan's prices, -1 when there is none."""
    worst, most, share = -1, -1.0, np.zeros(t.slot.shape[1])
    for i in range(plan.chosen.size):
        if plan.firm[i]:
            cost = cheapest(t, plan.chosen[i], plan.price, share) / max(t.value[plan.chosen[i]], LEAST_PRICE)
            if cost > most:
                worst, most = i, cost
    return worst


@nopython
def _ask(t: SharingTable, plan: FirstComePlan) -> None:
    """Set shares of tasks that are not firm to what they ask: the cheapest, or an equal part where none would do."""
    users, price = np.zeros(plan.room.size), np.ones(plan.room.size)
    for i in range(plan.chosen.size):
        for s in range(plan.share.shape[1]):
            if plan.chosen[i] >= 0 and uses(t, plan.chosen[i], s):
                users[t.slot[plan.chosen[i], s]] += 1
    for i in range(plan.chosen.size):
        j = plan.chosen[i]
        if j < 0 or plan.firm[i]:
            continue
        if cheapest(t, j, price, plan.share[i]) == np.inf:
            for s in range(plan.share.shape[1]):
                plan.share[i, s] = min(t.cap[j, s], 1 / users[t.slot[j, s]]) if uses(t, j, s) else 0.0


@nopython
def _leave_rest(t: SharingTable, plan: FirstComePlan) -> None:
    """Scale what tasks that are not firm ask for down to what is left, each as its scarcest resource asks."""
    n, nothing = plan.room.size, np.zeros(plan.share.shape[1])
    taken, asked = np.zeros(n), np.zeros(n)
    for i in range(plan.chosen.size):
        if plan.chosen[i] >= 0:
            _add_use(t, plan.chosen[i], plan.share[i] if plan.firm[i] else nothing, 1.0, taken)
            if not plan.firm[i]:
                _add_use(t, plan.chosen[i], plan.share[i], 0.0, asked)
    for i in range(plan.chosen.size):
        if plan.chosen[i] >= 0 and not plan.firm[i]:
            mine, scale = np.zeros(n), 1.0
            _add_use(t, plan.chosen[i], plan.share[i], 0.0, mine)
            for r in range(n):
                if mine[r] > 0:
                    scale = min(scale, max(0.0, plan.room[r] - taken[r]) / asked[r])
            plan.share[i] *= scale


@nopython
def _admit_all(t: SharingTable, arrivals: Ints, plan: FirstComePlan, rule: Rule) -> int:
    """Keep the running tasks, admit the arrivals in order; balancings done."""
    done = 0
    if np.any(plan.chosen >= 0):
        _share_held(t, plan, rule)
    trial = FirstComePlan(
        plan.chosen.copy(), plan.firm.copy(), plan.share.copy(), plan.use.copy(), plan.price.copy(), plan.room
    )
    for i in arrivals:
        shares = np.zeros((t.first[i + 1] - t.first[i], t.slot.shape[1]))
        if not _take_what_fits(t, i, plan, _rule_prices(plan, rule), shares):
            done += _make_room(t, i, plan, trial, rule, shares)
    return done


def _make_entry(digest: int) -> Callable[[SharingTable, Ints, Ints, Rule], tuple[Ints, Floats, Bools, int]]:
    """Return the function that is compiled and kept; `digest` is part of its key in the cache (solvers/jit.py)."""

    @cached
    def entry(t: SharingTable, held: Ints, arrivals: Ints, rule: Rule) -> tuple[Ints, Floats, Bools, int]:
        n, n_resources = held.size, t.background.size
        plan = FirstComePlan(
            held.copy(),
            np.zeros(n, dtype=np.bool_),
            np.zeros((n, t.slot.shape[1])),
            np.zeros(n_resources),
            np.ones(n_resources),
            1 - t.background,
        )
        done = _admit_all(t, arrivals, plan, rule) + digest * 0
        return plan.chosen, plan.share, plan.firm, done

    return entry


first_come_first_served: Final = _make_entry(source_digest("baselines"))
"""(table, points held (N,), arrivals in order, rule) -> points (N,), shares (N, S), firm (N,), balancings done."""
