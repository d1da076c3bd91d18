"""The oracle: at given prices, each point's cheapest shares and each task's best point (docs/model.md, section 2).

Everything here is plain arithmetic on arrays, compiled by numba (solvers/_jit.py). `Table` is a Problem made ready:
work is divided by slack, so that a deadline reads `sum_s a[s] / x[s] <= 1`; hopeless points are marked; shares are
capped by what the resource can give at most; padding slots point at an extra resource that is free.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers._jit import nopython
from solvers.problem import Floats, Ints

DEAD: Final = 0  # no shares meet its deadlines, or it is worth nothing
SINGLE: Final = 1  # one phase binds, whatever the prices
DOUBLE: Final = 2  # either phase may bind, or both
EDGE: Final = 1e-12  # rounding that a comparison with a limit forgives
ROOT_STEPS: Final = 60  # of the search between two phases; about 8 are used
NEAR: Final = 0.1  # how far around the last theta the search between two phases looks first
BITS: Final = 2.0**40  # prices keep this many bits: last-bit differences of exp() between machines vanish


# What Table.cell holds of point j and slot s: cell[j, FIELD, s]. The first three are read for every point at every
# evaluation, so they lie side by side; + 1 is the second phase.
ROOT: Final = 0  # sqrt(A * ACTIVITY), two phases
RIGID: Final = 2
A: Final = 3  # work / slack, two phases; of a SINGLE point the binding phase comes first
REACH: Final = 5  # sqrt(A / ACTIVITY) of the first phase
FLOOR: Final = 6
CAP: Final = 7
ACTIVITY: Final = 8
FIELDS: Final = 9


class Raw(NamedTuple):
    """Arrays of a Problem as the compiled code takes them; `order` (N,): tasks by id."""

    background: Floats  # (R,)
    source: Ints  # (C,)
    target: Ints  # (C,)
    kappa: Floats  # (C,)
    first: Ints  # (N + 1,)
    order: Ints  # (N,)
    value: Floats  # (J,)
    slack: Floats  # (J, Q)
    slot: Ints  # (J, S)
    work: Floats  # (J, Q, S)
    floor: Floats  # (J, S)
    cap: Floats  # (J, S)
    activity: Floats  # (J, S)
    rigid: Floats  # (J, S)


class Table(NamedTuple):
    """A Problem made ready for the oracle. Few arrays: each one costs compile time in every function."""

    room: Floats  # (R + 1,) capacity left by the background; the last one is padding
    link: Ints  # (C, 2) couplings: from, to
    kappa: Floats  # (C,) per share
    first: Ints  # (N + 1,)
    order: Ints  # (N,)
    value: Floats  # (J,)
    mode: Ints  # (J,) DEAD, SINGLE, DOUBLE
    slot: Ints  # (J, S)
    cell: Floats  # (J, FIELDS, S)
    theta: Floats  # (J,) weight of the first phase found last: where the next search starts


class Prices(NamedTuple):
    """Prices (R + 1,), the last one 0: of rigid demand, of a share (couplings added), and its square root."""

    rigid: Floats
    share: Floats
    root: Floats


@nopython
def prepare(raw: Raw) -> Table:
    """Make a Table. O(points x slots)."""
    n_points, n_slots = raw.slot.shape
    n_resources, n_links = raw.background.shape[0], raw.source.shape[0]
    room, link = np.zeros(n_resources + 1), np.zeros((n_links, 2), dtype=np.int64)
    for r in range(n_resources):
        room[r] = max(0.0, 1.0 - raw.background[r])
    for c in range(n_links):
        link[c, 0], link[c, 1] = raw.source[c], raw.target[c]
    mode, cell = np.zeros(n_points, dtype=np.int64), np.zeros((n_points, FIELDS, n_slots))
    t = Table(room, link, raw.kappa, raw.first, raw.order, raw.value, mode, raw.slot, cell, np.ones(n_points))
    for j in range(n_points):
        if _limits(t, raw, j) and _deadlines(t, raw, j):
            mode[j] = _phases(t, j)
    return t


@nopython
def _limits(t: Table, raw: Raw, j: int) -> bool:
    """Shares' limits, caps tightened by what the resources can give. False: the point cannot be served at all."""
    if not t.value[j] > 0.0:
        return False
    for s in range(t.slot.shape[1]):
        r = t.slot[j, s]
        t.cell[j, CAP, s] = 1.0
        if r == t.room.shape[0] - 1:
            continue
        act, rigid, cap = raw.activity[j, s], raw.rigid[j, s], raw.cap[j, s]
        left = t.room[r] - rigid
        if rigid > 0.0 and left < -EDGE:
            return False
        if act > 0.0:
            cap = min(cap, max(left, 0.0) / act)
            for c in range(t.link.shape[0]):
                if t.link[c, 0] == r and t.kappa[c] > 0.0:
                    cap = min(cap, t.room[t.link[c, 1]] / (act * t.kappa[c]))
        if not raw.floor[j, s] <= cap * (1.0 + EDGE):
            return False
        t.cell[j, FLOOR, s] = raw.floor[j, s]
        t.cell[j, CAP, s] = max(cap, raw.floor[j, s])
        t.cell[j, ACTIVITY, s] = act
        t.cell[j, RIGID, s] = rigid
    return True


@nopython
def _deadlines(t: Table, raw: Raw, j: int) -> bool:
    """Divide work by slack. False: some deadline is lost even with every share at its cap."""
    for q in range(2):
        slack = raw.slack[j, q]
        if not slack >= 0.0:
            return False
        latency = 0.0
        for s in range(t.slot.shape[1]):
            work = raw.work[j, q, s]
            if work > 0.0 and t.slot[j, s] < t.room.shape[0] - 1:
                t.cell[j, A + q, s] = work / slack
                latency += t.cell[j, A + q, s] / t.cell[j, CAP, s]
        if not latency <= 1.0 + EDGE:
            return False
    return True


@nopython
def _phases(t: Table, j: int) -> int:
    """Find out whether one phase binds at any prices: the one with more work on every slot."""
    zero = one = True
    for s in range(t.slot.shape[1]):
        zero = zero and t.cell[j, A, s] >= t.cell[j, A + 1, s]
        one = one and t.cell[j, A + 1, s] >= t.cell[j, A, s]
    for s in range(t.slot.shape[1]):
        if one and not zero:
            t.cell[j, A, s], t.cell[j, A + 1, s] = t.cell[j, A + 1, s], t.cell[j, A, s]
        for q in range(2):
            t.cell[j, ROOT + q, s] = math.sqrt(t.cell[j, A + q, s] * t.cell[j, ACTIVITY, s])
        if t.cell[j, A, s] > 0.0:
            t.cell[j, REACH, s] = math.sqrt(t.cell[j, A, s] / t.cell[j, ACTIVITY, s])
    return SINGLE if zero or one else DOUBLE


@nopython
def rounded(x: float) -> float:
    """Keep 40 bits of x > 0."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(math.floor(mantissa * BITS + 0.5), exponent - 40)


@nopython
def prices_of(t: Table, price: Floats) -> Prices:
    """(R,) prices to what slots pay."""
    n = t.room.shape[0]
    rigid, share, root = np.zeros(n), np.zeros(n), np.zeros(n)
    for r in range(n - 1):
        rigid[r] = share[r] = price[r]
    for c in range(t.link.shape[0]):
        share[t.link[c, 0]] += t.kappa[c] * price[t.link[c, 1]]
    for r in range(n - 1):
        root[r] = math.sqrt(share[r])
    return Prices(rigid, share, root)


@nopython
def mixed(t: Table, j: int, s: int, theta: float) -> float:
    """Work over slack of slot s, the two phases weighted theta and 1 - theta."""
    return float(theta * t.cell[j, A, s] + (1.0 - theta) * t.cell[j, A + 1, s])


@nopython
def latency(t: Table, j: int, q: int, x: Floats) -> float:
    """Latency over slack of phase q."""
    total = 0.0
    for s in range(x.shape[0]):
        if t.cell[j, A + q, s] > 0.0:
            total += t.cell[j, A + q, s] / x[s]
    return total


@nopython
def bill(t: Table, j: int, p: Prices, x: Floats) -> float:
    """Cost of the shares x and of the rigid demand."""
    cost = 0.0
    for s in range(x.shape[0]):
        r = t.slot[j, s]
        cost += p.rigid[r] * t.cell[j, RIGID, s] + p.share[r] * t.cell[j, ACTIVITY, s] * x[s]
    return cost


@nopython
def at_least(t: Table, j: int, p: Prices) -> float:
    """Cost without floors and caps and with one phase only: never above the true cost, and cheap."""
    zero = one = rest = 0.0
    for s in range(t.slot.shape[1]):
        r = t.slot[j, s]
        rest += p.rigid[r] * t.cell[j, RIGID, s]
        zero += t.cell[j, ROOT, s] * p.root[r]
        one += t.cell[j, ROOT + 1, s] * p.root[r]
    most = max(zero, one)
    return rest + most * most


@nopython
def cheapest(t: Table, j: int, p: Prices, x: Floats, work: Floats) -> tuple[float, float, float]:
    """Cheapest shares of point j into x (S,); `work` (2, S) is scratch.

    Returns (a proven lower bound on the cost, equal to it but for rounding; theta; y = 1 / sqrt(multiplier of the
    deadline), inf where floors alone meet it).
    """
    if t.mode[j] == DOUBLE:
        return _two_phases(t, j, p, x, work)
    y = _closed_form(t, j, p, x)
    if y <= 0.0:
        y = _clipped(t, j, 1.0, p, x, work)
    return bill(t, j, p, x), 1.0, y


@nopython
def _closed_form(t: Table, j: int, p: Prices, x: Floats) -> float:
    """Cauchy-Schwarz without floors and caps; 0 where one of them is in the way."""
    total = 0.0
    for s in range(x.shape[0]):
        total += t.cell[j, ROOT, s] * p.root[t.slot[j, s]]
    if total <= 0.0:
        return 0.0
    for s in range(x.shape[0]):
        x[s] = t.cell[j, FLOOR, s]
        if t.cell[j, A, s] > 0.0:
            x[s] = t.cell[j, REACH, s] * total / p.root[t.slot[j, s]]
            if not (t.cell[j, FLOOR, s] <= x[s] <= t.cell[j, CAP, s]):
                return 0.0
    return 1.0 / total


@nopython
def one_phase(t: Table, j: int, theta: float, p: Prices, x: Floats, work: Floats) -> float:
    """Cheapest shares under ONE deadline, the phases mixed by theta; returns y. `work[0]` holds sqrt(a price)."""
    total = 0.0
    for s in range(x.shape[0]):
        paid = t.cell[j, ACTIVITY, s] * p.share[t.slot[j, s]]
        work[0, s] = math.sqrt(mixed(t, j, s, theta) * paid)
        total += work[0, s]
    inside = total > 0.0
    for s in range(x.shape[0]):
        a = mixed(t, j, s, theta)
        x[s] = t.cell[j, FLOOR, s]
        if a > 0.0:
            x[s] = a * total / work[0, s]
            inside = inside and t.cell[j, FLOOR, s] <= x[s] <= t.cell[j, CAP, s]
    return 1.0 / total if inside else _clipped(t, j, theta, p, x, work)


@nopython
def _clipped(t: Table, j: int, theta: float, p: Prices, x: Floats, work: Floats) -> float:
    """one_phase where floors or caps are in the way.

    The latency of slot s at multiplier 1 / y^2 is clip(b_s y, a_s / cap, a_s / floor) with b = sqrt(a price): fix
    whichever side of the clips errs more and solve for the rest (Bitran & Hax 1981); exact in at most S rounds.
    """
    if _floors_do(t, j, theta, p, x, work):
        return math.inf
    left, y = 1.0, 0.0
    for _ in range(x.shape[0] + 1):
        total = 0.0
        for s in range(x.shape[0]):
            if work[1, s] == 0.0:
                total += work[0, s]
        y = max(left, 0.0) / total if total > 0.0 else 0.0
        left, done = _clip(t, j, theta, y, left, x, work)
        if done:
            break
    return y


@nopython
def _floors_do(t: Table, j: int, theta: float, p: Prices, x: Floats, work: Floats) -> bool:
    """Start: all shares at their floors, slots without work fixed there. True: the deadline holds already."""
    total = 0.0
    for s in range(x.shape[0]):
        a = mixed(t, j, s, theta)
        x[s] = t.cell[j, FLOOR, s]
        work[0, s] = math.sqrt(a * t.cell[j, ACTIVITY, s] * p.share[t.slot[j, s]])
        work[1, s] = 1.0 if a <= 0.0 else 0.0
        if a > 0.0:
            total += a / x[s] if x[s] > 0.0 else math.inf
    return total <= 1.0


@nopython
def _clip(t: Table, j: int, theta: float, y: float, left: float, x: Floats, work: Floats) -> tuple[float, bool]:
    """One round of _clipped: set free shares for y, then fix the side that errs more. Returns (latency left, done)."""
    over = under = 0.0
    for s in range(x.shape[0]):
        if work[1, s] == 0.0:
            a, b = mixed(t, j, s, theta), work[0, s] * y
            x[s] = a / b if b > 0.0 else math.inf
            if x[s] > t.cell[j, CAP, s]:
                under += a / t.cell[j, CAP, s] - b
            elif x[s] < t.cell[j, FLOOR, s]:
                over += b - a / t.cell[j, FLOOR, s]
    if over == 0.0 and under == 0.0:
        return left, True
    free = 0
    for s in range(x.shape[0]):
        if work[1, s] == 0.0:
            low, high = x[s] < t.cell[j, FLOOR, s], x[s] > t.cell[j, CAP, s]
            if (over > under and low) or (over <= under and high):
                x[s] = t.cell[j, FLOOR, s] if low else t.cell[j, CAP, s]
                work[1, s] = 1.0
                left -= mixed(t, j, s, theta) / x[s]
            else:
                free += 1
    return left, free == 0


@nopython
def _two_phases(t: Table, j: int, p: Prices, x: Floats, work: Floats) -> tuple[float, float, float]:
    """Both deadlines: the cost is the greatest over theta of the one-phase cost, concave in theta.

    Its slope has the sign of L0 - L1. Each theta gives a lower bound; the shares are stretched at the end so that
    both deadlines hold to the last bit. The search starts from the theta of last time.
    """
    hint = t.theta[j]
    left, low, right, high = 0.0, 0.0, 1.0, 0.0  # slope 0: not looked at yet
    if 0.0 < hint < 1.0:
        left, low, right, high = _around(t, j, p, x, work, hint)
    if high == 0.0:
        y = one_phase(t, j, 1.0, p, x, work)
        late = latency(t, j, 1, x)
        if late <= 1.0:
            t.theta[j] = 1.0
            return bill(t, j, p, x), 1.0, y
        high = 1.0 / late - 1.0
    if low == 0.0:
        y = one_phase(t, j, 0.0, p, x, work)
        late = latency(t, j, 0, x)
        if late <= 1.0:
            t.theta[j] = 0.0
            return bill(t, j, p, x), 0.0, y
        low = 1.0 - 1.0 / late
    theta, y = _between(t, j, p, x, work, left, low, right, high)
    t.theta[j] = theta
    cost = bill(t, j, p, x)
    late = max(latency(t, j, 0, x), latency(t, j, 1, x))
    if late > 1.0:
        for s in range(x.shape[0]):
            if mixed(t, j, s, theta) > 0.0:
                x[s] = min(x[s] * late, t.cell[j, CAP, s])
    return cost, theta, y


@nopython
def _slope(t: Table, j: int, theta: float, p: Prices, x: Floats, work: Floats) -> float:
    """1 / L1 - 1 / L0 at the cheapest shares for theta: falls from > 0 at 0 to < 0 at 1 where both phases bind."""
    one_phase(t, j, theta, p, x, work)
    return 1.0 / latency(t, j, 1, x) - 1.0 / latency(t, j, 0, x)


@nopython
def _around(t: Table, j: int, p: Prices, x: Floats, work: Floats, hint: float) -> tuple[float, float, float, float]:
    """Look for a narrow interval around the hint with slopes of different signs; an end not looked at has slope 0."""
    slope = _slope(t, j, hint, p, x, work)
    if slope == 0.0:
        return hint, 1e-300, hint, -1e-300
    reach = NEAR * min(hint, 1.0 - hint)
    other = hint + reach if slope > 0.0 else hint - reach
    second = _slope(t, j, other, p, x, work)
    if slope > 0.0:
        return (hint, slope, other, second) if second < 0.0 else (other, second, 1.0, 0.0)
    return (other, second, hint, slope) if second > 0.0 else (0.0, 0.0, other, second)


@nopython
def _between(
    t: Table, j: int, p: Prices, x: Floats, work: Floats, left: float, low: float, right: float, high: float
) -> tuple[float, float]:
    """Root of the slope between left (slope low > 0) and right (high < 0) by the Illinois rule."""
    side = 0
    theta, y = 0.5 * (left + right), 0.0
    for _ in range(ROOT_STEPS):
        theta = (left * high - right * low) / (high - low)
        if not left < theta < right:
            theta = 0.5 * (left + right)
        y = one_phase(t, j, theta, p, x, work)
        slope = 1.0 / latency(t, j, 1, x) - 1.0 / latency(t, j, 0, x)
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


@nopython
def add_use(t: Table, j: int, x: Floats, use: Floats) -> None:
    """Add what point j with shares x takes, rigid demand left out, to use (R + 1,)."""
    for s in range(x.shape[0]):
        r = t.slot[j, s]
        counted = t.cell[j, ACTIVITY, s] * x[s]
        use[r] += counted
        for c in range(t.link.shape[0]):
            if t.link[c, 0] == r:
                use[t.link[c, 1]] += t.kappa[c] * counted
