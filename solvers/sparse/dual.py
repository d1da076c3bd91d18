"""Least prices where resources are many: the dual with every task's choice blurred, by limited-memory steps.

The bundle (price/dual.py) keeps matrices of resources x resources and, to know its way at kinks, as many evaluations
as there are prices: some dozens of resources, not thousands. Here a task's best net value is replaced by
`T log(1 + sum exp(net / T))`, T a small part of its greatest value, which is smooth and never below it: every look
gives a proven bound beside it. Limited-memory BFGS steps in log prices (Liu & Nocedal 1989), scaled by the second
derivative's diagonal, make it least at a temperature T that falls. What tasks choose, blurred, is a fractional plan.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers.jit import lean, nopython
from solvers.price.dual import worth
from solvers.price.point import Point, legs, price_point
from solvers.price.tables import DEAD, RIGID, Prices, Table, at_least, prices_of, rounded, with_couplings
from solvers.problem import Floats
from solvers.tolerances import MATCHED, SPARSE_ARMIJO, SPARSE_CALM, SPARSE_FADED, SPARSE_RIDGE

HEATS: Final = (0.05, 0.015, 0.004)  # temperatures, parts of a task's greatest value
STEPS: Final = 100  # looks at one temperature at most; 10 to 40 are used
BEYOND: Final = 18.0  # temperatures below the best: exp(-18) is nothing
MEMORY: Final = 12  # steps that are remembered
LONGEST: Final = 1.0  # no log price moves by more in one step
HALVES: Final = 8  # of a step
PATIENCE: Final = 3  # ... so often in a row, the prices are settled


class Blur(NamedTuple):
    """What a look at a temperature sees; written in place."""

    use: Floats  # (R + 1,) of the blurred choices
    rigid: Floats  # (R + 1,) its part that no share makes
    bend: Floats  # (R,) second derivative's diagonal in log prices
    net: Floats  # (most points of a task,) scratch: value less cost, -inf where it does not matter
    counted: Floats  # (most points of a task, S) scratch: counted shares
    mean: Floats  # (R + 1,) scratch: what a task pays to each resource


class Tail(NamedTuple):
    """The last steps in log prices and what they did to the gradient, oldest first from `head`."""

    step: Floats  # (MEMORY, R)
    rise: Floats  # (MEMORY, R)
    scale: Floats  # (MEMORY,) 1 / (step . rise); 0: empty


class Least(NamedTuple):
    """Where it ends: the least bound seen with its prices (R,), the last prices (R,), how often it looked."""

    bound: float
    price: Floats
    last: Floats
    looks: int
    converged: bool


@nopython
def new_blur(t: Table) -> Blur:
    """Nothing seen."""
    n, longest = t.room.shape[0], 1
    for i in range(t.most.shape[0]):
        longest = max(longest, t.first[i + 1] - t.first[i])
    net, counted = np.zeros(longest), np.zeros((longest, t.root.shape[1]))
    return Blur(np.zeros(n), np.zeros(n), np.zeros(n - 1), net, counted, np.zeros(n))


@lean
def nets(t: Table, i: int, p: Prices, reach: float, b: Blur, o: Point) -> float:
    """Net values of task i's points into b.net, their counted shares into b.counted; returns the best, or 0.

    Points that are worse than the best by more than `reach` for sure are not looked at: -inf.
    """
    first, top, likely = t.first[i], 0.0, -1
    best = -math.inf
    for j in range(first, t.first[i + 1]):
        b.net[j - first] = t.value[j] - at_least(t, j, p) if t.mode[j] != DEAD else -math.inf
        if b.net[j - first] > best:
            best, likely = b.net[j - first], j
    if likely >= 0:
        top = max(0.0, t.value[likely] - price_point(t, i, likely, p, o))
    for j in range(first, t.first[i + 1]):
        if b.net[j - first] < top - reach or t.mode[j] == DEAD:
            b.net[j - first] = -math.inf
            continue
        b.net[j - first] = t.value[j] - price_point(t, i, j, p, o)
        top = max(top, b.net[j - first])
        for s in range(o.y.shape[0]):
            b.counted[j - first, s] = o.y[s]
    return top


@lean
def _count(t: Table, j: int, part: float, heat: float, p: Prices, b: Blur, o: Point) -> None:
    """Add `part` of point j, whose counted shares are in o.y, to use, second derivative and the task's mean."""
    free, many = 0.0, legs(t, o, p)
    for m in range(many):
        free += o.paid[m]
    for m in range(many):
        r, paid = o.leg[m], o.paid[m]
        b.mean[r] += part * paid
        b.bend[r] += part * paid * (paid / heat + 0.5 * (1.0 - paid / free))
    for s in range(o.y.shape[0]):
        r = t.slot[j, s]
        b.use[r] += part * o.y[s]
        if t.cell[j, RIGID, s] > 0.0 and r < b.bend.shape[0]:
            paid = p.rigid[r] * t.cell[j, RIGID, s]
            b.rigid[r] += part * t.cell[j, RIGID, s]
            b.mean[r] += part * paid
            b.bend[r] += part * paid * paid / heat


@lean
def _less_mean(t: Table, i: int, heat: float, b: Blur) -> None:
    """Take the square of what task i pays on average from the second derivative: a clear choice does not waver."""
    for j in range(t.first[i], t.first[i + 1]):
        for s in range(t.slot.shape[1]):
            r = t.slot[j, s]
            if r < b.bend.shape[0] and b.mean[r] != 0.0:
                b.bend[r] -= b.mean[r] ** 2 / heat
                b.mean[r] = 0.0
            for c in range(t.link.shape[0]):
                if t.link[c, 0] == r and b.mean[t.link[c, 1]] != 0.0:
                    b.bend[t.link[c, 1]] -= b.mean[t.link[c, 1]] ** 2 / heat
                    b.mean[t.link[c, 1]] = 0.0


@nopython
def blurred(t: Table, price: Floats, heat: float, b: Blur, o: Point) -> tuple[float, float]:
    """Return (dual with blurred choices, proven bound) at prices (R,); `heat`: part of a task's greatest value."""
    n, p, total, bound = price.shape[0], prices_of(t, price), 0.0, 0.0
    for r in range(n):
        bound += price[r] * t.room[r]
        b.use[r] = b.use[n] = b.rigid[r] = b.rigid[n] = b.bend[r] = b.mean[r] = 0.0
    for i in t.order:
        if t.most[i] <= 0.0:
            continue
        warm = heat * t.most[i]
        top, first = nets(t, i, p, BEYOND * warm, b, o), t.first[i]
        whole = math.exp(-top / warm)
        for m in range(t.first[i + 1] - first):
            whole += math.exp((b.net[m] - top) / warm)
        bound += top
        total += warm * math.log(whole)
        for m in range(t.first[i + 1] - first):
            part = math.exp((b.net[m] - top) / warm) / whole
            if part > 0.0:
                for s in range(o.y.shape[0]):
                    o.slot[s], o.y[s] = t.slot[first + m, s], b.counted[m, s]
                _count(t, first + m, part, warm, p, b, o)
        _less_mean(t, i, warm, b)
    with_couplings(t, b.use)
    for r in range(n):
        b.use[r] += b.rigid[r]
        b.bend[r] = max(0.0, b.bend[r]) + SPARSE_RIDGE * price[r] * t.room[r]
    return bound + total, bound


@nopython
def _slope(t: Table, price: Floats, b: Blur, slope: Floats) -> float:
    """Gradient in log prices into slope (R,); returns the worth of what use is off the room."""
    off = 0.0
    for r in range(price.shape[0]):
        slope[r] = price[r] * (t.room[r] - b.use[r])
        off += abs(slope[r])
    return off


@lean
def _dot(a: Floats, b: Floats) -> float:
    total = 0.0
    for r in range(a.shape[0]):
        total += a[r] * b[r]
    return total


@nopython
def descent(tail: Tail, head: int, slope: Floats, bend: Floats, step: Floats) -> float:
    """Step in log prices by the two loops of limited-memory BFGS, none longer than LONGEST; returns its slope (< 0)."""
    part, n = np.zeros(MEMORY), slope.shape[0]
    for r in range(n):
        step[r] = -slope[r]
    for back in range(MEMORY):
        m = (head - 1 - back) % MEMORY
        part[m] = tail.scale[m] * _dot(tail.step[m], step)
        for r in range(n):
            step[r] -= part[m] * tail.rise[m, r]
    for r in range(n):
        step[r] = step[r] / bend[r] if bend[r] > 0.0 else 0.0
    for on in range(MEMORY):
        m = (head + on) % MEMORY
        more = part[m] - tail.scale[m] * _dot(tail.rise[m], step)
        for r in range(n):
            step[r] += more * tail.step[m, r]
    for r in range(n):
        step[r] = min(LONGEST, max(-LONGEST, step[r]))
    return _dot(step, slope)


@nopython
def remember(tail: Tail, head: int, old: Floats, new: Floats, before: Floats, after: Floats) -> int:
    """Keep a step from prices `old` to `new` and what it did to the gradient; returns the next head."""
    for r in range(old.shape[0]):
        tail.step[head, r] = math.log(new[r] / old[r]) if old[r] > 0.0 and new[r] > 0.0 else 0.0
        tail.rise[head, r] = after[r] - before[r]
    curve = _dot(tail.step[head], tail.rise[head])
    if curve <= 1e-12 * _dot(tail.step[head], tail.step[head]):
        tail.scale[head] = 0.0
        return head
    tail.scale[head] = 1.0 / curve
    return (head + 1) % MEMORY


@nopython
def moved(t: Table, price: Floats, step: Floats, part: float, new: Floats) -> None:
    """Prices (R,) a part of a step away, rounded, none below what matters."""
    least = SPARSE_FADED * worth(t, price)
    for r in range(price.shape[0]):
        new[r] = 0.0
        if price[r] > 0.0 and t.room[r] > 0.0:
            new[r] = rounded(max(price[r] * math.exp(part * step[r]), least / t.room[r]))


@nopython
def _at_heat(t: Table, start: Least, heat: float, most: int, b: Blur, o: Point) -> Least:
    """Make the blurred dual least at one temperature, from where the last one ended."""
    n, price, least, best = start.last.shape[0], start.last.copy(), start.bound, start.price.copy()
    tail = Tail(np.zeros((MEMORY, n)), np.zeros((MEMORY, n)), np.zeros(MEMORY))
    slope, then, step, new = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    height, bound = blurred(t, price, heat, b, o)
    off, head, calm, looks = _slope(t, price, b, slope), 0, 0, start.looks + 1
    while looks < most and calm < PATIENCE and off > MATCHED * worth(t, price):
        if bound < least:
            least = bound
            best[:] = price
        falls, part, before = descent(tail, head, slope, b.bend, step), 1.0, height
        if falls >= 0.0:  # what is remembered misleads: the diagonal alone
            tail.scale[:] = 0.0
            falls = descent(tail, head, slope, b.bend, step)
        for _ in range(HALVES):
            moved(t, price, step, part, new)
            height, bound = blurred(t, new, heat, b, o)
            looks += 1
            if height <= before + SPARSE_ARMIJO * part * falls or looks >= most:
                break
            part *= 0.4
        off = _slope(t, new, b, then)
        head = remember(tail, head, price, new, slope, then)
        calm = calm + 1 if before - height < SPARSE_CALM * abs(height) else 0
        price[:], slope[:] = new, then
    if bound < least:
        least = bound
        best[:] = price
    return Least(least, best, price, looks, off <= MATCHED * worth(t, price) or calm >= PATIENCE)


@nopython
def least_prices(t: Table, start: Floats, most: int, o: Point) -> Least:
    """Prices (R,) of a small bound, from `start`, within `most` looks; blurred ones of the last temperature besides."""
    b, found = new_blur(t), Least(math.inf, start.copy(), start.copy(), 0, False)
    for heat in HEATS:
        if found.looks == 0 or found.looks < most:
            found = _at_heat(t, found, heat, most, b, o)
    return found
