"""Short lists of points that may be their tasks' best while prices move little (docs/model.md, section 3).

A look at all points waits for memory, not for arithmetic; lists hold copies of what a look reads, side by side, task
after task. Costs are homogeneous in prices: while no price moves by more than `REACH`, each cost stays within that
part of itself, and a point that cannot be the best even then is left out. It is worse by `AWAY` of its task's value at
least, so bounds stay proven. Dropping dominated points once would not last: the channel moves them every tick
(docs/decisions/0017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from solvers.jit import COMPILED, inlined, nopython
from solvers.price import numpy_oracle as _reference
from solvers.price.tables import (
    AWAY,
    DEAD,
    OTHER,
    PAIR,
    PLAIN,
    REACH,
    RIGID,
    Modes,
    Prices,
    Raw,
    Table,
    prepare_task,
    room_of,
)
from solvers.problem import Floats, Ints


class Screen(NamedTuple):
    """The lists, for a table. Costs are homogeneous in prices, so a list holds for prices near by.

    A lower bound of a cost may be below 0: rigid demand is, where a line stands for statistical use. Both its parts
    then move with prices, the one that is paid and the one that is given back.
    """

    price: Floats  # (R,) that they were made at; zeros: none yet
    start: Ints  # (N + 1,)
    point: Ints  # (J,) those that may be the best of their tasks, or near it, while prices move by REACH at most
    mode: Modes  # (J,) copies of their rows of the table
    value: Floats  # (J,)
    slot: npt.NDArray[np.int32]  # (J, S)
    root: Floats  # (J, S)
    worth: Floats  # (most points of a task,) scratch: what each is worth at most while prices move


def new_screen(t: Table) -> Screen:
    """Nothing known."""
    (n_points, n_slots), longest = t.root.shape, int(np.diff(t.first).max(initial=0))
    return Screen(
        np.zeros(len(t.room) - 1),
        np.zeros(len(t.first), dtype=np.int64),
        np.empty(n_points, dtype=np.int64),
        np.empty(n_points, dtype=np.int8),
        np.empty(n_points),
        np.empty((n_points, n_slots), dtype=np.int32),
        np.empty((n_points, n_slots)),
        np.empty(longest),
    )


@nopython
def holds(screen: Screen, price: Floats) -> bool:
    """Whether what is not listed does not matter at `price`."""
    near, known = True, False
    for r in range(price.shape[0]):
        known = known or screen.price[r] > 0.0
        near = near and abs(price[r] - screen.price[r]) <= REACH * screen.price[r]
    return known and near


@nopython
def forget(screen: Screen) -> None:
    """Let the next look be one at all points."""
    for r in range(screen.price.shape[0]):
        screen.price[r] = 0.0


@inlined
def _list_task(t: Table, p: Prices, screen: Screen, i: int, many: int, n_slots: int) -> int:
    """List points of task i by lower bounds of their costs, from place `many` on; returns the next place."""
    value, mode, slot, root, cell = t.value, t.mode, t.slot, t.root, t.cell
    point, worths, start, stop = screen.point, screen.worth, t.first[i], t.first[i + 1]
    best, top, back = -math.inf, 0.0, 0.0
    for j in range(start, stop):
        zero = given = 0.0
        for s in range(n_slots):
            zero += root[j, s] * p.root[slot[j, s]]
        worth = value[j] - zero * zero
        if mode[j] != PLAIN:
            one = rest = 0.0
            for s in range(n_slots):
                one += cell[j, OTHER, s] * p.root[slot[j, s]]
                demand = p.rigid[slot[j, s]] * cell[j, RIGID, s]
                rest += demand
                given += max(0.0, -demand)
            zero = max(zero, one)
            worth = value[j] - (rest + zero * zero) if mode[j] != DEAD else -math.inf
        worths[j - start] = REACH * value[j] + (1.0 - REACH) * worth + 2.0 * REACH * given
        if worth > best:
            best, top, back = worth, value[j], given
    least = max(0.0, best - REACH * (top - best + 2.0 * back) if best > 0.0 else 0.0) - AWAY * t.most[i]
    first = many
    for j in range(start, stop):
        point[many] = j
        many += 1 if worths[j - start] >= least else 0
    for m in range(first, many):
        j = point[m]
        screen.mode[m], screen.value[m] = mode[j], value[j]
        for s in range(n_slots):
            screen.slot[m, s], screen.root[m, s] = slot[j, s], root[j, s]
    return many


def _listing(width: int) -> Callable[[Table, Prices, Screen], None]:
    """Make list_points for points of `width` slots, 0: any number. A loop over a known few is laid out flat."""

    @nopython
    def list_points(t: Table, p: Prices, screen: Screen) -> None:
        many, n_slots = 0, width if width > 0 else t.root.shape[1]
        for i in range(t.most.shape[0]):
            many = _list_task(t, p, screen, i, many, n_slots)
            screen.start[i + 1] = many

    return list_points


def _preparing(width: int) -> Callable[[Raw, Table, Prices, Screen, bool], None]:
    """Make prepare_points, as above."""

    @nopython
    def prepare_points(raw: Raw, t: Table, p: Prices, screen: Screen, listed: bool) -> None:
        many, n_slots = 0, width if width > 0 else t.root.shape[1]
        for i in range(t.most.shape[0]):
            prepare_task(raw, t, i, n_slots)
            if listed:
                many = _list_task(t, p, screen, i, many, n_slots)
                screen.start[i + 1] = many

    return prepare_points


_list_pairs, _list_any = _listing(PAIR), _listing(0)
_prepare_pairs, _prepare_any = _preparing(PAIR), _preparing(0)


@nopython
def _list_points(t: Table, p: Prices, screen: Screen) -> None:
    if t.root.shape[1] == PAIR:
        _list_pairs(t, p, screen)
    else:
        _list_any(t, p, screen)


# Without the compiler the loop over all points would be slow: NumPy takes its place (solvers/price/numpy_oracle.py).
list_points = _list_points if COMPILED else _reference.list_points


@nopython
def renew(t: Table, price: Floats, p: Prices, screen: Screen) -> None:
    """Make the lists for `price` (R,), of which p is made."""
    for r in range(price.shape[0]):
        screen.price[r] = price[r]
    list_points(t, p, screen)


@nopython
def prepare(raw: Raw, t: Table, near: Floats, p: Prices, screen: Screen) -> None:
    """Fill a table from a problem's arrays, and the lists for prices `near` (R,) unless they are 0.

    Each point once: memory is what this waits for. O(points x slots).
    """
    room_of(raw, t)
    listed = False
    for r in range(near.shape[0]):
        screen.price[r] = near[r]
        listed = listed or near[r] > 0.0
    if t.root.shape[1] == PAIR:
        _prepare_pairs(raw, t, p, screen, listed)
    else:
        _prepare_any(raw, t, p, screen, listed)
