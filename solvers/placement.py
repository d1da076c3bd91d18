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

import numpy as np

from solvers.errors import BadProblem
from solvers.placement_start import Program, Start, start

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

PARTS: Final = 100  # of a class's demand: each way serves a whole number of them
UNIT: Final = 1_000_000  # of a node's compute and memory, rounded against the plan
DIGITS: Final = 9  # of the objective
DROP: Final = 0.1  # dropping layers costs this part of loading them: they may be wanted again
LIMIT_S: Final = 2.0  # deterministic seconds
SEARCHED: Final = 10_000  # open ways: with more CP-SAT does not get beyond its preparations in that time


@dataclass(frozen=True, slots=True)
class PlacementModel:
    """A model's layers, the embedding and the head counted with the first and the last."""

    id: str
    layer_bytes: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PlacementNode:
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
    now: bool  # held as it is


def place(
    nodes: Sequence[PlacementNode],
    models: Sequence[PlacementModel],
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
    its inputs; `limit_s` is deterministic time. There is always an answer: where the search finds none in time, or a
    worse one, it is what solvers/placement_start.py begins with, never worse than keeping `current` where that fits.
    Raises BadProblem for input that is wrong.
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
    nodes: Sequence[PlacementNode],
    models: Sequence[PlacementModel],
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


def _check_layers(nodes: Sequence[PlacementNode], models: Sequence[PlacementModel], pieces: Sequence[Layers]) -> None:
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
    nodes: Mapping[str, PlacementNode],
    sizes: Mapping[str, tuple[float, ...]],
    demands: Sequence[Demand],
    current: Sequence[Layers],
    cost_per_byte: float,
) -> dict[tuple[str, str], list[_Choice]]:
    """Ranges worth considering per node and model: hulls of pieces asked for and of what is held."""
    held = {(c.node, c.model): c for c in current}
    asked = {p for d in demands for w in d.ways for p in w.pieces} | set(current)
    choices: dict[tuple[str, str], list[_Choice]] = {}
    by_key: dict[tuple[str, str], list[Layers]] = {}
    for piece in sorted(asked):
        by_key.setdefault((piece.node, piece.model), []).append(piece)
    for (node, model), mine in sorted(by_key.items()):
        for first, end in itertools.product(sorted({p.first for p in mine}), sorted({p.end for p in mine})):
            wanted = Layers(node, model, first, end)
            size = math.fsum(sizes[model][first:end])
            if any(_covers(wanted, p) for p in mine) and size <= nodes[node].memory_bytes:
                now = held.get((node, model))
                new, kept = _missing(sizes[model], wanted, now), _missing(sizes[model], now, None)
                kept -= _missing(sizes[model], now, wanted)
                cost = cost_per_byte * (new - DROP * kept)
                choice = _Choice(wanted, size, new, new / nodes[node].load_bytes_per_s, cost, wanted == now)
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
    nodes: Mapping[str, PlacementNode],
    choices: Sequence[_Choice],
    ways: Sequence[_Open],
    dropped: float,
    limit_s: float,
) -> Placement:
    """Solve the integer program; `dropped`: cost of holding nothing, which the choices' costs are counted from."""
    program = _program(nodes, choices, ways)
    first = start(program)
    counts, value, bound, optimal = _counts(program, first), first.value, first.bound, False
    found = _search(program, first, limit_s) if len(ways) <= SEARCHED else None
    if found is not None:
        bound, optimal = min(bound, found.bound), found.optimal
        if found.value >= value or optimal:
            counts, value = found.counts, found.value
    return Placement(
        layers=tuple(sorted(c.layers for c, n in zip(choices, counts, strict=False) if n)),
        served=_fractions(ways, counts[len(choices) :]),
        load_s=_load_s(nodes, choices, counts),
        moved_bytes=math.fsum(c.new_bytes for c, n in zip(choices, counts, strict=False) if n),
        value=value - dropped,
        bound=max(bound, value) - dropped,
        optimal=optimal,
    )


def _program(nodes: Mapping[str, PlacementNode], choices: Sequence[_Choice], ways: Sequence[_Open]) -> Program:
    """The program in numbers; compute that is taken rounded up and what there is rounded down."""
    place = {name: n for n, name in enumerate(nodes)}
    model = {name: m for m, name in enumerate(sorted({c.layers.model for c in choices}))}
    demand = {name: d for d, name in enumerate(sorted({w.demand for w in ways}))}
    number = {c.layers: k for k, c in enumerate(choices)}
    pieces = [
        (k, number[choice.layers], math.ceil(load * UNIT - 1e-6))
        for k, way in enumerate(ways)
        for choice, load in zip(way.choices, way.way.load, strict=True)
    ]
    size = [c.size_bytes / nodes[c.layers.node].memory_bytes if c.size_bytes > 0 else 0.0 for c in choices]
    room = [math.floor(max(0.0, 1.0 - n.background) * UNIT + 1e-6) * PARTS for n in nodes.values()]
    return Program(
        node=np.array([place[c.layers.node] for c in choices], dtype=np.int64),
        model=np.array([model[c.layers.model] for c in choices], dtype=np.int64),
        size=np.array(size, dtype=np.float64),
        cost=np.array([c.cost for c in choices], dtype=np.float64),
        kept=np.array(_kept(choices, size), dtype=np.int64),
        demand=np.array([demand[w.demand] for w in ways], dtype=np.int64),
        value=np.array([w.value for w in ways], dtype=np.float64),
        pieces=np.array(pieces, dtype=np.int64).reshape(-1, 3),
        load=np.array([load for way in ways for load in way.way.load], dtype=np.float64),
        free=np.array([max(0.0, 1.0 - n.background) for n in nodes.values()], dtype=np.float64),
        room=np.array(room, dtype=np.int64),
        n_demands=len(demand),
        parts=PARTS,
    )


def _kept(choices: Sequence[_Choice], size: Sequence[float]) -> list[int]:
    """Ranges that are held now, as far as they fit together."""
    left: dict[str, int] = {}
    kept = []
    for k, choice in enumerate(choices):
        units = _units(size[k])
        if choice.now and units <= left.get(choice.layers.node, UNIT):
            left[choice.layers.node] = left.get(choice.layers.node, UNIT) - units
            kept.append(k)
    return kept


def _units(size: float) -> int:
    return math.ceil(size * UNIT - 1e-6)


def _counts(program: Program, first: Start) -> list[int]:
    """Whether each range is held, and parts served by each open way."""
    held = np.zeros(len(program.size), dtype=np.int64)
    held[first.held] = 1
    return [*held.tolist(), *first.served.tolist()]


@dataclass(frozen=True, slots=True)
class _FoundPlacement:
    """What the search found."""

    counts: list[int]
    value: float
    bound: float
    optimal: bool


def _search(p: Program, first: Start, limit_s: float) -> _FoundPlacement | None:
    """CP-SAT from the start; None: its time did not reach even that."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    held = [model.new_bool_var("") for _ in p.size]
    parts = [model.new_int_var(0, p.parts, "") for _ in p.value]
    _limit_nodes(model, p, held, parts)
    _limit_ways(model, p, held, parts)
    price = [*(-p.cost).tolist(), *(p.value / p.parts).tolist()]
    scale = 10.0**DIGITS / max([abs(x) for x in price if x] or [1.0])
    model.maximize(cp_model.LinearExpr.weighted_sum([*held, *parts], [round(x * scale) for x in price]))
    for variable, n in zip((*held, *parts), _counts(p, first), strict=True):
        model.add_hint(variable, n)
    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = limit_s
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    if status not in {cp_model.OPTIMAL, cp_model.FEASIBLE}:
        return None
    counts = [solver.value(x) for x in (*held, *parts)]
    rounding = 0.5 * (len(held) + p.parts * len(parts)) / scale  # what rounded coefficients can hide
    value = math.fsum(x * n for x, n in zip(price, counts, strict=True))
    return _FoundPlacement(counts, value, solver.best_objective_bound / scale + rounding, status == cp_model.OPTIMAL)


def _limit_nodes(model: cp_model.CpModel, p: Program, held: Sequence[Any], parts: Sequence[Any]) -> None:
    """Memory and compute, what is taken rounded up and what there is rounded down; one range per node and model."""
    memory: list[list[Any]] = [[] for _ in p.room]
    compute: list[list[Any]] = [[] for _ in p.room]
    same: dict[tuple[int, int], list[Any]] = {}
    for k, (node, size) in enumerate(zip(p.node.tolist(), p.size.tolist(), strict=True)):
        same.setdefault((node, int(p.model[k])), []).append(held[k])
        if size > 0:
            memory[node].append(_units(size) * held[k])
    for way, choice, units in p.pieces.tolist():
        if units > 0:
            compute[int(p.node[choice])].append(units * parts[way])
    for node, room in enumerate(p.room.tolist()):
        if memory[node]:
            model.add(sum(memory[node]) <= UNIT)
        if compute[node]:
            model.add(sum(compute[node]) <= room)
    for ranges in same.values():
        model.add_at_most_one(ranges)


def _limit_ways(model: cp_model.CpModel, p: Program, held: Sequence[Any], parts: Sequence[Any]) -> None:
    """A class is served once, and by ranges that are held: all that it has of one range together needs it."""
    by_range: dict[tuple[int, int], set[int]] = {}
    by_class: dict[int, list[Any]] = {}
    for way, choice, _ in p.pieces.tolist():
        by_range.setdefault((int(p.demand[way]), choice), set()).add(way)
    for way, demand in enumerate(p.demand.tolist()):
        by_class.setdefault(demand, []).append(parts[way])
    for (_, choice), mine in sorted(by_range.items()):
        model.add(sum(parts[way] for way in sorted(mine)) <= p.parts * held[choice])
    for of_class in by_class.values():
        model.add(sum(of_class) <= p.parts)


def _fractions(ways: Sequence[_Open], counts: Sequence[int]) -> dict[str, dict[int, float]]:
    served: dict[str, dict[int, float]] = {}
    for way, n in zip(ways, counts, strict=True):
        if n:
            mine = served.setdefault(way.demand, {})
            mine[way.number] = mine.get(way.number, 0.0) + n / PARTS
    return served


def _load_s(nodes: Mapping[str, PlacementNode], choices: Sequence[_Choice], counts: Sequence[int]) -> dict[str, float]:
    total = dict.fromkeys(nodes, 0.0)
    for choice, n in zip(choices, counts, strict=False):
        total[choice.layers.node] += choice.load_s * n
    return total
