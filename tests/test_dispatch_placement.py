"""Layers on their way: loaded and given back on a node, and on a real Ray cluster whose demand changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from daemon_cases import Place, Radio, a_status, cosched, radio, until
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core_placement import TIGHT, WIDE, core_of, demand, offer, place_of, submit

from cosched.build import Plant
from cosched.cli import ctl_tables
from cosched.client import Client
from cosched.control_messages import ClusterNode, ClusterView, LayerRange, Lease, PlacementView
from cosched.core.layers import NodeLayers
from cosched.drivers import placement
from cosched.drivers.dispatch.executor import InUse, Ledger
from cosched.drivers.dispatch.follow import Follower
from cosched.drivers.dispatch.holding import Holding
from cosched.drivers.dispatch.messages import Layers, NodeNews, Order, Report, runs, single
from cosched.drivers.placement import Question
from cosched.drivers.placing import Placer
from cosched.drivers.store import Store
from cosched.errors import BadInput
from cosched.settings import load
from solvers.placement import Layers as Solved
from telemetry.messages import LlmSession

if TYPE_CHECKING:
    from cosched.runtime.chain import Route

PATIENCE, RETRIES = 2, 1


class Watched(Ledger):
    """Writes down what is done, and does not all of it."""

    def __init__(self) -> None:
        super().__init__("edge0")
        self.done: list[tuple[str, str, int]] = []
        self.busy: set[tuple[str, int]] = set()
        self.broken: set[tuple[str, int]] = set()
        self.deaf = False
        self.most_bytes = 0.0

    def load(self, layers: Layers) -> None:
        if (layers.model, layers.first) in self.broken:
            raise BadInput("no such tensor")
        if not self.deaf:
            super().load(layers)
        self.done.append(("load", layers.model, layers.first))
        self.most_bytes = max(self.most_bytes, self.in_force().used_bytes)

    def unload(self, layers: Layers) -> None:
        if (layers.model, layers.first) in self.busy:
            raise InUse("1 sessions run on it")
        super().unload(layers)
        self.done.append(("unload", layers.model, layers.first))


def order(*load: Layers, room_bytes: float = 0.0) -> Order:
    return Order(epoch=1, generation=1, who="me", whole=True, load=load, room_bytes=room_bytes)


def keeper(*layers: Layers, room_bytes: float = 0.0) -> tuple[Watched, Holding]:
    executor = Watched()
    holding = Holding(executor)
    holding.ask(order(*layers, room_bytes=room_bytes))
    assert holding.loading
    holding.settle()
    assert not holding.loading
    executor.done.clear()
    executor.most_bytes = 0.0
    return executor, holding


def held(executor: Watched) -> set[tuple[str, int]]:
    return {*single(executor.in_force().layers)}


def test_what_comes_is_there_before_what_goes_where_there_is_room():
    executor, holding = keeper(Layers("a", 0, 2, 20.0), room_bytes=30.0)
    holding.ask(order(Layers("b", 0, 2, 20.0), room_bytes=30.0))
    holding.settle()
    assert executor.done == [
        ("load", "b", 1), ("unload", "a", 0), ("load", "b", 0), ("unload", "a", 1),
    ]  # fmt: skip
    assert executor.most_bytes == 30.0
    assert not holding.loading


def test_layers_in_use_wait_without_a_fault_and_go_later():
    executor, holding = keeper(Layers("a", 0, 3, 30.0), room_bytes=30.0)
    executor.busy = {("a", 1), ("a", 2)}
    holding.ask(order(Layers("b", 0, 3, 30.0), room_bytes=30.0))
    holding.settle()
    assert held(executor) == {("a", 1), ("a", 2), ("b", 2)}
    assert (holding.loading, holding.waits, holding.failed) == (True, "1 sessions run on it", "")
    executor.busy.clear()
    holding.settle()
    assert held(executor) == {("b", 0), ("b", 1), ("b", 2)}
    assert (holding.loading, holding.waits) == (False, "")


def test_what_does_not_fit_is_said_and_not_loaded():
    executor, holding = keeper(room_bytes=30.0)
    holding.ask(order(Layers("b", 0, 4, 40.0), room_bytes=30.0))
    holding.settle()
    assert held(executor) == {("b", 1), ("b", 2), ("b", 3)}
    assert holding.loading
    assert "no room for layer 0 of b" in holding.waits


def test_a_load_that_fails_or_does_nothing_is_left_for_the_report_to_show():
    executor, holding = keeper()
    executor.broken = {("b", 1)}
    holding.ask(order(Layers("b", 0, 3, 30.0)))
    holding.settle()
    assert held(executor) == {("b", 0), ("b", 2)}
    assert (holding.loading, holding.failed) == (False, "load b: no such tensor")
    executor.broken.clear()
    executor.deaf = True
    holding.ask(order(Layers("b", 0, 3, 30.0)))
    assert (holding.loading, holding.failed) == (True, "")
    holding.settle()
    assert (holding.loading, held(executor)) == (False, {("b", 0), ("b", 2)})


def test_the_rate_is_the_median_of_the_latest_loads():
    _, holding = keeper(Layers("a", 0, 9, 9e9))
    assert holding.load_bytes_per_s == sorted(holding._rates)[4]
    holding._rates.extend([1.0] * 4)  # four odd ones
    assert holding.load_bytes_per_s > 1e9


def test_a_node_whose_layers_wait_is_not_drained_and_one_that_drops_them_is():
    wanted = (Layers("a", 0, 4, 4.0),)
    follower = Follower(PATIENCE, RETRIES, wanted, 4.0)
    follower.plan(1, {})
    assert follower.order(1, "me") is not None
    follower.took(1)
    waiting = Report(generation=1, sessions={}, layers=(Layers("b", 0, 4, 4.0),), loading=True, waits="1 sessions")
    assert not any(follower.reported(waiting).retry for _ in range(50))
    dropped = [follower.reported(Report(generation=1, sessions={})) for _ in range(PATIENCE + 1)]
    assert dropped[-1].retry
    assert dropped[-1].why == "4 layers are not as acknowledged (layer 0 of a, for one)"


layers_of_two = st.sets(st.tuples(st.sampled_from("ab"), st.integers(0, 3)))


@settings(max_examples=80, deadline=None)
@given(st.lists(layers_of_two, min_size=1, max_size=6), st.sets(st.integers(0, 5)), layers_of_two)
def test_orders_bring_layers_to_what_was_asked_last(
    wanted: list[set[tuple[str, int]]], crashed: set[int], busy: set[tuple[str, int]]
):
    """crashed: a new actor took over before these; layers in use are never given back, and room is never exceeded."""
    room = 8.0
    follower, executor = Follower(PATIENCE, RETRIES, room_bytes=room), Watched()
    holding = Holding(executor)
    for i, layers in enumerate(wanted):
        if i in crashed:
            executor = Watched()
            holding = Holding(executor)
            follower.fresh()
        executor.busy = held(executor) & busy
        follower.layers = runs(dict.fromkeys(layers, 1.0))
        follower.plan(i + 1, {})
        if (one := follower.order(1, "me")) is not None:
            holding.ask(one)
            holding.settle()
            follower.took(one.generation)
        assert held(executor) == layers | executor.busy
        assert executor.most_bytes <= room
        report = Report(generation=follower.acknowledged, sessions={}, layers=executor.in_force().layers,
                        loading=holding.loading)  # fmt: skip
        assert follower.reported(report).why == ""
        executor.busy.clear()
        holding.settle()
        assert held(executor) == layers


# --- between nodes and core -----------------------------------------------------------------------------------------


class Ends:
    """What a Placer speaks to: it writes down what nodes are to hold and what the core is told."""

    def __init__(self, place: Plant) -> None:
        self.plant, self.core = place, core_of(place)
        self.nodes: dict[str, NodeNews] = {}
        self.fenced_by = ""
        self.room_bytes: dict[str, float] = {}
        self.to_hold: dict[str, dict[str, int]] = {}
        self.told: list[tuple[NodeLayers, ...]] = []

    def hold(self, layers: dict[str, tuple[Layers, ...]], room_bytes: dict[str, float]) -> None:
        self.room_bytes = room_bytes
        self.to_hold = {node: {x.model: x.first for x in found} for node, found in layers.items()}

    def placed(self, nodes: tuple[NodeLayers, ...]) -> None:
        self.told.append(nodes)

    def report(self, node: str, *, loading: bool = False, **first: int) -> None:
        ends = {"llama": 32, "qwen": 36}
        layers = tuple(LayerRange(model=m, first=k, last=ends[m]) for m, k in first.items())
        self.nodes[node] = NodeNews(node=node, state="up", orders=1, layers=layers, loading=loading)


def placer_of(ends: Ends, folder: Path) -> Placer:
    cluster = msgspec.structs.replace(load(environ={}).settings.cluster, placement="on")
    return Placer(cluster, ends, ends, Store(folder / "state.sqlite"))  # type: ignore[arg-type]


def test_the_core_is_told_what_nodes_report_once_they_do(tmp_path: Path):
    ends = Ends(TIGHT)
    placer = placer_of(ends, tmp_path)
    assert (ends.to_hold["edge0"]["llama"], ends.to_hold["edge1"]["qwen"]) == (0, 0)
    placer.refresh()
    assert ends.told == []  # nothing is known: all is open
    ends.report("edge0", loading=True, llama=20)
    placer.refresh()
    (edge0,) = ends.told[-1]
    assert (edge0.holds, edge0.keeps) == (None, {"llama": 20})  # nobody is stranded yet
    ends.report("edge0", llama=0, qwen=34)
    placer.refresh()
    (edge0,) = ends.told[-1]
    assert edge0.holds == {"llama": 0, "qwen": 34}
    assert edge0.keeps == {"llama": 0}  # the other is not to stay
    said = len(ends.told)
    placer.refresh()
    assert len(ends.told) == said  # nothing new
    ends.nodes["edge0"] = NodeNews(node="edge0", state="lost")
    placer.refresh()
    (edge0,) = ends.told[-1]
    assert (edge0.holds, edge0.keeps) == ({}, {})


def test_layers_that_a_session_runs_on_are_held_besides_what_was_chosen(tmp_path: Path):
    ends = Ends(TIGHT)
    submit(ends.core, 0.1, *(offer(f"t{i}", 0.1, "qwen") for i in range(12)))
    node, _ = place_of(ends.core, "t0")
    least = min(place_of(ends.core, t)[1] for t in ends.core.state.tasks if place_of(ends.core, t)[0] == node)
    placer = placer_of(ends, tmp_path)
    placer._chosen = tuple(Solved(n, "llama", 0, 32) for n in ("edge0", "edge1"))
    placer._tell()
    assert ends.to_hold == {"edge0": {"llama": 0}, "edge1": {"llama": 0}}  # it is not there: nothing to keep
    ends.report(node, qwen=0)
    placer._tell()
    assert ends.to_hold[node] == {"llama": 0, "qwen": least}
    for task in list(ends.core.state.tasks):
        ends.core.state.remove(task)
    placer._tell()
    assert ends.to_hold[node] == {"llama": 0}


def test_where_there_is_room_for_all_everything_is_held(tmp_path: Path):
    ends = Ends(WIDE)
    placer_of(ends, tmp_path)
    assert ends.to_hold == {node: {"llama": 0, "qwen": 0} for node in ("edge0", "edge1")}
    assert ends.room_bytes["edge0"] > 10e9


def test_a_question_has_an_answer_of_the_same_kind_and_rates_go_with_it(tmp_path: Path):
    ends = Ends(TIGHT)
    demand(ends.core, {"qwen": 60})
    placer = placer_of(ends, tmp_path)
    placer._chosen = tuple(Solved(n, "llama", 0, 32) for n in ("edge0", "edge1"))
    for node, rate in (("edge0", 2e9), ("edge1", 0.0)):
        ends.report(node, llama=0)
        ends.nodes[node] = msgspec.structs.replace(ends.nodes[node], load_bytes_per_s=rate)
    question = msgspec.msgpack.decode(msgspec.msgpack.encode(placer._question()), type=Question)
    assert question.load_bytes_per_s == {"edge0": 2e9}
    found = placement.answer(question)
    assert found.why == ""
    assert "qwen" in {model for _, model, _, _ in found.layers}
    slow = msgspec.structs.replace(question, load_bytes_per_s={"edge0": 1e7, "edge1": 1e7})  # ten minutes
    assert "qwen" not in {model for _, model, _, _ in placement.answer(slow).layers}
    assert placement.answer(msgspec.structs.replace(question, site_toml="v = 2")).why != ""


def test_status_shows_what_is_held_and_what_it_waits_for(capsys: pytest.CaptureFixture[str]):
    node = ClusterNode(
        node="edge0", state="up", layers=(LayerRange(model="a", first=2, last=6),), waits="2 sessions run on them",
        load_bytes_per_s=1.5e9,
    )  # fmt: skip
    cluster = ClusterView(mode="local", state="connected", nodes=(node,), placement=PlacementView(state="chosen"))
    ctl_tables.status(a_status(cluster=cluster))
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("edge0 ")]
    assert line.split() == ["edge0", "a", "2-5", "none", "0", "1.5", "2", "sessions", "run", "on", "them"]


# --- on Ray ---------------------------------------------------------------------------------------------------------

SITE = """
v = 1
name = "two"
cells = [{ id = "cell0", ul_prbs = 273, scs_khz = 30 }]
nodes = [
  { id = "edge0", device = "a100", memory_bytes = MEMORY },
  { id = "edge1", device = "a100", memory_bytes = MEMORY },
]
models = [
  { id = "llama", config = "FOLDER/llama.json", weight_bits = 16, activation_bits = [16] },
  { id = "qwen3", config = "FOLDER/qwen3.json", weight_bits = 16, activation_bits = [16] },
]
[ues]
count = 8
devices = [{ device = "phone", share = 1.0, max_layers = 1 }]
[mix]
model = "llama"
"""
ROOM = 1.2  # models that a node has room for


LONG, SHORT = 20_000, 200  # tokens


def work(model: str, tokens: int = LONG) -> LlmSession:
    return LlmSession(
        model=model, context_tokens=0, new_tokens=37, max_output_tokens=tokens, ttft_s=30.0, tpot_s=0.5, private=True
    )


def two_models(folder: Path) -> Path:
    """Checkpoints of two small models, and a site whose nodes have no room for both."""
    import runtime_cases as cases

    from cosched.profiles.device import load_device
    from cosched.profiles.model import load_model

    sizes = []
    for family in ("llama", "qwen3"):
        cases.checkpoint(cases.seeded(folder, family), folder / "models" / family)
        sizes.append(load_model(str(folder / f"{family}.json")).weight_bytes(16))
    memory = load_device("a100").memory_bytes - ROOM * max(sizes)
    text = SITE.replace("FOLDER", str(folder)).replace("MEMORY", f"{memory:.1f}")
    (folder / "site.toml").write_text(text)
    return folder / "site.toml"


def nodes(client: Client) -> dict[str, ClusterNode]:
    return {n.node: n for n in client.status().cluster.nodes}


def whole(client: Client, model: str) -> set[str]:
    """Nodes that hold all layers of a model but those that every device has."""
    found = nodes(client).values()
    return {n.node for n in found if any(x.model == model and x.first <= 1 and x.last == 6 for x in n.layers)}


@contextmanager
def asked_for(client: Client, channel: Radio, model: str, tokens: int = LONG) -> Iterator[None]:
    """Tasks of a model arrive, three a second, and are released as soon as they are decided."""
    ended = threading.Event()

    def ask() -> None:
        n = 0
        with Client(client.endpoint, timeout_s=60) as mine:
            while not ended.wait(0.3):
                channel.report(*[3.0] * 8)
                mine.submit(f"{model}-{n}", f"ue{n % 4}", work(model, tokens))
                mine.release(f"{model}-{n}")
                n += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Runner:
    """A generation that follows its lease from node to node."""

    def __init__(self, client: Client, lease: Lease, folder: Path) -> None:
        from runtime_cases import PROMPT

        from cosched.runtime.chain import Links
        from cosched.runtime.generation import Generation
        from cosched.runtime.model import open_model
        from cosched.runtime.parts import Part

        self.client, self.task, self.node = client, lease.task, lease.node
        self.links, self.moves = Links(), list[str]()
        part = Part(open_model(folder / "models" / "llama", name="llama"))
        self.run = Generation(part, lease.task, PROMPT, self.route(lease), self.links)

    def route(self, lease: Lease) -> Route:
        from runtime_cases import LAYERS

        from cosched.runtime.chain import Hop, Route

        return Route(lease.split_layer, (Hop(lease.node_endpoint, LAYERS),), 32)

    def advance(self) -> None:
        """A token, on the node that the lease says by now."""
        lease = self.client.show(self.task).lease
        if lease.node != self.node:
            self.moves.append(self.run.resplit(self.route(lease)).how)
            self.node = lease.node
        self.run.advance()

    def end(self) -> list[int]:
        """All its tokens."""
        self.run.close()
        self.links.close()
        self.client.release(self.task)
        return self.run.output


def one_on_each_node(client: Client, folder: Path) -> tuple[Runner, Runner]:
    """Sessions on both nodes, and none besides."""
    leases: dict[str, Lease] = {}
    for i in range(20):
        lease = client.submit(f"runner{i}", "ue5", work("llama"))
        assert lease.reason == "admitted"
        if leases.setdefault(lease.node, lease) is not lease:
            client.release(lease.task)
        if len(leases) == 2:
            break
    first, second = (Runner(client, lease, folder) for lease in leases.values())
    return first, second


@pytest.mark.slow
def test_layers_follow_demand_on_ray_while_sessions_run_on(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra [llm] is not installed")
    from runtime_cases import reference_tokens

    own = {"SITE": str(two_models(tmp_path)), "CLUSTER_MODE": "local", "CLUSTER_EXECUTOR": "host",
           "CLUSTER_PLACEMENT_S": "0.5", "CORE_BID_WINDOW_S": "6.0", "TELEMETRY_STALE_UE_S": "1000",
           "TELEMETRY_STALE_INPUT_S": "1000"}  # fmt: skip
    place = Place(tmp_path, own, extra={"COSCHED_HOST_MODELS": str(tmp_path / "models")})
    with ExitStack() as stack:
        daemon = stack.enter_context(place.daemon())
        client = stack.enter_context(daemon.ready())
        channel = stack.enter_context(radio(place, client, 8))
        until(lambda: client.status().cluster.state == "connected", 120)
        assert client.status().cluster.placement.state == "chosen"
        until(lambda: whole(client, "llama") | whole(client, "qwen3") == {"edge0", "edge1"}, 120)  # one each

        with asked_for(client, channel, "llama"):  # more than one node can do
            until(lambda: whole(client, "llama") == {"edge0", "edge1"})
        both = one_on_each_node(client, tmp_path)
        with asked_for(client, channel, "qwen3", SHORT):  # one node can do it: its session moves to the other
            while not whole(client, "qwen3"):
                for runner in both:
                    runner.advance()
        assert len({runner.node for runner in both}) == 1
        moved, stayed = sorted(both, key=lambda runner: not runner.moves)
        assert (moved.moves, stayed.moves) == (["migrated"], [])
        assert client.show(moved.task).lease.reason == "moved"

        with asked_for(client, channel, "qwen3"):  # more than one node can do: the other waits for its sessions
            while not nodes(client)[stayed.node].waits:
                for runner in both:
                    runner.advance()
            assert whole(client, "llama") == {stayed.node}
            assert all(n.state == "up" and not n.retries for n in nodes(client).values())
            for runner in both:
                runner.advance()
            expected = reference_tokens(tmp_path, "llama", 60)
            for runner in both:
                found = runner.end()
                assert found[:60] == expected[: len(found)]
            until(lambda: whole(client, "qwen3") == {"edge0", "edge1"})
        assert all(n.load_bytes_per_s > 0 for n in nodes(client).values())
        reasons = client.status().reasons
        assert "rejected_not_loaded" in reasons
        assert not {"node_lost", "moved_node_lost"} & {*reasons}
        assert daemon.stop()[0] == 0
    done = cosched("verify", *map(str, place.captures))
    assert done.returncode == 0, done.stdout + done.stderr
