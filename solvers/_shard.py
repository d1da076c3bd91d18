"""The compiled loops of the sharded solver (solvers/sharded.py): a look at one block of tasks, and the next prices."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from solvers._dual import FADED, Bundle, Dual, _direction, _greatest, _keep, _metric, _mismatch, _moved, _shorten
from solvers._jit import cached, source_digest
from solvers._kernel import ACTIVITY, Table, prices_of
from solvers._oracle import Look, evaluate, new_look
from solvers._point import new_point, price_point
from solvers._screen import Screen, forget
from solvers.problem import Floats


class Move(NamedTuple):
    """A step of the bundle."""

    price: Floats  # (R,) to look at next
    descent: float  # that the whole step promises, < 0
    part: float  # of the step that is taken
    length: float  # greatest change of a log price
    mismatch: float  # worth of what the bundle's use is off the room


def _make_respond(digest: int) -> Callable[[Table, Screen, Floats, Floats], tuple[Look, float]]:
    """Return the compiled function; `digest` is part of its key in the cache."""

    @cached
    def respond(t: Table, screen: Screen, price: Floats, share: Floats) -> tuple[Look, float]:
        """Return what is seen at prices (R,), and the sum of what tasks gain; writes shares (n, S), or none (0, S)."""
        t.theta[:] = 1.0  # what an earlier call left there would show in the last bits
        look, o, total = new_look(t), new_point(t), digest * 0.0
        forget(screen)
        evaluate(t, price, screen, look, o)
        for i in range(look.net.shape[0]):
            total += look.net[i]
        p = prices_of(t, price)
        for i in range(share.shape[0]):
            j = look.pick[i]
            if j >= 0:
                price_point(t, i, j, p, o)
            for s in range(share.shape[1]):
                real = j >= 0 and t.slot[j, s] < t.room.shape[0] - 1
                share[i, s] = o.y[s] / t.cell[j, ACTIVITY, s] if real else 0.0
        return look, total

    return respond


def _make_advance(digest: int) -> Callable[[Table, Bundle, Dual, Dual, float], Move]:
    """Return the compiled function; `digest` is part of its key in the cache."""

    @cached
    def advance(t: Table, bundle: Bundle, seen: Dual, best: Dual, longest: float) -> Move:
        """Put what was seen last into the bundle; returns its step from the best prices, `longest` at most.

        `t` is a table without tasks.
        """
        n = best.price.shape[0]
        inverse, step, new = np.zeros((n, n)), np.zeros(n), np.zeros(n)
        _keep(bundle, t, seen.price, seen.bound, seen.look)
        _metric(t, best.price, best.look.bend, inverse)
        descent = _direction(bundle, inverse, best.price, best.bound, step)
        mismatch = _mismatch(bundle, best.price)
        part = _shorten(step, longest)
        _moved(best.price, step, FADED * best.bound, t, new)
        return Move(new, descent, part, _greatest(step), mismatch + digest * 0.0)

    return advance


respond = _make_respond(source_digest())
advance = _make_advance(source_digest())
