"""Sessions belong to who opened them, and one identity has no more of a host than its part."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases
from hostile_frames import Attacker, asked, generates, opened, refusal

from cosched.api.access import Access, Identity
from cosched.api.zap import Authenticator, new_pair
from cosched.runtime.accounts import REMEMBERED, Accounts, Who
from cosched.runtime.assembly import WaitingRequest
from cosched.runtime.chain import Hop, Links, Route
from cosched.runtime.engine import HostLimits, token_frame
from cosched.runtime.errors import BadFrame, HostLost, HostRefused
from cosched.runtime.generation import Generation
from cosched.runtime.host import LayerHost
from cosched.runtime.kv import KvCache
from cosched.runtime.link import Link
from cosched.runtime.model import ModelSource
from cosched.runtime.parts import Part
from cosched.runtime.protocol import Close, Export, HostAnswer, Import, Look, Onward, Pull, Step, frames_of
from telemetry.bus import Curve
from telemetry.calls import Caller, ServedCall, wait_for

L = cases.LAYERS
FRAMES = int(os.environ.get("COSCHED_HOSTILE_FRAMES", "100000"))  # of the flood
GRANT = "0123456789abcdef"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return cases.seeded(tmp_path_factory.mktemp("model"))


@pytest.fixture
def host(source: ModelSource) -> Iterator[LayerHost]:
    with cases.host_threads(source, 1) as (one,):
        yield one


@pytest.fixture
def link(host: LayerHost) -> Iterator[Link]:
    found = Link(host.endpoint)
    yield found
    found.close()


@pytest.fixture
def other(host: LayerHost) -> Iterator[Link]:
    """A second connection: somebody else."""
    found = Link(host.endpoint)
    yield found
    found.close()


# --- whose session it is -------------------------------------------------------------------------------------------


def test_sessions_are_their_owners_alone(source: ModelSource, link: Link, other: Link) -> None:
    link.ask(opened(source, grant=GRANT))
    link.ask(Step(session="s", position=0, tokens=2), (token_frame([1, 2]),))
    report = other.ask(Look())[0].report
    assert report is not None
    assert report.sessions == {}
    other.ask(opened(source, session="mine"))
    theirs = (
        (Step(session="s", position=2, tokens=1), (token_frame([1]),)),
        (Export(session="s", start=0, stop=L), ()),
        (Export(session="s", start=0, stop=L, grant="f" * 16), ()),
        (Import(session="s", start=0, stop=1), (b"",)),
        (Pull(session="mine", source="s", start=0, stop=L), ()),
        (Pull(session="s", source="mine", start=0, stop=L), ()),
    )
    assert {refusal(other, body, tensors) for body, tensors in theirs} == {"unknown_session"}
    other.ask(Close(session="s"))
    other.ask(opened(source))  # the same name is another session
    answer, _ = link.ask(Step(session="s", position=2, tokens=1, choose=True), (token_frame([3]),))
    assert answer.token == int(cases.reference_steps(source, 1, [1, 2, 3])[0].argmax())


def test_a_grant_lets_run_and_fetch_and_nothing_else(source: ModelSource, link: Link, other: Link) -> None:
    link.ask(opened(source, grant=GRANT))
    assert refusal(other, opened(source, session="x", grant=GRANT)) == "conflict"
    assert refusal(other, opened(source, session="x", grant="short")) == "bad_request"
    other.ask(Step(session="s", position=0, tokens=2, grant=GRANT), (token_frame([1, 2]),))
    assert len(other.ask(Export(session="s", start=0, stop=L, grant=GRANT))[1]) == L
    assert refusal(other, Export(session="t", start=0, stop=L, grant=GRANT)) == "unknown_session"
    other.ask(Close(session="s"))
    link.ask(Step(session="s", position=2, tokens=1), (token_frame([3]),))
    link.ask(Close(session="s"))
    assert refusal(other, Export(session="s", start=0, stop=L, grant=GRANT)) == "unknown_session"


def test_with_keys_sessions_are_the_keys(source: ModelSource) -> None:
    pairs = {name: new_pair(name) for name in ("edge0", "ann", "bob", "root")}
    allowed = [
        Identity(name="ann", public=pairs["ann"].public, role="client", tasks=("ann-*",)),
        Identity(name="bob", public=pairs["bob"].public, role="publisher"),
        Identity(name="root", public=pairs["root"].public, role="operator"),
    ]
    server = Curve(pairs["edge0"].public, pairs["edge0"].secret)
    guard = Authenticator(Access(allowed))
    host = LayerHost("edge0", [source], bind=["tcp://127.0.0.1:0"], keys=server, guard=guard)
    host.start()
    host.load(source.name, 0, L)
    hop, links = Hop(host.endpoint, L, server.public), []

    def come(name: str) -> Link:
        links.append(Links(Curve(pairs[name].public, pairs[name].secret), patience_s=20))
        return links[-1].to(hop)

    try:
        ann, bob = come("ann"), come("bob")
        assert refusal(ann, opened(source, task="bobs")) == "not_allowed"
        ann.ask(opened(source, task="ann-1"))
        links.pop(0).close()
        assert refusal(bob, Export(session="s", start=0, stop=L)) == "unknown_session"
        again = come("ann")  # another connection, the same identity
        again.ask(Step(session="s", position=0, tokens=1), (token_frame([1]),))
        seen = {name: one.ask(Look())[0].report for name, one in (("ann", again), ("bob", bob), ("root", come("root")))}
        assert {name: report.refused_by for name, report in seen.items()} == {
            "ann": {"ann": {"not_allowed": 1}},
            "bob": {"bob": {"unknown_session": 1}},
            "root": {"ann": {"not_allowed": 1}, "bob": {"unknown_session": 1}},
        }
        assert [report.sessions for report in seen.values()] == [{"s": 1}, {}, {}]
        assert host.report().sessions == {"s": 1}
        for key in ("#" * 40, "k" * 39, "a b"):  # the first is 40 characters of Z85, and too great a number
            pull = Pull(session="s", source="x", start=0, stop=1, endpoint="tcp://127.0.0.1:5", server_key=key)
            assert refusal(again, pull) == "bad_route"
    finally:
        for one in links:
            one.close()
        host.stop()
        guard.close()


# --- how much of the host one identity has ---------------------------------------------------------------------------


def test_one_connection_cannot_have_all_sessions_or_all_memory(source: ModelSource) -> None:
    per_token = L * 2 * 2 * 8 * 4
    limits = HostLimits(sessions=6, sessions_each=4, kv_bytes=320 * per_token, kv_bytes_each=208 * per_token)
    with cases.host_threads(source, 1, limits) as (host,):
        greedy, modest = Link(host.endpoint), Link(host.endpoint)
        for i in range(4):
            greedy.ask(opened(source, session=f"g{i}"))
        assert refusal(greedy, opened(source, session="g4")) == "full"
        greedy.ask(Step(session="g0", position=0, tokens=200), (token_frame([1] * 200),))
        assert refusal(greedy, Step(session="g1", position=0, tokens=1), (token_frame([1]),)) == "memory"
        modest.ask(opened(source))
        modest.ask(Step(session="s", position=0, tokens=112), (token_frame([1] * 112),))
        modest.ask(opened(source, session="s2"))
        assert host.report().evicted == 0
        modest.ask(opened(source, session="s3"))  # six are open, but who has less than another may have one of his
        assert refusal(modest, opened(source, session="s4")) == "full"
        assert sorted(host.report().sessions) == ["g0", "g1", "g3", "s", "s2", "s3"]
        modest.ask(Step(session="s", position=112, tokens=1), (token_frame([1]),))  # and so with memory
        assert refusal(greedy, Step(session="g0", position=200, tokens=1), (token_frame([1]),)) == "unknown_session"
        greedy.ask(Step(session="g1", position=0, tokens=150), (token_frame([1] * 150),))
        assert refusal(greedy, Step(session="g3", position=0, tokens=50), (token_frame([1] * 50),)) == "memory"
        assert host.report().evicted == 2
        greedy.close()
        modest.close()


def test_connections_that_come_and_go_do_not_leave_a_host_full(source: ModelSource) -> None:
    with cases.host_threads(source, 1, HostLimits(sessions=8, sessions_each=4)) as (host,):
        for _ in range(5):
            gone = Link(host.endpoint)
            for i in range(4):
                with contextlib.suppress(HostRefused):
                    gone.ask(opened(source, session=f"g{i}"))
            gone.close()
        generates(host, source, cases.reference_tokens_of(source, 3))
        assert host.report().evicted > 0


def test_a_flood_of_requests_costs_the_one_who_sends_it(source: ModelSource) -> None:
    with cases.host_threads(source, 1, HostLimits(requests_per_s=20.0)) as (host,):
        flood, calm = Link(host.endpoint), Link(host.endpoint)
        numbers = [flood.post(Look()) for _ in range(300)]
        codes = []
        for number in numbers:
            try:
                flood.wait(number)
            except HostRefused as error:
                codes.append(error.code)
        assert len(codes) >= 200
        assert set(codes) == {"too_many"}
        report = calm.ask(Look())[0].report
        assert report is not None
        assert report.refused_by == {"connection 1": {"too_many": len(codes)}}
        flood.close()
        calm.close()


def test_names_from_outside_leave_nothing_behind(source: ModelSource) -> None:
    accounts = Accounts(HostLimits(), lambda _: 0)
    for i in range(3 * REMEMBERED):
        accounts.of(Who("", i.to_bytes(5)), 0.0).refused["bad_frame"] += 1
    assert len(accounts) <= REMEMBERED
    assert sum(reasons["bad_frame"] for reasons in accounts.refused().values()) == 3 * REMEMBERED
    assert len(accounts.refused()) < 300
    with cases.host_threads(source, 1, HostLimits(requests_per_s=1e9)) as (host,):
        caller = Caller(host.endpoint)
        attacker = Attacker(source, ["x"], 1)
        for i in range(2_000):
            message = attacker.ask(Step(session=f"nobody{i}", position=0, tokens=1), token_frame([1]))
            assert [a.error for a in asked(caller, message, 20)] == ["unknown_session"]
        caller.close()
        assert host._queue._queue.remembered == 0
        assert len(host.accounts) == 1
        assert len(host.news.take()) <= 2


def test_a_huge_prefill_of_one_does_not_keep_anothers_tokens_waiting(source: ModelSource) -> None:
    """Eight sessions of one identity with all the prefill that it may queue, and one that decodes: turn about."""
    with cases.host_threads(source, 1, HostLimits(batch=1)) as (host,):
        host.apply_weights({"other": 1.0})
        greedy, modest, order, go = Link(host.endpoint), Link(host.endpoint), [], threading.Event()
        modest.ask(opened(source, session="decode"))
        original = host.engine.step

        def recorded(who, asked, frames, now_s):  # noqa: ANN001, ANN202
            go.wait(20)
            order.append(asked.session)
            return original(who, asked, frames, now_s)

        host.engine.step = recorded  # type: ignore[method-assign]
        for i in range(8):
            greedy.ask(opened(source, session=f"g{i}"))
        for i in range(40):
            greedy.post(Step(session=f"g{i % 8}", position=64 * (i // 8), tokens=64), (token_frame([1] * 64),))
        numbers = [
            modest.post(Step(session="decode", position=i, tokens=1, choose=True), (token_frame([i]),))
            for i in range(8)
        ]
        go.set()
        for number in numbers:
            modest.wait(number)
        greedy.close()
        modest.close()
    at = [i for i, session in enumerate(order) if session == "decode"]
    assert at[0] <= 30  # what had been taken in before the first of them arrived
    assert all(b - a <= 2 for a, b in itertools.pairwise(at)), order


def test_a_tasks_weight_is_not_for_whoever_names_it(source: ModelSource) -> None:
    with cases.host_threads(source, 1) as (host,):
        host.apply_weights({"t": 8.0})
        first, second = Link(host.endpoint), Link(host.endpoint)
        first.ask(opened(source))
        second.ask(opened(source))
        assert [host.engine.weight(s) for s in host.engine.sessions] == [8.0, None]
        first.close()
        second.close()


def test_a_weight_that_comes_or_goes_meanwhile_does_not_turn_a_sessions_steps_round(source: ModelSource) -> None:
    host, who = LayerHost("edge0", [source], bind=["tcp://127.0.0.1:0"]), Who("ann")
    host.load(source.name, 0, L)
    host.engine.open(who, opened(source), 0.0)
    (session,) = host.engine.sessions
    for i in range(12):
        host.apply_weights({"t": 0.01} if i // 3 % 2 else {})
        step = Step(session="s", position=i, tokens=1)
        request = WaitingRequest(b"", i, who, step, [token_frame([1])], host.accounts.of(who, 0.0), 4)
        host._enqueue(request, session, 0.0)
    assert [host._queue.next(0.0)[0][0].number for _ in range(12)] == list(range(12))


def test_answers_that_nobody_reads_do_not_pile_up(tmp_path: Path) -> None:
    """A client asks for its KV cache again and again and reads nothing: the host holds two answers' worth at most."""
    source = cases.seeded(tmp_path, max_position_embeddings=8_192)
    size = L * 4_096 * 128
    limits = HostLimits(unread_bytes_each=2 * size, requests_per_s=1e9)
    with cases.host_threads(source, 1, limits) as (host,):
        link = Link(host.endpoint)
        link.ask(opened(source))
        cache, pair = KvCache(), torch.ones(1, 2, 4_096, 8)
        for layer in range(L):
            cache.update(pair, pair, layer)
        link.ask(Import(session="s", start=0, stop=L), [cache.export(layer) for layer in range(L)])
        numbers = [link.post(Export(session="s", start=0, stop=L)) for _ in range(60)]
        most = 0
        while host.report().waiting:
            most = max(most, host.accounts.unread_bytes)
        assert most <= 3 * size
        ends = []
        for number in numbers:
            try:
                ends.append(len(link.wait(number)[1]))
            except HostRefused as error:
                ends.append(error.code)
        assert set(ends) <= {L, "busy"}
        assert L in ends
        link.close()


def test_sessions_nobody_uses_are_closed_and_counted(source: ModelSource) -> None:
    with cases.host_threads(source, 1, HostLimits(idle_s=0.2)) as (host,):
        link = Link(host.endpoint)
        link.ask(opened(source))
        until_s = time.monotonic() + 20
        while host.report().sessions and time.monotonic() < until_s:
            time.sleep(0.02)
        report = link.ask(Look())[0].report
        assert report is not None
        assert (report.sessions, report.expired) == ({}, 1)
        assert refusal(link, Step(session="s", position=0, tokens=1), (token_frame([1]),)) == "unknown_session"
        assert "1 sessions closed: not used for 0.2 s" in host.news.take()
        link.close()


# --- what a host does for the sake of others -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint",
    ["inproc://zeromq.zap.01", "ipc:///run/cosched/control.sock", "tcp://a.name:5", "tcp://127.0.0.1:0", "tcp://*:5",
     "tcp://127.0.0.1:99999", "tcp://127.0.0.1:1;127.0.0.1:2", "udp://127.0.0.1:5"],
)  # fmt: skip
def test_a_client_cannot_have_a_host_connect_anywhere(endpoint: str, source: ModelSource, link: Link) -> None:
    link.ask(opened(source))
    assert refusal(link, Pull(session="s", source="x", start=0, stop=1, endpoint=endpoint)) == "bad_route"
    onward = Onward(endpoint=endpoint, session="x", precision_bits=32)
    link.ask(opened(source, session="far", stop=3, onward=onward))
    assert refusal(link, Step(session="far", position=0, tokens=1), (token_frame([1]),)) == "bad_route"


def test_a_bad_key_or_a_silent_host_costs_others_nothing(source: ModelSource) -> None:
    """Hosts of an attacker that take everything and say nothing: a route of somebody else goes on meanwhile."""
    limits = HostLimits(hosts=3, hosts_each=2)
    silent = [ServedCall() for _ in range(4)]
    for one in silent:
        one.bind(["tcp://127.0.0.1:0"])
    with cases.host_threads(source, 2, limits) as (a, b):
        attacker, links = Link(a.endpoint), Links()
        attacker.ask(opened(source))
        for key in ("#" * 40, "k" * 39, "a b"):
            pull = Pull(session="s", source="x", start=0, stop=1, endpoint=b.endpoint, server_key=key)
            assert refusal(attacker, pull) in {"bad_route", "unknown_session"}  # a plain host has no use for a key
        for one in silent[:2]:
            attacker.post(Pull(session="s", source="x", start=0, stop=1, endpoint=one.endpoints[0]))
        full = Pull(session="s", source="x", start=0, stop=1, endpoint=silent[2].endpoints[0])
        assert refusal(attacker, full) == "full"
        expected = cases.reference_tokens_of(source, 5)
        run = Generation(Part(source), "t", cases.PROMPT, Route(1, (Hop(a.endpoint, 3), Hop(b.endpoint, L)), 32), links)
        assert list(run.stream(5)) == expected
        assert not run.is_local
        run.close()
        links.close()
        attacker.close()
    for one in silent:
        one.close()


def test_a_host_that_answers_nonsense_costs_its_client_a_route_and_no_more() -> None:
    evil = ServedCall()
    evil.bind(["tcp://127.0.0.1:0"])
    link = Link(evil.endpoints[0], patience_s=0.5)
    first = link.post(Look())
    wait_for([evil], 20)
    (call,) = evil.drain()
    for i in range(500):  # answers to what nobody asked
        evil.answer(call.route, frames_of(HostAnswer(id=1_000 + i)))
    with pytest.raises(HostLost, match="has not answered"):
        link.wait(first)
    assert not link._arrived
    link.close()
    link = Link(evil.endpoints[0])
    link.post(Look())
    wait_for([evil], 20)
    (call,) = evil.drain()
    evil.answer(call.route, [b"\x82\xa1x" + b"\x91" * 100_000])
    with pytest.raises(BadFrame, match="nested"):
        link.wait(1)
    link.close()
    evil.close()
