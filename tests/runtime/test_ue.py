"""A UE under a lease: it moves when the lease does, and past its lease or without its host it does what it promised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases
from daemon_cases import until

from cosched.api.messages import Lease
from cosched.errors import BadInput
from cosched.runtime.chain import Hop, Links
from cosched.runtime.errors import CannotContinue
from cosched.runtime.follow import Following, point_of, route_of
from cosched.runtime.generation import Generation
from cosched.runtime.host import LayerHost
from cosched.runtime.model import ModelSource
from cosched.runtime.parts import Part
from cosched.runtime.ue import UeSession
from telemetry.bus import DecisionSocket, Follower
from telemetry.messages import Message, TaskProgress, TaskTiming
from telemetry.wire import Intake, encode

L = cases.LAYERS
TOPIC = b"decision/t1"


@dataclass
class Board:
    """The daemon's end: publishes leases of task t1; the UE's clock stands still until it is moved."""

    decisions: DecisionSocket = field(default_factory=DecisionSocket)
    now_s: float = 0.0
    plan: int = 0

    def lease(self, point: str, split: int, node: str, bits: int = 32, **other: object) -> Lease:
        self.plan += 1
        lease = Lease(
            at_ns=0, source="cosched", seq=self.plan, task="t1", plan=self.plan, reason="admitted", point=point,
            split_layer=split, precision_bits=bits, node=node, valid_for_ms=1000.0, bandwidth_hz=1e7,
            efficiency_bps_hz=2.0,
        )  # fmt: skip
        return msgspec.structs.replace(lease, **other)

    def publish(self, following: Following, lease: Lease) -> None:
        """Publish and wait until it has arrived."""
        self.decisions.send(TOPIC, msgspec.json.encode(lease))
        until(lambda: following.look().plan == lease.plan)


@contextmanager
def board() -> Iterator[tuple[Board, Callable[[Lease], Following]]]:
    made, followers = Board(), []
    made.decisions.bind(["tcp://127.0.0.1:0"])

    def follow(first: Lease) -> Following:
        followers.append(Follower(made.decisions.endpoints[0], [TOPIC]))
        until(lambda: TOPIC in made.decisions.subscribed()[0])
        return Following(first, followers[-1], clock=lambda: made.now_s)

    try:
        yield made, follow
    finally:
        for follower in followers:
            follower.close()
        made.decisions.close()


@dataclass
class World:
    """Two hosts, the daemon's end, and a UE session that began on the first lease."""

    board: Board
    following: Following
    hosts: list[LayerHost]
    session: UeSession
    sent: list[Message]

    @property
    def output(self) -> list[int]:
        return self.session.generation.output

    def to(self, lease: Lease) -> None:
        self.board.publish(self.following, lease)


@contextmanager
def world(source: ModelSource, *, max_layers: int = L, **lease: object) -> Iterator[World]:
    with cases.host_threads(source, 2) as hosts, board() as (made, follow):
        nodes = {f"edge{i}": Hop(host.endpoint, L) for i, host in enumerate(hosts)} | {"dead": dead()}
        following = follow(made.lease("k=2", 2, "edge0", **lease))
        links, sent = Links(), []
        route = route_of(point_of(following.lease), nodes, L)
        run = Generation(
            Part(source), "t1", cases.PROMPT, route, links, chunk_tokens=cases.CHUNK, max_layers=max_layers
        )
        yield World(made, following, hosts, UeSession(run, following, nodes, sent.append, patience_s=0.3), sent)
        run.close()
        links.close()


def dead() -> Hop:
    """Return an endpoint at which nobody listens any more."""
    gone = DecisionSocket()
    gone.bind(["tcp://127.0.0.1:0"])
    endpoint = gone.endpoints[0]
    gone.close()
    return Hop(endpoint, L)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return cases.seeded(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    return cases.reference_tokens(tmp_path_factory.mktemp("model"), "llama", 30)


def test_it_moves_when_the_lease_does(source: ModelSource, expected: list[int]) -> None:
    with world(source) as w:
        moves = {5: ("k=4", 4, "edge1"), 10: ("k=0", 0, "edge0"), 15: ("local", L, ""), 20: ("k=1", 1, "edge1")}
        for token in w.session.tokens(30):
            assert token == w.output[-1]
            if move := moves.get(len(w.output)):
                w.to(w.board.lease(*move))
        assert w.output == expected
        assert [(c.tokens, c.point) for c in w.session.changes] == [(n, m[0]) for n, m in moves.items()]
        assert w.session.generation.route.split == 1


def test_a_renewed_lease_moves_nothing(source: ModelSource, expected: list[int]) -> None:
    with world(source) as w:
        for _ in w.session.tokens(10):
            w.board.now_s += 0.9  # three leases would be over by now
            w.to(w.board.lease("k=2", 2, "edge0"))
        assert w.output == expected[:10]
        assert w.session.changes == []


def test_past_its_lease_it_goes_on_alone_and_comes_back_with_the_next(source: ModelSource, expected: list[int]) -> None:
    with world(source) as w:
        for _ in w.session.tokens(30):
            if len(w.output) == 5:
                w.board.now_s = 1.5
            if len(w.output) == 10:
                assert w.session.generation.is_local
                w.to(w.board.lease("k=3", 3, "edge1"))
        assert w.output == expected
        assert [(c.tokens, c.point) for c in w.session.changes] == [(5, "local"), (10, "k=3")]


def test_the_daemon_ends_the_lease(source: ModelSource, expected: list[int]) -> None:
    with world(source) as w:
        for _ in w.session.tokens(12):
            if len(w.output) == 4:
                w.to(w.board.lease("", -1, "", reason="stale", valid_for_ms=0.0))
        assert w.output == expected[:12]
        assert [(c.tokens, c.point, c.how) for c in w.session.changes] == [(4, "local", "its lease is over (stale)")]


def test_keep_and_drop_do_as_they_say(source: ModelSource, expected: list[int]) -> None:
    with world(source, fallback="keep") as w:
        for _ in w.session.tokens(10):
            w.board.now_s = 5.0
        assert w.output == expected[:10]
        assert not w.session.generation.is_local
    with world(source, fallback="drop") as w:
        next(w.session.tokens(10))
        w.board.now_s = 5.0
        with pytest.raises(CannotContinue, match="after 1 tokens: its lease is over"):
            next(w.session.tokens(10))


def test_a_device_that_cannot_go_on_alone_says_so(source: ModelSource) -> None:
    with world(source, max_layers=3) as w:
        list(w.session.tokens(3))
        w.board.now_s = 5.0
        with pytest.raises(CannotContinue, match=r"after 3 tokens: .*this device holds 3 of 6 layers"):
            next(w.session.tokens(10))


@pytest.mark.parametrize("helped", [True, False])
def test_a_lost_host_costs_no_token(helped: bool, source: ModelSource, expected: list[int]) -> None:
    """Another lease comes in time, or the device goes on alone and does not go back to the host that was lost."""
    with world(source) as w:
        for _ in w.session.tokens(30):
            if len(w.output) == 7:
                w.hosts[0].stop()
                if helped:
                    w.board.decisions.send(TOPIC, msgspec.json.encode(w.board.lease("k=4", 4, "edge1")))
            if len(w.output) == 9:
                assert w.session.generation.is_local != helped
        assert w.output == expected
        assert len(w.session.changes) == 1


def test_a_node_that_cannot_be_reached_is_not_moved_to(source: ModelSource, expected: list[int]) -> None:
    with world(source) as w:
        for _ in w.session.tokens(12):
            if len(w.output) == 4:
                w.to(w.board.lease("k=1", 1, "dead"))
        assert w.output == expected[:12]
        (change,) = w.session.changes
        assert change.how.startswith("not taken: the host at tcp://")
        assert w.session.generation.route.split == 2


def test_a_node_without_an_endpoint_is_named(source: ModelSource) -> None:
    with world(source) as w:
        w.to(w.board.lease("k=1", 1, "cloud"))
        with pytest.raises(BadInput, match="node 'cloud' of the lease has no endpoint; give --node"):
            next(w.session.tokens(3))


def test_a_lease_says_where_its_node_serves(source: ModelSource, expected: list[int]) -> None:
    with world(source) as w:
        for _ in w.session.tokens(12):
            if len(w.output) == 4:
                w.to(w.board.lease("k=1", 1, "new", node_endpoint=w.hosts[1].endpoint))
        assert w.output == expected[:12]
        assert [change.how for change in w.session.changes] == ["migrated"]
        assert w.session.generation.route.split == 1


def test_what_it_reports_is_taken_by_the_daemon(source: ModelSource) -> None:
    with world(source) as w:
        for _ in w.session.tokens(12):
            if len(w.output) == 6:
                w.to(w.board.lease("k=4", 4, "edge1"))
        w.session.finish()
    progress = [m for m in w.sent if isinstance(m, TaskProgress)]
    assert [m.seq for m in progress] == list(range(len(progress)))
    assert (progress[0].done, progress[-1].done, progress[-1].finished) == (0, 12, True)
    first, second = (m for m in w.sent if isinstance(m, TaskTiming))
    assert (first.point, first.tokens, second.point, second.tokens) == ("k=2", 5, "k=4", 5)
    assert first.ttft_s is not None
    assert second.ttft_s is None
    for timing in (first, second):
        assert timing.tpot_s is not None
        assert timing.device_token_s is not None
        assert timing.node_token_s is not None
        assert 0 < timing.device_token_s + timing.node_token_s < timing.tpot_s
    assert first.device_prefill_s is not None
    assert first.node_prefill_s is not None
    assert 0 < first.device_prefill_s < first.ttft_s
    intake = Intake()
    for message in w.sent:
        topic, payload = encode(message)
        assert intake.decode(topic, payload) == message
