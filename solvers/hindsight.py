"""Hindsight bound: what no policy at all can have beaten on a trace, arrivals known (docs/policies.md).

A task i served by option j puts an unavoidable work w_jr (seconds of the full resource) on each resource r inside its
interval [start_i, end_i]. Inside a window [a, b] it cannot avoid what does not fit outside the window,

    u = max(0, w_jr - rate_r * (length of the interval outside the window)),    rate_r = 1 - background_r,

and a window offers rate_r (b - a). With prices lambda >= 0 per window and resource, for every policy

    value  <=  sum_wr lambda_wr rate_r (b_w - a_w)  +  sum_i max(0, max_j (v_ij - sum_wr lambda_wr u_ijwr))

(weak duality). The linear relaxation's prices make the right side least. They come from an LP solver, but the bound is
computed from the formula, so it is proven whatever the solver's tolerance.

Who knows more of how tasks work says himself what they cannot avoid (`HindsightDemand`), and what several may share:
an amount rho_s >= 0 of each of a few cells takes room in the rows that hold the cell, and an option j of demand k needs
c_jk of the cells of k together, be they filled by whomever. With prices mu_k >= 0 for the demands, in every cell no
more than the lambda of its rows in sum, the best option of a task pays sum_k mu_k c_jk besides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from solvers.errors import BadProblem, SolverError
from solvers.problem import Floats, Ints
from solvers.tolerances import EDGE

LENGTHS_S: Final = (5.0, 20.0, 60.0, math.inf)
SOME_WORK: Final = 1e-12  # seconds; less is rounding
ROUNDS: Final = 30  # of column generation; 1 to 3 are used
ENOUGH: Final = 1e-6  # relative gap between LP and bound at which more columns do not help
NOBODY: Final = np.zeros(0)  # prices of what is shared, where nothing is
SCALES: Final = tuple(2.0**k for k in range(-6, 3))  # of a flat price, to find each task's first columns


@dataclass(frozen=True, slots=True)
class HindsightBound:
    """`bound`: proven for any policy. `prices` (W, R): value per second of full resource, in the order of `windows`."""

    bound: float
    prices: Floats
    windows: tuple[tuple[float, float], ...]
    relaxation: float  # value of the last LP: not above the least bound there is, but for its tolerances
    iterations: int  # LPs solved


@dataclass(frozen=True, slots=True)
class SharedDemand:
    """What options need of cells that anybody may fill for all: K demands on C cells."""

    demand: Ints  # (E,) option needs so many seconds of the demand's cells
    option: Ints  # (E,)
    seconds: Floats  # (E,)
    cover: tuple[Ints, Ints]  # pairs (demand, cell)
    load: tuple[Ints, Ints]  # pairs (row, cell): what fills the cell takes room of the row
    n_demands: int
    n_cells: int


@dataclass(frozen=True, slots=True)
class HindsightDemand:
    """What options cannot avoid, as triplets (row, option, seconds); of row = window x R + resource, if by windows."""

    value: Floats  # (J,) options that remain
    task: Ints  # (J,) in order
    row: Ints  # (E,)
    option: Ints  # (E,)
    seconds: Floats  # (E,) unavoidable work
    capacity: Floats  # (rows,)
    shared: SharedDemand | None = None


@dataclass(frozen=True, slots=True)
class LeastDual:
    """`bound`: proven for any policy. `prices` (rows,) and `shared` (K,), value per second; `taken` (J,) by the LP."""

    bound: float
    prices: Floats
    shared: Floats
    taken: Floats  # part of each option that the relaxation serves
    relaxation: float
    iterations: int


def default_windows(
    start_s: Floats, end_s: Floats, lengths_s: Sequence[float] = LENGTHS_S
) -> tuple[tuple[float, float], ...]:
    """Windows [a, b] in seconds that tile the span of all intervals at several lengths, each overlapping by half.

    A length that is infinite or exceeds the span gives the whole span once. Returns () when there is no task.
    """
    if start_s.size == 0:
        return ()
    begin, end = float(start_s.min()), float(end_s.max())
    windows: dict[tuple[float, float], None] = {}
    for length in lengths_s:
        if not length < end - begin:
            windows[begin, end] = None
            continue
        for k in range(math.ceil(2 * (end - begin) / length - 1e-9) - 1):
            a = begin + k * length / 2
            windows[a, min(a + length, end)] = None
    return tuple(windows)


def hindsight_bound(
    value: Floats,
    first: Ints,
    work: Floats,
    start_s: Floats,
    end_s: Floats,
    windows: Sequence[tuple[float, float]],
    background: Floats,
) -> HindsightBound:
    """Upper bound on the value that any policy can have met.

    value (J,); first (N + 1,): options of task i are first[i] .. first[i + 1] - 1; work (J, R): seconds of the full
    resource that the option cannot avoid; start_s, end_s (N,): interval in which all of it must fall; windows: pairs
    (a, b) in seconds; background (R,): part of each resource that is taken at all times (the least of a trace). Options
    whose deadlines fail at full shares are for the caller to leave out. Raises BadProblem for malformed arrays.
    """
    _check(value, first, work, start_s, end_s, windows, background)
    task = np.repeat(np.arange(first.size - 1), np.diff(first))
    demand = _demand(value, task, work, start_s, end_s, np.array(windows).reshape(-1, 2), 1 - background)
    found = least_dual(demand)
    return HindsightBound(
        bound=found.bound,
        prices=found.prices.reshape(len(windows), background.size),
        windows=tuple((float(a), float(b)) for a, b in windows),
        relaxation=found.relaxation,
        iterations=found.iterations,
    )


def bound_at(
    prices: Floats,
    value: Floats,
    first: Ints,
    work: Floats,
    start_s: Floats,
    end_s: Floats,
    windows: Sequence[tuple[float, float]],
    background: Floats,
) -> float:
    """Return the bound at given prices (W, R): valid for any that are >= 0, least at those of hindsight_bound."""
    _check(value, first, work, start_s, end_s, windows, background)
    task = np.repeat(np.arange(first.size - 1), np.diff(first))
    demand = _demand(value, task, work, start_s, end_s, np.array(windows).reshape(-1, 2), 1 - background)
    return _dual(demand, np.maximum(prices.ravel(), 0.0))


def _check(
    value: Floats,
    first: Ints,
    work: Floats,
    start_s: Floats,
    end_s: Floats,
    windows: Sequence[tuple[float, float]],
    background: Floats,
) -> None:
    """Raise BadProblem for the first thing that is malformed."""
    n, j = start_s.size, value.size
    if first.size != n + 1 or end_s.size != n or first[0] != 0 or first[-1] != j or (np.diff(first) < 0).any():
        raise BadProblem("first", f"must rise from 0 to the number of options ({j}) over {n} tasks")
    if work.shape != (j, background.size):
        raise BadProblem("work", f"shape {work.shape}, must be (options, resources) = ({j}, {background.size})")
    if not (np.isfinite(value).all() and np.isfinite(work).all() and (work >= 0).all()):
        raise BadProblem("work", "values and work must be finite, and work at least 0")
    if not (end_s >= start_s).all():
        raise BadProblem("end_s", "an interval ends before it starts, or is not a number")
    if not ((background >= 0) & (background <= 1)).all():
        raise BadProblem("background", "must lie in 0 .. 1")
    if not all(a <= b for a, b in windows):
        raise BadProblem("windows", "a window ends before it starts")


def _demand(
    value: Floats, task: Ints, work: Floats, start_s: Floats, end_s: Floats, windows: Floats, rate: Floats
) -> HindsightDemand:
    """Constraint matrix of the options that can be worth serving."""
    possible = (work <= ((end_s - start_s)[task])[:, None] * rate * (1 + 1e-9) + SOME_WORK).all(axis=1)
    keep = np.flatnonzero(possible & (value > 0))
    keep = keep[_undominated(value[keep], task[keep], work[keep])]
    value, task, work = value[keep], task[keep], work[keep]
    rows, options, seconds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    n_resources = rate.size
    for w, (a, b) in enumerate(windows):
        inside = np.clip(np.minimum(end_s, b) - np.maximum(start_s, a), 0.0, None)  # (N,)
        outside = (end_s - start_s - inside)[task]
        some = np.flatnonzero(inside[task] > 0)
        unavoidable = work[some] - outside[some, None] * rate  # (E_w, R)
        option, resource = np.nonzero(unavoidable > SOME_WORK)
        rows.append(w * n_resources + resource)
        options.append(some[option])
        seconds.append(unavoidable[option, resource])
    capacity = ((windows[:, 1] - windows[:, 0])[:, None] * rate).ravel()
    return HindsightDemand(
        value, task, np.concatenate(rows), np.concatenate(options), np.concatenate(seconds), capacity
    )


def _undominated(value: Floats, task: Ints, work: Floats) -> npt.NDArray[np.bool_]:
    """Options (J,) that no other of their task beats in value and all work; of equal ones the first stays."""
    beaten = np.zeros(value.size, dtype=np.bool_)
    longest = int(np.bincount(task).max(initial=0)) if task.size else 0
    for lag in range(1, longest):
        a = np.flatnonzero(task[:-lag] == task[lag:])
        b = a + lag
        a_wins = (value[a] >= value[b]) & (work[a] <= work[b]).all(axis=1)
        b_wins = (value[b] >= value[a]) & (work[b] <= work[a]).all(axis=1) & ~a_wins
        beaten[b[a_wins]] = True
        beaten[a[b_wins]] = True
    return ~beaten


def _nets(demand: HindsightDemand, prices: Floats, shared: Floats) -> Floats:
    """Value less priced work of each option, (J,)."""
    cost = np.bincount(demand.option, weights=demand.seconds * prices[demand.row], minlength=demand.value.size)
    if demand.shared is not None:
        more = demand.shared.seconds * shared[demand.shared.demand]
        cost = cost + np.bincount(demand.shared.option, weights=more, minlength=demand.value.size)
    return np.asarray(demand.value - cost)


def _dual(demand: HindsightDemand, prices: Floats, shared: Floats = NOBODY) -> float:
    """Bound at prices (rows,) >= 0 and affordable ones of what is shared. fsum: the order of tasks does not matter."""
    nets = _nets(demand, prices, shared)
    start = np.flatnonzero(np.diff(demand.task, prepend=-1))
    best = np.maximum.reduceat(nets, start) if start.size else np.zeros(0)
    return math.fsum(np.maximum(best, 0.0)) + math.fsum(prices * demand.capacity)


def _affordable(shared: SharedDemand | None, prices: Floats, wanted: Floats) -> Floats:
    """(K,) as much of the wanted prices as proves something: no cell's may add up to more than its rows cost."""
    if shared is None:
        return NOBODY
    cost = np.bincount(shared.load[1], weights=prices[shared.load[0]], minlength=shared.n_cells)
    asked = np.bincount(shared.cover[1], weights=wanted[shared.cover[0]], minlength=shared.n_cells)
    part = np.divide(cost, asked, out=np.ones_like(cost), where=asked > cost)
    least = np.ones(shared.n_demands)
    np.minimum.at(least, shared.cover[0], part[shared.cover[1]])
    return np.asarray(wanted * least * (1 - EDGE))


def least_dual(demand: HindsightDemand) -> LeastDual:
    """Prices of the least bound found.

    Column generation: an LP over few options per task, then the bound at its prices over all options; options that
    are better there than their task's own price join the LP. Deterministic: one thread, no warm starts.
    """
    prices, n_shared = np.zeros(demand.capacity.size), 0 if demand.shared is None else demand.shared.n_demands
    shared, taken = np.zeros(n_shared), np.zeros(demand.value.size)
    if demand.value.size == 0:
        return LeastDual(0.0, prices, shared, taken, 0.0, 0)
    least, column, value, solved = _dual(demand, prices, shared), _first_columns(demand), 0.0, 0
    while solved < ROUNDS:
        solved += 1
        trial, wanted, task_price, taken, value = _solve_lp(demand, np.flatnonzero(column))
        trial_shared = _affordable(demand.shared, trial, wanted)
        bound = _dual(demand, trial, trial_shared)
        if bound < least:
            prices, shared, least = trial, trial_shared, bound
        nets = _nets(demand, trial, trial_shared)
        best = _best_options(demand, nets)
        better = best[(nets[best] > task_price[demand.task[best]]) & ~column[best]]
        if least - value <= ENOUGH * least or better.size == 0:
            break
        column[better] = True
    return LeastDual(least, prices, shared, taken, value, solved)


def _first_columns(demand: HindsightDemand) -> npt.NDArray[np.bool_]:
    """Each task's best options when every window of every resource costs alike, at several levels of that price."""
    part = demand.seconds / np.maximum(demand.capacity[demand.row], SOME_WORK)
    burden = np.bincount(demand.option, weights=part, minlength=demand.value.size)
    usual = float(np.median(demand.value / np.maximum(burden, SOME_WORK)))
    column = np.zeros(demand.value.size, dtype=np.bool_)
    for scale in (0.0, *SCALES):
        column[_best_options(demand, demand.value - scale * usual * burden)] = True
    return column


def _best_options(demand: HindsightDemand, nets: Floats) -> Ints:
    """Index of each remaining task's option with the greatest net value."""
    ranked = np.lexsort((-nets, demand.task))
    return np.asarray(ranked[np.flatnonzero(np.diff(demand.task, prepend=-1))])


def _solve_lp(demand: HindsightDemand, columns: Ints) -> tuple[Floats, Floats, Floats, Floats, float]:
    """LP over the options `columns`: its prices, all >= 0, whom it serves, and its value.

    Prices are of rows (rows,), of what is shared (K,) and of tasks (N,); parts served (J,).
    Raises SolverError when the LP solver gives no answer.
    """
    from scipy.optimize import linprog  # 0.2 s: only where it is used
    from scipy.sparse import coo_matrix

    n_tasks, n_rows = int(demand.task[-1]) + 1, demand.capacity.size
    place = np.full(demand.value.size, -1)
    place[columns] = np.arange(columns.size)
    used = place[demand.option] >= 0
    entries = [
        (demand.seconds[used], demand.row[used], place[demand.option[used]]),
        (np.ones(columns.size), n_rows + demand.task[columns], np.arange(columns.size)),
    ]
    shared, first = demand.shared, n_rows + n_tasks
    n_shared, n_cells = (0, 0) if shared is None else (shared.n_demands, shared.n_cells)
    if shared is not None:
        used = place[shared.option] >= 0
        load, cover = shared.load, shared.cover
        entries += [
            (shared.seconds[used], first + shared.demand[used], place[shared.option[used]]),
            (np.full(cover[0].size, -1.0), first + cover[0], columns.size + cover[1]),
            (np.ones(load[0].size), load[0], columns.size + load[1]),
        ]
    data, row, column = (np.concatenate(part) for part in zip(*entries, strict=True))
    matrix = coo_matrix((data, (row, column)), shape=(first + n_shared, columns.size + n_cells)).tocsr()
    limits = np.concatenate((demand.capacity, np.ones(n_tasks), np.zeros(n_shared)))
    cost = np.concatenate((-demand.value[columns], np.zeros(n_cells)))
    result = linprog(cost, A_ub=matrix, b_ub=limits, bounds=(0, None), method="highs-ipm")
    if result.ineqlin is None or result.ineqlin.marginals is None or result.x is None:
        raise SolverError(f"hindsight bound: the LP solver stopped: {result.message}")
    duals = np.maximum(-np.asarray(result.ineqlin.marginals), 0.0)
    taken = np.zeros(demand.value.size)
    taken[columns] = result.x[: columns.size]
    return duals[:n_rows], duals[first:], duals[n_rows:first], taken, -float(result.fun)
