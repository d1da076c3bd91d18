"""A first placement without a search: node after node the ranges that are worth most (docs/exact.md).

CP-SAT may use its time up before it has a first plan; holding nothing, or what is held now, is always possible, and
this is not worse than either. Node by node one model's range is changed at a time while that adds value to what the
other nodes leave of the classes, a few passes over all nodes. Whatever ranges are held, a small linear program says who
is served by them, in whole parts then. The same program with all ranges and without memory has prices of compute, at
which its dual function is a proven bound.
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

PASSES: Final = (1.0, 0.8, 0.6, 0.4, 0.4, 0.2)  # over the nodes: part of a class's price that serving it costs
CHANGES: Final = 12  # of one node's ranges in a pass
ROUNDED: Final = 2e-5  # of a node's memory, kept free: the search rounds sizes up
SLACK: Final = 1e-9  # rounding of the linear program's prices
TINY: Final = 1e-12  # load of what takes none


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
    load: Floats  # (P,) of the node's compute that all of the class takes, before rounding: the bound is of this
    free: Floats  # (N,) part of the node's compute that is not taken
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
    price, bound = _bound(p)
    best = Start(np.zeros(0, np.int64), np.zeros(len(p.value), np.int64), 0.0, bound)
    for held in (p.kept, *_ascend(p, price)):
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
    node = p.node[p.pieces[:, 1]]
    return node, p.pieces[:, 0], p.load / np.where(p.free[node] > 0, p.free[node], 1.0)


def _linear(p: Program, ways: Ints, load: tuple[Ints, Ints, Floats]) -> tuple[Floats, Floats]:
    """Fractions (W,) of the open ways worth most without memory, and prices (D + N,) of classes and compute."""
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
    limits[p.n_demands :] = np.where(p.free > 0, 1.0, 0.0)
    matrix = coo_matrix((entry, (row, column)), shape=(len(limits), len(ways))).tocsr()
    result = linprog(-p.value[ways], A_ub=matrix, b_ub=limits, bounds=(0, None), method="highs")
    if result.x is None:
        return np.zeros(len(ways)), np.zeros(len(limits))
    prices = np.maximum(0.0, -np.asarray(result.ineqlin.marginals, dtype=np.float64))
    return np.clip(result.x, 0.0, 1.0), prices


def _bound(p: Program) -> tuple[Floats, float]:
    """Prices (D,) of classes, and a proven bound from those of compute (N,); memory is left out of both."""
    some = np.flatnonzero(p.value > 0)
    load = _loads(p)
    both = _linear(p, some, load)[1] if len(some) else np.zeros(p.n_demands + len(p.room))
    price = both[p.n_demands :]
    best = np.zeros(p.n_demands)
    np.maximum.at(best, p.demand, _net(p, load, price))
    saved: dict[tuple[int, int], float] = {}
    for node, model, cost in zip(p.node.tolist(), p.model.tolist(), p.cost.tolist(), strict=True):
        saved[node, model] = max(saved.get((node, model), 0.0), -cost)
    bound = math.fsum(best) + math.fsum(price * (p.free > 0)) + math.fsum(saved.values())
    return both[: p.n_demands], bound * (1.0 + SLACK)


def _net(p: Program, load: tuple[Ints, Ints, Floats], price: Floats) -> Floats:
    """(O,) value of an open way less the price of the compute that it takes."""
    node, way, part = load
    paid = np.bincount(way, weights=part * price[node], minlength=len(p.value))
    full = np.bincount(way, weights=(p.free[node] <= 0) & (part > 0), minlength=len(p.value)) > 0
    return np.where(full, 0.0, p.value - paid)


class _Node:
    """One node's ranges by model, and what each opens: (class, value of all of it, part of the compute that takes)."""

    def __init__(self) -> None:
        self.ranges: dict[int, list[int]] = {}
        self.opens: dict[int, list[tuple[int, float, float]]] = {}
        self.held: list[int] = []
        self.taken: dict[int, float] = {}


def _nodes(p: Program) -> list[_Node]:
    """Ways of one piece by node."""
    found = [_Node() for _ in p.room]
    for choice, (node, model) in enumerate(zip(p.node.tolist(), p.model.tolist(), strict=True)):
        found[node].ranges.setdefault(model, []).append(choice)
    alone = np.bincount(p.pieces[:, 0], minlength=len(p.value)) == 1
    _, _, part = _loads(p)
    by_class: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for (way, choice, _), load in zip(p.pieces.tolist(), part.tolist(), strict=True):
        if alone[way] and p.value[way] > 0 and p.free[p.node[choice]] > 0:
            by_class.setdefault((choice, int(p.demand[way])), []).append((float(p.value[way]), load))
    for (choice, demand), ways in sorted(by_class.items()):
        opens = found[int(p.node[choice])].opens.setdefault(choice, [])
        opens += [(demand, value, load) for value, load in sorted(set(ways))]
    return found


def _ascend(p: Program, price: Floats) -> list[Ints]:
    """Ranges to hold after each pass: node after node what is worth most while the others stay as they are.

    Whoever serves a class pays its price (D,), for others could serve it; less from pass to pass: memory is short.
    """
    nodes, rest, found = _nodes(p), [1.0] * p.n_demands, []
    for part_of_price in PASSES:
        paid = (part_of_price * price).tolist()
        for node in nodes:
            for demand, part in node.taken.items():
                rest[demand] += part
            _choose(p, node, rest, paid)
            for demand, part in node.taken.items():
                rest[demand] -= part
        found.append(np.array(sorted(c for node in nodes for c in node.held), dtype=np.int64))
    return found


def _choose(p: Program, node: _Node, rest: Sequence[float], paid: Sequence[float]) -> None:
    """Change one model's range at a time, the best change first, until none adds value."""
    held = {int(p.model[c]): c for c in node.held}
    best, node.taken = _gain(p, node, list(held.values()), rest, paid)
    for _ in range(CHANGES):
        top, change = best, None
        for model, ranges in sorted(node.ranges.items()):
            others = [c for m, c in held.items() if m != model]
            room = 1.0 - math.fsum(p.size[c] for c in others)
            for choice in (None, *ranges):
                if choice is None or p.size[choice] <= room - ROUNDED:
                    gain, _ = _gain(p, node, others if choice is None else [*others, choice], rest, paid)
                    if gain > top * (1.0 + SLACK) + SLACK:
                        top, change = gain, (model, choice)
        if change is None:
            break
        model, choice = change
        held.pop(model, None)
        if choice is not None:
            held[model] = choice
        best, node.taken = _gain(p, node, list(held.values()), rest, paid)
    node.held = sorted(held.values())


def _gain(
    p: Program, node: _Node, held: Sequence[int], rest: Sequence[float], paid: Sequence[float]
) -> tuple[float, dict[int, float]]:
    """What ranges are worth on a node to what is left of the classes (D,), and which parts of them it serves."""
    ways = [(d, value - paid[d], load) for c in held for d, value, load in node.opens.get(c, ()) if value > paid[d]]
    taken: dict[int, float] = {}
    left, total = 1.0, -math.fsum(p.cost[c] for c in held)
    for demand, value, load in sorted(ways, key=lambda w: (-w[1] / max(w[2], TINY), w)):
        amount = min(rest[demand] - taken.get(demand, 0.0), left / load if load > 0 else 1.0)
        if amount > 0:
            taken[demand] = taken.get(demand, 0.0) + amount
            left -= amount * load
            total += amount * value
    return total, taken
