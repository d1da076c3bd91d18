"""The price solver: joint admission, choice of points and shares, with a certificate (docs/model.md).

`solve` is registered as `joint`. The other functions are its parts, for baselines, bounds and tests; all of them
run one compiled entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np

from solvers._dual import Dual, best_scale, flat_prices, minimise, starting_prices, worth
from solvers._fit import FIT, Set, fit, new_set, settle
from solvers._jit import cached, nopython, source_digest
from solvers._kernel import DEAD, Raw, Table, at_least, cheapest, prepare, prices_of
from solvers._search import SAME, Losses, fill, improve, losses, repair, value_of
from solvers._spread import spread
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Certificate, Solution, Status

EVALUATIONS: Final = 40  # of the dual: 13 to 30 reach 0.1% (docs/model.md, section 3)
NODES: Final = 1000  # of the search that closes the gap on small problems
TOLERANCE: Final = 1e-4  # of the bound: less is not worth another evaluation
SMALL: Final = 2000  # points: above, those that lose much at the prices of the bound are put aside after the dual
LOSS_LIMIT: Final = 0.3  # ... more than this part of the mean value of a task
TIGHTER: Final = 40  # steps by which a site is made smaller ...
LESS_ROOM: Final = 0.95  # ... to this part each, where only prices of a smaller one tell points apart
SLACK: Final = 1e-3  # of the bound at prices 0: as good as there
FAINT: Final = 1e-9  # worth of all room at prices that stand for 0

_SOLVE: Final = 0
_BOUND: Final = 1
_SERVE: Final = 2
_COSTS: Final = 3
_TIGHT: Final = 4


class _Answer(NamedTuple):
    chosen: Ints  # (N,)
    share: Floats  # (N, S); (J, S) from _COSTS
    price: Floats  # (R,)
    cost: Floats  # (J,) from _COSTS
    value: float  # summed in the order of ids
    bound: float
    evaluations: int
    good: bool  # converged (_SOLVE, _BOUND); fits (_SERVE)


@nopython
def _most_valuable(t: Table, price: Floats, chosen: Ints) -> float:
    """Every task's most valuable point, the cheapest of equals; returns their value, the bound at prices 0."""
    p = prices_of(t, price)
    x, work = np.empty(t.slot.shape[1]), np.zeros((2, t.slot.shape[1]))
    for i in t.order:
        most, cost = SAME, np.inf
        chosen[i] = -1
        for j in range(t.first[i], t.first[i + 1]):
            if t.mode[j] == DEAD or t.value[j] < most - SAME:
                continue
            if t.value[j] > most + SAME or at_least(t, j, p) < cost:
                paid = cheapest(t, j, p, x, work)[0]
                if t.value[j] > most + SAME or paid < cost:
                    chosen[i], most, cost = j, max(most, t.value[j]), paid
    return value_of(t, chosen)


@nopython
def _scaled(price: Floats, factor: float) -> Floats:
    out = np.empty(price.shape[0])
    for r in range(price.shape[0]):
        out[r] = price[r] * factor
    return out


@nopython
def _faint(t: Table, price: Floats) -> Floats:
    """Prices so small that the bound is that of prices 0, ratios kept for the next warm start."""
    whole = worth(t, price)
    return _scaled(price, FAINT / whole if whole > 0.0 else 0.0)


@nopython
def _bound(t: Table, start: Floats, ceiling: float, evaluations: int, tolerance: float) -> Dual:
    """Minimised dual, `ceiling` (its value at prices 0) where that is less."""
    scale, whole = best_scale(t, start), worth(t, start)
    if scale <= 0.0:
        scale = 1e-2 * ceiling / whole if whole > 0.0 else 0.0
    d = minimise(t, _scaled(start, scale), evaluations, tolerance)
    if d.bound <= ceiling:
        return d
    return Dual(ceiling, _faint(t, start), d.pick, d.net, d.evaluations, True)


@nopython
def _least_lost(t: Table, lost: Losses, i: int) -> int:
    """Task i's point that loses least, -1 if it has none that can be served."""
    best, found = np.inf, -1
    for j in range(t.first[i], t.first[i + 1]):
        if lost.point[j] < best:
            best, found = lost.point[j], j
    return found


@nopython
def _guide(t: Table, d: Dual, flat: Floats, evaluations: int, tolerance: float) -> Dual:
    """Prices to choose points by where the bound has none: all fits in fractions, but not in whole points.

    At prices of nothing all points of a task are alike, and whoever must move moves to the same resource. So the dual
    is minimised for a site that is just too small, by steps of a twentieth.
    """
    guide, start, room = d, starting_prices(t, flat, d.price), t.room.copy()
    for _ in range(TIGHTER):
        for r in range(t.room.shape[0]):
            t.room[r] *= LESS_ROOM
        scale = best_scale(t, start)
        if scale > 0.0:
            guide = minimise(t, _scaled(start, scale), evaluations, tolerance)
            break
    for r in range(t.room.shape[0]):
        t.room[r] = room[r]
    return guide


@nopython
def _admit(t: Table, k: Set, flat: Floats, warm: Floats, evaluations: int, nodes: int, tolerance: float) -> Dual:
    """Choose points into k, which fits afterwards; returns the dual."""
    n_tasks = t.order.shape[0]
    start = starting_prices(t, flat, warm)
    price = start.copy()
    ceiling = _most_valuable(t, price, k.chosen)
    if fit(t, k, price) == FIT:
        settle(t, k, price)
        return Dual(ceiling, _faint(t, price), k.chosen, np.zeros(n_tasks), 1, True)
    d = _bound(t, start, ceiling, evaluations, tolerance)
    fits_in_parts = d.bound >= ceiling * (1.0 - SLACK)
    guide = _guide(t, d, flat, evaluations, tolerance) if fits_in_parts else d
    limit = np.inf if fits_in_parts or t.value.shape[0] <= SMALL else LOSS_LIMIT * ceiling / n_tasks
    lost = losses(t, guide, limit)
    for i in range(n_tasks):
        k.chosen[i] = guide.pick[i]
        if fits_in_parts and guide.pick[i] < 0:
            k.chosen[i] = _least_lost(t, lost, i)
    start = starting_prices(t, flat, guide.price)
    repair(t, k, lost, start, price)
    settled = fill(t, k, start, price)
    if d.bound - value_of(t, k.chosen) > SAME and improve(t, k, d, losses(t, d, np.inf), start, price, nodes):
        settled = False
    if not settled:
        settle(t, k, price)
    return d


@nopython
def _point_costs(t: Table, price: Floats, cost: Floats, share: Floats) -> None:
    p = prices_of(t, price)
    work = np.zeros((2, t.slot.shape[1]))
    for j in range(cost.shape[0]):
        cost[j] = np.inf
        if t.mode[j] != DEAD:
            cost[j] = cheapest(t, j, p, share[j], work)[0]


def _make_entry(digest: int) -> Callable[[Raw, int, Floats, Ints, int, int, float], _Answer]:
    """Return the one function that is compiled and kept; `digest` is part of its key in the cache."""

    @cached
    def entry(
        raw: Raw, mode: int, price: Floats, chosen: Ints, evaluations: int, nodes: int, tolerance: float
    ) -> _Answer:
        t = prepare(raw)
        flat = flat_prices(t)
        n_points, n_slots = raw.slot.shape
        none, cost = np.zeros((0, n_slots)), np.zeros(0)
        if mode == _COSTS:
            share, cost = np.zeros((n_points, n_slots)), np.zeros(n_points)
            _point_costs(t, price, cost, share)
            return _Answer(chosen, share, price, cost, 0.0, 0.0, digest * 0, True)
        if mode == _BOUND:
            start = starting_prices(t, flat, price)
            d = _bound(t, start, _most_valuable(t, start, np.empty(t.order.shape[0], np.int64)), evaluations, tolerance)
            return _Answer(d.pick, none, d.price, cost, 0.0, d.bound, d.evaluations, d.converged)
        k = new_set(t)
        if mode == _SERVE:
            for i in range(chosen.shape[0]):
                k.chosen[i] = chosen[i]
            balanced = starting_prices(t, flat, price)
            good = fit(t, k, balanced) == FIT
            if good:
                settle(t, k, balanced)
                spread(t, k)
            return _Answer(k.chosen, k.share, balanced, cost, value_of(t, k.chosen), 0.0, 0, good)
        d = _admit(t, k, flat, price, evaluations, nodes, tolerance)
        if mode == _SOLVE:
            spread(t, k)
        return _Answer(k.chosen, k.share, d.price, cost, value_of(t, k.chosen), d.bound, d.evaluations, d.converged)

    return entry


_entry = _make_entry(source_digest())


def _floats(a: Floats) -> Floats:
    """As the compiled entry takes it: one specialisation needs one layout."""
    return a if a.flags.c_contiguous and a.flags.writeable else np.array(a, dtype=np.float64, order="C")


def _ints(a: Ints) -> Ints:
    return a if a.flags.c_contiguous and a.flags.writeable else np.array(a, dtype=np.int64, order="C")


def _by_id(ids: tuple[str, ...]) -> Ints:
    """(N,) tasks in the order of their ids: what is summed or tied goes by id, not by place in the problem."""
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)


def _raw(p: Problem) -> Raw:
    return Raw(
        _floats(p.background),
        _ints(p.coupling_from),
        _ints(p.coupling_to),
        _floats(p.coupling_per_share),
        _ints(p.first),
        _by_id(p.task_ids),
        _floats(p.value),
        _floats(p.slack),
        _ints(p.slot),
        _floats(p.work),
        _floats(p.floor),
        _floats(p.cap),
        _floats(p.activity),
        _floats(p.rigid),
    )


def _run(p: Problem, mode: int, price: Floats | None, chosen: Ints | None, options: Mapping[str, float]) -> _Answer:
    start = np.zeros(p.n_resources) if price is None else _floats(np.asarray(price, dtype=np.float64))
    none = np.zeros(0, dtype=np.int64)
    return _Answer(
        *_entry(
            _raw(p),
            mode,
            start,
            none if chosen is None else _ints(np.asarray(chosen, dtype=np.int64)),
            int(options.get("evaluations", EVALUATIONS)),
            int(options.get("nodes", NODES)),
            float(options.get("tolerance", TOLERANCE)),
        )
    )


def solve(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """Admit, choose points and share out. `warm`: (R,) prices of an earlier, similar problem.

    Options: `evaluations` of the dual (40), `nodes` of the search that closes the gap (1000), `tolerance` relative
    to the bound (1e-4), `second_stage` (1): with 0 shares stay as small as the deadlines allow, in proportion to need,
    as weights of a work-conserving sharing should be. The certificate's bound is the dual function at the prices
    returned. Status.LIMIT: the evaluations were used up before the prices settled; plan and certificate hold.
    """
    options = options or {}
    answer = _run(problem, _SOLVE if options.get("second_stage", 1.0) else _TIGHT, warm, None, options)
    admitted = answer.chosen >= 0
    return Solution(
        status=Status.OK if answer.good else Status.LIMIT,
        solver="joint",
        chosen=answer.chosen,
        share=answer.share,
        promised=admitted,
        prices=answer.price,
        certificate=Certificate(answer.value, answer.bound),
        evaluations=answer.evaluations,
    )


def dual_bound(
    problem: Problem, *, warm: Floats | None = None, evaluations: int = EVALUATIONS, tolerance: float = TOLERANCE
) -> tuple[float, Floats]:
    """Return (a proven upper bound on the value of any plan, the prices (R,) at which it holds)."""
    options = {"evaluations": float(evaluations), "tolerance": tolerance}
    answer = _run(problem, _BOUND, warm, None, options)
    return answer.bound, answer.price


def point_costs(problem: Problem, prices: Floats) -> tuple[Floats, Floats]:
    """At prices (R,): each point's least cost (J,), inf where it cannot be served, and the shares (J, S) for it."""
    answer = _run(problem, _COSTS, prices, None, {})
    return answer.cost, answer.share


def serve(problem: Problem, chosen: Ints, *, warm: Floats | None = None) -> tuple[Floats, Floats] | None:
    """Shares (N, S) that serve all the chosen points (N,) (-1: none), second stage included, and balancing prices.

    None: they do not fit together.
    """
    answer = _run(problem, _SERVE, warm, chosen, {})
    return (answer.share, answer.price) if answer.good else None
