"""A first placement without a search: node after node a knapsack of ranges, at prices of compute (docs/exact.md).

CP-SAT may use its time up before it has a first plan; holding nothing, or what is held now, is always possible, and
this is better than both. Prices of compute come from the linear program without memory, whose dual function is a
proven bound as well. At them classes are worth what they gain beyond the compute they take, so each node's ranges are
a multiple-choice knapsack; what it serves is no longer there for the next. Whatever ranges are held, a small linear
program says who is served by them, then in whole parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CELLS: Final = 400  # of a node's memory: what the knapsack reckons in, sizes rounded up
PASSES: Final = 3  # over the nodes
SLACK: Final = 1e-9  # of the bound: rounding of the linear program's prices


@dataclass(frozen=True, slots=True)
class Program:
    """The program in numbers. C ranges that can be held, O open ways, N nodes, D classes, each of whose parts is whole.

    pieces (P, 3): open way, range, units of its node's compute that a part takes; an open way has one row per piece.
    """

    node: Ints  # (C,)
    model: Ints  # (C,)
    size: Floats  # (C,) part of the node's memory
    cost: Floats  # (C,)
    kept: Ints  # ranges held now that can stay
    demand: Ints  # (O,)
    value: Floats  # (O,) of all of the class
    pieces: Ints  # (P, 3)
    room: Ints  # (N,) units of compute, for all parts
    n_demands: int
    parts: int


@dataclass(frozen=True, slots=True)
class Start:
    """Ranges held, parts served (O,), what that is worth, and a proven bound (costs counted as in Program.cost)."""

    held: Ints
    served: Ints
    value: float
    bound: float


def start(p: Program) -> Start:
    """The best of keeping what is there and of what the knapsacks say."""
    price, bound = _compute_prices(p)
    best = Start(np.zeros(0, np.int64), np.zeros(len(p.value), np.int64), 0.0, bound)
    for held in (p.kept, *_knapsacks(p, price)):
        served = serve(p, held)
        value = worth(p, held, served)
        if value > best.value:
            best = Start(held, served, value, bound)
    return best


def worth(p: Program, held: Ints, served: Ints) -> float:
    """Value over the horizon of what is served, less the costs of what is held."""
    return math.fsum(p.value * served / p.parts) - math.fsum(p.cost[held])


def serve(p: Program, held: Ints) -> Ints:
    """Parts (O,) that are best served by the ranges held: linear program, rounded down, topped up one by one."""
    there = np.zeros(len(p.size), dtype=np.bool_)
    there[held] = True
    broken = np.zeros(len(p.value), dtype=np.bool_)
    broken[p.pieces[~there[p.pieces[:, 1]], 0]] = True
    ways = np.flatnonzero(~broken & (p.value > 0))
    served = np.zeros(len(p.value), dtype=np.int64)
    if not len(ways):
        return served
    load = _loads(p)
    found, _ = _linear(p, ways, load)
    served[ways] = np.floor(found * p.parts + 1e-6).astype(np.int64)
    left, rest = _left(p, served)
    by_way = _rows_by_way(p)
    for way in [*ways[np.argsort(-p.value[ways], kind="stable")]]:
        rows = by_way.get(int(way), ())
        most = int(rest[p.demand[way]])
        for node, units in rows:
            most = min(most, int(left[node] // units)) if units else most
        most = max(most, -int(served[way]))
        served[way] += most
        rest[p.demand[way]] -= most
        for node, units in rows:
            left[node] -= most * units
    return served


def _rows_by_way(p: Program) -> Mapping[int, list[tuple[int, int]]]:
    rows: dict[int, list[tuple[int, int]]] = {}
    for way, choice, units in p.pieces.tolist():
        rows.setdefault(way, []).append((int(p.node[choice]), units))
    return rows


def _left(p: Program, served: Ints) -> tuple[Ints, Ints]:
    """Units of compute left (N,), and parts of each class left (D,)."""
    left, rest = p.room.copy(), np.full(p.n_demands, p.parts, dtype=np.int64)
    np.subtract.at(left, p.node[p.pieces[:, 1]], p.pieces[:, 2] * served[p.pieces[:, 0]])
    np.subtract.at(rest, p.demand, served)
    return left, rest


def _loads(p: Program) -> tuple[Ints, Ints, Floats]:
    """Triples (node, open way, part of the node's compute that is free) that all of the class takes."""
    room = np.maximum(p.room[p.node[p.pieces[:, 1]]], 1)
    return p.node[p.pieces[:, 1]], p.pieces[:, 0], p.pieces[:, 2] * (p.parts / room)


def _linear(p: Program, ways: Ints, load: tuple[Ints, Ints, Floats]) -> tuple[Floats, Floats]:
    """Fractions (W,) of the open ways that are worth most, memory left out, and prices (N,) of all of a node's compute."""
    from scipy.optimize import linprog  # 0.2 s: only where it is used
    from scipy.sparse import coo_matrix

    place = np.full(len(p.value), -1)
    place[ways] = np.arange(len(ways))
    node, way, part = load
    used = place[way] >= 0
    row = np.concatenate([p.demand[ways], p.n_demands + node[used]])
    column = np.concatenate([np.arange(len(ways)), place[way[used]]])
    entry = np.concatenate([np.ones(len(ways)), part[used]])
    limits = np.ones(p.n_demands + len(p.room))
    limits[p.n_demands :] = np.where(p.room > 0, 1.0, 0.0)
    matrix = coo_matrix((entry, (row, column)), shape=(len(limits), len(ways))).tocsr()
    result = linprog(-p.value[ways], A_ub=matrix, b_ub=limits, bounds=(0, None), method="highs")
    if result.x is None:
        return np.zeros(len(ways)), np.zeros(len(p.room))
    prices = np.maximum(0.0, -np.asarray(result.ineqlin.marginals, dtype=np.float64))
    return np.clip(result.x, 0.0, 1.0), prices[p.n_demands :]


def _compute_prices(p: Program) -> tuple[Floats, float]:
    """Prices (N,) of all of a node's compute, and the bound that they prove, memory left out."""
    some = np.flatnonzero(p.value > 0)
    load = _loads(p)
    price = _linear(p, some, load)[1] if len(some) else np.zeros(len(p.room))
    best = np.zeros(p.n_demands)
    np.maximum.at(best, p.demand, _net(p, load, price))
    saved: dict[tuple[int, int], float] = {}
    for node, model, cost in zip(p.node.tolist(), p.model.tolist(), p.cost.tolist(), strict=True):
        saved[node, model] = max(saved.get((node, model), 0.0), -cost)
    bound = math.fsum(best) + math.fsum(price * (p.room > 0)) + math.fsum(saved.values())
    return price, bound * (1.0 + SLACK)


def _net(p: Program, load: tuple[Ints, Ints, Floats], price: Floats) -> Floats:
    """(O,) value of an open way less the price of the compute that it takes."""
    node, way, part = load
    paid = np.bincount(way, weights=part * price[node], minlength=len(p.value))
    full = np.bincount(way, weights=(p.room[node] <= 0) & (part > 0), minlength=len(p.value)) > 0
    return np.where(full, 0.0, p.value - paid)


def _knapsacks(p: Program, price: Floats) -> list[Ints]:
    """Ranges to hold, after each pass over the nodes."""
    load = _loads(p)
    net, alone = _net(p, load, price), np.bincount(p.pieces[:, 0], minlength=len(p.value)) == 1
    mine: list[list[tuple[int, int, int, float, float]]] = [[] for _ in p.size]  # by range: way, class, node, net, part
    for (way, choice, _), part in zip(p.pieces.tolist(), load[2].tolist(), strict=True):
        if alone[way] and net[way] > 0:
            mine[choice].append((way, int(p.demand[way]), int(p.node[choice]), float(net[way]), part))
    on_node: list[list[int]] = [[] for _ in p.room]
    for choice, node in enumerate(p.node.tolist()):
        on_node[node].append(choice)
    rest, found = np.ones(p.n_demands), []
    taken: list[dict[int, float]] = [{} for _ in p.room]
    held: list[list[int]] = [[] for _ in p.room]
    for _ in range(PASSES):
        for node in range(len(p.room)):
            for demand, part in taken[node].items():
                rest[demand] += part
            held[node] = _fill(p, on_node[node], mine, rest)
            taken[node] = _take(held[node], mine, rest)
        found.append(np.array(sorted(c for some in held for c in some), dtype=np.int64))
    return found


def _best_ways(
    choice: int, mine: Sequence[Sequence[tuple[int, int, int, float, float]]]
) -> dict[int, tuple[float, float]]:
    """By class: net value and load of the best way that a range opens by itself."""
    best: dict[int, tuple[float, float]] = {}
    for _, demand, _, net, part in mine[choice]:
        if net > best.get(demand, (0.0, 0.0))[0]:
            best[demand] = (net, part)
    return best


def _fill(
    p: Program, choices: Sequence[int], mine: Sequence[Sequence[tuple[int, int, int, float, float]]], rest: Floats
) -> list[int]:
    """Ranges of one node, one per model at most, worth most to the classes that are left: a knapsack by memory."""
    models = sorted({int(p.model[c]) for c in choices})
    best, picks = np.zeros(CELLS + 1), []
    for model in models:
        level, pick = best.copy(), np.full(CELLS + 1, -1)
        for choice in (c for c in choices if p.model[c] == model):
            gain = -float(p.cost[choice])
            gain += math.fsum(net * rest[demand] for demand, (net, _) in sorted(_best_ways(choice, mine).items()))
            cells = min(CELLS + 1, math.ceil(p.size[choice] * CELLS - 1e-9))
            if gain > 0 and cells <= CELLS:
                with_it = np.full(CELLS + 1, -np.inf)
                with_it[cells:] = best[: CELLS + 1 - cells] + gain
                pick = np.where(with_it > level, choice, pick)
                level = np.maximum(level, with_it)
        best = level
        picks.append(pick)
    held, cell = [], CELLS
    for pick in reversed(picks):
        choice = int(pick[cell])
        if choice >= 0:
            held.append(choice)
            cell -= math.ceil(p.size[choice] * CELLS - 1e-9)
    return held


def _take(
    held: Sequence[int], mine: Sequence[Sequence[tuple[int, int, int, float, float]]], rest: Floats
) -> dict[int, float]:
    """Parts of classes that a node serves by the ranges that it holds, best net value for its load first."""
    wishes = [(net / max(part, 1e-12), demand, part) for c in held for demand, (net, part) in _best_ways(c, mine).items()]
    taken: dict[int, float] = {}
    left = 1.0
    for _, demand, part in sorted(wishes, key=lambda w: (-w[0], w[1])):
        amount = min(float(rest[demand]), left / part if part > 0 else 1.0)
        if amount > 0:
            taken[demand] = taken.get(demand, 0.0) + amount
            rest[demand] -= amount
            left -= amount * part
    return taken
