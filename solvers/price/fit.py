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

from solvers.jit import inlined, lean, nopython
from solvers.price.point import ACT, CAP, FLOOR, Point, bill, cheapest, latency, legs, load, mixed, stretch
from solvers.price.tables import ACTIVITY, DOUBLE, HIGH, LOW, RIGID, Prices, Table, prices_of, rounded, with_couplings
from solvers.problem import Floats, Ints
from solvers.tolerances import (
    BILL_ASTRAY,
    CLOSE,
    DUAL_SLIP,
    EDGE,
    FADING,
    FIT_GOAL,
    FIT_STIFF,
    KEEP,
    LEAST_WORTH,
    OVER,
    PROOF_GAIN,
)

STEPS: Final = 20  # of one search; 1 to 6 are used
JUMP: Final = 3.0  # no log price moves by more in one step
FIT: Final = 1
NO_FIT: Final = 0  # proven, by the prices returned
UNKNOWN: Final = -1  # on the edge: treated as no fit

ROOT: Final = 2  # of Set.row, beside LOW and HIGH
ACTS: Final = 3


class Set(NamedTuple):
    """A set of chosen points and its shares; arrays are written in place."""

    chosen: Ints  # (N,) point or -1
    slot: Ints  # (N, S) of the chosen point
    row: Floats  # (N, 4, S) LOW, HIGH, ROOT, ACTS of it: side by side for all tasks, a look at them is quick
    bill: Floats  # (N,) price of its tight shares
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
    n, n_tasks, n_slots = t.room.shape[0], t.most.shape[0], t.root.shape[1]
    chosen, slot = np.full(n_tasks, -1, dtype=np.int64), np.zeros((n_tasks, n_slots), dtype=np.int64)
    row, bills = np.zeros((n_tasks, 4, n_slots)), np.zeros(n_tasks)
    share, wide = np.zeros((n_tasks, n_slots)), np.zeros((n_tasks, n_slots))
    return Set(chosen, slot, row, bills, share, wide, np.zeros((2, n)), np.zeros(n), np.zeros((n - 1, n - 1)))


@inlined
def put_here(t: Table, k: Set, i: int, j: int) -> None:
    """Let task i have point j, or none (-1)."""
    k.chosen[i] = j
    k.bill[i] = 0.0
    if j >= 0:
        for s in range(t.root.shape[1]):
            k.slot[i, s] = t.slot[j, s]
            k.row[i, ROOT, s], k.row[i, ACTS, s] = t.root[j, s], t.cell[j, ACTIVITY, s]
            k.row[i, LOW, s], k.row[i, HIGH, s] = t.cell[j, LOW, s], t.cell[j, HIGH, s]


@lean
def put(t: Table, k: Set, i: int, j: int) -> None:
    """As put_here, by a call."""
    put_here(t, k, i, j)


@lean
def elastic_room(t: Table, k: Set) -> int:
    """Fill k.room; returns a resource that rigid demand alone overfills, or -1."""
    n = t.room.shape[0] - 1
    for r in range(n):
        k.room[r] = t.room[r]
    for i in t.order:
        j = k.chosen[i]
        if j >= 0:
            for s in range(t.root.shape[1]):
                k.room[k.slot[i, s]] -= t.cell[j, RIGID, s]
    for r in range(n):
        if k.room[r] < -KEEP * OVER:
            return r
    return -1


@nopython
def _at_a_glance(t: Table, k: Set, p: Prices) -> Climb:  # noqa: C901 - one loop, as in oracle.py
    """Add use and response of tasks whose shares meet no limit; the bill of the others becomes -1."""
    chosen, slot, row, bills, use, pull = k.chosen, k.slot, k.row, k.bill, k.use, k.pull
    mode, root, back, order, n = t.mode, p.root, p.back, t.order, k.pull.shape[0]
    height = spent = roots = 0.0
    for i in order:
        bills[i] = 0.0
        if chosen[i] < 0:
            continue
        bills[i] = -1.0
        if mode[chosen[i]] == DOUBLE:
            continue
        total, inside = 0.0, True
        for s in range(slot.shape[1]):
            total += row[i, ROOT, s] * root[slot[i, s]]
        wide = max(total, 1.0)
        for s in range(slot.shape[1]):
            unit = row[i, ROOT, s] * back[slot[i, s]]
            inside = inside and row[i, LOW, s] <= unit * total and unit * wide <= row[i, HIGH, s]
        if not inside:
            continue
        bills[i] = total * total
        spent += total * total
        roots += total
        height += wide * total + min(total, 1.0)
        for s in range(slot.shape[1]):
            r = slot[i, s]
            unit = row[i, ROOT, s] * back[r]
            use[0, r] += unit * total
            use[1, r] += unit * wide
            if r < n:
                paid = row[i, ROOT, s] * root[r]
                pull[r, r] += paid * wide
                if total >= 1.0:
                    for z in range(slot.shape[1]):
                        if slot[i, z] < n:
                            pull[r, slot[i, z]] -= paid * row[i, ROOT, z] * root[slot[i, z]]
    return Climb(height, spent, roots)


@lean
def _widen(o: Point, theta: float, y: float, p: Prices) -> bool:
    """Shares of multiplier 1 into o.y where the tight o.x (multiplier 1 / y^2) need less. True: they do."""
    for s in range(o.x.shape[0]):
        o.y[s] = o.x[s]
    if y <= 1.0:
        return False
    for s in range(o.x.shape[0]):
        a = mixed(o, s, theta)
        if a > 0.0:
            paid = p.share[o.slot[s]] * o.cell[ACT, s]
            wish = math.sqrt(a / paid) if paid > 0.0 else math.inf
            o.y[s] = max(o.x[s], min(o.cell[CAP, s], wish))
    return True


@lean
def exact_shares(t: Table, i: int, j: int, p: Prices, o: Point) -> tuple[float, bool]:
    """Tight shares of point j into o.x, wide ones into o.y. Returns (theta, whether the deadline does not bind)."""
    load(t, j, o)
    theta, y = cheapest(o, t.mode[j] == DOUBLE, 1.0, p)  # no hint: the same at every call
    if t.mode[j] == DOUBLE:
        t.theta[i] = theta
        stretch(o)
    return theta, _widen(o, theta, y, p)


@lean
def _add_exact(t: Table, k: Set, i: int, p: Prices, o: Point) -> float:
    """As _add_quick, for any point; k.bill[i] becomes the bill of the tight shares."""
    theta, eased = exact_shares(t, i, k.chosen[i], p, o)
    k.bill[i] = bill(o, p, o.x)
    height = bill(o, p, o.y) + theta * latency(o, 0, o.y) + (1.0 - theta) * latency(o, 1, o.y)
    for s in range(o.x.shape[0]):
        act = o.cell[ACT, s]
        k.use[0, o.slot[s]] += act * o.x[s]
        k.use[1, o.slot[s]] += act * o.y[s]
        moves = mixed(o, s, theta) > 0.0 and o.cell[FLOOR, s] < o.y[s] < o.cell[CAP, s]
        o.y[s] = act * o.y[s] if moves else 0.0
    _respond(t, eased, p, k, o)
    return height


@lean
def _respond(t: Table, eased: bool, p: Prices, k: Set, o: Point) -> None:
    """Add to k.pull how the bill of the counted shares o.y moves with log prices.

    With v[r] what they pay to resource r: diag(v), less v v' / sum(v) where the deadline binds, for then what leaves
    one resource comes back at the others.
    """
    many, free = legs(t, o, p), 0.0
    for m in range(many):
        free += o.paid[m]
    for m in range(many):
        r = o.leg[m]
        k.pull[r, r] += o.paid[m]
        if not eased and free > 0.0:
            for z in range(many):
                k.pull[r, o.leg[z]] -= o.paid[m] * o.paid[z] / free


@lean
def _one_by_one(t: Table, k: Set, p: Prices, c: Climb, o: Point) -> Climb:
    """Add the other tasks to c."""
    height, spent, roots = c.height, c.spent, c.roots
    for i in t.order:
        if k.bill[i] < 0.0:
            height += _add_exact(t, k, i, p, o)
            spent += k.bill[i]
            roots += math.sqrt(k.bill[i])
    return Climb(height, spent, roots)


@nopython
def serve(t: Table, k: Set, p: Prices, o: Point) -> Climb:
    """What everyone's tight and wide shares at these prices use and cost, into k."""
    n = t.room.shape[0] - 1
    linked = t.link.shape[0] > 0
    for r in range(n + 1):
        k.use[0, r] = k.use[1, r] = 0.0
    for r in range(n):
        for q in range(n):
            k.pull[r, q] = 0.0
    c = Climb(0.0, 0.0, 0.0)
    if linked:
        for i in range(k.bill.shape[0]):
            k.bill[i] = -1.0 if k.chosen[i] >= 0 else 0.0
    else:
        c = _at_a_glance(t, k, p)
    c = _one_by_one(t, k, p, c, o)
    with_couplings(t, k.use[0])
    with_couplings(t, k.use[1])
    return c


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
def newton(k: Set, price: Floats, step: Floats) -> float:
    """Newton step in log prices: pull step = 2 price (wide use - room), no component beyond JUMP.

    Returns what the dual gains by it if it is as curved as it looks.
    """
    n = price.shape[0]
    matrix = np.empty((n, n))
    for r in range(n):
        step[r] = 2.0 * price[r] * (k.use[1, r] - FIT_GOAL * k.room[r])
        for q in range(n):
            matrix[r, q] = k.pull[r, q]
        matrix[r, r] += FIT_STIFF * price[r] * k.room[r]
        if matrix[r, r] <= 0.0:
            matrix[r, r] = 1.0
    solve_linear(matrix, step)
    whole, gain = worth_of(k, price), 0.0
    for r in range(n):
        step[r] = min(JUMP, max(-JUMP, step[r]))
        if price[r] * k.room[r] < FADING * whole and k.use[1, r] < FIT_GOAL * k.room[r]:
            step[r] = -JUMP
        gain += 0.5 * step[r] * price[r] * (k.use[1, r] - FIT_GOAL * k.room[r])
    return gain


@lean
def fullest(k: Set) -> float:
    """Greatest tight use over room; inf where there is use but no room."""
    worst = 0.0
    for r in range(k.room.shape[0] - 1):
        if k.use[0, r] > EDGE:
            worst = max(worst, k.use[0, r] / k.room[r] if k.room[r] > EDGE else math.inf)
    return worst


@lean
def settled(k: Set, price: Floats) -> bool:
    """Wide shares fill every resource that has a price that matters."""
    whole = worth_of(k, price)
    for r in range(price.shape[0]):
        over = k.use[1, r] - FIT_GOAL * k.room[r]
        if over > CLOSE * k.room[r] or (over < -CLOSE * k.room[r] and price[r] * k.room[r] > 1e-9 * whole):
            return False
    return True


@lean
def _no_room(k: Set) -> int:
    """Find a resource with elastic demand but no room; -1 if there is none."""
    for r in range(k.room.shape[0] - 1):
        if k.room[r] <= EDGE and k.use[0, r] > EDGE:
            return r
    return -1


@lean
def worth_of(k: Set, price: Floats) -> float:
    """What the room of a set is worth at prices (R,)."""
    total = 0.0
    for r in range(price.shape[0]):
        total += price[r] * k.room[r]
    return total


@lean
def _ratio(k: Set, price: Floats, spent: float) -> float:
    """Bill of the tight shares over the worth of the room; above 1 it proves that the set does not fit."""
    whole = worth_of(k, price)
    return spent / whole if whole > 0.0 else 0.0


@nopython
def advance(old: Floats, step: Floats, risen: bool, k: Set, price: Floats) -> None:
    """Move `price`: a step from where it is if the dual has risen there, else a shorter one from `old`."""
    if risen:
        for r in range(price.shape[0]):
            old[r] = price[r]
    else:
        for r in range(price.shape[0]):
            step[r] *= 0.3
    least = LEAST_WORTH * worth_of(k, old)
    for r in range(price.shape[0]):
        lowest = least / k.room[r] if k.room[r] > EDGE else 1e-200
        price[r] = rounded(max(lowest, 1e-200, old[r] * math.exp(step[r]))) if old[r] > 0.0 else 0.0


@lean
def _scale(t: Table, k: Set, whole: float, c: Climb) -> float:
    """Factor on all prices at which the wide shares cost what the room is worth.

    With B the root of a task's bill and u the root of 1 / factor: sum of max(B^2, B u) = whole, convex in u; Newton
    from above. Where the tight shares alone cost more, as if no deadline bound.
    """
    u = whole / c.roots
    if c.spent < whole:
        for _ in range(STEPS):
            tight = eased = 0.0
            for i in t.order:
                if k.chosen[i] >= 0:
                    root = math.sqrt(k.bill[i])
                    if root >= u:
                        tight += k.bill[i]
                    else:
                        eased += root
            if eased <= 0.0 or not 0.0 < (whole - tight) / eased < u * (1.0 - 1e-9):
                break
            u = (whole - tight) / eased
    return (1.0 / u) ** 2


@nopython
def _look(t: Table, k: Set, price: Floats, o: Point) -> tuple[int, Climb]:
    """First look: serve at these price ratios, scaled to where the wide shares about fill the room."""
    full, c = elastic_room(t, k), Climb(0.0, 0.0, 0.0)
    if full < 0:
        c = serve(t, k, prices_of(t, price), o)
        full = _no_room(k)
    if full >= 0:
        for r in range(price.shape[0]):
            price[r] = 1.0 if r == full else 0.0
        return NO_FIT, c
    ratio, verdict = _ratio(k, price, c.spent), UNKNOWN
    if fullest(k) <= 1.0 + EDGE:
        verdict = FIT
    elif ratio > 1.0 + EDGE:
        verdict = NO_FIT
    return verdict, c if verdict == FIT else scaled(t, k, price, c, o)


@nopython
def scaled(t: Table, k: Set, price: Floats, c: Climb, o: Point) -> Climb:
    """Scale prices at which wide shares cost much more or less than the room is worth; returns the look there."""
    whole, wide = worth_of(k, price), 0.0
    for r in range(price.shape[0]):
        wide += price[r] * k.use[1, r]
    if c.roots <= 0.0 or whole <= 0.0 or abs(wide - FIT_GOAL * whole) <= BILL_ASTRAY * whole:
        return c
    factor = _scale(t, k, whole, c)
    for r in range(price.shape[0]):
        price[r] *= factor
    return serve(t, k, prices_of(t, price), o)


@nopython
def fit(t: Table, k: Set, price: Floats, sharp: bool, o: Point) -> int:
    """Search shares that serve all of k.chosen, from the ratios of `price` (R,), which it moves.

    FIT: the tight shares at `price` do, k.use[0] is their use. NO_FIT: at `price` they cost more than there is room
    for; `sharp`: by as much as a few more steps find.
    """
    verdict, c = _look(t, k, price, o)
    if verdict == FIT or (verdict == NO_FIT and (not sharp or worth_of(k, price) <= 0.0)):
        return verdict
    old, step = price.copy(), np.zeros(price.shape[0])
    top, before = -math.inf, 0.0
    for tried in range(STEPS):
        if tried > 0:
            c = serve(t, k, prices_of(t, price), o)
        if fullest(k) <= 1.0 + EDGE:
            return FIT
        ratio = _ratio(k, price, c.spent)
        if ratio > 1.0 + EDGE and not sharp:
            return NO_FIT
        height = c.height - FIT_GOAL * worth_of(k, price)
        risen = height >= top - DUAL_SLIP * abs(top)
        if risen:
            sharper, before = ratio - before, ratio
            if ratio > 1.0 + EDGE and sharper < PROOF_GAIN * (ratio - 1.0):
                return NO_FIT
        top = max(top, height)
        if risen:
            newton(k, price, step)
        advance(old, step, risen, k, price)
    return UNKNOWN
