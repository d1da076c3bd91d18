"""A problem made ready for the price solver (docs/model.md, section 2).

Every evaluation reads every point, so what does not depend on prices is worked out once. `Table` holds for every
point what each evaluation reads: roots of work / slack, so that a deadline reads `sum_s a[s] / x[s] <= 1` and the
cheapest shares of one phase are products. Hopeless points are marked, shares capped by what the resource can give at
most; padding slots point at an extra resource that is free. "Counted" shares are shares times activity: what they
take of the resource. Plain arithmetic on arrays, as everything in these files, compiled by numba (solvers/jit.py).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from solvers.jit import merged, nopython
from solvers.problem import Floats, Ints
from solvers.tolerances import EDGE, LEAST_ACTIVITY, OVER

Modes = npt.NDArray[np.int8]

DEAD: Final = 0  # no shares meet its deadlines, or it is worth nothing
PLAIN: Final = 1  # one phase binds, whatever the prices, and nothing is rigid
SINGLE: Final = 2  # one phase binds; rigid demand
DOUBLE: Final = 3  # either phase may bind, or both
REACH: Final = 0.1  # part by which prices may move until every point is looked at anew
WIDTH: Final = 0.08  # of a task's greatest value: what two choices differ by when the task is said to waver
AWAY: Final = 1.000001 * WIDTH  # what points that are not listed (solvers/price/screen.py) are worse by
PAIR: Final = 2  # slots of most problems' points, the air and a node: loops are compiled for it apart
BITS: Final = 2.0**40  # prices keep this many bits: last-bit differences of exp() between machines vanish


# What Table.cell holds of point j and slot s: cell[j, FIELD, s].
LOW: Final = 0  # limits of counted shares
HIGH: Final = 1
RIGID: Final = 2
OTHER: Final = 3  # root of the phase that binds less; 0 but for DOUBLE
ACTIVITY: Final = 4
FIELDS: Final = 5


class Raw(NamedTuple):
    """Arrays of a Problem that a Table is made from."""

    background: Floats  # (R,)
    slack: Floats  # (J, Q)
    work: Floats  # (J, Q, S)
    floor: Floats  # (J, S)
    cap: Floats  # (J, S)
    activity: Floats  # (J, S)
    rigid: Floats  # (J, S)


class Table(NamedTuple):
    """A Problem made ready. Few arrays: each one costs compile time in every function."""

    link: Ints  # (C, 2) couplings: from, to
    kappa: Floats  # (C,) per share
    first: Ints  # (N + 1,)
    order: Ints  # (N,) tasks by id
    value: Floats  # (J,)
    slot: Ints  # (J, S)
    room: Floats  # (R + 1,) capacity left by the background; the last one is padding
    mode: Modes  # (J,) DEAD, PLAIN, SINGLE, DOUBLE
    root: Floats  # (J, S) sqrt(work / slack x activity) of the phase that binds
    cell: Floats  # (J, FIELDS, S)
    most: Floats  # (N,) value of the most valuable point that can be served, 0 without one
    theta: Floats  # (N,) weight of the first phase found last: where the next search starts


class Prices(NamedTuple):
    """Prices (R + 1,), the last one 0: of rigid demand, of a share (couplings added), its square root, 1 / that."""

    rigid: Floats
    share: Floats
    root: Floats
    back: Floats  # inf where the price is 0; 0 for padding


@nopython
def room_of(raw: Raw, t: Table) -> None:
    """Fill in what the background leaves."""
    for r in range(raw.background.shape[0]):
        t.room[r] = max(0.0, 1.0 - raw.background[r])


@merged
def prepare_task(raw: Raw, t: Table, i: int, n_slots: int) -> None:
    """Fill in the points of task i from a problem's arrays."""
    first, value, mode, most = t.first, t.value, t.mode, 0.0
    for j in range(first[i], first[i + 1]):
        can = value[j] > 0.0
        can = _limits(raw, t, j, n_slots) and can
        can = _needs(raw, t, j, n_slots) and can
        mode[j] = _roots(t, j, n_slots) if can else DEAD
        if can:
            most = max(most, value[j])
    t.most[i] = most


@merged
def _limits(raw: Raw, t: Table, j: int, n_slots: int) -> bool:
    """Write limits of the counted shares and rigid demand; False: point j cannot be served at all."""
    can = True
    for s in range(n_slots):
        r = t.slot[j, s]
        if r == t.room.shape[0] - 1:
            t.cell[j, LOW, s] = t.cell[j, HIGH, s] = t.cell[j, RIGID, s] = 0.0
            t.cell[j, ACTIVITY, s] = 1.0
            continue
        act, rigid = max(raw.activity[j, s], LEAST_ACTIVITY), raw.rigid[j, s]
        left = t.room[r] - rigid
        least, greatest = raw.floor[j, s] * act, min(raw.cap[j, s] * act, max(left, 0.0))
        for c in range(t.link.shape[0]):
            if t.link[c, 0] == r and t.kappa[c] > 0.0:
                greatest = min(greatest, t.room[t.link[c, 1]] / t.kappa[c])
        if (rigid > 0.0 and left < -OVER) or not least <= greatest * (1.0 + EDGE):
            can = False
        t.cell[j, LOW, s], t.cell[j, HIGH, s] = least, max(greatest, least)
        t.cell[j, RIGID, s], t.cell[j, ACTIVITY, s] = rigid, act
    return can


@merged
def _needs(raw: Raw, t: Table, j: int, n_slots: int) -> bool:
    """Write work x activity / slack into root and OTHER; False: point j is late even with every share at its cap."""
    can = True
    for q in range(2):
        slack, late = raw.slack[j, q], 0.0
        for s in range(n_slots):
            need, work = 0.0, raw.work[j, q, s]
            if work > 0.0 and t.slot[j, s] < t.room.shape[0] - 1:
                need = work / slack * t.cell[j, ACTIVITY, s]
                late += need / t.cell[j, HIGH, s]
            if q == 0:
                t.root[j, s] = need
            else:
                t.cell[j, OTHER, s] = need
        if not (slack >= 0.0 and late <= 1.0 + EDGE):
            can = False
    return can


@merged
def _roots(t: Table, j: int, n_slots: int) -> int:
    """Take the roots of the phase that binds at any prices (the one with more work on every slot); returns the mode."""
    zero = one = plain = True
    for s in range(n_slots):
        zero = zero and t.root[j, s] >= t.cell[j, OTHER, s]
        one = one and t.cell[j, OTHER, s] >= t.root[j, s]
        plain = plain and t.cell[j, RIGID, s] == 0.0
    for s in range(n_slots):
        a, b = t.root[j, s], t.cell[j, OTHER, s]
        if one and not zero:
            a, b = b, a
        t.root[j, s] = math.sqrt(a)
        t.cell[j, OTHER, s] = 0.0 if zero or one else math.sqrt(b)
    if not (zero or one):
        return DOUBLE
    return PLAIN if plain else SINGLE


@nopython
def rounded(x: float) -> float:
    """Keep 40 bits of x > 0."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(math.floor(mantissa * BITS + 0.5), exponent - 40)


@nopython
def prices_of(t: Table, price: Floats) -> Prices:
    """(R,) prices to what slots pay."""
    n = t.room.shape[0]
    p = Prices(np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n))
    for r in range(n - 1):
        p.rigid[r] = p.share[r] = price[r]
    for c in range(t.link.shape[0]):
        p.share[t.link[c, 0]] += t.kappa[c] * price[t.link[c, 1]]
    for r in range(n - 1):
        p.root[r] = math.sqrt(p.share[r])
        p.back[r] = 1.0 / p.root[r] if p.root[r] > 0.0 else math.inf
    return p


@merged
def at_least(t: Table, j: int, p: Prices) -> float:
    """Cost without floors and caps and with one phase only: never above the true cost, and cheap."""
    zero = 0.0
    for s in range(t.root.shape[1]):
        zero += t.root[j, s] * p.root[t.slot[j, s]]
    if t.mode[j] == PLAIN:
        return zero * zero
    one = rest = 0.0
    for s in range(t.root.shape[1]):
        r = t.slot[j, s]
        rest += p.rigid[r] * t.cell[j, RIGID, s]
        one += t.cell[j, OTHER, s] * p.root[r]
    most = max(zero, one)
    return rest + most * most


@merged
def rigid_bill(t: Table, j: int, p: Prices) -> float:
    """Price of the rigid demand."""
    total = 0.0
    if t.mode[j] != PLAIN:
        for s in range(t.root.shape[1]):
            total += p.rigid[t.slot[j, s]] * t.cell[j, RIGID, s]
    return total


@nopython
def with_couplings(t: Table, use: Floats) -> None:
    """Add to elastic use (R + 1,) what couplings add."""
    if t.link.shape[0] > 0:
        direct = use.copy()
        for c in range(t.link.shape[0]):
            use[t.link[c, 1]] += t.kappa[c] * direct[t.link[c, 0]]
