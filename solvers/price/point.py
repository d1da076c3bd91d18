"""The cheapest shares of one point at given prices (docs/model.md, section 2).

Asked for millions of times, so all is closed form where it can be: where one phase binds and no limit is in the way,
shares are products of the table's roots (Cauchy-Schwarz). Where floors or caps are, the side that errs more is fixed
and the rest solved again, which is exact after a few rounds. With two phases the cost is the greatest over theta of
that of one phase with the two mixed, concave in theta: a search for the root of its slope, which begins where it ended
last time. Any theta gives a lower bound, so the dual's bound is proven wherever a search stops. `Point` is scratch.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers.jit import lean, merged, nopython
from solvers.price.tables import ACTIVITY, DOUBLE, HIGH, LOW, OTHER, Prices, Table, rigid_bill
from solvers.problem import Floats, Ints

ROOT_STEPS: Final = 60  # of the search between two phases; about 8 are used
NEAR: Final = 0.1  # how far around the last theta the search between two phases looks first

# What Point.cell holds: cell[PART, s].
A: Final = 0  # work / slack, two phases; where one phase binds always it comes first
FLOOR: Final = 2
CAP: Final = 3
ACT: Final = 4
PARTS: Final = 5


class Point(NamedTuple):
    """Scratch for one point."""

    slot: Ints  # (S,)
    cell: Floats  # (PARTS, S)
    x: Floats  # (S,) shares
    y: Floats  # (S,) counted shares
    work: Floats  # (2, S)
    leg: Ints  # (S (1 + C),) resources that its shares are paid to, see `legs`
    paid: Floats  # (S (1 + C),) ... and how much


@nopython
def new_point(t: Table) -> Point:
    """Scratch for the points of a table."""
    n = t.slot.shape[1]
    m = n * (1 + t.link.shape[0])
    x, y, work = np.zeros(n), np.zeros(n), np.zeros((2, n))
    return Point(np.zeros(n, dtype=np.int64), np.zeros((PARTS, n)), x, y, work, np.zeros(m, np.int64), np.zeros(m))


@lean
def load(t: Table, j: int, o: Point) -> None:
    """Put point j into the scratch."""
    for s in range(o.x.shape[0]):
        act = t.cell[j, ACTIVITY, s]
        o.slot[s] = t.slot[j, s]
        o.cell[FLOOR, s], o.cell[CAP, s], o.cell[ACT, s] = t.cell[j, LOW, s] / act, t.cell[j, HIGH, s] / act, act
        o.cell[A, s], o.cell[A + 1, s] = t.root[j, s] ** 2 / act, t.cell[j, OTHER, s] ** 2 / act


@lean
def _price_exactly(t: Table, i: int, j: int, p: Prices, o: Point) -> float:
    """As price_point, where a limit or a second phase is in the way."""
    load(t, j, o)
    theta, _ = cheapest(o, t.mode[j] == DOUBLE, t.theta[i], p)
    cost = rigid_bill(t, j, p) + bill(o, p, o.x)
    if t.mode[j] == DOUBLE:
        t.theta[i] = theta
        stretch(o)
    for s in range(o.y.shape[0]):
        o.y[s] = o.cell[ACT, s] * o.x[s]
    return cost


@lean
def price_point(t: Table, i: int, j: int, p: Prices, o: Point) -> float:
    """Cost of point j of task i at prices, a proven lower bound that is exact but for rounding.

    Leaves the point's slots and its counted shares in the scratch.
    """
    if t.mode[j] != DOUBLE:
        total, inside = 0.0, True
        for s in range(o.y.shape[0]):
            o.slot[s] = t.slot[j, s]
            total += t.root[j, s] * p.root[o.slot[s]]
        for s in range(o.y.shape[0]):
            o.y[s] = t.root[j, s] * total * p.back[o.slot[s]]
            inside = inside and t.cell[j, LOW, s] <= o.y[s] <= t.cell[j, HIGH, s]
        if inside:
            return rigid_bill(t, j, p) + total * total
    return _price_exactly(t, i, j, p, o)


@lean
def legs(t: Table, o: Point, p: Prices) -> int:
    """List what counted shares o.y pay: o.paid to resource o.leg each, couplings too; returns how many."""
    many = 0
    for s in range(o.y.shape[0]):
        if o.y[s] > 0.0 and o.slot[s] < p.rigid.shape[0] - 1:
            o.leg[many], o.paid[many] = o.slot[s], p.rigid[o.slot[s]] * o.y[s]
            many += 1
            for c in range(t.link.shape[0]):
                if t.link[c, 0] == o.slot[s]:
                    target = t.link[c, 1]
                    o.leg[many], o.paid[many] = target, p.rigid[target] * t.kappa[c] * o.y[s]
                    many += 1
    return many


@merged
def mixed(o: Point, s: int, theta: float) -> float:
    """Work over slack of slot s, the two phases weighted theta and 1 - theta."""
    return float(theta * o.cell[A, s] + (1.0 - theta) * o.cell[A + 1, s])


@merged
def latency(o: Point, q: int, x: Floats) -> float:
    """Latency over slack of phase q."""
    total = 0.0
    for s in range(x.shape[0]):
        if o.cell[A + q, s] > 0.0:
            total += o.cell[A + q, s] / x[s]
    return total


@merged
def bill(o: Point, p: Prices, x: Floats) -> float:
    """Price of the shares x (S,), without rigid demand."""
    total = 0.0
    for s in range(x.shape[0]):
        total += p.share[o.slot[s]] * o.cell[ACT, s] * x[s]
    return total


@lean
def cheapest(o: Point, double: bool, hint: float, p: Prices) -> tuple[float, float]:
    """Cheapest shares of the loaded point into o.x.

    Returns (theta; y = 1 / sqrt(multiplier of the deadline), inf where floors alone meet it). With two phases the
    shares may miss a deadline by rounding until they are stretched (`stretch`); before, their bill is a lower bound.
    """
    if double:
        return _two_phases(o, p, hint)
    return 1.0, one_phase(o, 1.0, p)


@lean
def stretch(o: Point) -> None:
    """Make both deadlines hold to the last bit; also where next to free shares hide a phase from theta.

    All shares grow alike; what caps hold back the others make up for.
    """
    for _ in range(o.x.shape[0]):
        late = max(_missing(o, 0), _missing(o, 1))
        if late <= 1.0:
            return
        for s in range(o.x.shape[0]):
            if max(o.cell[A, s], o.cell[A + 1, s]) > 0.0:
                o.x[s] = min(o.x[s] * late, o.cell[CAP, s])


@merged
def _missing(o: Point, q: int) -> float:
    """Latency of phase q at the shares below their caps, over what those at their caps leave of its slack."""
    rest, left = 0.0, 1.0
    for s in range(o.x.shape[0]):
        if o.cell[A + q, s] > 0.0:
            if o.x[s] < o.cell[CAP, s]:
                rest += o.cell[A + q, s] / o.x[s]
            else:
                left -= o.cell[A + q, s] / o.x[s]
    if rest == 0.0:
        return 0.0
    return rest / left if left > 0.0 else math.inf


@lean
def one_phase(o: Point, theta: float, p: Prices) -> float:
    """Cheapest shares under ONE deadline, the phases mixed by theta; returns y. `work[0]` holds sqrt(a price)."""
    total = 0.0
    for s in range(o.x.shape[0]):
        paid = o.cell[ACT, s] * p.share[o.slot[s]]
        o.work[0, s] = math.sqrt(mixed(o, s, theta) * paid)
        total += o.work[0, s]
    inside = total > 0.0
    for s in range(o.x.shape[0]):
        a = mixed(o, s, theta)
        o.x[s] = o.cell[FLOOR, s]
        if a > 0.0:
            o.x[s] = a * total / o.work[0, s]
            inside = inside and o.cell[FLOOR, s] <= o.x[s] <= o.cell[CAP, s]
    return 1.0 / total if inside else _clipped(o, theta, p)


@merged
def _clipped(o: Point, theta: float, p: Prices) -> float:
    """one_phase where floors or caps are in the way.

    The latency of slot s at multiplier 1 / y^2 is clip(b_s y, a_s / cap, a_s / floor) with b = sqrt(a price): fix
    whichever side of the clips errs more and solve for the rest (Bitran & Hax 1981); exact in at most S rounds.
    """
    if _floors_do(o, theta, p):
        return math.inf
    left, y = 1.0, 0.0
    for _ in range(o.x.shape[0] + 1):
        total = 0.0
        for s in range(o.x.shape[0]):
            if o.work[1, s] == 0.0:
                total += o.work[0, s]
        y = max(left, 0.0) / total if total > 0.0 else 0.0
        left, done = _clip(o, theta, y, left)
        if done:
            break
    return y


@merged
def _floors_do(o: Point, theta: float, p: Prices) -> bool:
    """Start: all shares at their floors, slots without work fixed there. True: the deadline holds already."""
    total = 0.0
    for s in range(o.x.shape[0]):
        a = mixed(o, s, theta)
        o.x[s] = o.cell[FLOOR, s]
        o.work[0, s] = math.sqrt(a * o.cell[ACT, s] * p.share[o.slot[s]])
        o.work[1, s] = 1.0 if a <= 0.0 else 0.0
        if a > 0.0:
            total += a / o.x[s] if o.x[s] > 0.0 else math.inf
    return total <= 1.0


@merged
def _clip(o: Point, theta: float, y: float, left: float) -> tuple[float, bool]:
    """One round of _clipped: set free shares for y, then fix the side that errs more. Returns (latency left, done)."""
    over = under = 0.0
    for s in range(o.x.shape[0]):
        if o.work[1, s] == 0.0:
            a, b = mixed(o, s, theta), o.work[0, s] * y
            o.x[s] = a / b if b > 0.0 else math.inf
            if o.x[s] > o.cell[CAP, s]:
                under += a / o.cell[CAP, s] - b
            elif o.x[s] < o.cell[FLOOR, s]:
                over += b - a / o.cell[FLOOR, s]
    if over == 0.0 and under == 0.0:
        return left, True
    free = 0
    for s in range(o.x.shape[0]):
        if o.work[1, s] == 0.0:
            low, high = o.x[s] < o.cell[FLOOR, s], o.x[s] > o.cell[CAP, s]
            if (over > under and low) or (over <= under and high):
                o.x[s] = o.cell[FLOOR, s] if low else o.cell[CAP, s]
                o.work[1, s] = 1.0
                left -= mixed(o, s, theta) / o.x[s]
            else:
                free += 1
    return left, free == 0


@merged
def _two_phases(o: Point, p: Prices, hint: float) -> tuple[float, float]:
    """Both deadlines: the cost is the greatest over theta of the one-phase cost, concave in theta.

    Its slope has the sign of L0 - L1. Each theta gives a lower bound. The search starts from the theta of last time.
    """
    left, low, right, high = 0.0, 0.0, 1.0, 0.0  # slope 0: not looked at yet
    if 0.0 < hint < 1.0:
        left, low, right, high = _around(o, p, hint)
    if high == 0.0:
        y = one_phase(o, 1.0, p)
        late = latency(o, 1, o.x)
        if late <= 1.0:
            return 1.0, y
        high = 1.0 / late - 1.0
    if low == 0.0:
        y = one_phase(o, 0.0, p)
        late = latency(o, 0, o.x)
        if late <= 1.0:
            return 0.0, y
        low = 1.0 - 1.0 / late
    return _between(o, p, left, low, right, high)


@lean
def _slope(o: Point, theta: float, p: Prices) -> float:
    """1 / L1 - 1 / L0 at the cheapest shares for theta: falls from > 0 at 0 to < 0 at 1 where both phases bind."""
    one_phase(o, theta, p)
    return 1.0 / latency(o, 1, o.x) - 1.0 / latency(o, 0, o.x)


@merged
def _around(o: Point, p: Prices, hint: float) -> tuple[float, float, float, float]:
    """Look for a narrow interval around the hint with slopes of different signs; an end not looked at has slope 0."""
    slope = _slope(o, hint, p)
    if slope == 0.0:
        return hint, 1e-300, hint, -1e-300
    reach = NEAR * min(hint, 1.0 - hint)
    other = hint + reach if slope > 0.0 else hint - reach
    second = _slope(o, other, p)
    if slope > 0.0:
        return (hint, slope, other, second) if second < 0.0 else (other, second, 1.0, 0.0)
    return (other, second, hint, slope) if second > 0.0 else (0.0, 0.0, other, second)


@merged
def _between(o: Point, p: Prices, left: float, low: float, right: float, high: float) -> tuple[float, float]:
    """Root of the slope between left (slope low > 0) and right (high < 0) by the Illinois rule."""
    side = 0
    theta, y = 0.5 * (left + right), 0.0
    for _ in range(ROOT_STEPS):
        theta = (left * high - right * low) / (high - low)
        if not left < theta < right:
            theta = 0.5 * (left + right)
        y = one_phase(o, theta, p)
        slope = 1.0 / latency(o, 1, o.x) - 1.0 / latency(o, 0, o.x)
        if abs(slope) < 1e-13 or right - left < 1e-15:
            break
        if slope > 0.0:
            left, low = theta, slope
            high = high * 0.5 if side == 1 else high
            side = 1
        else:
            right, high = theta, slope
            low = low * 0.5 if side == -1 else low
            side = -1
    return theta, y
