"""Minimising the dual over prices: scale first, then BFGS in log prices (docs/model.md, section 3)."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers._jit import nopython
from solvers._kernel import DEAD, RIGID, ROOT, Table, rounded
from solvers._oracle import evaluate, least_costs, new_screen
from solvers.problem import Floats, Ints

SCALE_STEPS: Final = 24  # tangents tried for the common scale of the prices; 6 to 10 are used
LONGEST: Final = 2.0  # no log price moves by more in one step: a factor of 7
SHORTEST: Final = 1e-4  # trust region at kinks does not shrink below
PATIENCE: Final = 8  # steps in a row that gain next to nothing before it stops
ARMIJO: Final = 1e-4  # part of the promised descent that is asked for (Nocedal & Wright, 3.1)
FADED: Final = 1e-12  # a price times room below this part of the bound is as good as nothing


class Dual(NamedTuple):
    """Result of the minimisation: the best bound, the prices (R,) it holds at, what tasks choose there."""

    bound: float
    price: Floats
    pick: Ints  # (N,)
    net: Floats  # (N,)
    evaluations: int
    converged: bool


@nopython
def flat_prices(t: Table) -> Floats:
    """Prices (R,) at which the average point would just be held, each resource by itself: the cold start.

    With no deadline active the square of sum sqrt(work activity) / room clears a resource (docs/model.md, section 5).
    """
    n = t.room.shape[0] - 1
    pull = np.zeros(n + 1)
    for i in t.order:
        many = max(1, t.first[i + 1] - t.first[i])
        for j in range(t.first[i], t.first[i + 1]):
            if t.mode[j] != DEAD:
                for s in range(t.slot.shape[1]):
                    pull[t.slot[j, s]] += max(t.cell[j, ROOT, s], t.cell[j, ROOT + 1, s], t.cell[j, RIGID, s]) / many
    price = np.zeros(n)
    for c in range(t.link.shape[0]):
        pull[t.link[c, 1]] += math.sqrt(t.kappa[c]) * pull[t.link[c, 0]]
    for r in range(n):
        if t.room[r] > 0.0 and pull[r] > 0.0:
            price[r] = rounded((pull[r] / t.room[r]) ** 2)
    return price


@nopython
def worth(t: Table, price: Floats) -> float:
    """Price all room."""
    total = 0.0
    for r in range(price.shape[0]):
        total += price[r] * t.room[r]
    return total


@nopython
def starting_prices(t: Table, flat: Floats, warm: Floats) -> Floats:
    """Warm prices; a resource with demand but without a price gets a small one, so that logarithms exist."""
    whole, flat_whole = worth(t, warm), worth(t, flat)
    price = flat.copy()
    if 0.0 < whole < math.inf and flat_whole > 0.0:
        for r in range(warm.shape[0]):
            price[r] = rounded(max(warm[r], 1e-3 * flat[r] * whole / flat_whole)) if flat[r] > 0.0 else 0.0
    return price


@nopython
def _slope(t: Table, cost: Floats, scale: float) -> tuple[float, float]:
    """Dual function along a ray, less the term of the room: (sum of net values, minus its slope)."""
    total = spent = 0.0
    for i in t.order:
        net, paid = 0.0, 0.0
        for j in range(t.first[i], t.first[i + 1]):
            if t.mode[j] != DEAD and t.value[j] - scale * cost[j] > net:
                net, paid = t.value[j] - scale * cost[j], cost[j]
        total += net
        spent += paid
    return total, spent


@nopython
def best_scale(t: Table, price: Floats) -> float:
    """Factor on all prices that minimises the dual: shares do not depend on it, so costs are computed once.

    Along the ray the dual is convex and piecewise linear: cut where the tangents of the two ends meet. Lower bounds
    of the costs will do here. 0 when everything fits at these price ratios.
    """
    cost = np.empty(t.value.shape[0])
    least_costs(t, price, cost)
    room = worth(t, price)
    low, high = 0.0, 0.0
    for j in range(cost.shape[0]):
        if t.mode[j] != DEAD and cost[j] > 0.0:
            high = max(high, t.value[j] / cost[j])
    low_net, low_spent = _slope(t, cost, low)
    if low_spent <= room or high <= 0.0:
        return 0.0
    high_net, high_spent = 0.0, 0.0
    scale = high
    for _ in range(SCALE_STEPS):
        # tangents: net_low - spent_low (s - low) = net_high - spent_high (s - high), the room's term on both sides
        scale = (low_net + low_spent * low - high_net - high_spent * high) / (low_spent - high_spent)
        if not low < scale < high:
            break
        net, spent = _slope(t, cost, scale)
        below = max(low_net - low_spent * (scale - low), high_net - high_spent * (scale - high))
        if net - below <= 1e-9 * (net + scale * room):
            break
        if spent > room:
            low, low_net, low_spent = scale, net, spent
        else:
            high, high_net, high_spent = scale, net, spent
    return scale


@nopython
def _direction(hessian: Floats, slope: Floats, step: Floats, limit: float) -> float:
    """Step = -hessian slope, no component beyond `limit`; returns its descent (negative if it is one)."""
    n = slope.shape[0]
    longest = descent = 0.0
    for r in range(n):
        step[r] = 0.0
        for s in range(n):
            step[r] -= hessian[r, s] * slope[s]
        longest = max(longest, abs(step[r]))
    shrink = limit / longest if longest > limit else 1.0
    for r in range(n):
        step[r] *= shrink
        descent += step[r] * slope[r]
    return descent


@nopython
def _greatest(step: Floats) -> float:
    most = 0.0
    for r in range(step.shape[0]):
        most = max(most, abs(step[r]))
    return most


@nopython
def _reset(t: Table, price: Floats, hessian: Floats) -> None:
    """Inverse Hessian of a resource by itself: use falls as the root of its price, so it is 2 / (price room)."""
    most = 0.0
    for r in range(price.shape[0]):
        most = max(most, price[r] * t.room[r])
    for r in range(price.shape[0]):
        for s in range(price.shape[0]):
            hessian[r, s] = 0.0
        if price[r] > 0.0:
            hessian[r, r] = 1.0 / max(price[r] * t.room[r], 1e-3 * most)


@nopython
def _update(hessian: Floats, step: Floats, change: Floats) -> None:
    """BFGS update of the inverse Hessian (Nocedal & Wright, eq. 6.17)."""
    n = step.shape[0]
    curve = 0.0
    for r in range(n):
        curve += step[r] * change[r]
    if not curve > 1e-14:
        return
    moved = np.zeros(n)
    twice = 0.0
    for r in range(n):
        for s in range(n):
            moved[r] += hessian[r, s] * change[s]
        twice += change[r] * moved[r]
    for r in range(n):
        for s in range(n):
            hessian[r, s] += (1.0 + twice / curve) * step[r] * step[s] / curve
            hessian[r, s] -= (moved[r] * step[s] + step[r] * moved[s]) / curve


@nopython
def _slopes(t: Table, price: Floats, use: Floats, slope: Floats) -> None:
    """Gradient in log prices."""
    for r in range(price.shape[0]):
        slope[r] = price[r] * (t.room[r] - use[r])


@nopython
def _moved(price: Floats, step: Floats, faded: float, t: Table, new: Floats) -> None:
    """Write price * exp(step), rounded, into `new`; prices do not fall below what matters."""
    for r in range(price.shape[0]):
        new[r] = 0.0
        if price[r] > 0.0:
            new[r] = rounded(max(price[r] * math.exp(step[r]), faded / t.room[r]))


@nopython
def _aggregate(hessian: Floats, whole: Floats, other: Floats) -> None:
    """Whole = the shortest vector, in the metric of the inverse Hessian, between `whole` and `other`.

    At a kink no single subgradient points downhill; the shortest combination of those on its sides does
    (Wolfe 1975; Lemarechal's bundle methods with a bundle of two).
    """
    n = whole.shape[0]
    along = across = 0.0
    for r in range(n):
        row = 0.0
        for s in range(n):
            row += hessian[r, s] * (other[s] - whole[s])
        along -= whole[r] * row
        across += (other[r] - whole[r]) * row
    part = min(1.0, max(0.0, along / across)) if across > 0.0 else 0.0
    for r in range(n):
        whole[r] += part * (other[r] - whole[r])


@nopython
def _log_steps(price: Floats, new: Floats, step: Floats) -> None:
    """Step that was really made, in log prices."""
    for r in range(price.shape[0]):
        step[r] = math.log(new[r] / price[r]) if price[r] > 0.0 else 0.0


@nopython
def minimise(t: Table, start: Floats, evaluations: int, tolerance: float) -> Dual:
    """Minimise the dual from prices `start` (R,) within a number of evaluations.

    BFGS steps in log prices while they descend; where they do not, a kink is in the way and subgradients are
    combined. Stops early when little descent is left to hope for (`tolerance` of the bound). Every evaluation is a
    bound; the best is returned.
    """
    n, n_tasks = start.shape[0], t.order.shape[0]
    price, new = start.copy(), np.zeros(n)
    pick, net = np.empty(n_tasks, dtype=np.int64), np.empty(n_tasks)
    pick_new, net_new = np.empty(n_tasks, dtype=np.int64), np.empty(n_tasks)
    use, step, whole = np.empty(n + 1), np.empty(n), np.empty(n)
    slope, slope_new = np.empty(n), np.empty(n)
    hessian, screen = np.empty((n, n)), new_screen(t)
    bound = evaluate(t, price, screen, pick, net, use)
    _slopes(t, price, use, slope)
    _slopes(t, price, use, whole)
    _reset(t, price, hessian)
    used, longest, small = 1, LONGEST, 0
    while used < evaluations and small < PATIENCE:
        descent = _direction(hessian, whole, step, longest)
        if -descent < tolerance * bound * 0.1 and longest > 0.01:
            break
        _moved(price, step, FADED * bound, t, new)
        trial = evaluate(t, new, screen, pick_new, net_new, use)
        used += 1
        _slopes(t, new, use, slope_new)
        small = small + 1 if bound - trial < tolerance * bound else 0
        if trial > bound + ARMIJO * descent:
            _aggregate(hessian, whole, slope_new)
            longest = max(SHORTEST, 0.5 * min(longest, _greatest(step)))
            continue
        longest = min(LONGEST, 2.0 * longest)
        _log_steps(price, new, step)
        for r in range(n):
            whole[r] = slope_new[r]
            slope[r] = slope_new[r] - slope[r]
        _update(hessian, step, slope)
        bound = trial
        price, new = new, price
        slope, slope_new = slope_new, slope
        pick, pick_new = pick_new, pick
        net, net_new = net_new, net
    return Dual(bound, price, pick, net, used, used < evaluations)
