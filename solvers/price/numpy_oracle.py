"""The oracle again, as NumPy over all points at once: reference for the compiled one, and its stand-in.

The one-phase problem is solved at the breakpoints of its piecewise linear latency instead of by variable fixing; so
the two share no step of the method, only the Table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from solvers.price.tables import ACTIVITY, AWAY, DEAD, DOUBLE, HIGH, LOW, OTHER, REACH, RIGID
from solvers.problem import Floats, Ints

if TYPE_CHECKING:
    from solvers.price.screen import Screen
    from solvers.price.tables import Prices, Table

A, FLOOR, CAP = 0, 2, 3  # rows of what is made of a table's cells here
ROUNDS: Final = 80  # of the search between two phases


def list_points(t: Table, p: Prices, screen: Screen) -> None:
    """Every task's points that may be its best, by lower bounds of the costs; see solvers.price.screen."""
    root = p.root[t.slot]  # (J, S)
    both = np.maximum((t.root * root).sum(axis=1), (t.cell[:, OTHER] * root).sum(axis=1))
    rigid = p.rigid[t.slot] * t.cell[:, RIGID]
    worth, given = t.value - (rigid.sum(axis=1) + both * both), np.maximum(0.0, -rigid).sum(axis=1)
    worth[t.mode == DEAD] = -np.inf
    listed = []
    for i, most in enumerate(t.most):
        points = np.arange(t.first[i], t.first[i + 1])
        if points.size:
            best = points[np.argmax(worth[points])]
            paid = t.value[best] - worth[best] + 2.0 * given[best]
            least = max(0.0, worth[best] - REACH * paid if worth[best] > 0.0 else 0.0)
            moved = REACH * t.value[points] + (1.0 - REACH) * worth[points] + 2.0 * REACH * given[points]
            points = points[moved >= least - AWAY * most]
        listed.append(points)
        screen.start[i + 1] = screen.start[i] + points.size
    many = np.concatenate([np.zeros(0, dtype=np.int64), *listed])
    screen.point[: many.size], screen.mode[: many.size] = many, t.mode[many]
    screen.value[: many.size], screen.slot[: many.size], screen.root[: many.size] = (
        t.value[many],
        t.slot[many],
        t.root[many],
    )


def _cells(t: Table, points: Ints) -> Floats:
    """(K, 5, S) work / slack of two phases, floor, cap, activity."""
    act = t.cell[points, ACTIVITY]
    parts = (t.root[points] ** 2, t.cell[points, OTHER] ** 2, t.cell[points, LOW], t.cell[points, HIGH])
    return np.stack([*(part / act for part in parts), act], axis=1)


def costs_and_shares(t: Table, price: Floats) -> tuple[Floats, Floats]:
    """Least cost (J,), inf where a point cannot be served, and the shares (J, S) for it."""
    rigid = np.append(price, 0.0)
    charge = rigid.copy()
    for (source, target), kappa in zip(t.link, t.kappa, strict=True):
        charge[source] += kappa * price[target]
    cost, share = np.full(len(t.value), np.inf), np.zeros(t.slot.shape)
    alive = np.flatnonzero(t.mode != DEAD)
    cell = _cells(t, alive)
    pay = cell[:, ACTIVITY] * charge[t.slot[alive]]  # (K, S) for a whole share
    x = _one_phase(cell[:, A], pay, cell[:, FLOOR], cell[:, CAP])
    base = (rigid[t.slot[alive]] * t.cell[alive, RIGID]).sum(axis=1)
    cost[alive] = base + (pay * x).sum(axis=1)
    double = np.flatnonzero(t.mode[alive] == DOUBLE)
    if double.size:
        x[double], paid = _two_phases(cell[double], pay[double])
        cost[alive[double]] = base[double] + paid
    share[alive] = x
    return cost, share


def _one_phase(a: Floats, pay: Floats, floor: Floats, cap: Floats) -> Floats:
    """Cheapest shares (K, S) under sum a / x <= 1.

    The latency at y = 1 / sqrt(multiplier) is sum clip(b y, a / cap, a / floor), b = sqrt(a pay): evaluate it at its
    2 S breakpoints and interpolate where it reaches 1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        b = np.sqrt(a * pay)
        low, high = np.where(a > 0, a / cap, 0.0), np.where(a > 0, a / floor, 0.0)
        opens, closes = _or_inf(low / b), _or_inf(high / b)  # (K, S): free between them
        knots = np.sort(np.concatenate([opens, closes], axis=1), axis=1)  # (K, 2 S)
        clipped = np.clip(b[:, None, :] * _finite(knots)[:, :, None], low[:, None, :], high[:, None, :])
        late = np.where(np.isfinite(knots), clipped.sum(axis=2), np.inf)  # (K, 2 S)
        reached = (late <= 1.0).sum(axis=1)[:, None]  # knots at which the deadline still holds
        padded = np.concatenate([np.zeros_like(reached, dtype=np.float64), knots], axis=1)
        y0 = np.take_along_axis(padded, reached, axis=1)  # (K, 1)
        y1 = np.take_along_axis(np.concatenate([knots, np.full_like(y0, np.inf)], axis=1), reached, axis=1)
        free = (opens <= y0) & (y0 < closes)
        fixed = np.where(free, 0.0, np.where(y0 < opens, low, high)).sum(axis=1, keepdims=True)
        y = np.minimum((1.0 - fixed) / np.where(free, b, 0.0).sum(axis=1, keepdims=True), y1)
        y = np.where(free.any(axis=1, keepdims=True), y, y0)
        x = np.where(y < opens, cap, np.where(y < closes, a / (b * y), floor))
        x = np.where(a > 0, x, floor)
    return np.asarray(np.clip(x, floor, cap), dtype=np.float64)


def _or_inf(knots: Floats) -> Floats:
    return np.where(np.isnan(knots), np.inf, knots)


def _finite(knots: Floats) -> Floats:
    return np.where(np.isfinite(knots), knots, 0.0)


def _two_phases(cell: Floats, pay: Floats) -> tuple[Floats, Floats]:
    """Shares (K, S) and elastic cost (K,) of points on which either phase may bind: bisection over their mixture."""
    low, high = np.zeros(len(cell)), np.ones(len(cell))
    for step in range(ROUNDS):
        theta = high if step == 0 else low if step == 1 else (low + high) / 2
        x = _one_phase(_mixture(cell, theta), pay, cell[:, FLOOR], cell[:, CAP])
        with np.errstate(divide="ignore", invalid="ignore"):
            late = np.where(cell[:, A : A + 2] > 0, cell[:, A : A + 2] / x[:, None, :], 0.0).sum(axis=2)  # (K, 2)
        if step == 0:
            low = np.where(late[:, 1] <= 1.0, 1.0, low)
        elif step == 1:
            high = np.where((late[:, 0] <= 1.0) & (low < 1.0), 0.0, high)
        else:
            up = late[:, 0] > late[:, 1]
            low, high = np.where(up, theta, low), np.where(up, high, theta)
    cost = (pay * x).sum(axis=1)
    stretch = np.maximum(1.0, late.max(axis=1))[:, None]
    return np.minimum(np.where(_mixture(cell, theta) > 0, x * stretch, x), cell[:, CAP]), cost


def _mixture(cell: Floats, theta: Floats) -> Floats:
    return np.asarray(theta[:, None] * cell[:, A] + (1.0 - theta)[:, None] * cell[:, A + 1], dtype=np.float64)
