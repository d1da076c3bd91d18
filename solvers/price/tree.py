"""Small problems: a depth-first search for what the gap leaves open (docs/model.md, section 4).

It is exact when its node budget suffices: an option whose reduced loss at the dual prices exceeds the gap can be in no
better plan, and every set that did not fit leaves a linear cut behind (its prices: the chosen points may not cost more
than the room is worth).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers.jit import lean, merged, nopython
from solvers.price.dual import Dual
from solvers.price.fit import FIT, NO_FIT, Set, fit, put
from solvers.price.point import Point, price_point
from solvers.price.search import SearchOptions, value_of
from solvers.price.tables import Prices, Table, prices_of
from solvers.problem import Floats, Ints
from solvers.tolerances import EDGE, SAME

OPTIONS: Final = 1500  # that the search looks at, least loss first
CUTS: Final = 24  # kept; the oldest makes place
FITS: Final = 60  # feasibility tests of the search


class Tree(NamedTuple):
    """Tasks still undecided, one level each; options of a level are sorted by loss."""

    task: Ints  # (L,)
    start: Ints  # (L + 1,)
    point: Ints  # (O,) or -1: not admitted
    loss: Floats  # (O,)
    value: Floats  # (O,)
    cost: Floats  # (CUTS, O)
    room: Floats  # (CUTS,)
    best_rest: Floats  # (L + 1,) greatest value that levels from here on can add


@lean
def _below(opt: SearchOptions, limit: float) -> int:
    """How many choices lose less than a limit."""
    many = 0
    for place in range(opt.task.shape[0]):
        many += 1 if opt.none[place] < limit else 0
        for m in range(opt.start[place], opt.start[place + 1]):
            many += 1 if opt.loss[m] < limit else 0
    return many


@lean
def _limit(opt: SearchOptions, gap: float) -> float:
    """Loss below which options are looked at: the gap, or less where that would be too many."""
    limit = gap
    for _ in range(40):
        if _below(opt, limit) <= OPTIONS + opt.task.shape[0]:
            break
        limit *= 0.6
    return limit


@lean
def _least(score: Floats) -> int:
    """Place of the least score."""
    found = 0
    for place in range(score.shape[0]):
        if score[place] < score[found]:
            found = place
    return found


@nopython
def _grow(t: Table, opt: SearchOptions, limit: float) -> Tree:
    """Options whose loss is below the limit; levels with the clearest choice first."""
    n_tasks = opt.task.shape[0]
    doubt = np.zeros(n_tasks)
    for place in range(n_tasks):
        doubt[place] = -_second(opt, place)
    most = _below(opt, limit)
    tree = Tree(
        np.empty(n_tasks, dtype=np.int64),
        np.zeros(n_tasks + 1, dtype=np.int64),
        np.empty(most, dtype=np.int64),
        np.empty(most),
        np.empty(most),
        np.zeros((CUTS, most)),
        np.full(CUTS, math.inf),
        np.zeros(n_tasks + 1),
    )
    for level in range(n_tasks):
        place = _least(doubt)
        doubt[place] = math.inf
        tree.task[level] = opt.task[place]
        many = tree.start[level]
        if opt.none[place] < limit:
            many = _insert(tree, level, many, -1, opt.none[place], 0.0)
        for m in range(opt.start[place], opt.start[place + 1]):
            if opt.loss[m] < limit:
                many = _insert(tree, level, many, opt.point[m], opt.loss[m], t.value[opt.point[m]])
        tree.start[level + 1] = many
    for level in range(n_tasks - 1, -1, -1):
        best = 0.0
        for m in range(tree.start[level], tree.start[level + 1]):
            best = max(best, tree.value[m])
        tree.best_rest[level] = tree.best_rest[level + 1] + best
    return tree


@lean
def _second(opt: SearchOptions, place: int) -> float:
    """Loss of a task's second choice: large means that its choice is clear. Finite."""
    best, second = opt.none[place], 1e300
    for m in range(opt.start[place], opt.start[place + 1]):
        if opt.loss[m] < best:
            best, second = opt.loss[m], best
        elif opt.loss[m] < second:
            second = opt.loss[m]
    return second


@lean
def _insert(tree: Tree, level: int, many: int, point: int, loss: float, value: float) -> int:
    """Insert an option by loss, then by greater value; returns the number of options."""
    m = many
    while m > tree.start[level] and (
        tree.loss[m - 1] > loss or (tree.loss[m - 1] == loss and tree.value[m - 1] < value)
    ):
        tree.point[m], tree.loss[m], tree.value[m] = tree.point[m - 1], tree.loss[m - 1], tree.value[m - 1]
        m -= 1
    tree.point[m], tree.loss[m], tree.value[m] = point, loss, value
    return many + 1


@lean
def _cut(t: Table, tree: Tree, c: int, p: Prices, o: Point) -> None:
    """Cut c: at these prices the chosen points may not cost more than the room is worth."""
    tree.room[c] = 0.0
    for r in range(t.room.shape[0]):
        tree.room[c] += p.rigid[r] * t.room[r]
    for level in range(tree.task.shape[0]):
        for m in range(tree.start[level], tree.start[level + 1]):
            j = tree.point[m]
            tree.cost[c, m] = price_point(t, tree.task[level], j, p, o) if j >= 0 else 0.0


@lean
def _passes(tree: Tree, spent: Floats, level: int, m: int, cuts: int) -> bool:
    """Option m keeps the first `cuts` cuts; writes the sums of the next level."""
    for c in range(min(cuts, CUTS)):
        spent[c, level + 1] = spent[c, level] + tree.cost[c, m]
        if spent[c, level + 1] > tree.room[c] * (1.0 + EDGE):
            return False
    return True


@nopython
def _add_cut(t: Table, tree: Tree, spent: Floats, at: Ints, cuts: int, price: Floats, o: Point) -> int:
    """Add a cut (the first stays, others make place); returns the level at which the present path breaks it."""
    c = cuts if cuts < CUTS else 1 + cuts % (CUTS - 1)
    _cut(t, tree, c, prices_of(t, price), o)
    back: int = tree.task.shape[0]
    for level in range(tree.task.shape[0]):
        spent[c, level + 1] = spent[c, level] + tree.cost[c, at[level] - 1]
        if spent[c, level + 1] > tree.room[c] * (1.0 + EDGE):
            back = min(back, level)
    return back


@lean
def _exhausted(tree: Tree, at: Ints, loss: Floats, value: Floats, level: int, gap: float, best: float) -> bool:
    """Nothing better is left at this level on the present path."""
    m = at[level]
    if m >= tree.start[level + 1] or loss[level] + tree.loss[m] >= gap:
        return True
    return bool(value[level] + tree.best_rest[level] <= best + SAME)


@lean
def _take(t: Table, k: Set, tree: Tree, at: Ints) -> None:
    """Choose what the path says."""
    for level in range(tree.task.shape[0]):
        put(t, k, tree.task[level], tree.point[at[level] - 1])


@merged
def improve(t: Table, k: Set, d: Dual, opt: SearchOptions, start: Floats, nodes: int, o: Point) -> Floats:
    """Depth-first search for better plans than k, the best goes into k, which fits at `start` (R,) before.

    Returns prices (R,) at which it fits after. Prunes by loss against the gap, by value and by cuts; the first cuts
    are at the prices of the bound and of k.
    """
    price = start
    best, kept = value_of(t, k.chosen), k.chosen.copy()
    gap = d.bound - best - SAME
    tree = _grow(t, opt, _limit(opt, gap))
    n = tree.task.shape[0]
    at, loss, value = np.zeros(n + 1, dtype=np.int64), np.zeros(n + 1), np.zeros(n + 1)
    spent = np.zeros((CUTS, n + 1))
    cuts, level, fits = 2, 0, 0
    _cut(t, tree, 0, prices_of(t, d.price), o)
    _cut(t, tree, 1, prices_of(t, price), o)
    for _ in range(nodes):
        if level < 0 or fits >= FITS:
            break
        if _exhausted(tree, at, loss, value, level, gap, best):
            level -= 1
            continue
        m = at[level]
        at[level] = m + 1
        if not _passes(tree, spent, level, m, cuts):
            continue
        loss[level + 1], value[level + 1] = loss[level] + tree.loss[m], value[level] + tree.value[m]
        if level + 1 < n:
            level += 1
            at[level] = tree.start[level]
            continue
        if value[n] <= best + SAME:
            continue
        _take(t, k, tree, at)
        new = price.copy()
        verdict = fit(t, k, new, False, o)
        fits += 1
        if verdict == FIT:
            best, kept = float(value[n]), k.chosen.copy()
            price, gap = new, d.bound - best - SAME
        elif verdict == NO_FIT:
            level = min(level, _add_cut(t, tree, spent, at, cuts, new, o))
            cuts += 1
    for i in range(kept.shape[0]):
        put(t, k, i, kept[i])
    return price
