"""Split over real processes and sockets: logits to the last bit, and what becomes of sessions when a host is killed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases

from cosched.runtime import activation
from cosched.runtime.chain import Chain, Hop, Links, Route
from cosched.runtime.engine import token_frame
from cosched.runtime.errors import CannotContinue
from cosched.runtime.generation import Generation
from cosched.runtime.kv import KvCache
from cosched.runtime.model import ModelSource
from cosched.runtime.parts import Part
from cosched.runtime.sampling import Sampling

L = cases.LAYERS
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Two host processes with all families."""
    folder = tmp_path_factory.mktemp("nodes")
    started = [cases.HostProcess(folder, f"edge{i}") for i in range(2)]
    try:
        yield started[0].endpoint(), started[1].endpoint()
    finally:
        for host in started:
            host.kill()


def remote_steps(source: ModelSource, route: Route, links: Links, n_tokens: int) -> list[torch.Tensor]:
    """Logits along a route, with the chunks of the reference."""
    part, kv = Part(source), KvCache()
    part.load(0, route.split)
    chain = Chain(source, route, links, task="t", name=f"t{id(route)}", sampling=Sampling())
    found: list[torch.Tensor] = []
    steps, position = cases.chunks(cases.PROMPT), 0
    while len(found) < n_tokens:
        tokens = steps.pop(0)
        if route.split:
            frame = activation.encode(part.run(part.embed(tokens), kv, 0, route.split), route.precision_bits)
        else:
            frame = token_frame(tokens)
        chain.step(position, len(tokens), frame, choose=True, logits=True)
        position += len(tokens)
        answer, frames, _ = chain.finish()
        if not steps:
            found.append(torch.frombuffer(bytearray(frames[0]), dtype=torch.float32))
            steps = [[answer.token]]
    chain.close()
    return found


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_every_split_over_processes_gives_the_last_bit(family: str, nodes: tuple[str, str], tmp_path: Path) -> None:
    source = cases.seeded(tmp_path, family)
    expected = cases.reference_steps(source, 3)
    a, b = nodes
    two = [Route(k, (Hop(a, L),), 32) for k in range(L)]
    three = [Route(k, (Hop(a, m), Hop(b, L)), 32) for k in range(L) for m in range(k + 1, L)]
    links = Links()
    for route in two + three:
        found = remote_steps(source, route, links, 3)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True)), route
    links.close()


@pytest.mark.slow
def test_kill_9_of_a_host_ends_or_moves_every_session_and_hangs_none(nodes: tuple[str, str], tmp_path: Path) -> None:
    """20 sessions at all splits, in one part and over two hosts, some on devices that could not go on alone."""
    source = cases.seeded(tmp_path)
    expected = cases.reference_tokens(tmp_path, "llama", 60)
    doomed = cases.HostProcess(tmp_path, "doomed")
    reached, ends = threading.Barrier(21, timeout=PATIENCE_S), {}

    def one(n: int, a: str, b: str) -> None:
        k = n % (L - 1)
        hops = (Hop(b, k + 1), Hop(a, L)) if n % 2 else (Hop(a, L),)
        links = Links()
        most = L if n % 4 < 2 else k
        run = Generation(Part(source), f"t{n}", cases.PROMPT, Route(k, hops, 32), links, max_layers=most)
        stream = run.stream(60)
        for _ in range(3):
            next(stream)
        reached.wait()
        try:
            list(stream)
            ends[n] = run.output == expected and run.is_local
        except CannotContinue as error:
            ends[n] = most < L and "cannot be reached" in str(error) and f"holds {k} of 6 layers" in str(error)
        run.close()
        links.close()

    try:
        a, b = doomed.endpoint(), nodes[1]
        threads = [threading.Thread(target=one, args=(n, a, b), daemon=True) for n in range(20)]
        for thread in threads:
            thread.start()
        reached.wait()
        doomed.kill()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in threads), "a session hangs"
    finally:
        doomed.kill()
    assert ends == dict.fromkeys(range(20), True)
