"""From prices to a plan: repair what does not fit, fill what is left, then search what the gap leaves open.

docs/model.md, section 4. The search is exact when its node budget suffices: an option whose reduced loss at the dual
prices exceeds the gap can be in no better plan, and every set that did not fit leaves a linear cut behind
(its prices: the chosen points may not cost more than the room is worth).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from solvers._dual import Dual
from solvers._fit import FIT, NO_FIT, Set, copy_set, fit, new_set, settle
from solvers._jit import nopython
from solvers._kernel import DEAD, EDGE, Table, at_least, cheapest, prices_of
from solvers._oracle import all_costs
from solvers.problem import Floats, Ints

SWITCH_ROUNDS: Final = 6  # rounds of repair that may change points; after them tasks are only dropped
FAILURES: Final = 12  # fillings that may fail before it stops
OPTIONS: Final = 1500  # that the search looks at, least loss first
CUTS: Final = 24  # kept; the oldest makes place
FITS: Final = 60  # feasibility tests of the search
SAME: Final = 1e-9  # values that differ by less are the same


class Losses(NamedTuple):
    """What each choice gives away against the bound, at the dual's prices."""

    point: Floats  # (J,) inf where it cannot be served
    none: Floats  # (N,) of not being admitted: the task's net value


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


@nopython
def losses(t: Table, d: Dual, limit: float) -> Losses:
    """Reduced losses at the prices of the bound; points that lose more than `limit` are taken out of the table."""
    p = prices_of(t, d.price)
    x, work = np.empty(t.slot.shape[1]), np.zeros((2, t.slot.shape[1]))
    lost = np.full(t.value.shape[0], math.inf)
    for i in t.order:
        for j in range(t.first[i], t.first[i + 1]):
            if t.mode[j] != DEAD and d.net[i] - t.value[j] + at_least(t, j, p) <= limit:
                lost[j] = max(0.0, d.net[i] - (t.value[j] - cheapest(t, j, p, x, work)[0]))
            else:
                t.mode[j] = DEAD
    return Losses(lost, d.net)


@nopython
def value_of(t: Table, chosen: Ints) -> float:
    """Value of a choice of points, summed in the order of task ids."""
    total = 0.0
    for i in t.order:
        if chosen[i] >= 0:
            total += t.value[chosen[i]]
    return total


@nopython
def _spare(t: Table, k: Set, price: Floats, cost: Floats) -> float:
    """Worth of the room less the bill of the chosen points."""
    left = 0.0
    for r in range(price.shape[0]):
        left += price[r] * t.room[r]
    for i in t.order:
        if k.chosen[i] >= 0:
            left -= cost[k.chosen[i]]
    return left


@nopython
def _cheaper(t: Table, i: int, now: int, lost: Losses, cost: Floats, switch: bool) -> tuple[float, int]:
    """Find the best way for task i to take less: (loss per cost saved, point or -1). Losses only grow: no cycles."""
    best = (lost.none[i] - lost.point[now]) / max(cost[now], 1e-300)
    to = -1
    if switch:
        for j in range(t.first[i], t.first[i + 1]):
            later = lost.point[j] > lost.point[now] or (lost.point[j] == lost.point[now] and j > now)
            if t.mode[j] != DEAD and later and cost[j] < cost[now] * (1.0 - 1e-6):
                ratio = (lost.point[j] - lost.point[now]) / (cost[now] - cost[j])
                if ratio < best:
                    best, to = ratio, j
    return best, to


@nopython
def repair(t: Table, k: Set, lost: Losses, start: Floats, price: Floats) -> None:
    """Drop or switch tasks, least loss per cost saved first, until the set fits; `price` (R,) ends balanced."""
    cost = np.empty(t.value.shape[0])
    n_tasks = t.order.shape[0]
    ratio, to = np.empty(n_tasks), np.empty(n_tasks, dtype=np.int64)
    for tried in range(n_tasks + SWITCH_ROUNDS + 1):
        for r in range(price.shape[0]):
            price[r] = start[r]
        if settle(t, k, price) == FIT:
            return
        all_costs(t, price, cost)
        spare = min(_spare(t, k, price, cost), -1e-12)
        for i in t.order:
            if k.chosen[i] >= 0:
                ratio[i], to[i] = _cheaper(t, i, k.chosen[i], lost, cost, tried < SWITCH_ROUNDS)
            else:
                ratio[i] = math.inf
        while spare < 0.0:
            i = _least(t, ratio)
            if i < 0:
                break
            spare += cost[k.chosen[i]] - (cost[to[i]] if to[i] >= 0 else 0.0)
            k.chosen[i], ratio[i] = to[i], math.inf


@nopython
def _least(t: Table, score: Floats) -> int:
    """Task with the least finite score, -1 if none; the first by id wins a tie."""
    best, found = math.inf, -1
    for i in t.order:
        if score[i] < best:
            best, found = score[i], i
    return found


@nopython
def _candidate(t: Table, k: Set, cost: Floats, spare: float, tried: Ints) -> tuple[int, int]:
    """Untried change of one task that adds value and may fit: most value per cost first. (-1, -1) if none."""
    best, task, point = 0.0, -1, -1
    for i in t.order:
        now = k.chosen[i]
        value, paid = (t.value[now], cost[now]) if now >= 0 else (0.0, 0.0)
        for j in range(t.first[i], t.first[i + 1]):
            gain, more = t.value[j] - value, cost[j] - paid
            if t.mode[j] != DEAD and tried[j] == 0 and gain > SAME and more <= spare * (1.0 + EDGE) + EDGE:
                score = gain / max(more, 1e-3 * spare, 1e-300)
                if score > best:
                    best, task, point = score, i, j
    return task, point


@nopython
def fill(t: Table, k: Set, start: Floats, price: Floats) -> bool:
    """Admit the rejected and better the admitted while it fits; k is settled at `price` (R,) before.

    k fits after; True: it is settled, too.
    """
    cost = np.empty(t.value.shape[0])
    tried = np.zeros(t.value.shape[0], dtype=np.int64)
    trial, new = new_set(t), price.copy()
    all_costs(t, price, cost)
    failures = max(4, min(FAILURES, FAILURES * 100 // max(1, t.order.shape[0])))
    failed, stale = 0, False
    while failed < failures:
        i, j = _candidate(t, k, cost, _spare(t, k, price, cost), tried)
        if i < 0 and not stale:
            return True
        if i < 0:
            settle(t, k, price)
            all_costs(t, price, cost)
            stale = False
            continue
        tried[j] = 1
        copy_set(k, trial)
        trial.chosen[i] = j
        for r in range(price.shape[0]):
            new[r] = start[r]
        if fit(t, trial, new) == FIT:
            copy_set(trial, k)
            stale = True
        else:
            failed += 1
    return not stale


@nopython
def _limit(t: Table, lost: Losses, gap: float) -> float:
    """Loss below which options are looked at: the gap, or less where that would be too many."""
    limit = gap
    for _ in range(40):
        many = 0
        for i in t.order:
            many += 1 if lost.none[i] < limit else 0
            for j in range(t.first[i], t.first[i + 1]):
                many += 1 if lost.point[j] < limit else 0
        if many <= OPTIONS + t.order.shape[0]:
            break
        limit *= 0.6
    return limit


@nopython
def _grow(t: Table, lost: Losses, limit: float) -> Tree:
    """Options whose loss is below the limit; levels with the clearest choice first."""
    n_tasks = t.order.shape[0]
    doubt = np.zeros(n_tasks)
    for i in range(n_tasks):
        doubt[i] = -_second(t, i, lost)
    most = 0  # counted, not assumed: any number of options may lose nothing
    for i in range(n_tasks):
        most += 1 if lost.none[i] < limit else 0
        for j in range(t.first[i], t.first[i + 1]):
            most += 1 if lost.point[j] < limit else 0
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
        i = _least(t, doubt)
        doubt[i] = math.inf
        tree.task[level] = i
        many = tree.start[level]
        for j in range(t.first[i] - 1, t.first[i + 1]):
            none = j < t.first[i]  # before the first point: not admitted
            loss = lost.none[i] if none else lost.point[j]
            if loss < limit:
                many = _insert(tree, level, many, -1 if none else j, loss, 0.0 if none else t.value[j])
        tree.start[level + 1] = many
    for level in range(n_tasks - 1, -1, -1):
        best = 0.0
        for o in range(tree.start[level], tree.start[level + 1]):
            best = max(best, tree.value[o])
        tree.best_rest[level] = tree.best_rest[level + 1] + best
    return tree


@nopython
def _second(t: Table, i: int, lost: Losses) -> float:
    """Loss of task i's second choice: large means that its choice is clear. Finite."""
    best, second = lost.none[i], 1e300
    for j in range(t.first[i], t.first[i + 1]):
        if lost.point[j] < best:
            best, second = lost.point[j], best
        elif lost.point[j] < second:
            second = lost.point[j]
    return second


@nopython
def _insert(tree: Tree, level: int, many: int, point: int, loss: float, value: float) -> int:
    """Insert an option by loss, then by greater value; returns the number of options."""
    o = many
    while o > tree.start[level] and (
        tree.loss[o - 1] > loss or (tree.loss[o - 1] == loss and tree.value[o - 1] < value)
    ):
        tree.point[o], tree.loss[o], tree.value[o] = tree.point[o - 1], tree.loss[o - 1], tree.value[o - 1]
        o -= 1
    tree.point[o], tree.loss[o], tree.value[o] = point, loss, value
    return many + 1


@nopython
def _cut(t: Table, tree: Tree, c: int, price: Floats) -> None:
    """Cut c: at these prices the chosen points may not cost more than the room is worth."""
    p = prices_of(t, price)
    x = np.empty(t.slot.shape[1])
    work = np.zeros((2, t.slot.shape[1]))
    tree.room[c] = 0.0
    for r in range(price.shape[0]):
        tree.room[c] += price[r] * t.room[r]
    for o in range(tree.start[tree.task.shape[0]]):
        j = tree.point[o]
        tree.cost[c, o] = cheapest(t, j, p, x, work)[0] if j >= 0 else 0.0


@nopython
def _passes(tree: Tree, spent: Floats, level: int, o: int, cuts: int) -> bool:
    """Option o keeps the first `cuts` cuts; writes the sums of the next level."""
    for c in range(min(cuts, CUTS)):
        spent[c, level + 1] = spent[c, level] + tree.cost[c, o]
        if spent[c, level + 1] > tree.room[c] * (1.0 + EDGE):
            return False
    return True


@nopython
def _add_cut(t: Table, tree: Tree, spent: Floats, at: Ints, cuts: int, price: Floats) -> int:
    """Add a cut (the first stays, others make place); returns the level at which the present path breaks it."""
    c = cuts if cuts < CUTS else 1 + cuts % (CUTS - 1)
    _cut(t, tree, c, price)
    back: int = tree.task.shape[0]
    for level in range(tree.task.shape[0]):
        spent[c, level + 1] = spent[c, level] + tree.cost[c, at[level] - 1]
        if spent[c, level + 1] > tree.room[c] * (1.0 + EDGE):
            back = min(back, level)
    return back


@nopython
def _exhausted(tree: Tree, at: Ints, loss: Floats, value: Floats, level: int, gap: float, best: float) -> bool:
    """Nothing better is left at this level on the present path."""
    o = at[level]
    if o >= tree.start[level + 1] or loss[level] + tree.loss[o] >= gap:
        return True
    return bool(value[level] + tree.best_rest[level] <= best + SAME)


@nopython
def _try_leaf(t: Table, tree: Tree, at: Ints, trial: Set, start: Floats, price: Floats) -> int:
    """Test whether the path's choice of points fits; `price` (R,) gets the proof."""
    for level in range(tree.task.shape[0]):
        trial.chosen[tree.task[level]] = tree.point[at[level] - 1]
    for r in range(price.shape[0]):
        price[r] = start[r]
    return fit(t, trial, price)


@nopython
def improve(t: Table, k: Set, d: Dual, lost: Losses, start: Floats, price: Floats, nodes: int) -> bool:
    """Depth-first search for better plans than k, the best goes into k; True: k has changed.

    Prunes by loss against the gap, by value and by cuts; the first cuts are at the prices of the bound and of k.
    """
    best = value_of(t, k.chosen)
    gap = d.bound - best - SAME
    tree = _grow(t, lost, _limit(t, lost, gap))
    n = tree.task.shape[0]
    trial, new = new_set(t), price.copy()
    at, loss, value = np.zeros(n + 1, dtype=np.int64), np.zeros(n + 1), np.zeros(n + 1)
    spent = np.zeros((CUTS, n + 1))
    cuts, level, fits, changed = 0, 0, 0, False
    for c in range(2):
        _cut(t, tree, c, d.price if c == 0 else price)
        cuts = c + 1
    for _ in range(nodes):
        if level < 0 or fits >= FITS:
            break
        if _exhausted(tree, at, loss, value, level, gap, best):
            level -= 1
            continue
        o = at[level]
        at[level] = o + 1
        if not _passes(tree, spent, level, o, cuts):
            continue
        loss[level + 1], value[level + 1] = loss[level] + tree.loss[o], value[level] + tree.value[o]
        if level + 1 < n:
            level += 1
            at[level] = tree.start[level]
            continue
        if value[n] <= best + SAME:
            continue
        verdict = _try_leaf(t, tree, at, trial, start, new)
        fits += 1
        if verdict == FIT:
            copy_set(trial, k)
            best, changed = float(value[n]), True
            gap = d.bound - best - SAME
        elif verdict == NO_FIT:
            level = min(level, _add_cut(t, tree, spent, at, cuts, new))
            cuts += 1
    return changed
