"""Minimising a dual whose value comes from elsewhere: BFGS in log prices (docs/model.md, section 3).

The twin of solvers/_dual.py for evaluations that are rounds through a cluster, which compiled code cannot wait for. It
is used where tasks are many: there the dual is nearly smooth, and a kink that stops the descent is a small one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from solvers.problem import Floats

LONGEST: Final = 2.0  # no log price moves by more in one step: a factor of 7
SHORTEST: Final = 1.0 / 16  # part of a step: where only less descends, a kink is in the way
ARMIJO: Final = 1e-4  # part of the promised descent that is asked for (Nocedal & Wright, 3.1)
LOW: Final = 1e-4  # worth of a resource's room, as part of the bound, to start with at least: below, slopes vanish
FADED: Final = 1e-12  # ... and to end with at least: as good as nothing, and logarithms exist
BITS: Final = 40  # prices keep so many: last-bit differences of exp() between machines vanish


class Dual(NamedTuple):
    """The dual function at prices (R,): its value, a bound, and the use (R,) of resources."""

    price: Floats
    bound: float
    use: Floats


class Minimum(NamedTuple):
    """The least dual found, the evaluations it took, and whether it stopped before they were used up."""

    dual: Dual
    evaluations: int
    converged: bool


def minimise(
    evaluate: Callable[[Floats], Dual], start: Floats, room: Floats, evaluations: int, tolerance: float
) -> Minimum:
    """Minimise from prices `start` (R,) >= 0 with room (R,); stops at `tolerance` of the bound."""
    now = evaluate(_rounded(np.where(room > 0, start, 0.0)))
    worth = float((now.price * room).sum())
    if now.bound <= 0 or (worth <= tolerance * now.bound and (now.use <= room).all()):
        return Minimum(now, 1, converged=True)
    unit = np.divide(now.bound, room, out=np.zeros_like(room), where=room > 0)  # (R,) prices that are worth the bound
    used = 1
    if (now.price < LOW * unit).any():
        now, used = evaluate(_rounded(np.maximum(now.price, LOW * unit))), 2
    hessian, slope, part = _first_hessian(now, room), now.price * (room - now.use), 1.0
    while used < evaluations:
        step = -(hessian * slope).sum(axis=1)  # products by hand: BLAS may differ from machine to machine
        step *= part * min(1.0, LONGEST / max(float(np.abs(step).max()), 1e-300))
        descent = float((step * slope).sum())
        if -descent < 0.1 * tolerance * now.bound * part:
            return Minimum(now, used, converged=True)
        new, used = evaluate(_rounded(np.maximum(now.price * np.exp(step), FADED * unit))), used + 1
        if new.bound > now.bound + ARMIJO * descent:
            part *= 0.5
            if part < SHORTEST:
                return Minimum(now, used, converged=True)
            continue
        moved = np.log(np.divide(new.price, now.price, out=np.ones_like(room), where=now.price > 0))
        now, last, slope, part = new, slope, new.price * (room - new.use), min(1.0, 2.0 * part)
        _update(hessian, moved, slope - last)
    return Minimum(now, used, converged=False)


def _first_hessian(now: Dual, room: Floats) -> Floats:
    """Inverse Hessian of a resource by itself: use falls as the root of its price, so about 1 / (price room)."""
    worth = now.price * room
    return np.diag(1.0 / np.maximum(worth, max(1e-3 * float(worth.max()), 1e-300)))


def _update(hessian: Floats, step: Floats, change: Floats) -> None:
    """BFGS update of the inverse Hessian, in place (Nocedal & Wright, eq. 6.17)."""
    curve = float((step * change).sum())
    if not curve > 1e-14:
        return
    moved = (hessian * change).sum(axis=1)
    twice = float((change * moved).sum())
    hessian += (1.0 + twice / curve) / curve * np.outer(step, step)
    hessian -= (np.outer(moved, step) + np.outer(step, moved)) / curve


def _rounded(price: Floats) -> Floats:
    """Prices with BITS bits."""
    mantissa, exponent = np.frexp(price)
    return np.asarray(np.ldexp(np.floor(np.ldexp(mantissa, BITS) + 0.5), exponent - BITS), dtype=np.float64)
