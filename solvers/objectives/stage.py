"""One dual method for every objective of the second stage (docs/exact.md).

At prices the tasks separate. A task's shares are `x = sqrt((e + m a) / price)` between floor and cap: e what its
objective asks by the share itself (energy), m what it pays for latency: the weight, the marginal utility at the latency
that results, or more where a deadline binds. Newton steps in log prices climb the dual, whose second derivative is
closed-form too; each height reached is a proven lower bound on the objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from solvers.jit import cached, inlined, nopython, source_digest
from solvers.objectives.columns import BOTH, EASED, EASY, THETA, TIGHT, WEIGHT, StageColumns, StageProblem, gather, move
from solvers.objectives.task import (
    ACTIVITY,
    CAP,
    FLOOR,
    INNER,
    LATENCY,
    MAX_LATENCY,
    MIX,
    PAY,
    ROOT,
    UNIT,
    A,
    Aim,
    E,
    both,
    even,
    free,
    height_of,
    latency,
    mix,
    one,
    respond,
    stiffness,
)
from solvers.price.fit import solve_linear
from solvers.problem import Floats
from solvers.tolerances import BINDS, DEADLINE_SLIP, INNER_FINE, STAGE_CALM, STAGE_GOAL, STAGE_LEAST_PRICE, STAGE_STIFF

STEPS: Final = 80  # Newton steps; 5 to 12 are used
JUMP: Final = 3.0  # no log price moves by more in one step
FADE: Final = 0.4  # of the slope where there is room left: prices that matter to nobody fall by e^-2.5 a step
SCALED: Final = 5  # of the steps in which all prices may also be scaled at once
NEAR: Final = 1e-2  # common move of all log prices up to which Newton's is right


class Now(NamedTuple):
    """Where the climb stands; written in place."""

    x: Floats  # (K,)
    use: Floats  # (R,)
    bend: Floats  # (R, R) minus the second derivative of the dual in log prices


@nopython
def _couple(t: StageColumns, now: Now, price: Floats, paid: Floats, use: Floats, bend: Floats) -> None:
    """Turn use and bend by slots' own resources into those of all that a share of them takes."""
    n = price.shape[0]
    half = np.zeros((n, n))
    now.use[:] = 0.0
    now.bend[:, :] = 0.0
    for r in range(n):
        for s in range(n):
            if t.pull[r, s] > 0.0 and paid[s] > 0.0:
                part = t.pull[r, s] * price[r] / paid[s]  # of the slot's price
                for z in range(n):
                    half[r, z] += part * bend[s, z]
            now.use[r] += t.pull[r, s] * use[s]
    for r in range(n):
        for s in range(n):
            if t.pull[r, s] > 0.0 and paid[s] > 0.0:
                part = t.pull[r, s] * price[r] / paid[s]
                for z in range(n):
                    now.bend[z, r] += part * half[z, s]


@inlined
def _unhindered(
    t: StageColumns, x: Floats, low: int, high: int, root: Floats, back: Floats, aim: Aim, w: float, target: float
) -> float:
    """Set shares by the closed form; returns the multiplier, 0 if floors or caps are in the way.

    root, back (R,): roots of the prices and their inverses.
    """
    resource, cell = t.resource, t.cell
    total, inside = 0.0, True
    for k in range(low, high):
        total += cell[k, ROOT] * root[resource[k]]
    m = free(aim, total, w, target)
    y = math.sqrt(m)
    for k in range(low, high):
        x[k] = cell[k, UNIT] * back[resource[k]] * y
        inside = inside and cell[k, FLOOR] <= x[k] <= cell[k, CAP]
    return m if inside else 0.0


@nopython
def _look(t: StageColumns, now: Now, aim: Aim, price: Floats, target: float) -> float:
    """Serve everybody at the prices; fills use and bend. Returns the height of the dual, the room's worth left out."""
    first, resource, cell, own, x = t.first, t.resource, t.cell, t.own, now.x
    n = price.shape[0]
    paid, root, back = np.zeros(n), np.zeros(n), np.zeros(n)
    use, bend = np.zeros(n), np.zeros((n, n))
    for s in range(n):
        for r in range(n):
            paid[s] += t.pull[r, s] * price[r]
        root[s] = math.sqrt(paid[s])
        back[s] = 1.0 / root[s]
    height = 0.0
    for i in range(own.shape[0]):
        low, high, w, theta = first[i], first[i + 1], own[i, WEIGHT], own[i, THETA]
        for k in range(low, high):
            cell[k, PAY] = paid[resource[k]] * cell[k, ACTIVITY]
        if own[i, BOTH] > 0.0:
            theta = even(cell, low, high, theta)
            mix(cell, low, high, theta)
        m = _unhindered(t, x, low, high, root, back, aim, w, target) if own[i, EASY] > 0.0 else 0.0
        if m <= 0.0 and own[i, BOTH] > 0.0:
            m, theta = both(cell, x, low, high, aim, w, target)
        elif m <= 0.0:
            m = one(cell, x, low, high, aim, w, target)
        own[i, THETA] = theta
        late = bill = 0.0
        for k in range(low, high):
            use[resource[k]] += cell[k, ACTIVITY] * x[k]
            bill += cell[k, PAY] * x[k]
            if cell[k, MIX] > 0.0 or cell[k, E] > 0.0:
                late += cell[k, MIX] / x[k]
                height += cell[k, E] / x[k]
        height += bill + height_of(aim, w, m, late, target)
        tight = late >= target * (1.0 - BINDS)
        own[i, TIGHT], own[i, EASED] = (bill, math.sqrt(bill * w)) if tight else (bill * bill / w, bill)
        respond(cell, resource, x, low, high, bend, m, stiffness(aim, m, late, target), 0.0 < theta < 1.0)
    _couple(t, now, price, paid, use, bend)
    return height


@nopython
def _worth(t: StageColumns, price: Floats) -> float:
    total = 0.0
    for r in range(price.shape[0]):
        total += STAGE_GOAL * price[r] * t.room[r]
    return total


@nopython
def _climb_max(t: StageColumns, now: Now, aim: Aim, price: Floats, least: float, hint: float) -> tuple[float, float]:
    """Latency over deadline at which everybody's cheapest shares cost what the room is worth: (score, that latency).

    A lower bound on the least maximum, not below `least` (of caps); a score below log(least): even that is cheap.
    """
    worth = _worth(t, price)
    spent = _look(t, now, aim, price, least)
    if spent <= worth:
        return math.log(least) + spent / worth - 1.0, least
    z, low, high = math.log(max(least, hint)), math.log(least), math.inf
    for _ in range(INNER):
        gap = math.log(_look(t, now, aim, price, math.exp(z)) / worth)
        if abs(gap) <= INNER_FINE:
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
def _start(t: StageColumns, price: Floats) -> None:
    """Prices as if no deadline were bound: (sum of roots over room)^2."""
    n, cell, resource = price.shape[0], t.cell, t.resource
    root = np.zeros(n)
    for i in range(t.own.shape[0]):
        for k in range(t.first[i], t.first[i + 1]):
            pays = cell[k, E] + t.own[i, WEIGHT] * max(cell[k, A], cell[k, A + 1])
            for r in range(n):
                root[r] += math.sqrt(t.pull[r, resource[k]] * cell[k, ACTIVITY] * pays)
    for r in range(n):
        price[r] = (root[r] / t.room[r]) ** 2 if t.room[r] > 0.0 else 0.0


@nopython
def _settled(t: StageColumns, now: Now, price: Floats, lowest: bool) -> bool:
    """Nothing is overfilled, and what is not full has no price; at the `lowest` maximum the first will do."""
    calm = STAGE_CALM * _worth(t, price)
    for r in range(price.shape[0]):
        over = now.use[r] - STAGE_GOAL * t.room[r]
        if price[r] * over > calm or over > 0.5 * (1.0 - STAGE_GOAL) * t.room[r]:
            return False
        if -price[r] * over > calm and not lowest:
            return False
    return True


@nopython
def _step(t: StageColumns, now: Now, price: Floats, step: Floats) -> None:
    """Newton in log prices, shortened to JUMP; an ascent, for its matrix is positive definite."""
    n = price.shape[0]
    matrix = now.bend.copy()
    longest = 0.0
    for r in range(n):
        step[r] = price[r] * (now.use[r] - STAGE_GOAL * t.room[r])
        matrix[r, r] += STAGE_STIFF * price[r] * t.room[r] + max(0.0, -FADE * step[r])
        if matrix[r, r] <= 0.0:
            matrix[r, r] = 1.0
    solve_linear(matrix, step)
    for r in range(n):
        longest = max(longest, abs(step[r]))
    if longest > JUMP:
        step *= JUMP / longest


@nopython
def _scale(t: StageColumns, worth: float) -> float:
    """Log of the factor on all prices at which everybody's shares cost what the room is worth; 0 if there is none.

    With u the root of 1 / factor: sum of max(tight, eased u) = worth, convex in u.
    """
    u = 1.0
    for _ in range(INNER):
        tight = eased = 0.0
        for i in range(t.own.shape[0]):
            if t.own[i, TIGHT] >= t.own[i, EASED] * u:
                tight += t.own[i, TIGHT]
            else:
                eased += t.own[i, EASED]
        if not worth > tight or eased <= 0.0:
            return 0.0
        new = (worth - tight) / eased
        if abs(new - u) <= 1e-3 * u:
            break
        u = new
    return -2.0 * math.log(u)


@nopython
def _rescale(t: StageColumns, price: Floats, step: Floats) -> None:
    """Let the prices' common move be the one of _scale: near a full site Newton's falls short, time and again."""
    worth = _worth(t, price)
    factor, mean = _scale(t, worth), 0.0
    for r in range(price.shape[0]):
        mean += STAGE_GOAL * price[r] * t.room[r] / worth * step[r]
    if max(abs(factor), abs(mean)) > NEAR and factor != 0.0:
        step += min(JUMP, max(-JUMP, factor)) - mean


@nopython
def _used(t: StageColumns, x: Floats, use: Floats) -> None:
    """Fill use (R,) with what the shares x (K,) take."""
    n = use.shape[0]
    use[:] = 0.0
    for k in range(x.shape[0]):
        for r in range(n):
            use[r] += t.pull[r, t.resource[k]] * t.cell[k, ACTIVITY] * x[k]


@nopython
def _top_up(t: StageColumns, now: Now, x: Floats, s: int) -> None:
    """Stretch shares of s below their caps by one factor into what room there still is, couplings counted."""
    held, left = 0.0, math.inf
    for r in range(now.use.shape[0]):
        if t.pull[r, s] > 0.0:
            left = min(left, (t.room[r] - now.use[r]) / t.pull[r, s])
    if left <= 0.0:
        return
    for k in range(x.shape[0]):
        if t.resource[k] == s and x[k] < t.cell[k, CAP]:
            held += t.cell[k, ACTIVITY] * x[k]
    if held > 0.0:
        for k in range(x.shape[0]):
            if t.resource[k] == s:
                x[k] = min(t.cell[k, CAP], x[k] * (1.0 + left / held))
        _used(t, x, now.use)


@nopython
def _keep_late(t: StageColumns, now: Now, x: Floats) -> None:
    """Tasks whose deadlines now.x misses keep x: prices 1e200 apart leave no number between 0 and 1 for a mixture."""
    for i in range(t.own.shape[0]):
        low, high = t.first[i], t.first[i + 1]
        late = max(latency(t.cell, now.x, low, high, A), latency(t.cell, now.x, low, high, A + 1))
        if late > 1.0 + DEADLINE_SLIP:
            now.x[low:high] = x[low:high]


@nopython
def _blend(t: StageColumns, now: Now, x: Floats) -> None:
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


@nopython
def _climb(t: StageColumns, now: Now, aim: Aim) -> tuple[float, int]:
    """Newton steps until they gain nothing: (proven bound of the objective, steps); now is where it ends."""
    n = t.room.shape[0]
    price, old, step = np.zeros(n), np.zeros(n), np.zeros(n)
    least = 0.0
    now.x[:] = t.cell[:, CAP]
    for i in range(t.own.shape[0]):
        for p in range(2):
            least = max(least, latency(t.cell, now.x, t.first[i], t.first[i + 1], A + p))
    _start(t, price)
    top, target, used = -math.inf, 1.0, 0
    bound = least if aim.kind == MAX_LATENCY else -math.inf
    for _ in range(STEPS):
        used += 1
        if aim.kind == MAX_LATENCY:
            height, target = _climb_max(t, now, aim, price, least, target)
            proven = STAGE_GOAL * math.exp(height)
        else:
            height = _look(t, now, aim, price, 1.0) - _worth(t, price)
            proven = height - _worth(t, price) * (1.0 / STAGE_GOAL - 1.0)
        if height >= top - STAGE_CALM * abs(top) * 1e-3:
            top = max(top, height)
            bound = max(bound, proven)
            if _settled(t, now, price, aim.kind == MAX_LATENCY and target <= least):
                break
            old[:] = price
            _step(t, now, price, step)
            if aim.kind == LATENCY and used <= SCALED:
                _rescale(t, price, step)
        else:
            step *= 0.3
        for r in range(n):
            price[r] = max(STAGE_LEAST_PRICE, old[r] * math.exp(step[r])) if old[r] > 0.0 else 0.0
    return bound, used


def _make(digest: int) -> Callable[[StageProblem, Aim, Floats], tuple[Floats, float, int]]:
    """Return `share_out`, compiled and kept; `digest` is part of its key in the cache (as in price/solver.py)."""

    @cached
    def share_out(q: StageProblem, aim: Aim, held: Floats) -> tuple[Floats, float, int]:
        """Best shares (N, S) from shares `held` (N, S) that fit: (shares, proven bound of the objective, steps)."""
        t = gather(q, aim)
        n, many = t.room.shape[0], t.resource.shape[0]
        share, x = np.zeros(held.shape), np.zeros(many)
        share[:, :] = held
        if many == 0:
            return share, 0.0, digest * 0
        now = Now(np.zeros(many), np.zeros(n), np.zeros((n, n)))
        bound, steps = _climb(t, now, aim)
        move(q, share, x, True)
        _keep_late(t, now, x)
        _blend(t, now, x)
        for s in range(n):
            _top_up(t, now, x, s)
        move(q, share, x, False)
        return share, bound, steps

    return share_out


share_out = _make(source_digest("price", "objectives"))
