"""The oracle again, as NumPy over all points at once: reference for the compiled one, and its stand-in.

The one-phase problem is solved at the breakpoints of its piecewise linear latency instead of by variable fixing; so
the two share no step of the method, only the Table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from solvers.problem import Floats, Ints

if TYPE_CHECKING:
    from solvers._kernel import Table
    from solvers._oracle import Screen

ROOT, RIGID, A, REACH, FLOOR, CAP, ACTIVITY = 0, 2, 3, 5, 6, 7, 8  # fields of Table.cell
DOUBLE: Final = 2
ROUNDS: Final = 80  # of the search between two phases


def evaluate(t: Table, price: Floats, _screen: Screen, pick: Ints, net: Floats, use: Floats) -> float:
    """Dual function at prices (R,); see solvers._kernel.evaluate."""
    cost, share = costs_and_shares(t, price)
    gain = t.value - cost  # (J,)
    use[:] = 0.0
    bound = float((price * t.room[:-1]).sum())
    for i in t.order:
        pick[i], net[i] = -1, 0.0
        gains = gain[t.first[i] : t.first[i + 1]]
        if gains.size and gains.max() > 0:
            j = int(t.first[i] + np.argmax(gains))
            pick[i], net[i] = j, gain[j]
            bound += float(gain[j])
            _demand(t, j, share[j], use)
    return bound


def all_costs(t: Table, price: Floats, cost: Floats) -> None:
    """Cost of every point (J,), inf for those that cannot be served."""
    cost[:] = costs_and_shares(t, price)[0]


def costs_and_shares(t: Table, price: Floats) -> tuple[Floats, Floats]:
    """Least cost (J,), inf where a point cannot be served, and the shares (J, S) for it."""
    rigid = np.append(price, 0.0)
    charge = rigid.copy()
    for (source, target), kappa in zip(t.link, t.kappa, strict=True):
        charge[source] += kappa * price[target]
    cost, share = np.full(len(t.value), np.inf), np.zeros(t.slot.shape)
    alive = np.flatnonzero(t.mode > 0)
    cell = t.cell[alive]  # (K, FIELDS, S)
    pay = cell[:, ACTIVITY] * charge[t.slot[alive]]  # (K, S) for a whole share
    x = _one_phase(cell[:, A], pay, cell[:, FLOOR], cell[:, CAP])
    base = (rigid[t.slot[alive]] * cell[:, RIGID]).sum(axis=1)
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


def _demand(t: Table, j: int, x: Floats, use: Floats) -> None:
    counted = t.cell[j, ACTIVITY] * x
    np.add.at(use, t.slot[j], counted + t.cell[j, RIGID])
    for (source, target), kappa in zip(t.link, t.kappa, strict=True):
        use[target] += kappa * counted[t.slot[j] == source].sum()
