"""From the bundle's weights to points (docs/model.md, section 4).

At the best prices many tasks may be indifferent between points that load different resources; each evaluation has
them all choose alike. The weights with which the evaluations' uses add up to the room are a fractional plan: of each
task, which part chooses what (Feltenmark & Kiwiel 2000). It is rounded task by task so that no resource drifts off.
"""

from __future__ import annotations

import numpy as np

from solvers.jit import fetch, inlined, lean, nopython
from solvers.price.dual import Bundle, Dual
from solvers.price.fit import Set, put, put_here
from solvers.price.oracle import AHEAD
from solvers.price.point import Point, price_point
from solvers.price.search import shift
from solvers.price.tables import Prices, Table, prices_of
from solvers.problem import Floats, Ints
from solvers.tolerances import COUNTS


@inlined
def _agreed(bundle: Bundle, say: Ints, i: int, first: int) -> bool:
    """All evaluations with a weight have task i choose as the first of them."""
    agreed = True
    for m in say:
        agreed = agreed and bundle.pick[m, i] == first
    return agreed


@nopython
def recover(t: Table, bundle: Bundle, d: Dual, k: Set, o: Point) -> None:
    """Choose points into k: what the weighted evaluations agree on, and else what keeps use nearest to the mean."""
    n, say = t.room.shape[0], _having_a_say(bundle)
    p, drift, mean = prices_of(t, d.price), np.zeros(n), np.zeros(n)
    use = np.zeros((say.shape[0], n))
    pick, n_tasks = bundle.pick[say[0]] if say.shape[0] > 0 else d.look.pick, t.most.shape[0]
    for i in range(n_tasks):
        first, later = pick[i], pick[min(i + AHEAD, n_tasks - 1)]
        if later >= 0:
            fetch(t.root, later)
            fetch(t.cell, later)
        put_here(t, k, i, first)
    for i in t.order if say.shape[0] > 1 else t.order[:0]:
        if _agreed(bundle, say, i, bundle.pick[say[0], i]):
            continue
        _uses(t, i, bundle, say, p, use, mean, o)
        best = _nearest(use, mean, drift, p.rigid)
        put(t, k, i, bundle.pick[say[best], i])
        for r in range(n):
            drift[r] += use[best, r] - mean[r]


@nopython
def _having_a_say(bundle: Bundle) -> Ints:
    """Evaluations with a weight."""
    say, many = np.empty(bundle.weight.shape[0], dtype=np.int64), 0
    for m in range(bundle.weight.shape[0]):
        if COUNTS < bundle.weight[m] <= 1.0:
            say[many] = m
            many += 1
    return say[:many].copy()


@lean
def _uses(t: Table, i: int, bundle: Bundle, say: Ints, p: Prices, use: Floats, mean: Floats, o: Point) -> None:
    """Use (M, R + 1) of what each evaluation has task i choose, and its mean (R + 1,)."""
    total = 0.0
    for r in range(mean.shape[0]):
        mean[r] = 0.0
    for z in range(say.shape[0]):
        for r in range(mean.shape[0]):
            use[z, r] = 0.0
        j, weight = bundle.pick[say[z], i], bundle.weight[say[z]]
        if j >= 0:
            price_point(t, i, j, p, o)
            shift(t, j, o, 1.0, use[z])
        total += weight
        for r in range(mean.shape[0]):
            mean[r] += weight * use[z, r]
    for r in range(mean.shape[0]):
        mean[r] /= total


@lean
def _nearest(use: Floats, mean: Floats, drift: Floats, price: Floats) -> int:
    """Row of use (M, R + 1) that keeps the priced drift from the mean least."""
    best, least = 0, np.inf
    for z in range(use.shape[0]):
        off = 0.0
        for r in range(mean.shape[0]):
            off += (price[r] * (drift[r] + use[z, r] - mean[r])) ** 2
        if off < least:
            best, least = z, off
    return best
