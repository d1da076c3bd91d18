"""`joint` where resources are many: no matrices of resources x resources (docs/model.md, section 4).

The price solver keeps such matrices in its bundle and in every question whether a set fits, and inverts them: fine for
dozens of resources, not for thousands. Here prices come from a blurred dual by limited-memory steps (dual.py), and no
set is ever asked about: tasks are put in one by one, so the plan fits at every moment (plan.py, in the order that
fill.py says). What is left is handed out by solvers/price/spread.py. solvers/joint.py hands a problem over from `MANY`
resources up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np

from solvers.jit import cached, nopython, source_digest
from solvers.price.dual import best_scale, starting_prices, worth
from solvers.price.fit import new_set, put
from solvers.price.point import Point, new_point
from solvers.price.search import value_of
from solvers.price.spread import spread
from solvers.price.tables import Table
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Certificate, Solution, SolveStatus
from solvers.sparse.dual import HEATS, STEPS, least_prices
from solvers.sparse.fill import pack
from solvers.tolerances import ZERO_WORTH

NAME: Final = "joint-sparse"
LOOKS: Final = STEPS * len(HEATS)  # at the dual at most; 20 to 150 are used


class PricedPlan(NamedTuple):
    """A plan with its bound and prices (R,); nobody in it where only the bound was asked for."""

    chosen: Ints  # (N,)
    share: Floats  # (N, S)
    price: Floats  # (R,)
    value: float
    bound: float
    looks: int
    converged: bool


@nopython
def _start(t: Table, warm: Floats) -> Floats:
    """Prices (R,) to start from: warm ones, or well scaled ones where there are none."""
    price = starting_prices(t, warm)
    factor = 1.0 if worth(t, warm) > 0.0 else best_scale(t, price)
    for r in range(price.shape[0]):
        price[r] *= factor
    return price


@nopython
def _shared_out(t: Table, chosen: Ints, share: Floats) -> Floats:
    """Shares (N, S) with what is left handed out."""
    z = new_set(t)
    for i in range(chosen.shape[0]):
        put(t, z, i, chosen[i])
        for s in range(share.shape[1]):
            z.share[i, s] = z.wide[i, s] = share[i, s]
            if chosen[i] >= 0:
                z.room[t.slot[chosen[i], s]] -= t.cell[chosen[i], 2, s]
    for r in range(t.room.shape[0]):
        z.room[r] += t.room[r]
    spread(t, z)
    return z.share


@nopython
def _bounded(t: Table, warm: Floats, most: int, o: Point) -> tuple[Floats, Floats, float, int, bool]:
    """Prices (R,) to plan by and those of the bound, the bound, looks, and whether prices have settled."""
    ceiling, start = 0.0, _start(t, warm)
    for i in t.order:
        ceiling += t.most[i]
    if not worth(t, start) > 0.0:
        return start, start, ceiling, 0, True
    d = least_prices(t, start, most, o)
    if d.bound < ceiling:
        return d.price, d.price, d.bound, d.looks, d.converged
    faint, whole = d.price.copy(), worth(t, d.price)
    for r in range(faint.shape[0]):
        faint[r] *= ZERO_WORTH / whole
    return d.price, faint, ceiling, d.looks, True


def _make_entry(digest: int) -> Callable[[Table, Floats, int, bool, bool], PricedPlan]:
    """Return the compiled function; `digest` is part of its key in the cache."""

    @cached
    def entry(t: Table, warm: Floats, most: int, plan: bool, hand_out: bool) -> PricedPlan:
        for i in range(t.theta.shape[0]):
            t.theta[i] = 1.0
        o = new_point(t)
        near, price, bound, looks, good = _bounded(t, warm, most, o)
        if not plan:
            return PricedPlan(
                np.full(t.most.shape[0], -1, dtype=np.int64),
                np.zeros((0, 0)),
                price,
                0.0,
                bound,
                looks + digest * 0,
                good,
            )
        k = pack(t, near, o)
        share = _shared_out(t, k.chosen, k.share) if hand_out else k.share
        return PricedPlan(k.chosen, share, price, value_of(t, k.chosen), bound, looks, good)

    return entry


_entry = _make_entry(source_digest("price", "sparse"))


def run(t: Table, warm: Floats, options: Mapping[str, float], *, plan: bool) -> PricedPlan:
    """Solve for a table. `warm`: (R,) prices to start from, zeros: none. Options as of solvers.price.solver.solve."""
    most = max(1, int(options.get("evaluations", LOOKS)))
    with np.errstate(all="ignore"):  # as solvers/price/solver.py
        return PricedPlan(*_entry(t, warm, most, plan, bool(options.get("second_stage", 1.0))))


def solution(problem: Problem, answer: PricedPlan) -> Solution:
    """Put an answer into the form that solvers return."""
    return Solution(
        status=SolveStatus.OK if answer.converged else SolveStatus.LIMIT,
        solver=NAME,
        chosen=answer.chosen,
        share=np.ascontiguousarray(answer.share).reshape(problem.n_tasks, problem.slot.shape[1]),
        promised=answer.chosen >= 0,
        prices=answer.price,
        certificate=Certificate(answer.value, max(answer.bound, answer.value)),
        evaluations=answer.looks,
    )
