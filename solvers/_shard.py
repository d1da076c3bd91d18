"""The compiled loop of one block of tasks: what each asks for at given prices (solvers/sharded.py)."""

from __future__ import annotations

import math
from collections.abc import Callable

from solvers._jit import cached, lean, source_digest
from solvers._kernel import ACTIVITY, DEAD, Prices, Table, at_least, prices_of
from solvers._point import Point, new_point, price_point
from solvers.problem import Floats, Ints


@lean
def _best(t: Table, i: int, p: Prices, o: Point) -> tuple[int, float]:
    """Task i's best point and what it gains, below 0 too; (-1, -inf) if no point can be served. Ties: the first."""
    pick, net = -1, -math.inf
    for j in range(t.first[i], t.first[i + 1]):
        if t.mode[j] != DEAD and t.value[j] - at_least(t, j, p) > net:
            gain = t.value[j] - price_point(t, i, j, p, o)
            if gain > net:
                pick, net = j, gain
    return pick, net


@lean
def _respond(t: Table, p: Prices, o: Point, pick: Ints, net: Floats, share: Floats) -> float:
    total = 0.0
    for i in range(pick.shape[0]):
        j, net[i] = _best(t, i, p, o)
        pick[i] = j if net[i] > 0.0 else -1
        if net[i] > 0.0:
            total += net[i]
            price_point(t, i, j, p, o)
        for s in range(share.shape[1]):
            gains = net[i] > 0.0 and t.slot[j, s] < t.room.shape[0] - 1
            share[i, s] = o.y[s] / t.cell[j, ACTIVITY, s] if gains else 0.0
    return total


def _make(digest: int) -> Callable[[Table, Floats, Ints, Floats, Floats], float]:
    """Return the compiled function; `digest` is part of its key in the cache."""

    @cached
    def respond(t: Table, price: Floats, pick: Ints, net: Floats, share: Floats) -> float:
        """Write each task's pick (n,), net (n,) and shares (n, S) at prices (R,); returns the sum of what is gained.

        pick: the best point if it gains, else -1. net: what the best point gains, below 0 too.
        """
        t.theta[:] = 1.0  # what an earlier call left there would show in the last bits
        return _respond(t, prices_of(t, price), new_point(t), pick, net, share) + digest * 0.0

    return respond


respond = _make(source_digest())
