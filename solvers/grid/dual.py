"""Prices of grid steps: the Lagrangian dual over Pareto columns, by the price solver's bundle (docs/exact.md).

Columns hold their deadlines already, so at prices of a step each task takes its best in one scan: nothing is solved
inside. Only the capacities are relaxed, and the bound is that of the linear relaxation over columns: tighter than the
dual of the problem without the grid, and proven for grid plans alone. The dual is piecewise linear and has no second
derivative to speak of; the metric is that of a demand that falls as prices rise, the bundle does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from solvers.grid.columns import GridColumns
from solvers.jit import cached, lean, nopython, source_digest
from solvers.price.dual import Bundle, _direction, _greatest, _shorten
from solvers.price.tables import rounded
from solvers.problem import Floats, Ints
from solvers.tolerances import ARMIJO, GRID_FADED, GRID_LEAST_TRUST, GRID_RIDGE, GRID_TOLERANCE

EVALUATIONS: Final = 100  # at most; 20 to 40 are used
KEPT: Final = 12  # evaluations that the bundle keeps, above one per price
LONGEST: Final = 2.0  # no log price moves by more in one step
FLAT: Final = 0.5  # of the ceiling: what all room is worth at the cold start


class GridEvaluation(NamedTuple):
    """What one evaluation saw, tasks by id."""

    pick: Ints  # (N,) best column, -1: none is worth its cost
    net: Floats  # (N,) its value less its cost, 0 for none
    use: Floats  # (R,) units


class GridDual(NamedTuple):
    """The best bound, the prices (R,) of a unit that it holds at, what was seen there, evaluations."""

    bound: float
    price: Floats
    look: GridEvaluation
    evaluations: int


@nopython
def _new_look(n_tasks: int, n: int) -> GridEvaluation:
    return GridEvaluation(np.zeros(n_tasks, dtype=np.int64), np.zeros(n_tasks), np.zeros(n))


@lean
def _evaluate(c: GridColumns, room: Floats, price: Floats, look: GridEvaluation) -> float:
    """Return the dual function at prices (R,) of a unit: what the room (R,) is worth, and all greatest net values."""
    first, start, entry, resource, base, per_x, per_y = c.first, c.start, c.entry, c.resource, c.base, c.per_x, c.per_y
    value, x, y = c.value, c.x, c.y
    pick, net, use = look.pick, look.net, look.use
    total = 0.0
    for r in range(price.shape[0]):
        total += price[r] * room[r]
        use[r] = 0.0
    for i in range(pick.shape[0]):
        most, best, run = 0.0, -1, -1
        for m in range(first[i], first[i + 1]):
            fixed, a, b = 0.0, 0.0, 0.0
            for e in range(entry[m], entry[m + 1]):
                pay = price[resource[e]]
                fixed += pay * base[e]
                a += pay * per_x[e]
                b += pay * per_y[e]
            least = most + fixed
            for k in range(start[m], start[m + 1]):
                gain = value[k] - a * x[k] - b * y[k]
                if gain > least:
                    least, best, run = gain, k, m
            most = least - fixed
        pick[i], net[i] = best, most
        total += most
        if best >= 0:
            for e in range(entry[run], entry[run + 1]):
                use[resource[e]] += base[e] + per_x[e] * x[best] + per_y[e] * y[best]
    return total


@lean
def _keep(bundle: Bundle, room: Floats, price: Floats, value: float, use: Floats) -> None:
    """Put an evaluation into the bundle, in place of the one that counted least."""
    place = 0
    for m in range(bundle.weight.shape[0]):
        if bundle.weight[m] < bundle.weight[place]:
            place = m
    bundle.level[place], bundle.weight[place] = value, math.inf  # the next direction must look at it
    for r in range(price.shape[0]):
        bundle.slope[place, r] = room[r] - use[r]
        bundle.level[place] -= bundle.slope[place, r] * price[r]


@nopython
def _start(room: Floats, warm: Floats, ceiling: float) -> Floats:
    """Warm prices, or flat ones, none so small that logarithms lose it; what there is none of nobody can pay."""
    price, whole = np.zeros(room.shape[0]) + ceiling, 0.0
    for r in range(room.shape[0]):
        whole += warm[r] * room[r]
    for r in range(room.shape[0]):
        if room[r] > 0.0:
            flat = FLAT * ceiling / (room.shape[0] * room[r])
            price[r] = rounded(max(warm[r], 1e-3 * flat) if 0.0 < whole < math.inf else flat)
    return price


@lean
def _metric(room: Floats, price: Floats, bound: float, inverse: Floats) -> None:
    """Inverse of the second derivative in log prices where demand falls as prices rise: use is about the room."""
    for r in range(room.shape[0]):
        inverse[r, r] = 1.0 / (price[r] * room[r] + GRID_RIDGE * bound)


@lean
def _moved(room: Floats, price: Floats, step: Floats, bound: float, new: Floats) -> None:
    for r in range(room.shape[0]):
        new[r] = price[r]
        if room[r] > 0.0:
            new[r] = rounded(max(price[r] * math.exp(step[r]), GRID_FADED * bound / room[r]))


@nopython
def _minimised(c: GridColumns, room: Floats, warm: Floats, limits: tuple[int, float]) -> GridDual:
    n, n_tasks = room.shape[0], c.first.shape[0] - 1
    none, look, other = np.zeros((n + KEPT, 0), dtype=np.int64), _new_look(n_tasks, n), _new_look(n_tasks, n)
    bundle = Bundle(np.zeros((n + KEPT, n)), np.zeros(n + KEPT), np.zeros(n + KEPT) - 1.0, none)
    new, step, inverse = np.zeros(n), np.zeros(n), np.zeros((n, n))
    ceiling = _evaluate(c, room, new, look)
    if ceiling <= 0.0:
        return GridDual(0.0, new, look, 1)
    price = _start(room, warm, ceiling)
    bound, used, longest = _evaluate(c, room, price, look), 2, LONGEST
    _keep(bundle, room, price, bound, look.use)
    while used < limits[0]:
        _metric(room, price, bound, inverse)
        descent = _direction(bundle, inverse, price, bound, step)
        if -descent <= limits[1] * bound:
            break
        descent *= _shorten(step, longest)
        _moved(room, price, step, bound, new)
        trial = _evaluate(c, room, new, other)
        used += 1
        _keep(bundle, room, new, trial, other.use)
        if trial > bound + ARMIJO * descent:
            longest = max(GRID_LEAST_TRUST, 0.5 * min(longest, _greatest(step)))
            continue
        longest, bound = min(LONGEST, 2.0 * longest), trial
        price, new, look, other = new, price, other, look
    return GridDual(min(bound, ceiling), price, look, used)


def _make_entry(digest: int) -> Callable[[GridColumns, Floats, Floats, tuple[int, float]], GridDual]:
    """Return the function that is compiled and kept; `digest` makes the price solver's sources part of its key."""

    @cached
    def entry(c: GridColumns, room: Floats, warm: Floats, limits: tuple[int, float]) -> GridDual:
        dual = _minimised(c, room, warm, limits)
        return GridDual(dual.bound, dual.price, dual.look, dual.evaluations + digest * 0)

    return entry


_entry = _make_entry(source_digest("price", "grid"))


def minimise(c: GridColumns, room: Floats, warm: Floats) -> GridDual:
    """Minimise the dual function of columns over room (R,) units, from warm prices (R,) of a unit; zeros: none.

    Every evaluation is a proven bound on the value of any plan of the columns (Lagrangian relaxation of the
    capacities); the least is returned, and no more than its value at prices 0.
    """
    with np.errstate(all="ignore"):  # as in compiled code
        return _entry(c, room, warm, (EVALUATIONS, GRID_TOLERANCE))
