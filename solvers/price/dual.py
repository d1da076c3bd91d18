"""Minimising the dual over prices: a bundle in log prices with the smoothed second derivative as its metric.

Every evaluation is a proven bound, so what counts is how few find a good one. Where tasks are many and differ the dual
looks smooth, and Newton steps with the second derivative that a look estimates need a few. Where tasks are tied it has
kinks: there such a step overshoots, and the slopes kept from earlier looks tell the way down. Steps are in logarithms,
since a share falls with the root of its price, whatever the scale. The weights of the last direction say over which
choices tied tasks are to be dealt out (recovery.py). docs/model.md, section 3, and docs/decisions/0007.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers.jit import nopython
from solvers.price.oracle import Evaluation, evaluate, new_look
from solvers.price.point import Point
from solvers.price.screen import Screen
from solvers.price.tables import DEAD, OTHER, RIGID, Prices, Table, at_least, prices_of, rounded
from solvers.problem import Floats, Ints
from solvers.tolerances import (
    ARMIJO,
    DUAL_RIDGE,
    FADED_PRICE,
    FAINT_PRICE,
    LEAST_TRUST,
    MISMATCH,
    MISMATCH_TASKS,
    NEAR_CEILING,
    SETTLED_USE,
)

SAMPLE: Final = 2000  # tasks that the cold start looks at: about as many are enough to know the whole
SCALE_STEPS: Final = 24  # tangents tried for the common scale of the prices; 6 to 10 are used
LONGEST: Final = 2.0  # no log price moves by more in one step: a factor of 7
KEPT: Final = 6  # evaluations that the bundle keeps, above one per price
PAIRS: Final = 300  # pairs of weights that are balanced for one direction


class Dual(NamedTuple):
    """Result of the minimisation: the best bound, the prices (R,) it holds at, what was seen there."""

    bound: float
    price: Floats
    look: Evaluation
    evaluations: int
    converged: bool


@nopython
def worth(t: Table, price: Floats) -> float:
    """Price all room."""
    total = 0.0
    for r in range(price.shape[0]):
        total += price[r] * t.room[r]
    return total


@nopython
def _stride(t: Table) -> int:
    """Every how many tasks the cold start looks at one."""
    return max(1, t.most.shape[0] // SAMPLE)


@nopython
def _pull(t: Table, j: int, many: int, pull: Floats) -> None:
    """Add what one of `many` points of a task pulls at its resources."""
    if t.mode[j] != DEAD:
        for s in range(t.root.shape[1]):
            most = max(t.root[j, s], t.cell[j, OTHER, s], t.cell[j, RIGID, s])
            pull[t.slot[j, s]] += most / many


@nopython
def flat_prices(t: Table) -> Floats:
    """Prices (R,) at which the average point would just be held, each resource by itself: the cold start.

    With no deadline active the square of sum sqrt(work activity) / room clears a resource (docs/model.md, section 5).
    """
    n, stride = t.room.shape[0] - 1, _stride(t)
    pull = np.zeros(n + 1)
    for place in range(0, t.most.shape[0], stride):
        i = t.order[place]
        many = max(1, t.first[i + 1] - t.first[i])
        for j in range(t.first[i], t.first[i + 1]):
            _pull(t, j, many, pull)
    price = np.zeros(n)
    for c in range(t.link.shape[0]):
        pull[t.link[c, 1]] += math.sqrt(t.kappa[c]) * pull[t.link[c, 0]]
    for r in range(n):
        if t.room[r] > 0.0 and pull[r] > 0.0:
            price[r] = rounded((stride * pull[r] / t.room[r]) ** 2)
    return price


@nopython
def starting_prices(t: Table, warm: Floats) -> Floats:
    """Warm prices; a resource with demand but without a price gets a small one, so that logarithms exist."""
    whole, least = worth(t, warm), math.inf
    for r in range(warm.shape[0]):
        least = min(least, warm[r] * t.room[r])
    if 0.0 < whole < math.inf and least > FAINT_PRICE * whole:
        return warm.copy()
    flat = flat_prices(t)
    flat_whole = worth(t, flat)
    price = flat.copy()
    if 0.0 < whole < math.inf and flat_whole > 0.0:
        for r in range(warm.shape[0]):
            price[r] = rounded(max(warm[r], 1e-3 * flat[r] * whole / flat_whole)) if flat[r] > 0.0 else 0.0
    return price


@nopython
def _sampled_costs(t: Table, p: Prices, cost: Floats) -> float:
    """Lower bounds on the costs of the sampled tasks' points into cost (J,); returns the greatest value per cost."""
    high = 0.0
    for place in range(0, t.most.shape[0], _stride(t)):
        i = t.order[place]
        for j in range(t.first[i], t.first[i + 1]):
            if t.mode[j] != DEAD:
                cost[j] = at_least(t, j, p)
                if cost[j] > 0.0:
                    high = max(high, t.value[j] / cost[j])
    return high


@nopython
def _slope(t: Table, cost: Floats, scale: float) -> tuple[float, float]:
    """Dual function along a ray, less the term of the room: (sum of net values, minus its slope)."""
    total = spent = 0.0
    stride = _stride(t)
    for place in range(0, t.most.shape[0], stride):
        i = t.order[place]
        net, paid = 0.0, 0.0
        for j in range(t.first[i], t.first[i + 1]):
            if t.mode[j] != DEAD:
                gain = t.value[j] - scale * cost[j]
                if gain > net or (gain == net and cost[j] < paid):
                    net, paid = gain, cost[j]
        total += net
        spent += paid
    return stride * total, stride * spent


@nopython
def best_scale(t: Table, price: Floats) -> float:
    """Factor on all prices that minimises the dual: shares do not depend on it, so costs are computed once.

    Along the ray the dual is convex and piecewise linear: cut where the tangents of the two ends meet. Lower bounds
    of the costs will do here. 0 when everything fits at these price ratios.
    """
    cost = np.empty(t.value.shape[0])
    high = _sampled_costs(t, prices_of(t, price), cost)
    room = worth(t, price)
    low = 0.0
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


class Bundle(NamedTuple):
    """Linear functions below the dual, one per evaluation kept: level + slope price (in prices, not in logs)."""

    slope: Floats  # (M, R)
    level: Floats  # (M,)
    weight: Floats  # (M,) in the last direction; < 0: empty
    pick: Ints  # (M, N) what tasks chose


@nopython
def new_bundle(t: Table) -> Bundle:
    """Nothing kept."""
    n = t.room.shape[0] - 1
    many = n + KEPT
    return Bundle(
        np.zeros((many, n)), np.zeros(many), np.full(many, -1.0), np.empty((many, t.most.shape[0]), dtype=np.int64)
    )


@nopython
def _keep(bundle: Bundle, t: Table, price: Floats, value: float, look: Evaluation) -> None:
    """Put an evaluation into the bundle, in place of the one that counted least."""
    place = 0
    for m in range(bundle.weight.shape[0]):
        if bundle.weight[m] < bundle.weight[place]:
            place = m
    bundle.level[place], bundle.weight[place] = value, 0.0
    for r in range(price.shape[0]):
        bundle.slope[place, r] = t.room[r] - look.use[r]
        bundle.level[place] -= bundle.slope[place, r] * price[r]
    bundle.weight[place] = math.inf  # the next direction must look at it
    for i in range(look.pick.shape[0]):
        bundle.pick[place, i] = look.pick[i]


@nopython
def _moves(bundle: Bundle, hessian: Floats, price: Floats, moved: Floats, product: Floats) -> None:
    """Each function's own step -hessian slope (M, R), slopes in log prices, and the slopes' products in that metric."""
    n, many = price.shape[0], bundle.weight.shape[0]
    for m in range(many):
        for r in range(n):
            for s in range(n):
                moved[m, r] -= hessian[r, s] * bundle.slope[m, s] * price[s]
    for m in range(many):
        for k in range(many):
            for r in range(n):
                product[m, k] -= moved[k, r] * bundle.slope[m, r] * price[r]


@nopython
def _below(bundle: Bundle, m: int, price: Floats, bound: float) -> float:
    """How far function m lies below the dual, which is `bound` at `price`; inf for an empty place."""
    if bundle.weight[m] < 0.0:
        return math.inf
    here: float = bundle.level[m]
    for r in range(price.shape[0]):
        here += bundle.slope[m, r] * price[r]
    return max(0.0, bound - here)


@nopython
def _direction(bundle: Bundle, hessian: Floats, price: Floats, bound: float, step: Floats) -> float:
    """Best step in log prices from `price`, where the dual is `bound`; returns the descent it promises (< 0).

    The shortest combination of the bundle's slopes in the metric of the inverse Hessian, each burdened with how far
    its function lies below the dual here: the dual form of the proximal bundle step (Lemarechal & Sagastizabal 1997).
    """
    n, many = price.shape[0], bundle.weight.shape[0]
    moved, product, burden = np.zeros((many, n)), np.zeros((many, many)), np.empty(many)
    for m in range(many):
        burden[m] = _below(bundle, m, price, bound)
    _moves(bundle, hessian, price, moved, product)
    _weigh(product, burden, bundle.weight)
    descent = 0.0
    for r in range(n):
        step[r] = 0.0
        for m in range(many):
            step[r] += max(0.0, bundle.weight[m]) * moved[m, r]
        descent += step[r] * _along(bundle, price, r)
    for m in range(many):
        if bundle.weight[m] > 0.0:
            descent -= bundle.weight[m] * burden[m]
    return descent


@nopython
def _along(bundle: Bundle, price: Floats, r: int) -> float:
    """Slope of the combination in log price r."""
    total = 0.0
    for m in range(bundle.weight.shape[0]):
        if bundle.weight[m] > 0.0:
            total += bundle.weight[m] * bundle.slope[m, r] * price[r]
    return total


@nopython
def _mismatch(bundle: Bundle, price: Floats) -> float:
    """Worth of what the combination's use is off the room."""
    total = 0.0
    for r in range(price.shape[0]):
        total += abs(_along(bundle, price, r))
    return total


@nopython
def _weigh(product: Floats, burden: Floats, weight: Floats) -> None:
    """Minimise weight' product weight / 2 + burden' weight over the simplex, two weights at a time."""
    many = weight.shape[0]
    first = 0
    for m in range(many):
        if burden[m] < burden[first]:
            first = m
    rise = burden.copy()  # gradient
    for m in range(many):
        rise[m] += product[m, first]
        weight[m] = -1.0 if math.isinf(burden[m]) else 0.0
    weight[first] = 1.0
    for _ in range(PAIRS):
        high, low, part = _best_pair(product, rise, weight)
        if low < 0:
            break
        weight[low] += part
        weight[high] -= part
        for m in range(many):
            rise[m] += part * (product[m, low] - product[m, high])


@nopython
def _best_pair(product: Floats, rise: Floats, weight: Floats) -> tuple[int, int, float]:
    """The weight whose gradient is greatest, the one that gains most by some of it (-1: none), and how much.

    By the gain, not by the least gradient: with nearly parallel slopes that would take thousands of pairs
    (Fan, Chen & Lin 2005, working set selection 2).
    """
    high, low, moved, most = 0, -1, 0.0, 0.0
    for m in range(weight.shape[0]):
        if weight[m] > 0.0 and (weight[high] <= 0.0 or rise[m] > rise[high]):
            high = m
    for m in range(weight.shape[0]):
        gap = rise[high] - rise[m]
        if weight[m] >= 0.0 and gap > 1e-12 * abs(rise[high]):
            curve = max(0.0, product[m, m] + product[high, high] - 2.0 * product[m, high])
            part = min(weight[high], gap / curve) if curve > 0.0 else weight[high]
            gain = part * (gap - 0.5 * part * curve)
            if gain > most:
                low, moved, most = m, part, gain
    return high, low, moved


@nopython
def _shorten(step: Floats, limit: float) -> float:
    """Scale a step so that no component is beyond `limit`; returns the factor."""
    longest = _greatest(step)
    factor = limit / longest if longest > limit else 1.0
    for r in range(step.shape[0]):
        step[r] *= factor
    return factor


@nopython
def _greatest(step: Floats) -> float:
    most = 0.0
    for r in range(step.shape[0]):
        most = max(most, abs(step[r]))
    return most


@nopython
def _moved(price: Floats, step: Floats, faded: float, t: Table, new: Floats) -> None:
    """Write price * exp(step), rounded, into `new`; prices do not fall below what matters."""
    for r in range(price.shape[0]):
        new[r] = 0.0
        if price[r] > 0.0:
            new[r] = rounded(max(price[r] * math.exp(step[r]), faded / t.room[r]))


@nopython
def _invert(matrix: Floats, inverse: Floats) -> None:
    """Inverse of a symmetric positive definite matrix, which is used up (Gauss and Jordan, no pivoting)."""
    n = matrix.shape[0]
    for r in range(n):
        for c in range(n):
            inverse[r, c] = 1.0 if r == c else 0.0
    for k in range(n):
        pivot = matrix[k, k]
        for c in range(n):
            matrix[k, c] /= pivot
            inverse[k, c] /= pivot
        for r in range(n):
            part = matrix[r, k]
            if r != k and part != 0.0:
                for c in range(n):
                    matrix[r, c] -= part * matrix[k, c]
                    inverse[r, c] -= part * inverse[k, c]


@nopython
def _metric(t: Table, price: Floats, bend: Floats, inverse: Floats) -> None:
    """Inverse of the second derivative, made definite: a resource by itself bends by about price x room / 2."""
    n = price.shape[0]
    matrix, whole = bend.copy(), worth(t, price)
    for r in range(n):
        matrix[r, r] += DUAL_RIDGE * price[r] * t.room[r] + 1e-6 * whole
        if price[r] <= 0.0:
            matrix[r, r] = 1.0
    _invert(matrix, inverse)


@nopython
def minimise(
    t: Table, start: Dual, ceiling: float, screen: Screen, bundle: Bundle, limits: tuple[int, float], o: Point
) -> Dual:
    """Minimise the dual from `start`; limits: a number of evaluations, those of `start` counted, and a tolerance.

    A proximal bundle in log prices: where the dual looks smooth its steps are Newton's with the second derivative
    that a look estimates, at kinks the bundle finds the way down. Stops when the descent promised is below the
    tolerance of the bound (or of its distance from the `ceiling`, its value at prices 0: there a small part of the
    bound is many tasks) and use is near the room. Every evaluation is a bound; the best is returned. `bundle`
    (written) ends with the weights whose combination of uses is about the room.
    """
    n = start.price.shape[0]
    price, new, look, other, bound = start.price.copy(), np.zeros(n), start.look, new_look(t), start.bound
    step, inverse = np.empty(n), np.empty((n, n))
    loose = MISMATCH + MISMATCH_TASKS / max(1, t.most.shape[0])
    for m in range(bundle.weight.shape[0]):
        bundle.weight[m] = -1.0
    _keep(bundle, t, price, bound, look)
    _metric(t, price, look.bend, inverse)
    used, longest, converged = start.evaluations, LONGEST, False
    while used < limits[0]:
        descent = _direction(bundle, inverse, price, bound, step)
        least = limits[1] * min(bound, 10.0 * abs(ceiling - bound) + NEAR_CEILING * bound)
        matched = _mismatch(bundle, price) <= loose * worth(t, price) or -descent <= SETTLED_USE * least
        converged = matched and -descent <= least
        if converged:
            break
        descent *= _shorten(step, longest)
        _moved(price, step, FADED_PRICE * bound, t, new)
        trial = evaluate(t, new, screen, other, o)
        used += 1
        _keep(bundle, t, new, trial, other)
        if trial > bound + ARMIJO * descent:
            longest = max(LEAST_TRUST, 0.5 * min(longest, _greatest(step)))
            continue
        longest = min(LONGEST, 2.0 * longest)
        bound = trial
        price, new = new, price
        look, other = other, look
        _metric(t, price, look.bend, inverse)
    return Dual(bound, price, look, used, converged)
