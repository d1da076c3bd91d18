"""A running generation changes its split layer and its host: no token is lost, none differs from the unsplit run's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases
from hypothesis import given
from hypothesis import strategies as st

from cosched.runtime.chain import Hop, Links, Route
from cosched.runtime.engine import HostLimits
from cosched.runtime.errors import BadModel, HostLost, HostRefused
from cosched.runtime.generation import Generation
from cosched.runtime.host import LayerHost
from cosched.runtime.model import ModelSource
from cosched.runtime.move import MIGRATED, RECOMPUTED, MoveCosts, cheaper, overlaps, volume
from cosched.runtime.parts import Part

L = cases.LAYERS


def generation(source: ModelSource, route: Route, links: Links, **options: object) -> Generation:
    return Generation(Part(source), "t1", cases.PROMPT, route, links, chunk_tokens=cases.CHUNK, **options)  # type: ignore[arg-type]


def wander(hosts: list[LayerHost]) -> Iterator[Route]:
    """Routes at all splits, on either host, on both, and on the device alone."""
    a, b = (host.endpoint for host in hosts)
    while True:
        for k in (3, 1, 0, 4, 2, 5):
            yield Route(k, (Hop(a, L),), 32)
            yield Route(k, (Hop(b, L),), 32)
            if k < L - 1:
                yield Route(k, (Hop(a, k + 1), Hop(b, L)), 32)
                yield Route(k, (Hop(b, L - 1), Hop(a, L)), 32)
        yield Route(L)


NEVER = MoveCosts(up_bps=1e-3, down_bps=1e-3, peer_bps=1e-3, device_layer_s=1e-9, node_layer_s=1e-9)


@pytest.mark.parametrize(("costs", "how"), [(None, MIGRATED), (NEVER, None)])
def test_resplit_every_10_of_200_tokens(costs: MoveCosts | None, how: str | None, tmp_path: Path) -> None:
    source = cases.seeded(tmp_path)
    expected = cases.reference_tokens(tmp_path, "llama", 200)
    seen = set()
    with cases.host_threads(source) as running:
        links, routes = Links(), wander(running)
        run = generation(source, next(routes), links)
        while len(run.output) < 200:
            if run.output and len(run.output) % 10 == 0:
                seen.add(run.resplit(next(routes), costs).how)
            run.advance()
        run.close()
        links.close()
    assert run.output == expected
    assert how is None or seen == {how}


def test_a_move_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    source = cases.seeded(tmp_path)
    expected = cases.reference_tokens(tmp_path, "llama", 12)
    with cases.host_threads(source, 2) as (a, b):
        links = Links()
        run = generation(source, Route(2, (Hop(a.endpoint, L),), 32), links, max_layers=3)
        for _ in range(6):
            run.advance()
        for hop in (Hop(b.endpoint, L), Hop(a.endpoint, L)):
            with pytest.raises(BadModel, match="this device holds 3"):
                run.resplit(Route(4, (hop,), 32))
        with pytest.raises(BadModel, match="does not end with the last of 6 layers"):
            run.resplit(Route(1, (Hop(b.endpoint, 4),), 32))
        b.engine.limits = HostLimits(kv_bytes=10)  # the session opens, its cache does not fit
        with pytest.raises(HostRefused, match="KV caches hold"):
            run.resplit(Route(1, (Hop(b.endpoint, L),), 32))
        b.stop()
        with pytest.raises(HostLost):
            run.resplit(Route(1, (Hop(b.endpoint, L),), 32))
        while len(run.output) < 12:
            run.advance()
        assert len(a.report().sessions) == 1
        run.close()
        links.close()
    assert run.output == expected


bounds = st.lists(st.integers(1, 11), max_size=4, unique=True).map(lambda stops: [*sorted(stops), 12])


@given(bounds, bounds)
def test_overlaps_cover_every_layer_once_with_its_holders(before: list[int], after: list[int]) -> None:
    found = list(overlaps([(stop, stop) for stop in before], [(stop, stop) for stop in after]))
    layers = [(layer, old, new) for start, stop, old, new in found for layer in range(start, stop)]
    holder = {layer: stop for stops in (before,) for stop in reversed(stops) for layer in range(stop)}
    taker = {layer: stop for stops in (after,) for stop in reversed(stops) for layer in range(stop)}
    assert layers == [(layer, holder[layer], taker[layer]) for layer in range(12)]


def test_what_moves_and_which_way_is_cheaper(tmp_path: Path) -> None:
    """6 layers, 100 tokens, 128 bytes of KV a token and layer, 256 bytes of activation in 32 bits."""
    source = cases.seeded(tmp_path)
    layout = Part(source).kv_layout
    a, b = "tcp://a:1", "tcp://b:1"
    old = Route(2, (Hop(a, 4), Hop(b, L)), 32)
    assert layout.bytes_per_token == 128
    assert volume(old, Route(4, (Hop(a, L),), 32), 100, layout) == (MIGRATED, 0, 2 * 12800, 2 * 12800)
    assert volume(old, Route(0, (Hop(b, L),), 32), 100, layout) == (MIGRATED, 2 * 12800, 0, 2 * 12800)
    assert volume(old, old, 100, layout) == (MIGRATED, 0, 0, 0)
    new = Route(1, (Hop(a, 4), Hop(b, L)), 32)
    # migrating: 12 800 bytes up; recomputing: 25 600 bytes of activations up, 100 x (1 x 1 ms + 5 x 0.1 ms) = 0.15 s
    costs = MoveCosts(up_bps=1e6, down_bps=1e6, peer_bps=1e6, device_layer_s=1e-3, node_layer_s=1e-4)
    assert cheaper(old, new, 100, source, layout, costs) == MIGRATED
    # to the device alone: 51 200 bytes down at 10 kbit/s are 41 s; recomputing 100 x 6 ms and nothing up
    slow = MoveCosts(up_bps=1e4, down_bps=1e4, peer_bps=1e6, device_layer_s=1e-3, node_layer_s=1e-4)
    assert cheaper(old, Route(L), 100, source, layout, slow) == RECOMPUTED
