"""Layers on their way: loaded and given back on a node, and on a real Ray cluster whose demand changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from daemon_cases import Place, Radio, cosched, radio, until
from hypothesis import given, settings
from hypothesis import strategies as st

from cosched.client import Client
from cosched.control_messages import ClusterNode
from cosched.drivers.dispatch.executor import InUse, Ledger
from cosched.drivers.dispatch.follow import Follower
from cosched.drivers.dispatch.holding import Holding
from cosched.drivers.dispatch.messages import Layers, Order, Report, runs, single
from cosched.errors import BadInput
from telemetry.messages import LlmSession

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


def work(model: str, tokens: int = 20_000) -> LlmSession:
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
def asked_for(client: Client, channel: Radio, model: str) -> Iterator[None]:
    """Tasks of a model arrive, three a second, and are released as soon as they are decided."""
    ended = threading.Event()

    def ask() -> None:
        n = 0
        with Client(client.endpoint, timeout_s=60) as mine:
            while not ended.wait(0.3):
                channel.report(*[3.0] * 8)
                mine.submit(f"{model}-{n}", f"ue{n % 4}", work(model))
                mine.release(f"{model}-{n}")
                n += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
def test_layers_follow_demand_on_ray_while_sessions_run_on(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra [llm] is not installed")
    import runtime_cases as cases

    from cosched.runtime.chain import Hop, Links, Route
    from cosched.runtime.generation import Generation
    from cosched.runtime.model import open_model
    from cosched.runtime.parts import Part

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

        with asked_for(client, channel, "llama"):
            until(lambda: whole(client, "llama") == {"edge0", "edge1"})
        lease = client.submit("runner", "ue5", work("llama"))
        assert lease.reason == "admitted"
        source = open_model(tmp_path / "models" / "llama", name="llama")
        links = Links()
        stack.callback(links.close)
        route = Route(lease.split_layer, (Hop(lease.node_endpoint, cases.LAYERS),), 32)
        run = Generation(Part(source), "runner", cases.PROMPT, route, links)
        other = {"edge0": "edge1", "edge1": "edge0"}[lease.node]
        with asked_for(client, channel, "qwen3"):
            while whole(client, "qwen3") != {other}:  # as soon as demand for the first is forgotten
                run.advance()
            for _ in range(20):
                run.advance()
            assert "llama" in {x.model for x in nodes(client)[lease.node].layers}
            assert all(n.state == "up" and not n.retries for n in nodes(client).values())
            expected = cases.reference_tokens(tmp_path, "llama", 40)
            assert run.output[:40] == expected[: len(run.output[:40])]
            assert client.show("runner").lease.node == lease.node
            run.close()
            client.release("runner")
            until(lambda: whole(client, "qwen3") == {"edge0", "edge1"})
        there = nodes(client)
        assert all(n.load_bytes_per_s > 0 for n in there.values())
        assert client.status().reasons.get("node_lost", 0) == 0
        assert "rejected_not_loaded" in client.status().reasons
        assert daemon.stop()[0] == 0
    done = cosched("verify", *map(str, place.captures))
    assert done.returncode == 0, done.stdout + done.stderr
