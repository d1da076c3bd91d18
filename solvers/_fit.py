"""Feasibility of a set of points, and the second stage (docs/model.md, sections 4 and 5).

Can these points be served together, and how is what is left over shared out?

For a fixed set of points: minimise the sum over tasks of `max over phases of latency / slack`, subject to deadlines,
floors, caps and room. Its dual in the prices is concave, and at prices the tasks separate: a task whose deadline does
not bind takes the shares of multiplier 1, `x = sqrt(a / price)`, any other those of its deadline ("tight" below).
Newton steps in log prices climb the dual. On the way, tight shares that leave no resource overfilled prove that the
set fits; prices at which the tight shares cost more than all room is worth prove that it does not.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers._jit import nopython
from solvers._kernel import (
    ACTIVITY,
    CAP,
    EDGE,
    FLOOR,
    RIGID,
    Prices,
    Table,
    add_use,
    cheapest,
    latency,
    mixed,
    prices_of,
    rounded,
)
from solvers.problem import Floats, Ints

STEPS: Final = 20  # of one search; 1 to 6 are used
JUMP: Final = 3.0  # no log price moves by more in one step
GOAL: Final = 1.0 - 1e-6  # part of the room that is aimed at, so that it is reached from within
CLOSE: Final = 1e-7  # part of the room by which the goal may be missed when shares are settled
CALM: Final = 1e-5  # part of the dual's value: when a step of a set that fits gains less, it is settled
HELD: Final = 1e-10  # of deadlines and room: rounding that shares found earlier may show
SLIP: Final = 1e-9  # part of the dual's value that a step may lose to rounding
STIFF: Final = 1e-4  # of price x room added to the second derivative: use that does not respond moves no price far
LEVEL: Final = 0.1  # a proof of no fit is sharpened until it gains less than this part of the excess
FIT: Final = 1
NO_FIT: Final = 0  # proven, by the prices returned
UNKNOWN: Final = -1  # on the edge: treated as no fit


class Set(NamedTuple):
    """A set of chosen points and its shares; arrays are written in place."""

    chosen: Ints  # (N,) point or -1
    share: Floats  # (N, S) tight
    wide: Floats  # (N, S) of the dual's minimiser
    use: Floats  # (2, R + 1) elastic use by tight and by wide shares
    room: Floats  # (R + 1,) left to elastic use
    pull: Floats  # (R, R) minus twice the dual's second derivative in log prices, as far as it helps


class Climb(NamedTuple):
    """Where the dual stands: its value, the elastic bill of the tight shares, the sum of roots of bills."""

    height: float
    spent: float
    roots: float


@nopython
def new_set(t: Table) -> Set:
    """No task chosen."""
    n, n_tasks, n_slots = t.room.shape[0], t.order.shape[0], t.slot.shape[1]
    chosen = np.full(n_tasks, -1, dtype=np.int64)
    share, wide = np.zeros((n_tasks, n_slots)), np.zeros((n_tasks, n_slots))
    return Set(chosen, share, wide, np.zeros((2, n)), np.zeros(n), np.zeros((n - 1, n - 1)))


@nopython
def copy_shares(source: Floats, target: Floats) -> None:
    """Copy (N, S)."""
    for i in range(source.shape[0]):
        for s in range(source.shape[1]):
            target[i, s] = source[i, s]


@nopython
def copy_set(source: Set, target: Set) -> None:
    """Points and tight shares of one set into another."""
    for i in range(source.chosen.shape[0]):
        target.chosen[i] = source.chosen[i]
    copy_shares(source.share, target.share)


@nopython
def elastic_room(t: Table, k: Set) -> int:
    """Fill k.room; returns a resource that rigid demand alone overfills, or -1."""
    n = t.room.shape[0] - 1
    for r in range(n):
        k.room[r] = t.room[r]
    for i in t.order:
        j = k.chosen[i]
        if j >= 0:
            for s in range(t.slot.shape[1]):
                k.room[t.slot[j, s]] -= t.cell[j, RIGID, s]
    for r in range(n):
        if k.room[r] < -EDGE:
            return r
    return -1


@nopython
def _widen(t: Table, j: int, theta: float, y: float, p: Prices, x: Floats, wide: Floats) -> bool:
    """Shares of multiplier 1 into `wide` where the tight x (multiplier 1 / y^2) need less. True: they do."""
    for s in range(x.shape[0]):
        wide[s] = x[s]
    if y <= 1.0:
        return False
    for s in range(x.shape[0]):
        a = mixed(t, j, s, theta)
        if a > 0.0:
            paid = p.share[t.slot[j, s]] * t.cell[j, ACTIVITY, s]
            wish = math.sqrt(a / paid) if paid > 0.0 else math.inf
            wide[s] = max(x[s], min(t.cell[j, CAP, s], wish))
    return True


@nopython
def _leg(legs: Floats, many: int, r: int, paid: float) -> int:
    legs[0, many], legs[1, many] = float(r), paid
    return many + 1


@nopython
def _respond(t: Table, j: int, theta: float, eased: bool, p: Prices, wide: Floats, k: Set, legs: Floats) -> None:
    """Add to k.pull how the bill of point j moves with log prices.

    With v[r] what its shares at neither limit pay to resource r: diag(v), less v v' / sum(v) where the deadline
    binds, for then what leaves one resource comes back at the others. `legs` (2, slots x (1 + couplings)) is scratch.
    """
    many, free = 0, 0.0
    for s in range(wide.shape[0]):
        if mixed(t, j, s, theta) > 0.0 and t.cell[j, FLOOR, s] < wide[s] < t.cell[j, CAP, s]:
            r = t.slot[j, s]
            counted = t.cell[j, ACTIVITY, s] * wide[s]
            free += p.share[r] * counted
            many = _leg(legs, many, r, p.rigid[r] * counted)
            for c in range(t.link.shape[0]):
                if t.link[c, 0] == r:
                    many = _leg(legs, many, t.link[c, 1], p.rigid[t.link[c, 1]] * t.kappa[c] * counted)
    for m in range(many):
        r = int(legs[0, m])
        k.pull[r, r] += legs[1, m]
        if not eased and free > 0.0:
            for z in range(many):
                k.pull[r, int(legs[0, z])] -= legs[1, m] * legs[1, z] / free


@nopython
def _serve(t: Table, k: Set, p: Prices) -> Climb:
    """Everyone's tight and wide shares at these prices into k."""
    n = t.room.shape[0] - 1
    work, legs = np.zeros((2, t.slot.shape[1])), np.empty((2, t.slot.shape[1] * (1 + t.link.shape[0])))
    for r in range(n + 1):
        k.use[0, r] = k.use[1, r] = 0.0
    for r in range(n):
        for q in range(n):
            k.pull[r, q] = 0.0
    height = spent = roots = 0.0
    for i in t.order:
        j = k.chosen[i]
        if j >= 0:
            x, wide = k.share[i], k.wide[i]
            _, theta, y = cheapest(t, j, p, x, work)
            eased = _widen(t, j, theta, y, p, x, wide)
            add_use(t, j, x, k.use[0])
            add_use(t, j, wide, k.use[1])
            _respond(t, j, theta, eased, p, wide, k, legs)
            bill = _bill(t, j, p, x)
            spent += bill
            roots += math.sqrt(bill)
            height += _bill(t, j, p, wide)
            height += theta * latency(t, j, 0, wide) + (1.0 - theta) * latency(t, j, 1, wide)
    return Climb(height, spent, roots)


@nopython
def _bill(t: Table, j: int, p: Prices, x: Floats) -> float:
    """Price the shares x (S,), without rigid demand."""
    total = 0.0
    for s in range(x.shape[0]):
        total += p.share[t.slot[j, s]] * t.cell[j, ACTIVITY, s] * x[s]
    return total


@nopython
def solve_linear(matrix: Floats, right: Floats) -> None:
    """Solve a symmetric positive definite system in place; `right` becomes the solution (Gauss, no pivoting)."""
    n = right.shape[0]
    for k in range(n):
        pivot = matrix[k, k]
        for r in range(k + 1, n):
            part = matrix[r, k] / pivot
            if part != 0.0:
                for c in range(k + 1, n):
                    matrix[r, c] -= part * matrix[k, c]
                right[r] -= part * right[k]
    for k in range(n - 1, -1, -1):
        for c in range(k + 1, n):
            right[k] -= matrix[k, c] * right[c]
        right[k] /= matrix[k, k]


@nopython
def _newton(k: Set, price: Floats, step: Floats) -> None:
    """Step in log prices: pull step = 2 price (wide use - room), no component beyond JUMP."""
    n = price.shape[0]
    matrix = np.empty((n, n))
    for r in range(n):
        step[r] = 2.0 * price[r] * (k.use[1, r] - GOAL * k.room[r])
        for q in range(n):
            matrix[r, q] = k.pull[r, q]
        matrix[r, r] += STIFF * price[r] * k.room[r]
        if matrix[r, r] <= 0.0:
            matrix[r, r] = 1.0
    solve_linear(matrix, step)
    for r in range(n):
        step[r] = min(JUMP, max(-JUMP, step[r]))


@nopython
def _worst(k: Set) -> float:
    """Greatest tight use over room; inf where there is use but no room."""
    worst = 0.0
    for r in range(k.room.shape[0] - 1):
        if k.use[0, r] > EDGE:
            worst = max(worst, k.use[0, r] / k.room[r] if k.room[r] > EDGE else math.inf)
    return worst


@nopython
def _settled(k: Set, price: Floats) -> bool:
    """Wide shares fill every resource that has a price that matters."""
    whole = _worth(k, price)
    for r in range(price.shape[0]):
        over = k.use[1, r] - GOAL * k.room[r]
        if over > CLOSE * k.room[r] or (over < -CLOSE * k.room[r] and price[r] * k.room[r] > 1e-9 * whole):
            return False
    return True


@nopython
def _no_room(k: Set) -> int:
    """Find a resource with elastic demand but no room; -1 if there is none."""
    for r in range(k.room.shape[0] - 1):
        if k.room[r] <= EDGE and k.use[0, r] > EDGE:
            return r
    return -1


@nopython
def _worth(k: Set, price: Floats) -> float:
    total = 0.0
    for r in range(price.shape[0]):
        total += price[r] * k.room[r]
    return total


@nopython
def _ratio(k: Set, price: Floats, spent: float) -> float:
    """Bill of the tight shares over the worth of the room; above 1 it proves that the set does not fit."""
    whole = _worth(k, price)
    return spent / whole if whole > 0.0 else 0.0


@nopython
def _next(old: Floats, step: Floats, risen: bool, k: Set, price: Floats) -> None:
    """Move `price`: a Newton step from where it is if the dual has risen there, else a shorter one from `old`."""
    if risen:
        for r in range(price.shape[0]):
            old[r] = price[r]
        _newton(k, price, step)
    else:
        for r in range(price.shape[0]):
            step[r] *= 0.3
    for r in range(price.shape[0]):
        price[r] = rounded(max(1e-200, old[r] * math.exp(step[r]))) if old[r] > 0.0 else 0.0


@nopython
def _look(t: Table, k: Set, price: Floats) -> int:
    """First look: serve at these price ratios, then scale the prices so that multipliers are about 1.

    As if no deadline bound: (sum of roots of bills / worth)^2.
    """
    full = elastic_room(t, k)
    if full < 0:
        c = _serve(t, k, prices_of(t, price))
        full = _no_room(k)
    if full >= 0:
        for r in range(price.shape[0]):
            price[r] = 1.0 if r == full else 0.0
        return NO_FIT
    whole, ratio = _worth(k, price), _ratio(k, price, c.spent)
    if c.roots > 0.0 and whole > 0.0:
        for r in range(price.shape[0]):
            price[r] *= (c.roots / whole) ** 2
    if _worst(k) <= 1.0 + EDGE:
        return FIT
    return NO_FIT if ratio > 1.0 + EDGE else UNKNOWN


@nopython
def fit(t: Table, k: Set, price: Floats) -> int:
    """Search shares that serve all of k.chosen, from the ratios of `price` (R,), which it moves.

    FIT: the tight k.share do. NO_FIT: at `price` they cost more than there is room for. Returns at the first proof
    of either.
    """
    verdict = _look(t, k, price)
    if verdict != UNKNOWN:
        return verdict
    old, step = price.copy(), np.zeros(price.shape[0])
    top = -math.inf
    for _ in range(STEPS):
        c = _serve(t, k, prices_of(t, price))
        if _worst(k) <= 1.0 + EDGE:
            return FIT
        if _ratio(k, price, c.spent) > 1.0 + EDGE:
            return NO_FIT
        height = c.height - GOAL * _worth(k, price)
        risen = height >= top - SLIP * abs(top)
        top = max(top, height)
        _next(old, step, risen, k, price)
    return UNKNOWN


@nopython
def serves(t: Table, k: Set) -> bool:
    """Whether k.share hold all limits, deadlines and k.room."""
    n = t.room.shape[0] - 1
    for r in range(n + 1):
        k.use[0, r] = 0.0
    for i in t.order:
        j = k.chosen[i]
        if j >= 0:
            x = k.share[i]
            for s in range(x.shape[0]):
                cap = t.cell[j, CAP, s] if t.slot[j, s] < n else 0.0
                if not t.cell[j, FLOOR, s] * (1.0 - EDGE) <= x[s] <= cap * (1.0 + EDGE):
                    return False
            if max(latency(t, j, 0, x), latency(t, j, 1, x)) > 1.0 + HELD:
                return False
            add_use(t, j, x, k.use[0])
    return _worst(k) <= 1.0 + HELD


@nopython
def settle(t: Table, k: Set, price: Floats) -> int:
    """Like `fit`, to the end: with FIT k.wide has used up the room, with NO_FIT the proof is sharp.

    Where k.share serve the set already, the answer is FIT, and they do afterwards.
    """
    good = k.share.copy()
    held = elastic_room(t, k) < 0 and serves(t, k)
    verdict = _look(t, k, price)
    if verdict == NO_FIT and _worth(k, price) <= 0.0:
        return verdict
    if verdict == FIT and not held:
        copy_shares(k.share, good)
    held = held or verdict == FIT
    old, step = price.copy(), np.zeros(price.shape[0])
    top, before = -math.inf, 0.0
    for _ in range(STEPS):
        c = _serve(t, k, prices_of(t, price))
        if not held and _worst(k) <= 1.0 + EDGE:
            held = True
            copy_shares(k.share, good)
        height, ratio = c.height - GOAL * _worth(k, price), _ratio(k, price, c.spent)
        gain, risen = height - top, height >= top - SLIP * abs(top)
        if risen:
            sharper, before = ratio - before, ratio
            if _done(k, price, held, gain, ratio, sharper):
                break
        top = max(top, height)
        _next(old, step, risen, k, price)
    else:
        for r in range(price.shape[0]):
            price[r] = old[r]
    if held:
        copy_shares(good, k.share)
        return FIT
    return NO_FIT if before > 1.0 + EDGE else UNKNOWN


@nopython
def _done(k: Set, price: Floats, fits: bool, gain: float, ratio: float, sharper: float) -> bool:
    """Nothing is left to be gained: all room used, or the dual at rest, or the proof of no fit hardly sharper."""
    if not fits:
        return ratio > 1.0 + EDGE and sharper < LEVEL * (ratio - 1.0)
    return gain < CALM * _worth(k, price) or _settled(k, price)
