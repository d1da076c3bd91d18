"""A host as an object: what it refuses and says, its limits, sharing by weight, moving KV, peers that go away."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases

from cosched.api.access import Access, Identity
from cosched.api.zap import Authenticator, new_pair
from cosched.runtime import activation
from cosched.runtime.chain import Chain, Hop, Links, Route
from cosched.runtime.engine import HostLimits, token_frame
from cosched.runtime.errors import BadModel, HostLost, HostRefused
from cosched.runtime.generation import Generation
from cosched.runtime.host import LayerHost
from cosched.runtime.link import Link
from cosched.runtime.model import ModelSource
from cosched.runtime.parts import Part
from cosched.runtime.protocol import Export, Import, Look, Onward, Open, Pull, Step, answer_of
from cosched.runtime.sampling import Sampling
from telemetry.bus import Curve
from telemetry.calls import Caller, wait_for

L = cases.LAYERS
TIGHT = HostLimits(sessions=2, kv_bytes=24_000, waiting=4, frame_bytes=100_000)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return cases.seeded(tmp_path_factory.mktemp("model"))


@pytest.fixture
def host(source: ModelSource) -> Iterator[LayerHost]:
    with cases.host_threads(source, 1, TIGHT) as (one,):
        yield one


@pytest.fixture
def link(host: LayerHost) -> Iterator[Link]:
    found = Link(host.endpoint)
    yield found
    found.close()


def opened(source: ModelSource, **other: object) -> Open:
    asked = Open(session="s", task="t", model=source.name, fingerprint=source.fingerprint, start=0, stop=L)
    return msgspec.structs.replace(asked, **other)


def refusal(link: Link, body: object, tensors: tuple[bytes, ...] = ()) -> str:
    with pytest.raises(HostRefused) as caught:
        link.ask(body, tensors)  # type: ignore[arg-type]
    assert str(caught.value).startswith("edge0: ")
    return caught.value.code


@pytest.mark.parametrize(
    ("other", "code"),
    [
        ({"model": "gpt"}, "unknown_model"),
        ({"fingerprint": "0" * 16}, "other_weights"),
        ({"stop": L + 1}, "not_loaded"),
        ({"start": 3, "stop": 3}, "not_loaded"),
        ({"stop": 4}, "bad_route"),
        ({"onward": Onward(endpoint="tcp://127.0.0.1:1", session="x", precision_bits=16)}, "bad_route"),
    ],
)
def test_sessions_that_cannot_be_opened(other: dict[str, object], code: str, source: ModelSource, link: Link) -> None:
    assert refusal(link, opened(source, **other)) == code
    assert link.ask(Look())[0].report.sessions == {}  # type: ignore[union-attr]


def test_limits_hold_and_leave_what_was(source: ModelSource, link: Link) -> None:
    link.ask(opened(source))
    assert refusal(link, opened(source)) == "conflict"
    link.ask(opened(source, session="s2"))
    assert refusal(link, opened(source, session="s3")) == "full"
    tokens = 24_000 // (L * 4 * 2 * 2 * 8) + 1  # one more than the KV memory holds
    asked = Step(session="s", position=0, tokens=tokens)
    assert refusal(link, asked, (token_frame([1] * tokens),)) == "memory"
    answer, _ = link.ask(Step(session="s", position=0, tokens=2, choose=True), (token_frame([1, 2]),))
    assert 0 <= answer.token < cases.VOCAB
    assert answer.node_s > 0


def test_steps_that_make_no_sense_are_refused_and_change_nothing(source: ModelSource, link: Link) -> None:
    link.ask(opened(source))
    link.ask(opened(source, session="upper", start=3))
    first = Step(session="s", position=0, tokens=3, choose=True)
    token = link.ask(first, (token_frame([1, 2, 3]),))[0].token
    assert refusal(link, first, (token_frame([1, 2, 3]),)) == "out_of_step"  # the same message twice
    assert refusal(link, Step(session="s", position=4, tokens=1), (token_frame([1]),)) == "out_of_step"  # one lost
    second = Step(session="s", position=3, tokens=1, choose=True)
    assert refusal(link, second, (token_frame([1, 2]),)) == "bad_frame"
    assert refusal(link, second, ()) == "bad_frame"
    assert refusal(link, second, (token_frame([999]),)) == "bad_request"
    assert refusal(link, msgspec.structs.replace(second, session="nobody"), (token_frame([1]),)) == "unknown_session"
    upper = Step(session="upper", position=0, tokens=1)
    frame = bytearray(activation.encode(torch.ones(1, 1, cases.HIDDEN), 8))
    frame[-1] ^= 1
    assert refusal(link, upper, (bytes(frame),)) == "bad_frame"
    assert refusal(link, upper, (activation.encode(torch.ones(1, 2, cases.HIDDEN), 8),)) == "bad_frame"
    found = link.ask(second, (token_frame([token]),))[0].token
    assert found == undisturbed(source, [1, 2, 3])[1]


def undisturbed(source: ModelSource, prompt: list[int]) -> list[int]:
    return [int(logits.argmax()) for logits in cases.reference_steps(source, 2, prompt)]


def test_bytes_that_are_no_request_are_answered_and_the_host_lives(host: LayerHost, link: Link) -> None:
    caller = Caller(host.endpoint)
    for frames in (
        [b""],
        [b"\xff\xff"],
        [b"{}"],
        [msgspec.msgpack.encode({"id": 1, "v": 9, "body": {"type": "Look"}})],
    ):
        caller.send(frames)
        wait_for([caller], 10)
        (answer,) = caller.drain()
        assert answer_of(answer).error == "bad_request"
    caller.close()
    assert link.ask(Look())[0].report is not None


def test_a_frame_that_is_too_long_costs_its_sender_the_connection(
    host: LayerHost, source: ModelSource, link: Link
) -> None:
    link.ask(opened(source))
    other = Link(host.endpoint, patience_s=20)
    with pytest.raises(HostLost):
        other.ask(Step(session="s", position=0, tokens=1), (bytes(TIGHT.frame_bytes + 1),))
    other.close()
    assert link.ask(Look())[0].report is not None


def test_loading_unloading_and_the_report(source: ModelSource) -> None:
    host = LayerHost("edge0", [source], bind=["tcp://127.0.0.1:0"])
    host.start()
    try:
        assert host.load("llama", 2, 4).layers == 2
        link = Link(host.endpoint)
        assert refusal(link, opened(source, start=1, stop=L)) == "not_loaded"
        host.load("llama", 4, L)
        link.ask(opened(source, start=3))
        with pytest.raises(HostRefused, match="1 sessions run on them") as caught:
            host.unload("llama", 3, L)
        assert caught.value.code == "in_use"
        host.unload("llama", 2, 3)
        report = host.report()
        assert report.models["llama"].layers == (3, 4, 5)
        assert report.sessions == {"s": 0}
        assert report.load_s_per_layer > 0
        with pytest.raises(BadModel, match="not known here"):
            host.load("gpt", 0, 1)
        with pytest.raises(BadModel, match="greater than 0"):
            host.apply_weights({"t": 0.0})
        link.close()
    finally:
        host.stop()
    assert not host.is_serving


def test_sessions_left_behind_make_room(source: ModelSource) -> None:
    with cases.host_threads(source, 1, HostLimits(sessions=1, idle_s=0.0)) as (host,):
        link = Link(host.endpoint)
        link.ask(opened(source))
        link.ask(opened(source, session="later"))
        link.close()


def test_kv_that_does_not_fit_is_refused(source: ModelSource, link: Link) -> None:
    link.ask(opened(source))
    link.ask(Step(session="s", position=0, tokens=2), (token_frame([1, 2]),))
    _, frames = link.ask(Export(session="s", start=1, stop=3))
    link.ask(opened(source, session="upper", start=1))
    assert refusal(link, Import(session="upper", start=1, stop=2), tuple(frames)) == "bad_frame"
    assert refusal(link, Import(session="upper", start=2, stop=4), tuple(frames)) == "bad_frame"
    assert refusal(link, Import(session="upper", start=0, stop=2), tuple(frames)) == "bad_route"
    link.ask(Import(session="upper", start=1, stop=3), frames)
    assert refusal(link, Pull(session="upper", start=3, stop=5, source="nobody")) == "unknown_session"
    link.ask(Pull(session="upper", start=3, stop=L, source="s"))
    assert link.ask(Export(session="upper", start=1, stop=L))[1] == link.ask(Export(session="s", start=1, stop=L))[1]


def test_a_peer_that_is_gone_is_told(source: ModelSource) -> None:
    with cases.host_threads(source, 2) as (a, b):
        links = Links()
        route = Route(1, (Hop(a.endpoint, 3), Hop(b.endpoint, L)), 32)
        run = Generation(Part(source), "t", cases.PROMPT, route, links, max_layers=2)
        run.advance()
        b.stop()
        with pytest.raises((HostLost, HostRefused)) as caught:
            run.advance()
        assert b.endpoint in str(caught.value)
        a_link = links.to(route.hops[0])
        assert a_link.ask(Look())[0].report is not None
        with pytest.raises(HostLost, match=b.endpoint):
            a_link.ask(opened_pull(a_link, source, b.endpoint))
        links.close()


def opened_pull(link: Link, source: ModelSource, endpoint: str) -> Pull:
    link.ask(opened(source, session="new", start=2))
    return Pull(session="new", start=2, stop=L, source="old", endpoint=endpoint)


def test_weights_share_a_host_that_is_always_busy(source: ModelSource) -> None:
    """Two sessions keep steps waiting: their tokens come as their weights say, and together they use it all."""
    with cases.host_threads(source, 1, HostLimits(batch=1)) as (host,):
        host.apply_weights({"heavy": 3.0, "light": 1.0})
        links, order = Links(), []
        chains = {}
        hop = (Hop(host.endpoint, L),)
        for task in ("heavy", "light"):
            chains[task] = Chain(source, Route(0, hop), links, task=task, name=task, sampling=Sampling())
        pause = threading.Event()
        original = host.engine.step

        def recorded(who, asked, frames, now_s):  # noqa: ANN001, ANN202
            pause.wait(20)
            order.append(asked.session.split(".")[0])
            return original(who, asked, frames, now_s)

        host.engine.step = recorded  # type: ignore[method-assign]
        for position in range(60):
            for task in ("heavy", "light"):
                chains[task].step(position, 1, token_frame([position]), choose=False)
        pause.set()
        for chain in chains.values():
            chain.finish()
        links.close()
    assert len(order) == 120
    heavy = order[20:60].count("heavy")  # all that was sent has arrived by then, and both still wait
    assert heavy == pytest.approx(30, abs=2)


def test_sending_a_prefill_overlaps_computing_it(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device computes its third chunk only once the host is done with the first: sent at the end, that is never."""
    with cases.host_threads(source, 1) as (host,):
        done, begun = threading.Event(), []
        step, part, links = host.engine.step, Part(source), Links()
        run = part.run

        def stepped(*args):  # noqa: ANN002, ANN202
            found = step(*args)
            done.set()
            return found

        def computed(*args):  # noqa: ANN002, ANN202
            begun.append(args)
            assert len(begun) < 3 or done.wait(20)
            return run(*args)

        monkeypatch.setattr(host.engine, "step", stepped)
        monkeypatch.setattr(part, "run", computed)
        route = Route(2, (Hop(host.endpoint, L),), 32)
        Generation(part, "t", cases.PROMPT, route, links, chunk_tokens=cases.CHUNK).advance()
        assert len(begun) == 3
        links.close()


def test_with_keys_only_those_allowed_get_in(source: ModelSource) -> None:
    pairs = {name: new_pair(name) for name in ("edge0", "ue", "eyes", "stranger")}
    allowed = [Identity(name="ue", public=pairs["ue"].public, role="publisher")]
    allowed.append(Identity(name="eyes", public=pairs["eyes"].public, role="viewer"))
    server = Curve(pairs["edge0"].public, pairs["edge0"].secret)
    guard = Authenticator(Access(allowed))
    host = LayerHost("edge0", [source], bind=["tcp://127.0.0.1:0"], keys=server, guard=guard)
    host.start()
    try:
        for name, comes_in in (("ue", True), ("eyes", False), ("stranger", False)):
            links = Links(Curve(pairs[name].public, pairs[name].secret), patience_s=20)
            link = links.to(Hop(host.endpoint, L, server.public))
            if comes_in:
                assert link.ask(Look())[0].report is not None
            else:
                with pytest.raises(HostLost):
                    link.ask(Look())
            links.close()
    finally:
        host.stop()
        guard.close()
