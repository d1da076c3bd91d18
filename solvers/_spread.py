"""The second stage's last step: settled shares made exactly feasible (docs/model.md, section 5)."""

from __future__ import annotations

import numpy as np

from solvers._fit import Set
from solvers._jit import nopython
from solvers._kernel import ACTIVITY, CAP, RIGID, A, Table, add_use
from solvers.problem import Floats


@nopython
def _use_of(t: Table, k: Set, share: Floats, use: Floats) -> None:
    for r in range(use.shape[0]):
        use[r] = 0.0
    for i in t.order:
        j = k.chosen[i]
        if j >= 0:
            add_use(t, j, share[i], use)
            for s in range(share.shape[1]):
                use[t.slot[j, s]] += t.cell[j, RIGID, s]


@nopython
def _blend(t: Table, k: Set, use: Floats) -> None:
    """Move k.share (which fits) towards k.wide as far as there is room; their use goes into `use` (R + 1,).

    Use is linear and latency convex in the shares: what both ends keep, everything between them keeps.
    """
    goal = np.empty(t.room.shape[0])
    _use_of(t, k, k.share, use)
    _use_of(t, k, k.wide, goal)
    part = 1.0
    for r in range(use.shape[0] - 1):
        if goal[r] > t.room[r] and goal[r] > use[r]:
            part = min(part, max(0.0, (t.room[r] - use[r]) / (goal[r] - use[r])))
    for i in t.order:
        if k.chosen[i] >= 0:
            for s in range(k.share.shape[1]):
                k.share[i, s] += part * (k.wide[i, s] - k.share[i, s])
    _use_of(t, k, k.share, use)


@nopython
def _room_for(t: Table, use: Floats, r: int) -> float:
    """Room for more shares of r, its couplings counted."""
    left: float = t.room[r] - use[r]
    for c in range(t.link.shape[0]):
        if t.link[c, 0] == r and t.kappa[c] > 0.0:
            left = min(left, (t.room[t.link[c, 1]] - use[t.link[c, 1]]) / t.kappa[c])
    return left


@nopython
def _may_grow(t: Table, k: Set, i: int, s: int, r: int) -> bool:
    """Slot s of task i is on r, has work and is below its cap."""
    j = k.chosen[i]
    if j < 0 or t.slot[j, s] != r:
        return False
    return bool(max(t.cell[j, A, s], t.cell[j, A + 1, s]) > 0.0 and k.share[i, s] < t.cell[j, CAP, s])


@nopython
def _top_up(t: Table, k: Set, use: Floats, r: int) -> None:
    """Stretch the shares of r below their caps by one factor into what room there still is."""
    left, held = _room_for(t, use, r), 0.0
    for i in t.order:
        for s in range(t.slot.shape[1]):
            if _may_grow(t, k, i, s, r):
                held += t.cell[k.chosen[i], ACTIVITY, s] * k.share[i, s]
    if left <= 0.0 or held <= 0.0:
        return
    for i in t.order:
        for s in range(t.slot.shape[1]):
            if _may_grow(t, k, i, s, r):
                k.share[i, s] = min(t.cell[k.chosen[i], CAP, s], k.share[i, s] * (1.0 + left / held))
    _use_of(t, k, k.share, use)


@nopython
def spread(t: Table, k: Set) -> None:
    """Hand out what is left: k.share fits before and after; k.wide is settled, or the shares stay what they are."""
    use = np.empty(t.room.shape[0])
    _blend(t, k, use)
    for r in range(t.room.shape[0] - 1):
        _top_up(t, k, use, r)
