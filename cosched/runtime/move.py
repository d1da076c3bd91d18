"""Moving a running generation to another route: whose KV cache goes where, what that costs, and doing it.

Either the KV of the layers that change hands is migrated (device to host, host to device, host to host), or the new
route computes it again from the tokens. Nothing of the old route is touched before the new one has all it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from cosched.profiles.quant import activation_bytes
from cosched.runtime.chain import Leg, Route
from cosched.runtime.errors import BadFrame
from cosched.runtime.kv import KvCache, KvLayout
from cosched.runtime.model import ModelSource
from cosched.runtime.protocol import Export, Import, Pull

MIGRATED: Final = "migrated"
RECOMPUTED: Final = "recomputed"
DEVICE: Final = ""  # where a hop has its endpoint

Holder = TypeVar("Holder")


@dataclass(frozen=True, slots=True)
class MoveCosts:
    """What moving costs here: rates of the links, and seconds per token and layer of a prefill."""

    up_bps: float
    down_bps: float
    peer_bps: float  # between hosts
    device_layer_s: float
    node_layer_s: float


class Legs(NamedTuple):
    """Layers [0, split) on the device, the others at hosts."""

    split: int
    at_hosts: Sequence[Leg]


class Moved(NamedTuple):
    """How a move was done, and how many bytes of KV crossed which way."""

    how: str
    up_bytes: int = 0
    down_bytes: int = 0
    peer_bytes: int = 0


def overlaps(
    before: Sequence[tuple[Holder, int]], after: Sequence[tuple[Holder, int]]
) -> Iterator[tuple[int, int, Holder, Holder]]:
    """Yield (start, stop, old holder, new holder) over all layers; holders come with the layer that they end at."""
    start, old, new = 0, list(before), list(after)
    while old and new:
        stop = min(old[0][1], new[0][1])
        if stop > start:
            yield start, stop, old[0][0], new[0][0]
        start = stop
        old, new = [pair for pair in old if pair[1] > stop], [pair for pair in new if pair[1] > stop]


def _places(route: Route) -> list[tuple[str, int]]:
    return [(DEVICE, route.split), *((hop.endpoint, hop.stop) for hop in route.hops)]


def volume(old: Route, new: Route, tokens: int, layout: KvLayout) -> Moved:
    """Bytes that a migration of `tokens` tokens moves."""
    up = down = peer = 0
    for start, stop, giver, taker in overlaps(_places(old), _places(new)):
        size = (stop - start) * tokens * layout.bytes_per_token
        if giver == taker:
            continue
        if giver == DEVICE:
            up += size
        elif taker == DEVICE:
            down += size
        else:
            peer += size
    return Moved(MIGRATED, up, down, peer)


def cheaper(old: Route, new: Route, tokens: int, source: ModelSource, layout: KvLayout, costs: MoveCosts) -> str:
    """MIGRATED or RECOMPUTED, whichever takes less time by `costs`. Recomputing counts the whole prefill in turn."""
    moved = volume(old, new, tokens, layout)
    migrate_s = 8 * (moved.up_bytes / costs.up_bps + moved.down_bytes / costs.down_bps)
    migrate_s += 8 * moved.peer_bytes / costs.peer_bps
    layers_s = new.split * costs.device_layer_s + (source.n_layers - new.split) * costs.node_layer_s
    air_bytes = 4 * tokens if new.split == 0 else tokens * activation_bytes_of(source, new.precision_bits)
    air_s = 8 * air_bytes / costs.up_bps if new.hops else 0.0
    return MIGRATED if migrate_s <= tokens * layers_s + air_s else RECOMPUTED


def activation_bytes_of(source: ModelSource, bits: int) -> int:
    """Bytes of one token's activation, in 32 bit too."""
    hidden = source.sizes.hidden
    return 4 * hidden if bits == 32 else activation_bytes(hidden, bits)


def migrate(cache: KvCache, old: Legs, new: Legs, layout: KvLayout) -> KvCache:
    """Bring the KV of a generation to the new route; return the device's new cache.

    cache: the device's present one, left as it is. Raises Refused, HostLost and BadFrame; the old route then still
    stands.
    """
    fresh = KvCache()
    for start, stop, giver, taker in overlaps(_with_device(old), _with_device(new)):
        if taker is None and giver is None:
            fresh.adopt(cache, range(start, stop))
        elif taker is None and giver is not None:
            _, frames = giver.link.ask(Export(session=giver.session, start=start, stop=stop))
            if len(frames) != stop - start:
                raise BadFrame(f"KV of layers [{start}, {stop}) in {len(frames)} frames")
            for layer, frame in enumerate(frames, start):
                fresh.take(frame, layer, layout)
        elif taker is not None and giver is None:
            frames = [cache.export(layer) for layer in range(start, stop)]
            taker.link.ask(Import(session=taker.session, start=start, stop=stop), frames)
        elif taker is not None and giver is not None:
            taker.link.ask(_pull(taker, giver, start, stop))
    if len({fresh.tokens(layer) for layer in range(new.split)}) > 1:
        raise BadFrame("KV of layers that have seen different numbers of tokens")
    return fresh


def _with_device(legs: Legs) -> list[tuple[Leg | None, int]]:
    return [(None, legs.split), *((leg, leg.stop) for leg in legs.at_hosts)]


def _pull(taker: Leg, giver: Leg, start: int, stop: int) -> Pull:
    here = taker.hop.endpoint == giver.hop.endpoint
    return Pull(
        session=taker.session, start=start, stop=stop, source=giver.session,
        endpoint="" if here else giver.hop.endpoint, server_key=giver.hop.server_key, grant=giver.grant,
    )  # fmt: skip
