"""The compiled loop of one block of tasks: what each asks for at given prices (solvers/sharded.py)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from solvers._jit import cached, nopython, source_digest
from solvers._kernel import DEAD, Prices, Raw, Table, at_least, cheapest, prepare, prices_of
from solvers.problem import Floats, Ints


@nopython
def _best(t: Table, i: int, p: Prices, x: Floats, work: Floats) -> tuple[int, float]:
    """Task i's best point and what it gains, below 0 too; (-1, -inf) if no point can be served. Ties: the first."""
    pick, net = -1, -math.inf
    for j in range(t.first[i], t.first[i + 1]):
        if t.mode[j] != DEAD and t.value[j] - at_least(t, j, p) > net:
            gain = t.value[j] - cheapest(t, j, p, x, work)[0]
            if gain > net:
                pick, net = j, gain
    return pick, net


def _make(digest: int) -> tuple[Callable[[Raw], Table], Callable[[Table, Floats, Ints, Floats, Floats], float]]:
    """Return the compiled functions; `digest` is part of their keys in the cache."""

    @cached
    def make_table(raw: Raw) -> Table:
        t = prepare(raw)
        t.room[-1] = digest * 0.0
        return t

    @cached
    def respond(t: Table, price: Floats, pick: Ints, net: Floats, share: Floats) -> float:
        """Write each task's pick (n,), net (n,) and shares (n, S) at prices (R,); returns the sum of what is gained.

        pick: the best point if it gains, else -1. net: what the best point gains, below 0 too.
        """
        p = prices_of(t, price)
        x, work = np.empty(t.slot.shape[1]), np.zeros((2, t.slot.shape[1]))
        total = digest * 0.0
        t.theta[:] = 1.0  # what an earlier call left there would show in the last bits
        for i in range(pick.shape[0]):
            j, net[i] = _best(t, i, p, x, work)
            pick[i] = j if net[i] > 0.0 else -1
            share[i, :] = 0.0
            if net[i] > 0.0:
                total += net[i]
                cheapest(t, j, p, x, work)
                for s in range(x.shape[0]):
                    share[i, s] = x[s] if t.slot[j, s] < price.shape[0] else 0.0
        return total

    return make_table, respond


make_table, respond = _make(source_digest())
