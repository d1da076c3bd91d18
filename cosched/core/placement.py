"""Which layers nodes are to hold: what recent arrivals would be worth by where layers are, for the slow loop.

The arrivals of the last minute stand for those of the next (bids.py). Those of one model that may, or may not, leave
the device with their tokens are a class; holding layers [k, L) of the model on a node is one way to serve it, worth
what its arrivals gain there over the device alone, at present prices of the uplinks. solvers/placement.py chooses.
Sessions that run count too: taking their layers away costs what going on with them is worth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cosched.core.bids import LEAST_SPAN_S, Arrival, BidPrices, life_work
from cosched.core.settings import Settings
from cosched.core.state import State
from cosched.profiles.model import Model as Profile
from cosched.workloads.base import Floats
from cosched.workloads.context import SiteProfiles, weight_memory_bytes
from solvers.placement import Demand, Layers, Placement, PlacementModel, PlacementNode, Way, place
from telemetry.messages import LlmSession

STEPS: Final = 8  # first layers that are considered: 0, 1, and every eighth of a model
GAIN: Final = 1.01  # holding more layers must be worth this much more to be considered
INERTIA: Final = 0.2  # loading all of the nodes' memory costs this part of what all demand is worth
LOAD_BYTES_S: Final = 1e9  # of a node that has not been measured: a guess, half of what an NVMe disk reads


@dataclass(frozen=True, slots=True)
class Stock:
    """What the models of a site weigh, in the format of the node that needs most, and what room nodes have."""

    nodes: tuple[str, ...]
    models: tuple[PlacementModel, ...]
    room_bytes: tuple[float, ...]  # by node
    fits: bool  # every node has room for all

    @property
    def n_layers(self) -> dict[str, int]:
        """Layers of each model."""
        return {m.id: len(m.layer_bytes) for m in self.models}

    def weight_bytes(self, layers: Layers) -> float:
        """What a range of layers weighs."""
        sizes = next(m.layer_bytes for m in self.models if m.id == layers.model)
        return math.fsum(sizes[layers.first : layers.end])

    def everything(self) -> tuple[Layers, ...]:
        """All layers of all models on all nodes."""
        return tuple(Layers(node, m.id, 0, len(m.layer_bytes)) for node in self.nodes for m in self.models)

    def first_fit(self) -> tuple[Layers, ...]:
        """As many layers as there is room for, while demand is not known: each node begins with another model."""
        found = []
        for i, node in enumerate(self.nodes):
            left = self.room_bytes[i]
            turn = i % max(1, len(self.models))
            for model in (*self.models[turn:], *self.models[:turn]):
                count = _fitting(model.layer_bytes, left)
                if count:
                    n = len(model.layer_bytes)
                    found.append(Layers(node, model.id, n - count, n))
                    left -= self.weight_bytes(found[-1])
        return tuple(found)

    def has_room(self, layers: Sequence[Layers]) -> bool:
        """Whether these are layers of this site, at most one range a node and model, and no node is over-full."""
        ends = self.n_layers
        if any(x.node not in self.nodes or not 0 <= x.first < x.end == ends.get(x.model) for x in layers):
            return False
        used = {node: math.fsum(self.weight_bytes(x) for x in layers if x.node == node) for node in self.nodes}
        return len({(x.node, x.model) for x in layers}) == len(layers) and all(
            used[node] <= room for node, room in zip(self.nodes, self.room_bytes, strict=True)
        )


def _fitting(layer_bytes: Sequence[float], room_bytes: float) -> int:
    """How many of a model's last layers fit."""
    total, count = 0.0, 0
    for size in reversed(layer_bytes):
        total += size
        if total > room_bytes:
            break
        count += 1
    return count


def stock_of(profiles: SiteProfiles, short_bytes: Mapping[str, float]) -> Stock:
    """Return the stock of a site. short_bytes: by node, memory that it lacks of what the site says.

    Raises BadInput for weights that a format does not have.
    """
    site, formats = profiles.site, sorted({d.weight_format for d in profiles.node_devices})
    models = tuple(
        PlacementModel(
            name, tuple(np.max([_layer_bytes(s.model, s.ref.weight_bits, f) for f in formats], axis=0).tolist())
        )
        for name, s in profiles.models.items()
    )
    room = weight_memory_bytes(profiles, short_bytes)
    whole = [
        math.fsum(s.model.weight_bytes(s.ref.weight_bits, d.weight_format) for s in profiles.models.values())
        for d in profiles.node_devices
    ]
    fits = all(w <= r * (1 + 1e-9) for w, r in zip(whole, room.tolist(), strict=True))
    return Stock(tuple(n.id for n in site.nodes), models, tuple(room.tolist()), fits)


def _layer_bytes(model: Profile, bits: int, weight_format: str) -> list[float]:
    """Bytes of each layer, the embedding with the first, the last norm and the head with the last."""
    layer = model.weight_bytes_layer(bits, weight_format)
    ends = model.weight_bytes(bits, weight_format) - model.n_layers * layer
    last = model.head_weight_bytes(bits, weight_format) + model.final_norm_bytes
    sizes = [layer] * model.n_layers
    sizes[0] += ends - last  # 0 where the head is the embedding
    sizes[-1] += last
    return sizes


def choose(
    state: State,
    bids: BidPrices,
    settings: Settings,
    stock: Stock,
    current: Sequence[Layers],
    load_bytes_per_s: Mapping[str, float],
) -> Placement | None:
    """Return the placement of the greatest value over the next `bid_window_s`; None while nobody asks for anything.

    current: what nodes are to hold at present; load_bytes_per_s: of nodes that were measured. Raises BadProblem.
    """
    wanted = [*arriving(state, bids, settings, stock), *running(state, settings, stock)]
    worth = math.fsum(max(way.value_per_s for way in d.ways) for d in wanted)
    if worth <= 0.0:
        return None
    first = len(state.site.cells)
    nodes = [
        PlacementNode(name, room, load_bytes_per_s.get(name) or LOAD_BYTES_S, float(state.background[first + i]))
        for i, (name, room) in enumerate(zip(stock.nodes, stock.room_bytes, strict=True))
    ]
    horizon_s = settings.bid_window_s
    cost = INERTIA * worth * horizon_s / math.fsum(stock.room_bytes)
    return place(nodes, stock.models, wanted, current=current, horizon_s=horizon_s, cost_per_byte=cost)


def arriving(state: State, bids: BidPrices, settings: Settings, stock: Stock) -> Iterator[Demand]:
    """Yield the demand of recent arrivals, a class for each model and privacy."""
    now_s = bids.arrivals[-1].at_s if bids.arrivals else 0.0
    recent = [a for a in bids.arrivals if a.at_s >= now_s - settings.bid_window_s]
    if not recent:
        return
    span_s = max(now_s - recent[0].at_s, LEAST_SPAN_S)
    classes: dict[tuple[str, bool], list[Arrival]] = {}
    for arrival in recent:
        if isinstance(arrival.offer.work, LlmSession):
            classes.setdefault((arrival.offer.work.model, arrival.offer.work.private), []).append(arrival)
    for (model, private), arrivals in sorted(classes.items()):
        end = stock.n_layers[model]
        found = _ways(state, bids, settings, arrivals, _steps(end), span_s)
        least = min((load for *_, load in found), default=0.0)
        part = min(1.0, len(stock.nodes) / least) if least > 0 else 1.0  # of more than all nodes can do, that much
        ways = [
            Way((Layers(stock.nodes[n], model, k, end),), part * value, (part * load,)) for n, k, value, load in found
        ]
        if ways:
            yield Demand(f"{model}/{'private' if private else 'open'}", tuple(ways))


def _steps(n_layers: int) -> list[int]:
    """First layers that are considered, from the last one down."""
    return sorted({0, 1, *(n_layers * i // STEPS for i in range(STEPS))} & {*range(n_layers)}, reverse=True)


def _ways(
    state: State, bids: BidPrices, settings: Settings, arrivals: Sequence[Arrival], steps: Sequence[int], span_s: float
) -> list[tuple[int, int, float, float]]:
    """(node, first layer held, value per second, load of the node) of ways that are worth their layers."""
    n_nodes, n_cells = len(state.site.nodes), len(state.site.cells)
    total = np.zeros((n_nodes, len(steps), 2))
    for arrival in arrivals:
        total += _gains(state, bids.price[:n_cells], settings, arrival, steps)
    total /= span_s
    found = []
    for n in range(n_nodes):
        least = 0.0
        for i, k in enumerate(steps):
            value, load = total[n, i].tolist()
            if value > GAIN * least:
                found.append((n, k, value, load))
                least = value
    return found


def _gains(state: State, uplink_price: Floats, settings: Settings, arrival: Arrival, steps: Sequence[int]) -> Floats:
    """(nodes, steps, 2): what an arrival gains by each node's layers from a step on, and its seconds of that node."""
    table, n_cells = arrival.table, len(state.site.cells)
    seconds, alone_s = life_work(state.site, arrival, settings.expected_output)
    good = (table.fixed_s + alone_s / settings.bid_share <= table.deadline_s).all(axis=1)
    worth = arrival.offer.weight * table.quality - seconds[:, :n_cells] @ uplink_price
    alone = worth[good & (table.node < 0)].max(initial=0.0)
    gain = np.where(good, worth - alone, 0.0)
    found = np.zeros((len(state.site.nodes), len(steps), 2))
    for n in range(len(found)):
        for i, k in enumerate(steps):
            rows = np.flatnonzero((table.node == n) & (table.split >= k) & (gain > 0))
            if len(rows):
                best = rows[np.lexsort((seconds[rows, n_cells + n], -gain[rows]))[0]]
                found[n, i] = gain[best], seconds[best, n_cells + n]
    return found


def running(state: State, settings: Settings, stock: Stock) -> Iterator[Demand]:
    """Yield those that run on layers: they can be served there alone, at what going on with them is worth."""
    worth: dict[Layers, float] = {}
    for task in state.tasks.values():
        if not task.model or task.point < 0 or (node := int(task.table.node[task.point])) < 0:
            continue
        split, end = int(task.table.split[task.point]), stock.n_layers[task.model]
        layers = Layers(stock.nodes[node], task.model, next(k for k in _steps(end) if k <= split), end)
        worth[layers] = worth.get(layers, 0.0) + settings.stickiness * task.offer.weight / settings.bid_window_s
    for layers, value in sorted(worth.items()):
        yield Demand(f"on {layers.node}: {layers.model} from {layers.first}", (Way((layers,), value, (0.0,)),))
