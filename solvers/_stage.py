"""One dual method for every objective of the second stage (docs/exact.md).

At prices the tasks separate. A task's shares are `x = sqrt((e + m a) / price)` between floor and cap: e what its
objective asks by the share itself (energy), m what it pays for latency: the weight, the marginal utility at the latency
that results, or more where a deadline binds. Newton steps in log prices climb the dual, whose second derivative is
closed-form too; each height reached is a proven lower bound on the objective.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers._fit import solve_linear
from solvers._jit import cached, inlined, nopython
from solvers.problem import Floats, Ints

LATENCY: Final = 0  # and energy
ALPHA_FAIR: Final = 1
MAX_LATENCY: Final = 2

STEPS: Final = 80  # Newton steps; 5 to 20 are used
JUMP: Final = 3.0  # no log price moves by more in one step
FADE: Final = 0.4  # of the slope where there is room left: prices that matter to nobody fall by e^-2.5 a step
GOAL: Final = 1.0 - 1e-8  # part of the room that is aimed at, so that it is reached from within
CALM: Final = 1e-9  # part of the worth of all room: slopes below it are none
STIFF: Final = 1e-6  # part of price x room added to the second derivative
INNER: Final = 60  # steps of a search in one number; 2 to 8 are used
FINE: Final = 1e-13  # where it ends


# What Stage.cell holds of slot k; one array, because every array costs in every call of compiled code.
A: Final = 0  # work / deadline, two phases
E: Final = 2  # what the objective pays for 1 / share by itself
FLOOR: Final = 3
CAP: Final = 4
ACTIVITY: Final = 5
PAY: Final = 6  # scratch: price of a share
MIX: Final = 7  # scratch: work / deadline, phases mixed
FIELDS: Final = 8


class Stage(NamedTuple):
    """Tasks admitted i = 0 .. n - 1 with slots first[i] .. first[i + 1] - 1 of K."""

    kind: int
    alpha: float
    headroom: float
    first: Ints  # (n + 1,)
    phase: Ints  # (n,) the phase that binds at any prices, 2: either may
    resource: Ints  # (K,)
    cell: Floats  # (K, FIELDS)
    weight: Floats  # (n,)
    room: Floats  # (R,)
    pull: Floats  # (R, R) use of resource r by a share of s
    loads: Ints  # (R, L) the resources that a share of s uses, reach[s] of them
    reach: Ints  # (R,)


class Now(NamedTuple):
    """Where the climb stands; written in place."""

    x: Floats  # (K,)
    use: Floats  # (R,)
    bend: Floats  # (R, R) minus the second derivative of the dual in log prices
    leg: Ints  # (S x L,) scratch: resources that a task loads, ...
    back: Floats  # ... and how its latency answers their prices


@inlined
def _late(t: Stage, now: Now, i: int, q: int) -> float:
    total = 0.0
    for k in range(t.first[i], t.first[i + 1]):
        if t.cell[k, A + q] > 0.0:
            total += t.cell[k, A + q] / now.x[k]
    return total


@inlined
def _shares(t: Stage, now: Now, i: int, m: float) -> tuple[float, float]:
    """Set the shares for multiplier m; returns the mixed latency and its derivative by log m."""
    late = slope = 0.0
    for k in range(t.first[i], t.first[i + 1]):
        wish = t.cell[k, E] + m * t.cell[k, MIX]
        x = math.sqrt(wish / t.cell[k, PAY]) if t.cell[k, PAY] > 0.0 else (math.inf if wish > 0.0 else 0.0)
        now.x[k] = min(t.cell[k, CAP], max(t.cell[k, FLOOR], x))
        if t.cell[k, MIX] > 0.0:
            late += t.cell[k, MIX] / now.x[k]
            if t.cell[k, FLOOR] < now.x[k] < t.cell[k, CAP]:
                slope -= 0.5 * t.cell[k, MIX] / now.x[k] * (m * t.cell[k, MIX] / wish)
    return late, slope


@nopython
def _meet(t: Stage, now: Now, i: int, target: float, m: float) -> float:
    """Find the multiplier, from m > 0, at which the mixed latency is `target`.

    Newton in y = 1 / sqrt(m): without energy latency is piecewise linear in y, and the search ends after a few clips.
    """
    y = 1.0 / math.sqrt(m)
    low, high = 0.0, math.inf
    for _ in range(INNER):
        late, slope = _shares(t, now, i, 1.0 / (y * y))
        gap = late - target
        if abs(gap) <= FINE * target:
            break
        if gap > 0.0:
            high = y
        else:
            low = y
        new = y + 0.5 * gap * y / slope if slope < 0.0 else math.inf
        if not low < new < high:
            new = 0.5 * (low + high) if high < math.inf else 4.0 * y
        if new == y or high - low <= 1e-16 * high:
            break
        y = new
    return 1.0 / (y * y)


@nopython
def _fair(t: Stage, now: Now, i: int) -> float:
    """Multiplier that is the marginal utility at the latency it leads to, at least that of the deadline."""
    top, w = 1.0 + t.headroom, t.weight[i]
    m = w * top**-t.alpha
    late, _ = _shares(t, now, i, m)
    if late > 1.0:
        m = _meet(t, now, i, 1.0, m)
        if m >= w * t.headroom**-t.alpha:
            return m
    z, low, high = math.log(m), math.log(m), math.inf
    for _ in range(INNER):
        late, slope = _shares(t, now, i, math.exp(z))
        spare = max(top - late, 0.5 * t.headroom)
        gap = z - math.log(w) + t.alpha * math.log(spare)
        if abs(gap) <= FINE:
            break
        if gap < 0.0:
            low = z
        else:
            high = z
        new = z - gap / (1.0 - t.alpha * slope / spare)
        if not low < new < high:
            new = 0.5 * (low + high) if high < math.inf else z + 1.0
        if abs(new - z) <= 1e-15 * abs(z):
            break
        z = new
    return math.exp(z)


@inlined
def _closed_form(t: Stage, now: Now, i: int, target: float) -> float:
    """Multiplier and shares where no floor, no cap and no energy is in the way (Cauchy-Schwarz); 0: something is."""
    total = 0.0
    for k in range(t.first[i], t.first[i + 1]):
        if t.cell[k, E] > 0.0 or not t.cell[k, PAY] > 0.0:
            return 0.0
        total += math.sqrt(t.cell[k, MIX] * t.cell[k, PAY])
    m = (total / target) ** 2
    if t.kind == LATENCY:
        m = max(m, t.weight[i])
    elif t.kind == ALPHA_FAIR:
        m = _free_fair(t, total, t.weight[i])
    root = math.sqrt(m)
    for k in range(t.first[i], t.first[i + 1]):
        now.x[k] = root * math.sqrt(t.cell[k, MIX] / t.cell[k, PAY])
        if not t.cell[k, FLOOR] <= now.x[k] <= t.cell[k, CAP]:
            return 0.0
    return m


@nopython
def _free_fair(t: Stage, total: float, w: float) -> float:
    """Multiplier m = w (1 + headroom - total / sqrt(m))^-alpha, at least that of the deadline, total^2."""
    top = 1.0 + t.headroom
    least = max(total * total, 1e-300)
    if least >= w * t.headroom**-t.alpha:
        return least
    low, high = math.log(max(least, w * top**-t.alpha)), math.inf
    z = low
    for _ in range(INNER):
        late = total * math.exp(-0.5 * z)
        spare = top - late
        gap = z - math.log(w) + t.alpha * math.log(spare)
        if gap < 0.0:
            low = z
        else:
            high = z
        new = z - gap / (1.0 + 0.5 * t.alpha * late / spare)
        if not low < new < high:
            new = 0.5 * (low + high) if high < math.inf else z + 1.0
        if abs(new - z) <= FINE:
            break
        z = new
    return math.exp(z)


@nopython
def _one(t: Stage, now: Now, i: int, target: float) -> float:
    """Shares of task i for its present mixture; returns the multiplier. Deadlines are `target` (1, or less: max)."""
    m = _closed_form(t, now, i, target)
    if m > 0.0:
        return m
    if t.kind == ALPHA_FAIR:
        return _fair(t, now, i)
    least = t.weight[i] if t.kind == LATENCY else 0.0
    late, _ = _shares(t, now, i, least)
    if late <= target:
        return least
    return _meet(t, now, i, target, max(least, 1e-6 * t.weight[i]))


@inlined
def _mix(t: Stage, i: int, theta: float) -> None:
    for k in range(t.first[i], t.first[i + 1]):
        t.cell[k, MIX] = theta * t.cell[k, A] + (1.0 - theta) * t.cell[k, A + 1]


@nopython
def _serve(t: Stage, now: Now, i: int, target: float) -> float:
    """Shares of task i at the prices; two phases: the mixture at which both take as long, or the longer one alone."""
    if t.phase[i] < 2:
        _mix(t, i, 1.0 - t.phase[i])
        return _one(t, now, i, target)
    for q in range(2):
        _mix(t, i, 1.0 - q)
        m = _one(t, now, i, target)
        if _late(t, now, i, 1 - q) <= _late(t, now, i, q):
            return m
    low, high = 0.0, 1.0
    for _ in range(INNER):
        theta = 0.5 * (low + high)
        _mix(t, i, theta)
        m = _one(t, now, i, target)
        gap = _late(t, now, i, 0) - _late(t, now, i, 1)
        if gap == 0.0:
            break
        if gap > 0.0:
            low = theta
        else:
            high = theta
    return m


@inlined
def _own(t: Stage, now: Now, i: int, late: float) -> float:
    """Objective of task i at its shares, prices left out."""
    if t.kind == ALPHA_FAIR:
        spare = max(1.0 + t.headroom - late, 1e-300)
        if t.alpha == 1.0:
            return float(-t.weight[i] * math.log(spare))
        return float(t.weight[i] * spare ** (1.0 - t.alpha) / (t.alpha - 1.0))
    if t.kind == MAX_LATENCY:
        return 0.0
    total = t.weight[i] * late
    for k in range(t.first[i], t.first[i + 1]):
        if t.cell[k, E] > 0.0:
            total += t.cell[k, E] / now.x[k]
    return float(total)


@inlined
def _kappa(t: Stage, now: Now, i: int, m: float, late: float, target: float) -> float:
    """How the multiplier follows the latency, d m / (sum of c d log price), c = a / (2 x); docs/exact.md."""
    q = 0.0
    for k in range(t.first[i], t.first[i + 1]):
        if t.cell[k, MIX] > 0.0 and t.cell[k, FLOOR] < now.x[k] < t.cell[k, CAP]:
            q += 0.5 * t.cell[k, MIX] / now.x[k] * t.cell[k, MIX] / (t.cell[k, E] + m * t.cell[k, MIX])
    if q <= 0.0:
        return 0.0
    if late >= target * (1.0 - 1e-9):
        return 1.0 / q
    if t.kind == ALPHA_FAIR:
        steep = t.alpha * m / max(1.0 + t.headroom - late, 1e-300)  # second derivative of minus the utility
        return steep / (1.0 + steep * q)
    return 0.0


@inlined
def _bend(t: Stage, now: Now, price: Floats, i: int, kappa: float) -> None:
    """Add task i to now.bend: half of what each free slot pays, less what its multiplier gives back."""
    many = 0
    for k in range(t.first[i], t.first[i + 1]):
        if not t.cell[k, FLOOR] < now.x[k] < t.cell[k, CAP] or not t.cell[k, PAY] > 0.0:
            continue
        s = t.resource[k]
        for v in range(t.reach[s]):
            r = t.loads[s, v]
            part = t.pull[r, s] * t.cell[k, ACTIVITY] * price[r] / t.cell[k, PAY]  # of the slot's price
            now.leg[many], now.back[many] = r, 0.5 * t.cell[k, MIX] / now.x[k] * part
            many += 1
            for u in range(t.reach[s]):
                z = t.loads[s, u]
                now.bend[r, z] += 0.5 * part * now.x[k] * t.pull[z, s] * t.cell[k, ACTIVITY] * price[z]
    if kappa > 0.0:
        for v in range(many):
            for u in range(many):
                now.bend[now.leg[v], now.leg[u]] -= kappa * now.back[v] * now.back[u]


@nopython
def _look(t: Stage, now: Now, price: Floats, target: float) -> float:
    """Serve everybody at the prices; fills use and bend. Returns the height of the dual, the room's worth left out."""
    now.use[:] = 0.0
    now.bend[:, :] = 0.0
    height = 0.0
    for i in range(t.first.shape[0] - 1):
        for k in range(t.first[i], t.first[i + 1]):
            s, paid = t.resource[k], 0.0
            for v in range(t.reach[s]):
                paid += t.pull[t.loads[s, v], s] * price[t.loads[s, v]]
            t.cell[k, PAY] = paid * t.cell[k, ACTIVITY]
        m = _serve(t, now, i, target)
        late = _late(t, now, i, 0) if t.phase[i] == 0 else max(_late(t, now, i, 0), _late(t, now, i, 1))
        height += _own(t, now, i, late)
        for k in range(t.first[i], t.first[i + 1]):
            height += t.cell[k, PAY] * now.x[k]
        _charge(t, i, now.x, now.use)
        _bend(t, now, price, i, _kappa(t, now, i, m, late, target))
    return height


@inlined
def _charge(t: Stage, i: int, x: Floats, use: Floats) -> None:
    """Add what the shares x (K,) of task i take."""
    for k in range(t.first[i], t.first[i + 1]):
        s = t.resource[k]
        for v in range(t.reach[s]):
            use[t.loads[s, v]] += t.pull[t.loads[s, v], s] * t.cell[k, ACTIVITY] * x[k]


@nopython
def _worth(t: Stage, price: Floats) -> float:
    total = 0.0
    for r in range(price.shape[0]):
        total += GOAL * price[r] * t.room[r]
    return total


@nopython
def _climb_max(t: Stage, now: Now, price: Floats, least: float, hint: float) -> tuple[float, float]:
    """Latency over deadline at which everybody's cheapest shares cost what the room is worth: (score, that latency).

    A lower bound on the least maximum, not below `least` (of caps); a score below log(least): even that is cheap.
    """
    worth = _worth(t, price)
    spent = _look(t, now, price, least)
    if spent <= worth:
        return math.log(least) + spent / worth - 1.0, least
    z, low, high = math.log(max(least, hint)), math.log(least), math.inf
    for _ in range(INNER):
        gap = math.log(_look(t, now, price, math.exp(z)) / worth)
        if abs(gap) <= FINE:
            break
        if gap > 0.0:
            low = z
        else:
            high = z
        new = z + gap  # the cost goes as 1 / latency where no floor and no cap is in the way
        if not low < new < high:
            new = 0.5 * (low + high) if high < math.inf else low + 1.0
        if abs(new - z) <= 1e-15:
            break
        z = new
    return z, math.exp(z)


@nopython
def _start(t: Stage, price: Floats) -> None:
    """Prices as if no deadline were bound: (sum of roots over room)^2."""
    n = price.shape[0]
    root = np.zeros(n)
    for i in range(t.first.shape[0] - 1):
        for k in range(t.first[i], t.first[i + 1]):
            pays = t.cell[k, E] + t.weight[i] * max(t.cell[k, A], t.cell[k, A + 1])
            s = t.resource[k]
            for v in range(t.reach[s]):
                root[t.loads[s, v]] += math.sqrt(t.pull[t.loads[s, v], s] * t.cell[k, ACTIVITY] * pays)
    for r in range(n):
        price[r] = (root[r] / t.room[r]) ** 2 if t.room[r] > 0.0 else 0.0


@nopython
def _settled(t: Stage, now: Now, price: Floats, lowest: bool) -> bool:
    """Nothing is overfilled, and what is not full has no price; at the `lowest` maximum the first will do."""
    limit = math.inf if lowest else CALM * _worth(t, price)
    for r in range(price.shape[0]):
        over = now.use[r] - GOAL * t.room[r]
        if (
            -price[r] * over > limit
            or price[r] * over > CALM * _worth(t, price)
            or over > 0.5 * (1.0 - GOAL) * t.room[r]
        ):
            return False
    return True


@nopython
def _step(t: Stage, now: Now, price: Floats, step: Floats) -> None:
    """Newton in log prices, shortened to JUMP; an ascent, for its matrix is positive definite."""
    n = price.shape[0]
    matrix = now.bend.copy()
    longest = 0.0
    for r in range(n):
        step[r] = price[r] * (now.use[r] - GOAL * t.room[r])
        matrix[r, r] += STIFF * price[r] * t.room[r] + max(0.0, -FADE * step[r])
        if matrix[r, r] <= 0.0:
            matrix[r, r] = 1.0
    solve_linear(matrix, step)
    for r in range(n):
        longest = max(longest, abs(step[r]))
    if longest > JUMP:
        step *= JUMP / longest


@nopython
def _used(t: Stage, x: Floats, use: Floats) -> None:
    use[:] = 0.0
    for i in range(t.first.shape[0] - 1):
        _charge(t, i, x, use)


@nopython
def _top_up(t: Stage, now: Now, x: Floats, r: int) -> None:
    """Stretch shares of r below their caps by one factor into what room there still is, couplings counted."""
    held, left = 0.0, math.inf
    for v in range(t.reach[r]):
        z = t.loads[r, v]
        left = min(left, (t.room[z] - now.use[z]) / t.pull[z, r])
    if left <= 0.0:
        return
    for k in range(x.shape[0]):
        if t.resource[k] == r and x[k] < t.cell[k, CAP]:
            held += t.cell[k, ACTIVITY] * x[k]
    if held > 0.0:
        for k in range(x.shape[0]):
            if t.resource[k] == r:
                x[k] = min(t.cell[k, CAP], x[k] * (1.0 + left / held))
        _used(t, x, now.use)


@nopython
def _blend(t: Stage, now: Now, x: Floats) -> None:
    """Move x, which fits, towards now.x as far as there is room: latency is convex, so every deadline stays."""
    before, after = np.zeros(t.room.shape[0]), np.zeros(t.room.shape[0])
    _used(t, x, before)
    _used(t, now.x, after)
    part = 1.0
    for r in range(before.shape[0]):
        if after[r] > t.room[r] and after[r] > before[r]:
            part = min(part, max(0.0, (t.room[r] - before[r]) / (after[r] - before[r])))
    for k in range(x.shape[0]):
        x[k] += part * (now.x[k] - x[k])
    _used(t, x, now.use)


@cached
def climb(t: Stage, held: Floats) -> tuple[Floats, Floats, float, int]:
    """Best shares (K,) from shares `held` (K,) that fit: (shares, prices, proven bound of the objective, steps)."""
    n, many = t.room.shape[0], t.resource.shape[0]
    legs = many * t.loads.shape[1]
    leg = np.zeros(legs, dtype=np.int64)
    now = Now(np.zeros(many), np.zeros(n), np.zeros((n, n)), leg, np.zeros(legs))
    price, old, step = np.zeros(n), np.zeros(n), np.zeros(n)
    least = 0.0
    now.x[:] = t.cell[:, CAP]
    for i in range(t.first.shape[0] - 1):
        least = max(least, _late(t, now, i, 0), _late(t, now, i, 1))
    _start(t, price)
    top, target, used = -math.inf, 1.0, 0
    bound = least if t.kind == MAX_LATENCY else -math.inf
    for _ in range(STEPS):
        used += 1
        if t.kind == MAX_LATENCY:
            height, target = _climb_max(t, now, price, least, target)
            proven = GOAL * math.exp(height)
        else:
            height = _look(t, now, price, 1.0) - _worth(t, price)
            proven = height - _worth(t, price) * (1.0 / GOAL - 1.0)
        if height >= top - CALM * abs(top) * 1e-3:
            top = max(top, height)
            bound = max(bound, proven)
            if _settled(t, now, price, t.kind == MAX_LATENCY and target <= least):
                break
            old[:] = price
            _step(t, now, price, step)
        else:
            step *= 0.3
        for r in range(n):
            price[r] = max(1e-200, old[r] * math.exp(step[r])) if old[r] > 0.0 else 0.0
    x = held.copy()
    _blend(t, now, x)
    for r in range(n):
        _top_up(t, now, x, r)
    return x, price, bound, used
