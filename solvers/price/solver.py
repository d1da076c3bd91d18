"""The price solver: joint admission, choice of points and shares, with a certificate (docs/model.md).

To choose for all tasks together is hard; at prices each chooses alone, and any prices prove a bound on every plan. So:
prices of the least bound (dual.py), what tasks choose there, tied ones dealt out (recovery.py), repair and fill
(search.py), on small problems a search within the gap (tree.py), and what is left shared out (settle.py, spread.py).
Where all fits in fractions the prices are 0 and tell no points apart: those of a somewhat smaller site guide then.
`joint` (solvers/joint.py) calls `solve`; the other functions are its parts, for baselines, bounds and tests; all of
them run one compiled entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np

from solvers.jit import cached, lean, merged, nopython, source_digest
from solvers.price.dual import Bundle, Dual, best_scale, minimise, new_bundle, starting_prices, worth
from solvers.price.fit import FIT, Set, fit, new_set, put
from solvers.price.oracle import evaluate, new_look
from solvers.price.point import Point, bill, cheapest, load, new_point, price_point, stretch
from solvers.price.recovery import recover
from solvers.price.screen import Screen, forget, new_screen, prepare
from solvers.price.search import fill, options, repair, value_of
from solvers.price.settle import settle
from solvers.price.spread import spread
from solvers.price.tables import DEAD, DOUBLE, FIELDS, Prices, Raw, Table, at_least, prices_of, rigid_bill
from solvers.price.tree import improve
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Certificate, Solution, SolveStatus
from solvers.tolerances import SAME, TOLERANCE, WARM_ASTRAY, WARM_WORTH, ZERO_WORTH

EVALUATIONS: Final = 40  # of the dual: 2 to 6 reach 0.01% at city scale, kinks of small problems take more
NODES: Final = 1000  # of the search that closes the gap on small problems
CROWDED: Final = 0.97  # part of what all tasks need that a site has whose prices tell their points apart
BETTER: Final = 1.02  # ... when another look at what they need is worth it
GUIDES: Final = 3

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
def _ceiling(t: Table) -> float:
    """Bound at prices 0: everybody's most valuable point."""
    total = 0.0
    for i in t.order:
        total += t.most[i]
    return total


@lean
def _most_valuable(t: Table, p: Prices, k: Set, o: Point) -> float:
    """Every task's most valuable point, the cheapest of equals, into k; returns what they cost."""
    bill = 0.0
    for i in t.order:
        most, cost, best = SAME, np.inf, -1
        for j in range(t.first[i], t.first[i + 1]):
            if t.mode[j] == DEAD or t.value[j] < most - SAME:
                continue
            if t.value[j] > most + SAME or at_least(t, j, p) < cost:
                paid = price_point(t, i, j, p, o)
                if t.value[j] > most + SAME or paid < cost:
                    best, most, cost = j, max(most, t.value[j]), paid
        put(t, k, i, best)
        bill += cost if best >= 0 else 0.0
    return bill


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
    return _scaled(price, ZERO_WORTH / whole if whole > 0.0 else 0.0)


@nopython
def _well_scaled(t: Table, price: Floats, ceiling: float) -> Floats:
    """Prices times the factor that makes the bound least."""
    scale, whole = best_scale(t, price), worth(t, price)
    if scale <= 0.0:
        scale = 1e-2 * ceiling / whole if whole > 0.0 else 0.0
    return _scaled(price, scale)


@merged
def _begin(t: Table, warm: Floats, ceiling: float, screen: Screen, o: Point) -> Dual:
    """First look: at the warm prices, or at well scaled ones where there are none or they are far off."""
    price, look = starting_prices(t, warm), new_look(t)
    if not worth(t, warm) > WARM_WORTH * ceiling:
        price = _well_scaled(t, price, ceiling)
    bound = evaluate(t, price, screen, look, o)
    spent = 0.0
    for r in range(price.shape[0]):
        spent += price[r] * look.use[r]
    whole = worth(t, price)
    if bound < ceiling and not whole < WARM_ASTRAY * spent < WARM_ASTRAY * WARM_ASTRAY * whole:
        price = _well_scaled(t, price, ceiling)
        bound = evaluate(t, price, screen, look, o)
        return Dual(bound, price, look, 2, False)
    return Dual(bound, price, look, 1, False)


@nopython
def _proven(t: Table, d: Dual, ceiling: float) -> Dual:
    """Report the bound at prices 0 where it is the lower one."""
    return d if d.bound <= ceiling else Dual(ceiling, _faint(t, d.price), d.look, d.evaluations, True)


@merged
def _guide(
    t: Table, k: Set, d: Dual, ceiling: float, screen: Screen, bundle: Bundle, limits: tuple[int, float], o: Point
) -> Dual:
    """Prices to choose points by where all fits in fractions, so that those of the bound are 0.

    The dual is minimised for a site of which all tasks together take a little more than there is; its room is
    that part of the real one which they cost at the prices of the moment, for that is never more than they need.
    Points that are not the most valuable of their tasks are left out: nobody has to make do with them.
    """
    for i in t.order:
        for j in range(t.first[i], t.first[i + 1]):
            if t.value[j] < t.most[i] - SAME:
                t.mode[j] = DEAD
    forget(screen)
    guide, room, part = d, t.room.copy(), 0.0
    for _ in range(GUIDES):
        taken = _most_valuable(t, prices_of(t, guide.price), k, o) / worth(t, guide.price)
        if not CROWDED * taken > part * BETTER:
            break
        part = CROWDED * taken
        for r in range(room.shape[0]):
            t.room[r] = part * room[r]
        price, look = _scaled(guide.price, best_scale(t, guide.price)), new_look(t)
        if worth(t, price) > 0.0:
            start = Dual(evaluate(t, price, screen, look, o), price, look, 1, False)
            guide = minimise(t, start, ceiling, screen, bundle, limits, o)
        for r in range(room.shape[0]):
            t.room[r] = room[r]
    return guide


@lean
def _invite(t: Table, k: Set, p: Prices, o: Point) -> None:
    """Give those who were left out the point that loses least."""
    for i in t.order:
        if k.chosen[i] < 0:
            best, most = -1, -np.inf
            for j in range(t.first[i], t.first[i + 1]):
                if t.mode[j] != DEAD and t.value[j] - at_least(t, j, p) > most:
                    gain = t.value[j] - price_point(t, i, j, p, o)
                    if gain > most:
                        best, most = j, gain
            put(t, k, i, best)


@merged
def _admit(
    t: Table, k: Set, warm: Floats, screen: Screen, limits: tuple[int, float], nodes: int, plan: bool, o: Point
) -> Dual:
    """Choose points into k, settled afterwards, if there is to be a plan; returns the dual."""
    ceiling, bundle = _ceiling(t), new_bundle(t)
    d = _begin(t, warm, ceiling, screen, o)
    price = d.price.copy()
    if plan and d.bound >= ceiling * (1.0 - SAME):
        _most_valuable(t, prices_of(t, price), k, o)
        if fit(t, k, price, False, o) == FIT:
            settle(t, k, price, o)
            return Dual(ceiling, _faint(t, price), d.look, d.evaluations, True)
    d = minimise(t, d, ceiling, screen, bundle, limits, o)
    proven = _proven(t, d, ceiling)
    if not plan:
        return proven
    guide, everybody = d, proven.bound >= ceiling
    modes = t.mode[: t.mode.shape[0] if everybody else 0].copy()
    if everybody:
        guide = _guide(t, k, d, ceiling, screen, bundle, limits, o)
        proven = Dual(ceiling, _faint(t, guide.price), d.look, d.evaluations, True)
    recover(t, bundle, guide, k, o)
    if everybody:
        _invite(t, k, prices_of(t, guide.price), o)
    for r in range(price.shape[0]):
        price[r] = guide.price[r]
    opt = options(t, guide, screen, o)
    repair(t, k, opt, guide.look.net, price, o)
    fill(t, k, opt, price, o)
    if nodes > 0 and opt.task.shape[0] == t.most.shape[0] and proven.bound - value_of(t, k.chosen) > SAME:
        price = improve(t, k, d, opt, price, nodes, o)
    settle(t, k, price, o)
    if everybody:  # the table is as it was, and nothing is known about it
        t.mode[:] = modes
        forget(screen)
    return proven


@nopython
def _point_costs(t: Table, price: Floats, cost: Floats, share: Floats, o: Point) -> None:
    p = prices_of(t, price)
    for j in range(cost.shape[0]):
        cost[j] = np.inf
        if t.mode[j] != DEAD:
            load(t, j, o)
            cheapest(o, t.mode[j] == DOUBLE, 1.0, p)
            cost[j] = rigid_bill(t, j, p) + bill(o, p, o.x)
            if t.mode[j] == DOUBLE:
                stretch(o)
            for s in range(o.x.shape[0]):
                share[j, s] = o.x[s]


@nopython
def _keep_only(screen: Screen, price: Floats) -> None:
    """Forget lists that were not made for exactly this price: what was solved before must not show in a plan."""
    same = True
    for r in range(price.shape[0]):
        same = same and price[r] == screen.price[r]
    if not same:
        forget(screen)


def _make_preparation(digest: int) -> Callable[[Raw, Table, Floats, Screen], int]:
    """Return what fills a table, compiled and kept; `digest` is part of its key in the cache."""

    @cached
    def preparation(raw: Raw, t: Table, near: Floats, screen: Screen) -> int:
        prepare(raw, t, near, prices_of(t, near), screen)
        return digest * 0

    return preparation


def _make_entry(digest: int) -> Callable[[Table, Screen, int, Floats, Ints, int, int, float], _Answer]:
    """Return the one function that is compiled and kept besides; `digest` is part of its key in the cache."""

    @cached
    def entry(
        t: Table, screen: Screen, mode: int, price: Floats, chosen: Ints, evaluations: int, nodes: int, tolerance: float
    ) -> _Answer:
        n_points, n_slots = t.root.shape
        cost, o = np.zeros(0), new_point(t)
        for i in range(t.theta.shape[0]):
            t.theta[i] = 1.0
        if mode == _COSTS:
            share, cost = np.zeros((n_points, n_slots)), np.zeros(n_points)
            _point_costs(t, price, cost, share, o)
            return _Answer(chosen, share, price, cost, 0.0, 0.0, digest * 0, True)
        k = new_set(t)
        if mode == _SERVE:
            for i in range(chosen.shape[0]):
                put(t, k, i, chosen[i])
            balanced = starting_prices(t, price)
            good = fit(t, k, balanced, False, o) == FIT
            if good:
                settle(t, k, balanced, o)
                spread(t, k)
            return _Answer(k.chosen, k.share, balanced, cost, value_of(t, k.chosen), 0.0, 0, good)
        _keep_only(screen, price)
        d = _admit(t, k, price, screen, (evaluations, tolerance), nodes, mode != _BOUND, o)
        if mode == _SOLVE:
            spread(t, k)
        return _Answer(k.chosen, k.share, d.price, cost, value_of(t, k.chosen), d.bound, d.evaluations, d.converged)

    return entry


_preparation = _make_preparation(source_digest("price"))
_entry = _make_entry(source_digest("price"))


def _floats(a: Floats) -> Floats:
    """As the compiled entry takes it: one specialisation needs one layout."""
    return a if a.flags.c_contiguous and a.flags.writeable else np.array(a, dtype=np.float64, order="C")


def _ints(a: Ints) -> Ints:
    return a if a.flags.c_contiguous and a.flags.writeable else np.array(a, dtype=np.int64, order="C")


def _by_id(ids: tuple[str, ...]) -> Ints:
    """(N,) tasks in the order of their ids: what is summed or tied goes by id, not by place in the problem."""
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)


def _raw(p: Problem) -> Raw:
    columns = (p.background, p.slack, p.work, p.floor, p.cap, p.activity, p.rigid)
    return Raw(*(_floats(column) for column in columns))


def _new_table(p: Problem, order: Ints) -> Table:
    j, s = p.slot.shape
    room = np.zeros(p.n_resources + 1)
    link = np.stack([p.coupling_from, p.coupling_to], axis=1).astype(np.int64)
    return Table(
        link=link,
        kappa=_floats(p.coupling_per_share),
        first=_ints(p.first),
        order=order,
        value=_floats(p.value),
        slot=_ints(p.slot),
        room=room,
        mode=np.zeros(j, dtype=np.int8),
        root=np.zeros((j, s)),
        cell=np.zeros((j, FIELDS, s)),
        most=np.zeros(p.n_tasks),
        theta=np.ones(p.n_tasks),
    )


class Tables:
    """A problem made ready for `solve`: keep it, and `refresh` it when numbers change, instead of starting anew.

    The problem's arrays are read while solving: leave them as they are until the next `refresh`. `near`: (R,) prices
    that the next solve will start from; with them the first look at all points is part of making the tables.
    """

    def __init__(self, problem: Problem, near: Floats | None = None) -> None:
        self._ids = problem.task_ids
        self.table: Table = _new_table(problem, _by_id(problem.task_ids))
        self.screen: Screen = new_screen(self.table)
        _preparation(_raw(problem), self.table, _start(self.table, near), self.screen)

    def refresh(self, problem: Problem, near: Floats | None = None) -> None:
        """Take a problem's numbers; memory is used again where it has as many tasks, points and slots."""
        same = problem.task_ids == self._ids
        order = self.table.order if same else _by_id(problem.task_ids)
        old, self._ids = self.table, problem.task_ids
        self.table = _new_table(problem, order)
        if same and problem.slot.shape == old.root.shape and problem.n_resources + 1 == len(old.room):
            kept = {name: getattr(old, name) for name in ("room", "mode", "root", "cell", "most", "theta")}
            self.table = self.table._replace(**kept)
        shapes = [(table.root.shape, table.room.shape) for table in (old, self.table)]
        if shapes[0] != shapes[1] or not np.array_equal(old.first, self.table.first):
            self.screen = new_screen(self.table)
        _preparation(_raw(problem), self.table, _start(self.table, near), self.screen)


def _start(table: Table, price: Floats | None) -> Floats:
    """Prices to start from; zeros, as for a cold start, where there are none or not all are finite."""
    if price is None or not np.isfinite(price).all():
        return np.zeros(len(table.room) - 1)
    return _floats(np.asarray(price, dtype=np.float64))


def _run(ready: Tables, mode: int, price: Floats | None, chosen: Ints | None, options: Mapping[str, float]) -> _Answer:
    none = np.zeros(0, dtype=np.int64)
    picked = none if chosen is None else _ints(np.asarray(chosen, dtype=np.int64))
    evaluations, nodes = int(options.get("evaluations", EVALUATIONS)), int(options.get("nodes", NODES))
    tolerance = float(options.get("tolerance", TOLERANCE))
    with np.errstate(all="ignore"):  # 1 / 0 is inf and inf x 0 never meets a limit, as in compiled code
        start = _start(ready.table, price)
        return _Answer(*_entry(ready.table, ready.screen, mode, start, picked, evaluations, nodes, tolerance))


def solve(
    problem: Problem,
    *,
    warm: Floats | None = None,
    options: Mapping[str, float] | None = None,
    tables: Tables | None = None,
) -> Solution:
    """Admit, choose points and share out. `warm`: (R,) prices of an earlier, similar problem.

    `tables`: of this problem, made before (Tables); without them they are made here.

    Options: `evaluations` of the dual (40), `nodes` of the search that closes the gap (1000), `tolerance` relative
    to the bound (1e-4), `second_stage` (1): with 0 shares stay as small as the deadlines allow, in proportion to need,
    as weights of a work-conserving sharing should be. The certificate's bound is the dual function at the prices
    returned. Status.LIMIT: the evaluations were used up before the prices settled; plan and certificate hold.
    """
    options = options or {}
    ready = tables or Tables(problem, warm)
    answer = _run(ready, _SOLVE if options.get("second_stage", 1.0) else _TIGHT, warm, None, options)
    admitted = answer.chosen >= 0
    return Solution(
        status=SolveStatus.OK if answer.good else SolveStatus.LIMIT,
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
    answer = _run(Tables(problem, warm), _BOUND, warm, None, options)
    return answer.bound, answer.price


def point_costs(problem: Problem, prices: Floats) -> tuple[Floats, Floats]:
    """At prices (R,): each point's least cost (J,), inf where it cannot be served, and the shares (J, S) for it."""
    answer = _run(Tables(problem), _COSTS, prices, None, {})
    return answer.cost, answer.share


def serve(problem: Problem, chosen: Ints, *, warm: Floats | None = None) -> tuple[Floats, Floats] | None:
    """Shares (N, S) that serve all the chosen points (N,) (-1: none), second stage included, and balancing prices.

    None: they do not fit together.
    """
    answer = _run(Tables(problem), _SERVE, warm, chosen, {})
    return (answer.share, answer.price) if answer.good else None
