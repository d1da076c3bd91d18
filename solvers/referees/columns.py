"""What a task can be given on a grid: the Pareto columns of the exact solver (docs/exact.md).

A column is one point with whole numbers of grid steps in its slots. For each choice of steps in all elastic slots but
one, the least steps of that one follow from the deadlines; of the points of a task that load the same resources alike,
only columns are kept that no other one beats in every slot and in value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from solvers.errors import BadProblem
from solvers.problem import Floats, Ints, Problem

Mask = npt.NDArray[np.bool_]

EPS: Final = 1e-9  # of a step: what is whole but for rounding
BLOCK: Final = 1 << 20  # cells of a table worked on at once
MESH: Final = 20_000  # combinations of steps in the slots before the last, of one point
NEVER: Final = 1 << 30  # steps
FINE: Final = 1 << 40  # units of a resource on which a step does not count as one unit: products with it are exact
MOST: Final = 1 << 61  # units of all columns together: sums stay whole numbers of 64 bits
OVER: Final = 1e-9  # of a resource: what a plan may take too much, to solvers/check.py ...
KEEP: Final = 0.9  # ... of which a plan uses this part: sums in another order differ a little


class ExactColumns(NamedTuple):
    """C columns, sorted by task, then point. `steps` (C, S): in the slots of the point."""

    task: Ints  # (C,)
    point: Ints  # (C,)
    steps: Ints  # (C, S)


class Limits(NamedTuple):
    """Whose the points are, and the least and greatest number of steps that floors and caps allow."""

    owner: Ints  # (J,) task
    least: Ints  # (J, S)
    most: Ints  # (J, S)


class Loads(NamedTuple):
    """What columns take of resources: (resource, column, part), and the same in whole units, to relax the problem."""

    resource: Ints  # (E,)
    column: Ints  # (E,)
    part: Floats  # (E,) > 0, of the resource
    units: Ints  # (E,) rounded down
    room: Floats  # (R,)
    capacity: Ints  # (R,) units of what fits to solvers/check.py, rounded down as well
    unit: Ints  # (R,) units of a whole resource

    def fit(self, on: Ints) -> bool:
        """Whether the columns `on` really fit together, but for rounding that solvers/check.py forgives."""
        used = np.isin(self.column, on)
        taken = np.bincount(self.resource[used], weights=self.part[used], minlength=len(self.room))
        return bool((taken <= self.room + KEEP * OVER).all())

    def safe(self) -> Loads:
        """Round what is taken up instead: columns that fit by these units really do."""
        units = np.ceil(self.part * self.unit[self.resource] - EPS).astype(np.int64)
        capacity = np.floor((self.room + KEEP * OVER) * self.unit).astype(np.int64)
        return self._replace(units=np.minimum(units, capacity[self.resource] + 1), capacity=capacity)


def pareto_columns(problem: Problem, grid: Ints) -> ExactColumns:
    """Columns on a grid of 1 / grid[r] of resource r, grid (R,) >= 1.

    Raises BadProblem where a point has so many elastic slots that their combinations cannot be listed.
    """
    limits = _limits(problem, grid)
    usable = (limits.least <= limits.most) | (problem.slot == problem.n_resources)
    alive = (problem.value > 0) & (problem.slack >= 0).all(axis=1) & usable.all(axis=1)
    room = np.append(1.0 - problem.background, np.inf)[problem.slot]
    servable = np.asarray(alive & ~((problem.rigid > 0) & (problem.rigid > room + EPS)).any(axis=1), dtype=np.bool_)
    has_work = np.asarray((problem.work > 0).any(axis=1), dtype=np.bool_)  # (J, S)
    parts = [_columns_of(problem, grid, limits, rows, elastic) for rows, elastic in _alike(has_work, servable)]
    point = np.concatenate([np.zeros(0, dtype=np.int64), *(part[0] for part in parts)])
    steps = np.concatenate([np.zeros((0, problem.slot.shape[1]), dtype=np.int64), *(part[1] for part in parts)])
    order = np.argsort(point, kind="stable")
    return ExactColumns(limits.owner[point[order]], point[order], steps[order])


def loads(problem: Problem, grid: Ints, columns: ExactColumns) -> Loads:
    """What each column takes of each resource, couplings included.

    A unit is a step where only whole shares count on a resource, else 1 / FINE of it (less, where sums would grow too
    large). Rounded down, every plan that fits is one of the units': a bound on the value of these is one on all. And a
    column that is more than the whole resource counts as a unit more than there is.
    """
    n, slot = problem.n_resources, problem.slot[columns.point]  # (C, S)
    share = columns.steps / np.append(grid, 1)[slot]
    counted = problem.activity[columns.point] * share
    place = np.broadcast_to(np.arange(len(slot))[:, None], slot.shape)
    resource, column = [slot.ravel()], [place.ravel()]
    amount = [(counted + problem.rigid[columns.point]).ravel()]
    for a, b, kappa in zip(problem.coupling_from, problem.coupling_to, problem.coupling_per_share, strict=True):
        on = slot == a
        resource.append(np.full(int(on.sum()), b))
        column.append(place[on])
        amount.append(kappa * counted[on])
    r, c, x = np.concatenate(resource), np.concatenate(column), np.concatenate(amount)
    used = (r < n) & (x > 0)
    r, c, x = r[used], c[used], x[used]
    summed, back = np.unique(r * len(slot) + c, return_inverse=True)  # of one column, a resource may come twice
    part = np.asarray(np.bincount(back, weights=x, minlength=len(summed)), dtype=np.float64)
    r, c = summed // max(1, len(slot)), summed % max(1, len(slot))
    whole, room = _whole(problem), np.maximum(0.0, 1.0 - problem.background)
    unit = np.where(whole, grid, min(FINE, MOST // max(1, len(slot))))
    capacity = np.floor((room + OVER) * unit).astype(np.int64)
    taken = np.minimum(part * unit[r], capacity[r] + 1.0)
    units = np.where(whole[r], np.rint(taken), np.floor(taken)).astype(np.int64)
    return Loads(r, c, part, units, room, capacity, unit)


def _whole(problem: Problem) -> Mask:
    """(R,) on which nothing but whole shares counts."""
    elastic = (problem.work > 0).any(axis=1) | (problem.floor > 0)
    fractional = np.zeros(problem.n_resources + 1, dtype=bool)
    fractional[problem.slot[(problem.rigid > 0) | (elastic & (problem.activity != 1.0))]] = True
    fractional[problem.coupling_to] = True
    return np.asarray(~fractional[:-1], dtype=np.bool_)


def _limits(problem: Problem, grid: Ints) -> Limits:
    """Floors and caps in steps; a cap is also what the resource has for this point alone."""
    size = np.append(grid, 0)[problem.slot]
    room = np.append(np.maximum(0.0, 1.0 - problem.background), 0.0)[problem.slot] - problem.rigid
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = np.where(problem.activity > 0, np.maximum(room, 0.0) / problem.activity, np.inf)
    most = np.floor(np.minimum(np.minimum(problem.cap, alone), 1.0) * size + EPS).astype(np.int64)
    least = np.ceil(problem.floor * size - EPS).astype(np.int64)
    return Limits(np.repeat(np.arange(problem.n_tasks), np.diff(problem.first)), least, most)


def _alike(has_work: Mask, alive: Mask) -> Iterator[tuple[Ints, Ints]]:
    """Points that have work in the same slots, and these slots."""
    key = has_work @ (1 << np.arange(has_work.shape[1]))
    for k in np.unique(key[alive]):
        rows = np.flatnonzero(alive & (key == k))
        yield rows, np.flatnonzero(has_work[rows[0]])


def _columns_of(problem: Problem, grid: Ints, limits: Limits, rows: Ints, elastic: Ints) -> tuple[Ints, Ints]:
    """Points (C,) and steps (C, S) of the points `rows` (K,), which have work in the slots `elastic`."""
    greatest = limits.most[rows].max(axis=0)
    last = int(elastic[np.argmax(greatest[elastic])]) if elastic.size else -1
    axes = [int(s) for s in elastic if s != last]
    shape = tuple(int(greatest[s]) + 1 for s in axes)
    if np.prod([float(n) for n in shape]) > MESH:
        names = ", ".join(problem.resource_ids[r] for r in problem.slot[rows[0], elastic])
        raise BadProblem("points", f"elastic on {names}: more than {MESH} combinations of steps; take a coarser grid")
    mesh = np.stack([m.ravel() for m in np.indices(shape)], axis=1) if axes else np.zeros((1, 0), dtype=np.int64)
    points, steps = [np.zeros(0, dtype=np.int64)], [np.zeros((0, problem.slot.shape[1]), dtype=np.int64)]
    for block in _blocks(problem, limits.owner, rows, len(mesh)):
        table = _table(problem, grid, limits, block.ravel(), axes, last, mesh)
        table[block.ravel() < 0] = NEVER
        kept, cell = np.nonzero(~_beaten(table.reshape(*block.shape, *shape)).reshape(block.size, len(mesh)))
        point = block.ravel()[kept]
        taken = limits.least[point]
        taken[:, axes] = mesh[cell]
        if last >= 0:
            taken[:, last] = table[kept, cell]
        points.append(point)
        steps.append(taken)
    return np.concatenate(points), np.concatenate(steps)


def _blocks(problem: Problem, owner: Ints, rows: Ints, cells: int) -> Iterator[Ints]:
    """(G, P) points in groups that may beat each other, the most valuable first; -1 = none."""
    same = np.concatenate(
        [owner[rows, None], problem.slot[rows], problem.rigid[rows], problem.activity[rows]], axis=1, dtype=np.float64
    )
    order = np.lexsort((rows, -problem.value[rows], *same.T))
    starts = np.flatnonzero(np.append(True, (np.diff(same[order], axis=0) != 0).any(axis=1)))
    sizes = np.diff(np.append(starts, len(rows)))
    width = int(sizes.max())
    at_once = max(1, BLOCK // (width * cells))
    for g in range(0, len(starts), at_once):
        start, size = starts[g : g + at_once, None], sizes[g : g + at_once, None]
        place = np.arange(width)[None, :]
        yield np.where(place < size, rows[order[np.minimum(start + place, len(rows) - 1)]], -1)


def _table(problem: Problem, grid: Ints, limits: Limits, rows: Ints, axes: list[int], last: int, mesh: Ints) -> Ints:
    """(K, M) least steps in slot `last` for steps `mesh` (M, A) in the slots `axes`; NEVER where none will do."""
    size = np.append(grid, 1)[problem.slot[rows]]  # (K, S)
    table = np.zeros((len(rows), len(mesh)), dtype=np.int64)
    for q in range(problem.slack.shape[1]):
        if not (problem.work[rows, q] > 0).any():
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            whole = (
                np.where(problem.work[rows, q] > 0, problem.work[rows, q] / problem.slack[rows, q, None], 0.0) * size
            )
            left = np.ones((len(rows), len(mesh)))
            for a, s in enumerate(axes):
                steps = np.minimum(mesh[:, a], limits.most[rows, s, None])  # (K, M): more than `most` is no help
                left -= np.where(whole[:, s, None] > 0, whole[:, s, None] / steps, 0.0)
            need = np.ceil(whole[:, last, None] / left - EPS)
        need = np.where(whole[:, last, None] > 0, np.where(left > 0, need, NEVER), np.where(left >= -EPS, 0, NEVER))
        table = np.maximum(table, np.minimum(need, NEVER).astype(np.int64))
    for a, s in enumerate(axes):
        table[mesh[None, :, a] < limits.least[rows, s, None]] = NEVER
    if last >= 0:
        table = np.maximum(table, limits.least[rows, last, None])
        table[table > limits.most[rows, last, None]] = NEVER
    return table


def _beaten(table: Ints) -> Mask:
    """Which entries (G, P, ...) never are, or need no less than an earlier point or a step less on some axis."""
    beaten: Mask = table >= NEVER
    earlier = np.minimum.accumulate(table, axis=1)
    beaten[:, 1:] |= table[:, 1:] >= earlier[:, :-1]
    for axis in range(2, table.ndim):
        less = (slice(None),) * axis
        beaten[(*less, slice(1, None))] |= table[(*less, slice(1, None))] >= table[(*less, slice(None, -1))]
    return beaten
