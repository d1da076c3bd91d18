"""Balanced prices and the second stage of a set that fits (docs/model.md, section 5).

Both are one climb, fit.py's, towards the prices of the second stage; they part at its end. On the way the nearest
prices are kept at which the tight shares, those that deadlines need, fit. `balance` moves there: room is then left
everywhere, not all on one resource beside a full one, and fill can use it. `settle` writes both ends down: tight
shares, which fit, and wide ones, which use up the room and may be a little too much. spread.py goes from one to the
other.
"""

from __future__ import annotations

import math

import numpy as np

from solvers.jit import lean, nopython
from solvers.price.fit import (
    ACTS,
    ROOT,
    STEPS,
    Set,
    advance,
    elastic_room,
    exact_shares,
    fullest,
    newton,
    scaled,
    serve,
    settled,
    worth_of,
)
from solvers.price.point import Point
from solvers.price.tables import DOUBLE, HIGH, LOW, Prices, Table, prices_of
from solvers.problem import Floats
from solvers.tolerances import DUAL_SLIP, EDGE, FIT_CALM, FIT_GOAL


@nopython
def balance(t: Table, k: Set, price: Floats, o: Point) -> None:
    """Move `price` (R,), at which the tight shares fit, to where they leave room everywhere; k.use[0]: their use."""
    good, last = _climb(t, k, price, o)
    for r in range(price.shape[0]):
        price[r] = good[r]
    if not last:
        serve(t, k, prices_of(t, price), o)


@nopython
def settle(t: Table, k: Set, price: Floats, o: Point) -> None:
    """The second stage of a set whose tight shares at `price` (moved) fit: k.share fit, k.wide use up the room."""
    good, _ = _climb(t, k, price, o)
    _write(t, k, good, False, k.share, o)
    _write(t, k, price, True, k.wide, o)


@nopython
def _climb(t: Table, k: Set, price: Floats, o: Point) -> tuple[Floats, bool]:
    """Move `price` to the second stage's; returns the nearest prices seen at which the tight shares fit.

    And whether the last look was at them: then k.use[0] is the use there.
    """
    elastic_room(t, k)
    c, good, n, fits = serve(t, k, prices_of(t, price), o), price.copy(), price.shape[0], True
    c = scaled(t, k, price, c, o)
    old, step, top = price.copy(), np.zeros(n), -math.inf
    for _ in range(STEPS):
        fits = fullest(k) <= 1.0 + EDGE
        if fits:
            for r in range(n):
                good[r] = price[r]  # the latest: nearest to the wide shares
        height = c.height - FIT_GOAL * worth_of(k, price)
        gain, risen = height - top, height >= top - DUAL_SLIP * abs(top)
        if risen and (gain < FIT_CALM * worth_of(k, price) or settled(k, price)):
            break
        top = max(top, height)
        if risen and newton(k, price, step) < FIT_CALM * worth_of(k, price):
            break
        advance(old, step, risen, k, price)
        c, fits = serve(t, k, prices_of(t, price), o), False
    else:
        for r in range(n):
            price[r] = old[r]
    return good, fits


@nopython
def _write(t: Table, k: Set, price: Floats, wide: bool, out: Floats, o: Point) -> None:
    """Everyone's tight or wide shares at prices (R,) into out (N, S)."""
    p = prices_of(t, price)
    if _write_quick(t, k, p, wide, out) > 0:
        _write_others(t, k, p, wide, out, o)


@lean
def _write_others(t: Table, k: Set, p: Prices, wide: bool, out: Floats, o: Point) -> None:
    for i in t.order:
        if out[i, 0] < 0.0:
            exact_shares(t, i, k.chosen[i], p, o)
            for s in range(out.shape[1]):
                out[i, s] = o.y[s] if wide else o.x[s]


@nopython
def _write_quick(t: Table, k: Set, p: Prices, wide: bool, out: Floats) -> int:
    """Shares that meet no limit into out (N, S); returns for how many tasks -1 is there instead."""
    chosen, slot, row, mode, root, back = k.chosen, k.slot, k.row, t.mode, p.root, p.back
    left = 0
    for i in range(out.shape[0]):
        j, total = chosen[i], 0.0
        for s in range(out.shape[1]):
            out[i, s] = 0.0
        if j < 0:
            continue
        for s in range(out.shape[1]):
            total += row[i, ROOT, s] * root[slot[i, s]]
        most, inside = max(total, 1.0), mode[j] != DOUBLE
        for s in range(out.shape[1]):
            unit = row[i, ROOT, s] * back[slot[i, s]]
            inside = inside and row[i, LOW, s] <= unit * total and unit * most <= row[i, HIGH, s]
        for s in range(out.shape[1]):
            unit = row[i, ROOT, s] * back[slot[i, s]] / row[i, ACTS, s]
            out[i, s] = -1.0 if not inside else unit * (most if wide else total)
        left += 0 if inside or out.shape[1] == 0 else 1
    return left
