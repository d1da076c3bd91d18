"""Pareto columns of a grid problem, compiled: what each task can be given in whole steps (docs/exact.md).

Once they are listed there are no deadlines any more: a task is a choice of one column among few, and prices, repair
and swaps are plain loops. A column that another one of the task beats in every slot and in value is never needed. The
same columns as solvers/referees/columns.py lists, found another way: where two slots share the deadlines, the least
steps of one for given steps of the other form a staircase, and one jumps from stair to stair, not from step to step.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from solvers.errors import BadProblem
from solvers.jit import cached, lean, plain
from solvers.problem import Floats, Ints, Problem
from solvers.tolerances import WHOLE

Shorts = npt.NDArray[np.int32]

NEVER: Final = 1 << 30  # steps
FINE: Final = 1 << 44  # units of a resource on which a step does not count as one unit: products with it are exact
MESH: Final = 20_000  # combinations of steps in all slots of a point but one, at most
EACH: Final = 16  # columns to a point that there is room for at first; 2 to 13 are common
LEAST: Final = 4_000  # ... and to all of them
NO_ROOM: Final = -1
TOO_MANY: Final = -2


class GridRaw(NamedTuple):
    """A problem's arrays and the grid, as the loops read them."""

    order: Ints  # (N,) tasks by id
    first: Ints  # (N + 1,)
    value: Floats  # (J,)
    slack: Floats  # (J, Q)
    slot: Ints  # (J, S)
    work: Floats  # (J, Q, S)
    floor: Floats  # (J, S)
    cap: Floats  # (J, S)
    activity: Floats  # (J, S)
    rigid: Floats  # (J, S)
    room: Floats  # (R + 1,) 1 - background, >= 0; inf for padding
    grid: Ints  # (R + 1,) 1 for padding
    unit: Floats  # (R + 1,) units of each resource in which use is counted
    link: Ints  # (L, 2) couplings: from, to
    kappa: Floats  # (L,)


class GridColumns(NamedTuple):
    """C columns in M runs. In a run only the steps in two slots of the point differ, x and y; tasks go by id.

    What a column takes of a resource, in units: base + per_x x + per_y y, over the entries of its run.
    """

    first: Ints  # (N + 1,) runs of the task at a place in the order of ids
    start: Ints  # (M + 1,) columns of a run
    entry: Ints  # (M + 1,) entries of a run
    axis: Ints  # (M, 2) slots of x and y, -1: none
    fixed: Shorts  # (M, S) steps in the other slots
    resource: Ints  # (E,)
    base: Floats  # (E,)
    per_x: Floats  # (E,)
    per_y: Floats  # (E,)
    value: Floats  # (C,)
    x: Shorts  # (C,)
    y: Shorts  # (C,)
    point: Ints  # (C,)


@lean
def _least_y(x: int, a: Floats, b: Floats, left: Floats, low: int) -> int:
    """Least steps y >= low beside x steps; NEVER where none will do."""
    need = low
    for q in range(a.shape[0]):
        rest = left[q]
        if a[q] > 0.0:
            if x == 0:
                return NEVER
            rest -= a[q] / x
        if b[q] > 0.0:
            if rest <= 0.0:
                return NEVER
            want = b[q] / rest - WHOLE
            if want >= NEVER:
                return NEVER
            need = max(need, math.ceil(want))
        elif rest < -WHOLE:
            return NEVER
    return need


@lean
def _stairs(
    a: Floats, b: Floats, left: Floats, x_range: tuple[int, int], y_range: tuple[int, int], low: Ints,
    x_out: Shorts, y_out: Shorts, at: int,
) -> int:  # fmt: skip
    """Write a point's stairs from place `at` on, but those that need no less y than `low` says; returns the end."""
    end, least = at, x_range[0]
    y = y_range[1]
    while True:
        x = min(_least_y(y, b, a, left, least), x_range[1] + 1)
        while x > least and _least_y(x - 1, a, b, left, y_range[0]) <= y:
            x -= 1
        need = NEVER
        while x <= x_range[1]:
            need = _least_y(x, a, b, left, y_range[0])
            if need <= y:
                break
            x += 1
        if x > x_range[1]:
            return end
        if need < low[x]:
            x_out[end], y_out[end] = x, need
            end += 1
        if need <= y_range[0]:
            return end
        y, least = need - 1, x + 1


@lean
def _lower(low: Ints, x_out: Shorts, y_out: Shorts, start: int, end: int) -> None:
    """Take stairs into low (X,), the least y that any x or fewer steps need."""
    for c in range(end - 1, start - 1, -1):
        for x in range(x_out[c], low.shape[0]):
            if low[x] <= y_out[c]:
                break
            low[x] = y_out[c]


class _Limits(NamedTuple):
    """Of the points of one task: steps that floors and caps allow, and the first point of its like (-1: no use)."""

    least: Ints  # (P, S)
    most: Ints  # (P, S)
    works: Ints  # (P, S) 1: the deadlines say something of this slot
    like: Ints  # (P,)
    turn: Ints  # (P,) points, the most valuable first


class _Work(NamedTuple):
    """Scratch space for one run."""

    axes: Ints  # (2,)
    steps: Ints  # (S,) outer steps, those beside x and y
    greatest: Ints  # (S,) the most steps of the points that are alike
    a: Floats  # (Q,) steps in x that a phase takes with all of y
    b: Floats  # (Q,)
    left: Floats  # (Q,) part of the phase that the outer steps leave
    low: Ints  # (X,)


@lean
def _limit(raw: GridRaw, j: int, least: Ints, most: Ints, works: Ints) -> bool:
    """Write the steps (S,) that floors and caps allow of point j; returns whether it can be served at all."""
    usable: bool = raw.value[j] > 0.0
    for q in range(raw.slack.shape[1]):
        usable = usable and raw.slack[j, q] >= 0.0
    for s in range(raw.slot.shape[1]):
        r = raw.slot[j, s]
        least[s], most[s], works[s] = 0, 0, 0
        if r < raw.room.shape[0] - 1:
            alone, room = 1.0, raw.room[r] - raw.rigid[j, s]
            if raw.activity[j, s] > 0.0:
                alone = max(room, 0.0) / raw.activity[j, s]
            most[s] = math.floor(min(raw.cap[j, s], alone, 1.0) * raw.grid[r] + WHOLE)
            least[s] = math.ceil(raw.floor[j, s] * raw.grid[r] - WHOLE)
            usable = usable and least[s] <= most[s] and not (raw.rigid[j, s] > 0.0 and room < -WHOLE)
        for q in range(raw.work.shape[1]):
            if raw.work[j, q, s] > 0.0:
                works[s] = 1
    return usable


@lean
def _alike(raw: GridRaw, limits: _Limits, first: int, p: int, o: int) -> bool:
    """Whether points p and o of a task load the same resources alike, but for the steps that deadlines ask."""
    for s in range(raw.slot.shape[1]):
        j, k = first + p, first + o
        same = raw.slot[j, s] == raw.slot[k, s] and raw.rigid[j, s] == raw.rigid[k, s]
        if not same or raw.activity[j, s] != raw.activity[k, s] or limits.works[p, s] != limits.works[o, s]:
            return False
        if limits.works[p, s] == 0 and limits.least[p, s] != limits.least[o, s]:
            return False
    return True


@lean
def _sort_out(raw: GridRaw, i: int, limits: _Limits) -> None:
    """Limits of the points of task i, and which are alike."""
    first, many = raw.first[i], raw.first[i + 1] - raw.first[i]
    for p in range(many):
        limits.like[p] = -1
        if _limit(raw, first + p, limits.least[p], limits.most[p], limits.works[p]):
            limits.like[p] = p
            for o in range(p):
                if limits.like[o] == o and _alike(raw, limits, first, p, o):
                    limits.like[p] = o
                    break
        place = p
        while place > 0 and raw.value[first + limits.turn[place - 1]] < raw.value[first + p]:
            limits.turn[place] = limits.turn[place - 1]
            place -= 1
        limits.turn[place] = p


@lean
def _axes(raw: GridRaw, j: int, works: Ints) -> tuple[int, int]:
    """The two slots with work whose resources have the most steps; -1: none."""
    x, y = -1, -1
    for s in range(works.shape[0]):
        if works[s] > 0:
            if x < 0 or raw.grid[raw.slot[j, s]] > raw.grid[raw.slot[j, x]]:
                x, y = s, x
            elif y < 0 or raw.grid[raw.slot[j, s]] > raw.grid[raw.slot[j, y]]:
                y = s
    return x, y


@lean
def _greatest(limits: _Limits, many: int, like: int, greatest: Ints) -> float:
    """Write the most steps (S,) of the points like `like`; returns how many combinations their slots but one have."""
    combinations, longest = 1.0, 1
    for s in range(greatest.shape[0]):
        greatest[s] = 0
        for p in range(many):
            if limits.like[p] == like:
                greatest[s] = max(greatest[s], limits.most[p, s])
        if limits.works[like, s] > 0:
            longest = max(longest, greatest[s] + 1)
            combinations *= greatest[s] + 1
    return combinations / longest


@lean
def _begin_run(raw: GridRaw, c: GridColumns, m: int, j: int, w: _Work) -> bool:
    """Write what run m of columns like point j takes beside x and y; returns whether there was room to."""
    e, steps, axes = c.entry[m], w.steps, w.axes
    if m + 1 >= c.start.shape[0] or e + (1 + raw.link.shape[0]) * steps.shape[0] > c.resource.shape[0]:
        return False
    c.axis[m, 0], c.axis[m, 1] = axes[0], axes[1]
    for s in range(steps.shape[0]):
        r = raw.slot[j, s]
        c.fixed[m, s] = steps[s]
        if r < raw.room.shape[0] - 1:
            e = _take(raw, c, m, e, r, raw.rigid[j, s], 0.0, 0.0)
            share = raw.activity[j, s] / raw.grid[r]
            x, y = 1.0 if s == axes[0] else 0.0, 1.0 if s == axes[1] else 0.0
            held = (1.0 - x - y) * steps[s]
            e = _take(raw, c, m, e, r, share * held, share * x, share * y)
            for k in range(raw.link.shape[0]):
                if raw.link[k, 0] == r:
                    part = share * raw.kappa[k]
                    e = _take(raw, c, m, e, raw.link[k, 1], part * held, part * x, part * y)
    c.entry[m + 1] = e
    return True


@lean
def _take(raw: GridRaw, c: GridColumns, m: int, end: int, r: int, base: float, per_x: float, per_y: float) -> int:
    """Add a part of resource r to the entries of run m, which end at `end`; returns their new end."""
    if base == 0.0 and per_x == 0.0 and per_y == 0.0:
        return end
    e: int = c.entry[m]
    while e < end and c.resource[e] != r:
        e += 1
    if e == end:
        c.resource[e], c.base[e], c.per_x[e], c.per_y[e] = r, 0.0, 0.0, 0.0
    c.base[e] += base * raw.unit[r]
    c.per_x[e] += per_x * raw.unit[r]
    c.per_y[e] += per_y * raw.unit[r]
    return max(end, e + 1)


@lean
def _point_stairs(raw: GridRaw, c: GridColumns, j: int, p: int, limits: _Limits, at: int, w: _Work) -> int:
    """Add the stairs of point j, whose place in its task is p, beside the outer steps of `w`; or NO_ROOM."""
    x, y = w.axes[0], w.axes[1]
    for q in range(raw.slack.shape[1]):
        w.a[q], w.b[q], w.left[q] = 0.0, 0.0, 1.0
        for s in range(raw.slot.shape[1]):
            if raw.work[j, q, s] > 0.0:
                whole = raw.work[j, q, s] / raw.slack[j, q] * raw.grid[raw.slot[j, s]]
                if s == x:
                    w.a[q] = whole
                elif s == y:
                    w.b[q] = whole
                else:
                    w.left[q] -= whole / w.steps[s]
    x_low, x_most, y_low, y_most = 0, 0, 0, 0
    if x >= 0:
        x_low, x_most = limits.least[p, x], limits.most[p, x]
    if y >= 0:
        y_low, y_most = limits.least[p, y], limits.most[p, y]
    if at + min(x_most - x_low, y_most - y_low) + 1 > c.x.shape[0]:
        return NO_ROOM
    end = _stairs(w.a, w.b, w.left, (x_low, x_most), (y_low, y_most), w.low, c.x, c.y, at)
    _lower(w.low, c.x, c.y, at, end)
    for k in range(at, end):
        c.value[k], c.point[k] = raw.value[j], j
    return end


@lean
def _next_outer(works: Ints, w: _Work) -> bool:
    """Move on to the next combination of steps in the slots beside x and y; False: that was the last."""
    for s in range(works.shape[0]):
        if works[s] > 0 and s != w.axes[0] and s != w.axes[1]:
            w.steps[s] += 1
            if w.steps[s] <= w.greatest[s]:
                return True
            w.steps[s] = 1
    return False


@lean
def _allowed(limits: _Limits, p: int, w: _Work) -> bool:
    """Whether the outer steps are within the limits of point p of its task."""
    for s in range(w.steps.shape[0]):
        if s != w.axes[0] and s != w.axes[1] and not limits.least[p, s] <= w.steps[s] <= limits.most[p, s]:
            return False
    return True


@lean
def _fill_run(raw: GridRaw, c: GridColumns, i: int, like: int, limits: _Limits, w: _Work, at: int) -> int:
    """Add the columns of task i's points like `like` from place `at` on; returns the end, or NO_ROOM."""
    for x in range(w.low.shape[0]):
        w.low[x] = NEVER
    for place in range(raw.first[i + 1] - raw.first[i]):
        p = limits.turn[place]
        if at >= 0 and limits.like[p] == like and _allowed(limits, p, w):
            at = _point_stairs(raw, c, raw.first[i] + p, p, limits, at, w)
    return at


@lean
def _runs_of(raw: GridRaw, c: GridColumns, i: int, like: int, limits: _Limits, w: _Work, m: int) -> int:
    """Add the runs of task i's points like `like` after m runs; returns their number then, or NO_ROOM, TOO_MANY."""
    j = raw.first[i] + like
    w.axes[0], w.axes[1] = _axes(raw, j, limits.works[like])
    if _greatest(limits, raw.first[i + 1] - raw.first[i], like, w.greatest) > MESH:
        return TOO_MANY
    for s in range(w.steps.shape[0]):
        w.steps[s] = 1 if limits.works[like, s] > 0 else limits.least[like, s]
    more = True
    while more:
        at = _fill_run(raw, c, i, like, limits, w, c.start[m]) if _begin_run(raw, c, m, j, w) else NO_ROOM
        if at < 0:
            return NO_ROOM
        if at > c.start[m]:
            m += 1
            c.start[m] = at
        more = _next_outer(limits.works[like], w)
    return m


@cached
def _enumerate(raw: GridRaw, c: GridColumns, limits: _Limits, w: _Work) -> tuple[int, int, int]:
    """Write all columns; returns how many runs, entries and columns there are, or (NO_ROOM or TOO_MANY, point, 0)."""
    m = 0
    c.first[0], c.start[0], c.entry[0] = 0, 0, 0
    for place in range(raw.order.shape[0]):
        i = raw.order[place]
        _sort_out(raw, i, limits)
        for p in range(raw.first[i + 1] - raw.first[i]):
            if limits.like[p] == p:
                m = _runs_of(raw, c, i, p, limits, w, m)
                if m < 0:
                    return m, raw.first[i] + p, 0
        c.first[place + 1] = m
    return m, c.entry[m], c.start[m]


def raw_arrays(problem: Problem, grid: Ints) -> GridRaw:
    """Return the problem's arrays, with the units that use is counted in on a grid (R,).

    A unit is a step where only whole shares count on a resource, else 1 / FINE of it.
    """
    fractional = np.zeros(problem.n_resources + 1, dtype=np.bool_)
    fractional[problem.slot[problem.rigid > 0]] = True
    soft = problem.activity != 1.0
    if soft.any():
        fractional[problem.slot[soft & ((problem.work > 0).any(axis=1) | (problem.floor > 0))]] = True
    fractional[problem.coupling_to] = True
    unit = np.where(fractional, float(FINE), np.append(grid, 1))
    return GridRaw(
        order=_by_id(problem),
        first=plain(problem.first),
        value=plain(problem.value),
        slack=plain(problem.slack),
        slot=plain(problem.slot),
        work=plain(problem.work),
        floor=plain(problem.floor),
        cap=plain(problem.cap),
        activity=plain(problem.activity),
        rigid=plain(problem.rigid),
        room=np.append(np.maximum(0.0, 1.0 - problem.background), np.inf),
        grid=np.append(grid, 1),
        unit=unit,
        link=np.stack([problem.coupling_from, problem.coupling_to], axis=1),
        kappa=plain(problem.coupling_per_share),
    )


def list_columns(problem: Problem, raw: GridRaw) -> GridColumns:
    """Return the Pareto columns of a problem.

    Raises BadProblem where a point has so many elastic slots that their combinations cannot be listed.
    """
    many = max(LEAST, EACH * problem.n_points)
    while True:
        space = _space(problem, many)
        with np.errstate(all="ignore"):  # as in compiled code
            runs, entries, columns = _enumerate(raw, space, *_scratch(raw))
        if runs >= 0:
            return _cut(space, runs, entries, columns)
        if runs == TOO_MANY:
            names = ", ".join(problem.resource_ids[r] for r in problem.slot[entries] if r < problem.n_resources)
            many_ways = f"elastic on {names}: more than {MESH} combinations of steps; take a coarser grid"
            raise BadProblem("points", many_ways)
        many *= 4


def _scratch(raw: GridRaw) -> tuple[_Limits, _Work]:
    """Where one task, and one run, is worked on."""
    longest, (n_phases, n_slots) = int(np.diff(raw.first).max(initial=0)), raw.work.shape[1:]
    table, row = np.zeros((3, longest, n_slots), dtype=np.int64), np.zeros((2, longest), dtype=np.int64)
    steps, parts = np.zeros((2, n_slots), dtype=np.int64), np.zeros((3, n_phases))
    low, axes = np.zeros(raw.grid.max() + 2, dtype=np.int64), np.zeros(2, dtype=np.int64)
    work = _Work(axes, steps[0], steps[1], parts[0], parts[1], parts[2], low)
    return _Limits(table[0], table[1], table[2], row[0], row[1]), work


def _space(problem: Problem, many: int) -> GridColumns:
    """Room for so many columns, and for as many runs as there may be beside them."""
    width = problem.slot.shape[1]
    runs = 2 + many // 4
    entries = runs * width * (1 + len(problem.coupling_from))
    return GridColumns(
        first=np.zeros(problem.n_tasks + 1, dtype=np.int64),
        start=np.empty(runs, dtype=np.int64),
        entry=np.empty(runs, dtype=np.int64),
        axis=np.empty((runs, 2), dtype=np.int64),
        fixed=np.empty((runs, width), dtype=np.int32),
        resource=np.empty(entries, dtype=np.int64),
        base=np.empty(entries),
        per_x=np.empty(entries),
        per_y=np.empty(entries),
        value=np.empty(many),
        x=np.empty(many, dtype=np.int32),
        y=np.empty(many, dtype=np.int32),
        point=np.empty(many, dtype=np.int64),
    )


def _cut(c: GridColumns, runs: int, entries: int, columns: int) -> GridColumns:
    """Leave out what was not written."""
    return GridColumns(
        c.first, c.start[: runs + 1], c.entry[: runs + 1], c.axis[:runs], c.fixed[:runs], c.resource[:entries],
        c.base[:entries], c.per_x[:entries], c.per_y[:entries], c.value[:columns], c.x[:columns], c.y[:columns],
        c.point[:columns],
    )  # fmt: skip


def steps_of(c: GridColumns, column: Ints) -> Ints:
    """Return the steps (K, S) of columns (K,), in the slots of their points."""
    run = np.searchsorted(c.start, column, side="right") - 1
    steps = c.fixed[run].astype(np.int64)
    for side, amount in enumerate((c.x, c.y)):
        on = np.flatnonzero(c.axis[run, side] >= 0)
        steps[on, c.axis[run[on], side]] = amount[column[on]]
    return steps


def _by_id(problem: Problem) -> Ints:
    """(N,) tasks in the order of their ids."""
    return np.array(sorted(range(problem.n_tasks), key=problem.task_ids.__getitem__), dtype=np.int64)
