"""Cheapest shares of points with power-limited slots at prices (solvers/power.py): one variable at a time.

With v = snr / x, the latency of a limited slot is work x log(1 + snr) / snr x h(v), h(v) = v / log(1 + v). The share
x that minimises price x + m x latency has v^2 h'(v) = price snr^2 / (m work log(1 + snr)); the left side only rises,
and one function inverts it. Around it, Newton on the multiplier m that holds the deadline.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from solvers.jit import cached, inlined, nopython
from solvers.problem import Floats

STEPS: Final = 60  # of a search in one number; 3 to 8 are used
FINE: Final = 1e-13  # where it ends
EVEN: Final = 1e-9  # difference of two latencies over deadlines at which phases are in balance: its square is lost
DEEP: Final = -200.0  # logarithms between which multipliers are sought
TALL: Final = 200.0
SMALL: Final = 1e-2  # v up to which h is its series: above, the difference of logarithms is exact to 1e-12


class Points(NamedTuple):
    """J points, S slots, two phases."""

    a: Floats  # (J, 2, S) work / slack
    snr: Floats  # (J, S) inf: rate in proportion to the share
    pay: Floats  # (J, S) price of a share
    floor: Floats  # (J, S)
    cap: Floats  # (J, S)


@inlined
def steepness(v: float) -> tuple[float, float]:
    """h'(v) and v h''(v) / h'(v) of h(v) = v / log(1 + v); v >= 0."""
    if v < SMALL:  # Gregory's coefficients
        first = 1 / 2 - v * (1 / 6 - v * (1 / 8 - v * (19 / 180 - v * (3 / 32 - v * 863 / 10080))))
        second = -1 / 6 + v * (1 / 4 - v * (19 / 60 - v * (3 / 8 - v * 863 / 2016)))
        return first, v * second / first
    rise, part = math.log1p(v), 1.0 / (1.0 + v)
    first = (1.0 - v * part / rise) / rise
    second = (2.0 * v * part / rise - 1.0 - part) * part / (rise * rise)
    return first, v * second / first


@nopython
def _invert(c: float) -> tuple[float, float]:
    """V with v^2 h'(v) = c > 0, and the slope of the logarithm of the left side in that of v (1 to 2)."""
    z, slope = 0.5 * math.log(2.0 * c), 2.0
    for _ in range(STEPS):
        v = math.exp(z)
        first, bend = steepness(v)
        slope = 2.0 + bend
        step = (math.log(c / first) - 2.0 * z) / slope
        z += step
        if abs(step) <= FINE * max(1.0, abs(z)):
            break
    return math.exp(z), slope


@inlined
def unit_latency(snr: float, x: float) -> float:
    """Latency at share x over that at full share."""
    return 1.0 / x if math.isinf(snr) else math.log1p(snr) / (x * math.log1p(snr / x))


@nopython
def _slot(p: Points, j: int, s: int, price: float) -> tuple[float, float, float]:
    """Share that is cheapest where a unit of latency of one unit of work costs 1 / price: (x, latency, its slope).

    Latency per unit of work; its slope is that in the logarithm of the multiplier.
    """
    snr, low, high = p.snr[j, s], p.floor[j, s], p.cap[j, s]
    x, slope = high, 2.0
    if price > 0.0 and math.isinf(snr):
        x = 1.0 / math.sqrt(price)
    elif price > 0.0:
        v, slope = _invert(price * snr * snr / math.log1p(snr))
        x = snr / v
    inside = low < x < high
    x = min(high, max(low, x))
    late = unit_latency(snr, x)
    if not inside:
        return x, late, 0.0
    first = 1.0 if math.isinf(snr) else math.log1p(snr) * steepness(snr / x)[0]
    return x, late, -first / (x * slope)


@nopython
def _at(p: Points, j: int, theta: float, m: float, x: Floats) -> tuple[float, float]:
    """Shares (S,) into x for the mixture and the multiplier m: (mixed latency over deadline, slope in log m)."""
    late = slope = 0.0
    for s in range(x.shape[0]):
        a = theta * p.a[j, 0, s] + (1.0 - theta) * p.a[j, 1, s]
        x[s] = p.floor[j, s]
        if a > 0.0:
            x[s], each, moves = _slot(p, j, s, p.pay[j, s] / (m * a))
            late += a * each
            slope += a * moves
    return late, slope


@nopython
def _hold(p: Points, j: int, theta: float, x: Floats) -> tuple[float, float]:
    """Cheapest shares (S,) that hold the mixed deadline, into x: (cost proven, difference of the phases' latencies).

    The cost is the Lagrangian's least value: a lower bound on the cost of both deadlines for any mixture, multiplier.
    """
    start, most = 0.0, 0.0
    for s in range(x.shape[0]):
        start += math.sqrt((theta * p.a[j, 0, s] + (1.0 - theta) * p.a[j, 1, s]) * p.pay[j, s])
        most += p.pay[j, s] * p.cap[j, s]
    z, least, top = 2.0 * math.log(max(start, math.exp(0.5 * DEEP))), DEEP, TALL
    m, late = 0.0, 0.0
    for _ in range(STEPS):
        m = math.exp(z)
        late, slope = _at(p, j, theta, m, x)
        if abs(late - 1.0) <= FINE:
            break
        if late > 1.0:
            least = z
        else:
            top = z
        new = z - late * math.log(late) / slope if slope < 0.0 else math.nan
        if not least < new < top:
            new = 0.5 * (least + top)
        if new == z:
            break
        z = new
    cost = m * (late - 1.0)
    for s in range(x.shape[0]):
        cost += p.pay[j, s] * x[s]
    cost = min(cost, most)  # the caps hold the deadline
    return cost, _gap(p, j, x)


@inlined
def _gap(p: Points, j: int, x: Floats) -> float:
    """Latency over deadline of the first phase, less the second's."""
    gap = 0.0
    for s in range(x.shape[0]):
        d = p.a[j, 0, s] - p.a[j, 1, s]
        if d != 0.0:
            gap += d * unit_latency(p.snr[j, s], x[s])
    return gap


@nopython
def _balance(p: Points, j: int, x: Floats) -> float:
    """Cheapest shares that hold both deadlines, into x; returns their cost, proven."""
    cost, gap = _hold(p, j, 1.0, x)
    if gap >= -EVEN:
        return cost
    low, high, gaps, kept = 0.0, 1.0, (0.0, gap), 0
    best, gap = _hold(p, j, 0.0, x)
    if gap <= EVEN:
        return best
    best, gaps = max(best, cost), (gap, gaps[1])
    for step in range(STEPS):
        theta = (low * gaps[1] - high * gaps[0]) / (gaps[1] - gaps[0])  # false position (Illinois)
        if step > STEPS // 2 or not low < theta < high:
            theta = 0.5 * (low + high)
        cost, gap = _hold(p, j, theta, x)
        best = max(best, cost)
        if abs(gap) <= EVEN:
            break
        if gap > 0.0:
            low, gaps, kept = theta, (gap, 0.5 * gaps[1] if kept > 0 else gaps[1]), 1
        else:
            high, gaps, kept = theta, (0.5 * gaps[0] if kept < 0 else gaps[0], gap), -1
    return best


@cached
def cheapest(p: Points, share: Floats, cost: Floats) -> None:
    """Fill share (J, S) and cost (J,), which holds inf where a point cannot be served at all: these stay."""
    for j in range(cost.shape[0]):
        if cost[j] < math.inf:
            cost[j] = _balance(p, j, share[j])
