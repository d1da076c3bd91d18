"""The dual function: every task's best point at given prices, and what they use together (docs/model.md, section 3)."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers import _reference
from solvers._jit import COMPILED, nopython
from solvers._kernel import DEAD, RIGID, Prices, Table, add_use, at_least, cheapest, prices_of
from solvers.problem import Floats, Ints

RENEW: Final = 0.6  # part of the screen's costs below which they are taken anew


class Screen(NamedTuple):
    """Lower bounds on the costs at other prices. Costs are monotone and homogeneous in prices: they rise with them."""

    cost: Floats  # (J,) at `price`
    price: Floats  # (R,) zeros: nothing known yet


@nopython
def new_screen(t: Table) -> Screen:
    """Nothing known."""
    return Screen(np.zeros(t.value.shape[0]), np.zeros(t.room.shape[0] - 1))


@nopython
def _still_worth(screen: Screen, price: Floats) -> float:
    """Part of the screen's costs that is certain at `price`; 0 where it is time to take them anew."""
    part, known = math.inf, False
    for r in range(price.shape[0]):
        if screen.price[r] > 0.0:
            known = True
            part = min(part, price[r] / screen.price[r])
    if known and part > RENEW:
        return part
    for r in range(price.shape[0]):
        screen.price[r] = price[r]
    return 0.0


@nopython
def _best_point(t: Table, i: int, p: Prices, screen: Screen, sure: float, x: Floats, work: Floats) -> tuple[int, float]:
    """Task i's best point and net value, (-1, 0) if none is worth its cost; of equal ones the first."""
    pick, net = -1, 0.0
    for j in range(t.first[i], t.first[i + 1]):
        if t.mode[j] == DEAD:
            continue
        if sure == 0.0:
            screen.cost[j] = at_least(t, j, p)
        elif t.value[j] - sure * screen.cost[j] <= net:
            continue
        if t.value[j] - (screen.cost[j] if sure == 0.0 else at_least(t, j, p)) > net:
            gain = t.value[j] - cheapest(t, j, p, x, work)[0]
            if gain > net:
                pick, net = j, gain
    return pick, net


@nopython
def _evaluate(t: Table, price: Floats, screen: Screen, pick: Ints, net: Floats, use: Floats) -> float:
    """Dual function at prices (R,): a bound on the value of any plan.

    Writes each task's best point (-1: none is worth its cost) and its net value (N,), and their use (R + 1,).
    `screen` saves work from one call to the next.
    """
    p = prices_of(t, price)
    x, work = np.empty(t.slot.shape[1]), np.zeros((2, t.slot.shape[1]))
    sure = _still_worth(screen, price)
    bound = 0.0
    for r in range(price.shape[0]):
        bound += price[r] * t.room[r]
    for r in range(use.shape[0]):
        use[r] = 0.0
    for i in t.order:
        j, gain = _best_point(t, i, p, screen, sure, x, work)
        pick[i], net[i] = j, gain
        if j >= 0:
            bound += gain
            cheapest(t, j, p, x, work)
            add_use(t, j, x, use)
            for s in range(x.shape[0]):
                use[t.slot[j, s]] += t.cell[j, RIGID, s]
    return bound


@nopython
def _all_costs(t: Table, price: Floats, cost: Floats) -> None:
    """Cost of every point (J,), inf for those that cannot be served."""
    p = prices_of(t, price)
    x = np.empty(t.slot.shape[1])
    work = np.zeros((2, t.slot.shape[1]))
    for j in range(cost.shape[0]):
        cost[j] = math.inf if t.mode[j] == DEAD else cheapest(t, j, p, x, work)[0]


@nopython
def least_costs(t: Table, price: Floats, cost: Floats) -> None:
    """Lower bounds on the costs of every point (J,), cheap; inf for those that cannot be served."""
    p = prices_of(t, price)
    for j in range(cost.shape[0]):
        cost[j] = math.inf if t.mode[j] == DEAD else at_least(t, j, p)


# Without the compiler the loops over all points would be slow: NumPy takes their place (solvers/_reference.py).
evaluate = _evaluate if COMPILED else _reference.evaluate
all_costs = _all_costs if COMPILED else _reference.all_costs
