"""The second stage's last step: settled shares made exactly feasible (docs/model.md, section 5).

Prices that are nearly right leave wide shares that fit nearly, and a plan must fit. Use is linear and latency convex
in the shares: what the tight and the wide shares keep, everything between them keeps. So wide shares of overfilled
resources are moved towards the tight ones, by one factor each; then all go from tight towards wide as far as the
scarcest resource allows; what then is left is handed to whoever is below his cap, on resources that couplings load
last, since shares elsewhere load those too.
"""

from __future__ import annotations

import numpy as np

from solvers.jit import lean, merged, nopython
from solvers.price.fit import ACTS, ROOT, Set
from solvers.price.tables import HIGH, OTHER, Table, with_couplings
from solvers.problem import Floats
from solvers.tolerances import SCRAP


@merged
def _above(k: Set, i: int) -> bool:
    """All wide shares of task i are at least k.share."""
    least = 0.0
    for s in range(k.share.shape[1]):
        least = min(least, k.wide[i, s] - k.share[i, s])
    return least >= 0.0


@nopython
def _uses(t: Table, k: Set, use: Floats, goal: Floats, spare: Floats) -> None:
    """All that k.share, k.wide take (R + 1,), rigid demand and couplings too; spare: what tasks may give back of it."""
    slot, row, share, wide, chosen = k.slot, k.row, k.share, k.wide, k.chosen
    for i in t.order:
        if chosen[i] < 0:
            continue
        above = _above(k, i)
        for s in range(slot.shape[1]):
            r, act = slot[i, s], row[i, ACTS, s]
            use[r] += act * share[i, s]
            goal[r] += act * wide[i, s]
            spare[r] += act * (wide[i, s] - share[i, s]) if above else 0.0
    with_couplings(t, use)
    with_couplings(t, goal)
    for r in range(use.shape[0]):
        use[r] += t.room[r] - k.room[r]
        goal[r] += t.room[r] - k.room[r]


@nopython
def _squeeze(t: Table, k: Set, goal: Floats, spare: Floats) -> bool:
    """Move wide shares of overfilled resources towards k.share by one factor each, so that they fit. False: all fits.

    Tasks of which some share would have to grow are left alone: deadlines hold between wide and k.share only.
    """
    part, over = np.zeros(goal.shape[0]), False
    for r in range(goal.shape[0] - 1):
        if goal[r] > t.room[r] and spare[r] > 0.0:
            part[r], over = min(1.0, (goal[r] - t.room[r]) / spare[r]), True
    if over:
        for i in t.order:
            if k.chosen[i] >= 0 and _above(k, i):
                for s in range(k.slot.shape[1]):
                    k.wide[i, s] -= part[k.slot[i, s]] * (k.wide[i, s] - k.share[i, s])
    return over


@nopython
def _blend(t: Table, k: Set, use: Floats) -> None:
    """Move k.share (which fits) towards k.wide as far as there is room; their use goes into `use` (R + 1,).

    Use is linear and latency convex in the shares: what both ends keep, everything between them keeps.
    """
    n, part, share, wide = use.shape[0], 1.0, k.share, k.wide
    goal, spare = np.zeros(n), np.zeros(n)
    use[:] = 0.0
    _uses(t, k, use, goal, spare)
    if _squeeze(t, k, goal, spare):
        use[:] = goal[:] = 0.0
        _uses(t, k, use, goal, spare)
    for r in range(n - 1):
        if goal[r] > t.room[r] and goal[r] > use[r]:
            part = min(part, max(0.0, (t.room[r] - use[r]) / (goal[r] - use[r])))
    for i in range(share.shape[0]):
        for s in range(share.shape[1]):
            share[i, s] += part * (wide[i, s] - share[i, s])
    for r in range(n):
        use[r] += part * (goal[r] - use[r])


@merged
def _may_grow(t: Table, k: Set, i: int, s: int) -> bool:
    """Slot s of task i has work and is below its cap."""
    j = k.chosen[i]
    works = k.row[i, ROOT, s] > 0.0 or t.cell[j, OTHER, s] > 0.0
    return bool(works and k.row[i, ACTS, s] * k.share[i, s] < k.row[i, HIGH, s])


@lean
def _room_for(t: Table, use: Floats, targets: bool, left: Floats) -> bool:
    """Room (R + 1,) for more shares, of targets of couplings or of the others; False: none worth handing out.

    What couplings add is counted.
    """
    left[use.shape[0] - 1] = 0.0
    for r in range(use.shape[0] - 1):
        aimed = 0
        for c in range(t.link.shape[0]):
            aimed += 1 if t.link[c, 1] == r and t.kappa[c] > 0.0 else 0
        left[r] = max(0.0, t.room[r] - use[r]) if (aimed > 0) == targets else 0.0
    for c in range(t.link.shape[0]):
        if t.kappa[c] > 0.0:
            own, aimed = max(0.0, t.room[t.link[c, 1]] - use[t.link[c, 1]]), 0
            for d in range(t.link.shape[0]):
                aimed += 1 if t.link[d, 1] == t.link[c, 1] and t.kappa[d] > 0.0 else 0
            left[t.link[c, 0]] = min(left[t.link[c, 0]], own / (aimed * t.kappa[c]))
    much = False
    for r in range(use.shape[0]):
        much = much or left[r] > SCRAP * t.room[r]
    return much


@lean
def _held(t: Table, k: Set, held: Floats) -> None:
    """Add up the counted shares that may grow, into (R + 1,)."""
    for i in t.order:
        if k.chosen[i] >= 0:
            for s in range(k.slot.shape[1]):
                if _may_grow(t, k, i, s):
                    held[k.slot[i, s]] += k.row[i, ACTS, s] * k.share[i, s]


@nopython
def _top_up(t: Table, k: Set, use: Floats, targets: bool) -> None:
    """Stretch the shares of each resource that are below their caps by one factor into what room there still is."""
    left, held, more = np.zeros(use.shape[0]), np.zeros(use.shape[0]), np.zeros(use.shape[0])
    if not _room_for(t, use, targets, left):
        return
    _held(t, k, held)
    for r in range(use.shape[0]):
        left[r] = left[r] / held[r] if held[r] > 0.0 else 0.0
    for i in t.order:
        if k.chosen[i] >= 0:
            for s in range(k.slot.shape[1]):
                if left[k.slot[i, s]] > 0.0 and _may_grow(t, k, i, s):
                    act, before = k.row[i, ACTS, s], k.share[i, s]
                    k.share[i, s] = min(k.row[i, HIGH, s] / act, before * (1.0 + left[k.slot[i, s]]))
                    more[k.slot[i, s]] += act * (k.share[i, s] - before)
    with_couplings(t, more)
    for r in range(use.shape[0]):
        use[r] += more[r]


@nopython
def spread(t: Table, k: Set) -> None:
    """Hand out what is left: k.share fits before and after; k.wide is settled, or the shares stay what they are."""
    use = np.empty(t.room.shape[0])
    _blend(t, k, use)
    _top_up(t, k, use, False)
    if t.link.shape[0] > 0:
        _top_up(t, k, use, True)
