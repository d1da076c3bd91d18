"""A running generation changes its split layer and its host: no token is lost, none differs from the unsplit run's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases

from cosched.runtime.chain import Hop, Links, Route
from cosched.runtime.generation import Generation
from cosched.runtime.host import Host
from cosched.runtime.model import ModelSource
from cosched.runtime.move import MIGRATED, MoveCosts
from cosched.runtime.parts import Part

L = cases.LAYERS


def generation(source: ModelSource, route: Route, links: Links, **options: object) -> Generation:
    return Generation(Part(source), "t1", cases.PROMPT, route, links, chunk_tokens=cases.CHUNK, **options)  # type: ignore[arg-type]


def wander(hosts: list[Host]) -> Iterator[Route]:
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
