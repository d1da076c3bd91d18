"""Which layers of which models live on which node: the slow loop's decision, by CP-SAT (docs/exact.md).

Demand comes in classes, each with ways to be served: pieces of a model's layers on nodes, what it is worth per second
at the present prices, and how much of the nodes' compute it takes. A way is open when the nodes hold its layers; layers
that must be loaded first serve only for the rest of the horizon. Loading has a cost, so that placement does not follow
every change of demand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from solvers.errors import BadProblem

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

PARTS: Final = 100  # of a class's demand: each way serves a whole number of them
UNIT: Final = 1_000_000  # of a node's compute and memory, rounded against the plan
DIGITS: Final = 9  # of the objective
DROP: Final = 0.1  # dropping layers costs this part of loading them: they may be wanted again
LIMIT_S: Final = 2.0  # deterministic seconds


@dataclass(frozen=True, slots=True)
class Model:
    """A model's layers, the embedding and the head counted with the first and the last."""

    id: str
    layer_bytes: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """Memory for weights, and how fast (> 0) they come from storage. `background`: part of compute that is taken."""

    id: str
    memory_bytes: float
    load_bytes_per_s: float
    background: float = 0.0


@dataclass(frozen=True, slots=True, order=True)
class Layers:
    """Layers first .. end - 1 of a model on a node."""

    node: str
    model: str
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Way:
    """One way to serve a class. `load`: fraction of each piece's node that all of the class's demand takes."""

    pieces: tuple[Layers, ...]
    value_per_s: float  # of all of the class's demand, less what it costs at the prices of everything but compute
    load: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """A class of sessions that are expected. Parts of it may be served in different ways."""

    id: str
    ways: tuple[Way, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """What to hold, and what that is worth. `served`: per class, fraction by number of way."""

    layers: tuple[Layers, ...]
    served: Mapping[str, Mapping[int, float]]
    load_s: Mapping[str, float]  # per node: time to load what it does not hold yet, one model after the other
    moved_bytes: float
    value: float  # over the horizon, costs of moving deducted
    bound: float  # proven: no placement is worth more
    optimal: bool


@dataclass(frozen=True, slots=True)
class _Choice:
    """One range that a node may hold."""

    layers: Layers
    size_bytes: float
    new_bytes: float  # not held yet
    load_s: float
    cost: float  # of loading what is new, less that of dropping what is kept


def place(
    nodes: Sequence[Node],
    models: Sequence[Model],
    demands: Sequence[Demand],
    *,
    current: Sequence[Layers] = (),
    horizon_s: float = 10.0,
    cost_per_byte: float = 0.0,
    limit_s: float = LIMIT_S,
) -> Placement:
    """Choose at most one range of layers per node and model, of the greatest value over `horizon_s`.

    value = sum over ways of value_per_s x fraction served x (horizon - time to load its layers), less `cost_per_byte`
    of what is loaded (and a tenth of that of what is dropped). Each model's time to load is reckoned by itself, also
    where a node loads two. Memory and compute of no node are exceeded. A pure function, independent of the order of
    its inputs; `limit_s` is deterministic time. Raises BadProblem.
    """
    _check(nodes, models, demands, current, horizon_s, cost_per_byte)
    sizes = {m.id: m.layer_bytes for m in models}
    by_id = {n.id: n for n in sorted(nodes, key=lambda n: n.id)}
    demands = sorted(demands, key=lambda d: d.id)
    choices = _choices(by_id, sizes, demands, current, cost_per_byte)
    ways = _open_ways(demands, choices, horizon_s)
    dropped = math.fsum(DROP * cost_per_byte * _missing(sizes[c.model], c, None) for c in sorted(current))
    return _solve(by_id, [c for key in sorted(choices) for c in choices[key]], ways, dropped, limit_s)


def _check(
    nodes: Sequence[Node],
    models: Sequence[Model],
    demands: Sequence[Demand],
    current: Sequence[Layers],
    horizon_s: float,
    cost_per_byte: float,
) -> None:
    for what, ids in (("nodes", nodes), ("models", models), ("demands", demands)):
        if len({x.id for x in ids}) < len(ids):
            raise BadProblem(what, "two have the same id")
    ways = [(f"demands.{d.id}", w) for d in demands for w in d.ways]
    for where, way in ways:
        if len(way.load) != len(way.pieces) or not math.isfinite(way.value_per_s):
            raise BadProblem(where, "one load per piece and a finite value are needed")
    numbers = [("horizon_s", horizon_s), ("cost_per_byte", cost_per_byte)]
    for name in ("memory_bytes", "background", "load_bytes_per_s"):
        numbers += [(f"nodes.{n.id}.{name}", getattr(n, name)) for n in nodes]
    numbers += [(f"models.{m.id}.layer_bytes", x) for m in models for x in m.layer_bytes]
    numbers += [(f"{where}.load", x) for where, way in ways for x in way.load]
    for where, number in numbers:
        if not 0 <= number < math.inf:
            raise BadProblem(where, f"{number:g} is not a number >= 0")
    _check_layers(nodes, models, [*current, *(p for _, w in ways for p in w.pieces)])


def _check_layers(nodes: Sequence[Node], models: Sequence[Model], pieces: Sequence[Layers]) -> None:
    known, sizes = {n.id for n in nodes}, {m.id: len(m.layer_bytes) for m in models}
    for node in nodes:
        if node.load_bytes_per_s == 0:
            raise BadProblem(f"nodes.{node.id}.load_bytes_per_s", "must be above 0")
    for piece in pieces:
        if piece.node not in known or piece.model not in sizes:
            raise BadProblem(f"layers of {piece.model} on {piece.node}", "no such node or model")
        if not 0 <= piece.first < piece.end <= sizes[piece.model]:
            raise BadProblem(f"layers of {piece.model} on {piece.node}", f"{piece.first} .. {piece.end}: no such range")


def _choices(
    nodes: Mapping[str, Node],
    sizes: Mapping[str, tuple[float, ...]],
    demands: Sequence[Demand],
    current: Sequence[Layers],
    cost_per_byte: float,
) -> dict[tuple[str, str], list[_Choice]]:
    """Ranges worth considering per node and model: hulls of pieces asked for and of what is held."""
    held = {(c.node, c.model): c for c in current}
    asked = {p for d in demands for w in d.ways for p in w.pieces} | set(current)
    choices: dict[tuple[str, str], list[_Choice]] = {}
    for node, model in sorted({(p.node, p.model) for p in asked}):
        mine = [p for p in asked if (p.node, p.model) == (node, model)]
        for first, end in itertools.product(sorted({p.first for p in mine}), sorted({p.end for p in mine})):
            wanted = Layers(node, model, first, end)
            size = math.fsum(sizes[model][first:end])
            if any(_covers(wanted, p) for p in mine) and size <= nodes[node].memory_bytes:
                now = held.get((node, model))
                new, kept = _missing(sizes[model], wanted, now), _missing(sizes[model], now, None)
                kept -= _missing(sizes[model], now, wanted)
                cost = cost_per_byte * (new - DROP * kept)
                choice = _Choice(wanted, size, new, new / nodes[node].load_bytes_per_s, cost)
                choices.setdefault((node, model), []).append(choice)
    return choices


def _covers(whole: Layers, piece: Layers) -> bool:
    same = (whole.node, whole.model) == (piece.node, piece.model)
    return same and whole.first <= piece.first and piece.end <= whole.end


def _missing(layer_bytes: Sequence[float], wanted: Layers | None, held: Layers | None) -> float:
    """Bytes of `wanted` that are not in `held`."""
    if wanted is None:
        return 0.0
    here = range(held.first, held.end) if held else range(0)
    return math.fsum(layer_bytes[k] for k in range(wanted.first, wanted.end) if k not in here)


@dataclass(frozen=True, slots=True)
class _Open:
    """A way with one choice of ranges per piece."""

    demand: str
    number: int  # of the way
    way: Way
    choices: tuple[_Choice, ...]
    value: float  # over the horizon, of all of the class


def _open_ways(
    demands: Sequence[Demand], choices: Mapping[tuple[str, str], list[_Choice]], horizon_s: float
) -> list[_Open]:
    """Every way with every choice of ranges that hold its pieces and are loaded within the horizon."""
    found = []
    for demand in demands:
        for number, way in enumerate(demand.ways):
            holders = [[c for c in choices.get((p.node, p.model), []) if _covers(c.layers, p)] for p in way.pieces]
            for combined in itertools.product(*holders):
                left_s = horizon_s - max((c.load_s for c in combined), default=0.0)
                if left_s > 0 and way.value_per_s > 0:
                    found.append(_Open(demand.id, number, way, combined, left_s * way.value_per_s))
    return found


def _solve(
    nodes: Mapping[str, Node], choices: Sequence[_Choice], ways: Sequence[_Open], dropped: float, limit_s: float
) -> Placement:
    """Solve the integer program; `dropped`: cost of holding nothing, which the choices' costs are counted from."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    held = [model.new_bool_var("") for _ in choices]
    parts = [model.new_int_var(0, PARTS, "") for _ in ways]
    _limit_nodes(model, nodes, choices, held, ways, parts)
    _limit_ways(model, choices, held, ways, parts)
    worth = [*(-c.cost for c in choices), *(w.value / PARTS for w in ways)]
    scale = 10.0**DIGITS / max([abs(x) for x in worth if x] or [1.0])
    model.maximize(cp_model.LinearExpr.weighted_sum([*held, *parts], [round(x * scale) for x in worth]))
    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = limit_s
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    if status not in {cp_model.OPTIMAL, cp_model.FEASIBLE}:
        raise BadProblem("limit_s", f"{limit_s:g} deterministic seconds do not reach a first placement")
    counts = [solver.value(x) for x in (*held, *parts)]
    rounding = 0.5 * (len(held) + PARTS * len(parts)) / scale  # what rounded coefficients can hide
    return Placement(
        layers=tuple(sorted(c.layers for c, n in zip(choices, counts, strict=False) if n)),
        served=_fractions(ways, counts[len(held) :]),
        load_s=_load_s(nodes, choices, counts),
        moved_bytes=math.fsum(c.new_bytes for c, n in zip(choices, counts, strict=False) if n),
        value=math.fsum(x * n for x, n in zip(worth, counts, strict=True)) - dropped,
        bound=solver.best_objective_bound / scale + rounding - dropped,
        optimal=status == cp_model.OPTIMAL,
    )


def _limit_nodes(
    model: cp_model.CpModel,
    nodes: Mapping[str, Node],
    choices: Sequence[_Choice],
    held: Sequence[Any],
    ways: Sequence[_Open],
    parts: Sequence[Any],
) -> None:
    """Memory and compute, what is taken rounded up and what there is rounded down."""
    for node in nodes.values():
        memory = [
            math.ceil(c.size_bytes / node.memory_bytes * UNIT - 1e-6) * y
            for c, y in zip(choices, held, strict=True)
            if c.layers.node == node.id and c.size_bytes > 0
        ]
        compute = [
            math.ceil(load * UNIT - 1e-6) * x
            for w, x in zip(ways, parts, strict=True)
            for piece, load in zip(w.way.pieces, w.way.load, strict=True)
            if piece.node == node.id and load > 0
        ]
        if memory:
            model.add(sum(memory) <= UNIT)
        if compute:
            model.add(sum(compute) <= math.floor(max(0.0, 1.0 - node.background) * UNIT + 1e-6) * PARTS)


def _limit_ways(
    model: cp_model.CpModel,
    choices: Sequence[_Choice],
    held: Sequence[Any],
    ways: Sequence[_Open],
    parts: Sequence[Any],
) -> None:
    """One range per node and model; a way needs its ranges; a class is served once."""
    by_range = {c.layers: y for c, y in zip(choices, held, strict=True)}
    for _, mine in itertools.groupby(choices, key=lambda c: (c.layers.node, c.layers.model)):
        model.add_at_most_one([by_range[c.layers] for c in mine])
    for way, x in zip(ways, parts, strict=True):
        for choice in way.choices:
            model.add(x <= PARTS * by_range[choice.layers])
    numbered = list(zip(ways, parts, strict=True))
    for _, same in itertools.groupby(numbered, key=lambda pair: pair[0].demand):
        model.add(sum(x for _, x in same) <= PARTS)


def _fractions(ways: Sequence[_Open], counts: Sequence[int]) -> dict[str, dict[int, float]]:
    served: dict[str, dict[int, float]] = {}
    for way, n in zip(ways, counts, strict=True):
        if n:
            mine = served.setdefault(way.demand, {})
            mine[way.number] = mine.get(way.number, 0.0) + n / PARTS
    return served


def _load_s(nodes: Mapping[str, Node], choices: Sequence[_Choice], counts: Sequence[int]) -> dict[str, float]:
    total = dict.fromkeys(nodes, 0.0)
    for choice, n in zip(choices, counts, strict=False):
        total[choice.layers.node] += choice.load_s * n
    return total
