"""Cheapest shares of a point at given prices, compiled; the baselines' own, so that no bug is shared with the solver.

Minimise sum p x subject to sum work / x <= slack in each phase and floor <= x <= cap (docs/model.md). One
phase has the closed form x ~ sqrt(work / p); shares outside their bounds are fixed and the rest solved again, the side
that errs more first (Bitran & Hax, Disaggregation and resource allocation using convex knapsack problems, 1981). When
both phases bind, the optimum is that of a mixed phase, found by bisection of the mixture.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from solvers.baselines.sharing import Bools, SharingTable, uses
from solvers.jit import nopython
from solvers.problem import Floats

LEAST_PRICE: Final = 1e-12  # a free resource still has a finite cheapest share
MIXTURES: Final = 48  # halvings: the mixture is then exact to rounding
ROUNDING: Final = 1e-10


@nopython
def _in_box(a: Floats, price: Floats, low: Floats, high: Floats, share: Floats) -> bool:
    """Minimise sum price x subject to sum a / x <= 1 and low <= x <= high, all (S,). False if it cannot be done."""
    is_open, budget = np.zeros(a.size, dtype=np.bool_), 1.0
    for s in range(a.size):
        share[s], is_open[s] = low[s], a[s] > 0
        if low[s] > high[s]:
            return False
    if _latency(a, high) > 1:
        return False
    for _ in range(a.size + 1):
        below, above = _spend(a, price, low, high, share, is_open, budget)
        if below <= 0 and above <= 0:
            break
        budget -= _fix(a, low, high, share, is_open, below >= above)
    return True


@nopython
def _spend(
    a: Floats, price: Floats, low: Floats, high: Floats, share: Floats, is_open: Bools, budget: float
) -> tuple[float, float]:
    """Cheapest open shares for a latency `budget`, bounds aside; the latency that their bounds would save and cost."""
    root = 0.0
    for s in range(a.size):
        if is_open[s]:
            root += np.sqrt(a[s] * price[s])
    below, above = 0.0, 0.0
    for s in range(a.size):
        if is_open[s]:
            # no budget left is rounding: the rest then needs all that its caps allow
            share[s] = np.sqrt(a[s] / price[s]) * root / budget if budget > 0 else np.inf
            if share[s] < low[s]:
                below += a[s] / share[s] - a[s] / low[s]
            elif share[s] > high[s]:
                above += a[s] / high[s] - a[s] / share[s]
    return below, above


@nopython
def _fix(a: Floats, low: Floats, high: Floats, share: Floats, is_open: Bools, at_low: bool) -> float:
    """Fix the shares that are outside one bound at it; the latency that they take."""
    latency = 0.0
    for s in range(a.size):
        if is_open[s] and (share[s] < low[s] if at_low else share[s] > high[s]):
            share[s] = low[s] if at_low else high[s]
            latency += a[s] / share[s]
            is_open[s] = False
    return latency


@nopython
def _latency(a: Floats, share: Floats) -> float:
    """Latency over slack."""
    total = 0.0
    for s in range(a.size):
        if a[s] > 0:
            total += a[s] / share[s]
    return total


@nopython
def _mixture(a: Floats, price: Floats, low: Floats, high: Floats, share: Floats) -> None:
    """Two phases `a` (2, S) that both bind: bisect the mixture until they are equally late."""
    left, right, mixed = 0.0, 1.0, np.empty(share.size)
    for _ in range(MIXTURES):
        theta = 0.5 * (left + right)
        for s in range(share.size):
            mixed[s] = theta * a[0, s] + (1 - theta) * a[1, s]
        _in_box(mixed, price, low, high, share)
        if _latency(a[0], share) > _latency(a[1], share):
            left = theta
        else:
            right = theta
    late = max(1.0, _latency(a[0], share), _latency(a[1], share))
    for s in range(share.size):
        share[s] = min(high[s], share[s] * late)


@nopython
def _unit_price(t: SharingTable, price: Floats, j: int, s: int) -> float:
    """Price of a whole share in slot s of point j, couplings included."""
    r = t.slot[j, s]
    unit = price[r]
    for c in range(t.coupling_from.size):
        if t.coupling_from[c] == r:
            unit += t.coupling_per_share[c] * price[t.coupling_to[c]]
    return float(max(unit * t.activity[j, s], LEAST_PRICE))


@nopython
def _work_over_slack(t: SharingTable, j: int, a: Floats) -> bool:
    """Fill a (Q, S); False where a deadline is lost before it starts."""
    for q in range(2):
        if t.slack[j, q] < 0:
            return False
        for s in range(a.shape[1]):
            if t.slot[j, s] < t.background.size and t.work[j, q, s] > 0:
                if t.slack[j, q] == 0:
                    return False
                a[q, s] = t.work[j, q, s] / t.slack[j, q]
    return True


@nopython
def cheapest(t: SharingTable, j: int, price: Floats, share: Floats) -> float:
    """Cost of point j, rigid demand included, with the cheapest shares (S,) at prices (R,); inf if it cannot hold."""
    n, cost = share.size, 0.0
    a, unit, low, high = np.zeros((2, n)), np.ones(n), np.zeros(n), np.ones(n)
    share[:] = 0.0
    for s in range(n):
        if t.slot[j, s] < price.size:
            cost += price[t.slot[j, s]] * t.rigid[j, s]
        if uses(t, j, s):
            unit[s], low[s], high[s] = _unit_price(t, price, j, s), t.floor[j, s], t.cap[j, s]
    if not _work_over_slack(t, j, a) or not _hold_both(a, unit, low, high, share):
        share[:] = 0.0
        return np.inf
    for s in range(n):
        cost += unit[s] * share[s]
    return cost


@nopython
def _hold_both(a: Floats, price: Floats, low: Floats, high: Floats, share: Floats) -> bool:
    """Cheapest shares for both phases, a (2, S): that of one where the other holds then too, else of a mixture."""
    if not (_in_box(a[1], price, low, high, share) and _in_box(a[0], price, low, high, share)):
        return False
    if _latency(a[1], share) <= 1:
        return True
    _in_box(a[1], price, low, high, share)
    if _latency(a[0], share) <= 1:
        return True
    _mixture(a, price, low, high, share)
    return max(_latency(a[0], share), _latency(a[1], share)) <= 1 + ROUNDING
