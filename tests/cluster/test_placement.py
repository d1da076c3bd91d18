"""Layers on their way: loaded and given back on a node; what the core is told of it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import msgspec
import pytest
from daemon_cases import a_status
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import TIGHT, WIDE, core_of, demand, offer, place_of, submit

from cosched.api.messages import ClusterNode, ClusterView, LayerRange, PlacementView
from cosched.cli import ctl_tables
from cosched.cluster.executor import InUse, Ledger
from cosched.cluster.follow import NodeFollower
from cosched.cluster.holding import Holding
from cosched.cluster.messages import LayersOrder, NodeNews, Order, Report, runs, single
from cosched.config.settings import load
from cosched.config.wiring import Plant
from cosched.core.layers import NodeLayers
from cosched.daemon.children import placement
from cosched.daemon.children.placement import PlacementQuestion
from cosched.daemon.placing import Placer
from cosched.daemon.store import Store
from cosched.errors import BadInput
from solvers.placement import Layers as Solved

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

    def load(self, layers: LayersOrder) -> None:
        if (layers.model, layers.first) in self.broken:
            raise BadInput("no such tensor")
        if not self.deaf:
            super().load(layers)
        self.done.append(("load", layers.model, layers.first))
        self.most_bytes = max(self.most_bytes, self.in_force().used_bytes)

    def unload(self, layers: LayersOrder) -> None:
        if (layers.model, layers.first) in self.busy:
            raise InUse("1 sessions run on it")
        super().unload(layers)
        self.done.append(("unload", layers.model, layers.first))


def order(*load: LayersOrder, room_bytes: float = 0.0) -> Order:
    return Order(epoch=1, generation=1, who="me", whole=True, load=load, room_bytes=room_bytes)


def keeper(*layers: LayersOrder, room_bytes: float = 0.0) -> tuple[Watched, Holding]:
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
    executor, holding = keeper(LayersOrder("a", 0, 2, 20.0), room_bytes=30.0)
    holding.ask(order(LayersOrder("b", 0, 2, 20.0), room_bytes=30.0))
    holding.settle()
    assert executor.done == [
        ("load", "b", 1), ("unload", "a", 0), ("load", "b", 0), ("unload", "a", 1),
    ]  # fmt: skip
    assert executor.most_bytes == 30.0
    assert not holding.loading


def test_layers_in_use_wait_without_a_fault_and_go_later():
    executor, holding = keeper(LayersOrder("a", 0, 3, 30.0), room_bytes=30.0)
    executor.busy = {("a", 1), ("a", 2)}
    holding.ask(order(LayersOrder("b", 0, 3, 30.0), room_bytes=30.0))
    holding.settle()
    assert held(executor) == {("a", 1), ("a", 2), ("b", 2)}
    assert (holding.loading, holding.waits, holding.failed) == (True, "1 sessions run on it", "")
    executor.busy.clear()
    holding.settle()
    assert held(executor) == {("b", 0), ("b", 1), ("b", 2)}
    assert (holding.loading, holding.waits) == (False, "")


def test_what_does_not_fit_is_said_and_not_loaded():
    executor, holding = keeper(room_bytes=30.0)
    holding.ask(order(LayersOrder("b", 0, 4, 40.0), room_bytes=30.0))
    holding.settle()
    assert held(executor) == {("b", 1), ("b", 2), ("b", 3)}
    assert holding.loading
    assert "no room for layer 0 of b" in holding.waits


def test_a_load_that_fails_or_does_nothing_is_left_for_the_report_to_show():
    executor, holding = keeper()
    executor.broken = {("b", 1)}
    holding.ask(order(LayersOrder("b", 0, 3, 30.0)))
    holding.settle()
    assert held(executor) == {("b", 0), ("b", 2)}
    assert (holding.loading, holding.failed) == (False, "load b: no such tensor")
    executor.broken.clear()
    executor.deaf = True
    holding.ask(order(LayersOrder("b", 0, 3, 30.0)))
    assert (holding.loading, holding.failed) == (True, "")
    holding.settle()
    assert (holding.loading, held(executor)) == (False, {("b", 0), ("b", 2)})


def test_what_failed_and_then_did_not_is_not_reported_any_more():
    executor, holding = keeper()
    executor.broken = {("b", 1)}
    holding.ask(order(LayersOrder("b", 0, 3, 30.0)))
    holding.settle()
    assert holding.failed == "load b: no such tensor"
    executor.broken.clear()
    holding.settle()  # as while others wait
    assert holding.failed == ""
    assert held(executor) == {("b", 0), ("b", 1), ("b", 2)}


def test_what_fails_of_an_older_order_says_nothing_of_the_newer_one():
    class Slow(Watched):
        def load(self, layers: LayersOrder) -> None:
            if layers.model == "b":
                holding.ask(order(LayersOrder("c", 0, 1, 10.0)))  # meanwhile
            super().load(layers)

    executor = Slow()
    executor.broken = {("b", 0)}
    holding = Holding(executor)
    holding.ask(order(LayersOrder("b", 0, 1, 10.0)))
    holding.settle()
    assert (holding.loading, holding.failed) == (True, "")
    holding.settle()
    assert (holding.loading, holding.failed, held(executor)) == (False, "", {("c", 0)})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_executor_that_breaks_its_contract_is_reported_for_good_and_drained():
    class Broken(Ledger):
        def load(self, layers: LayersOrder) -> None:
            raise RuntimeError(f"CUDA out of memory at {layers.first}")

    holding, follower = Holding(Broken("edge0")), NodeFollower(PATIENCE, RETRIES, (LayersOrder("a", 0, 2, 2.0),))
    follower.plan(1, {})
    thread = threading.Thread(target=holding.run, daemon=True)
    outcomes = []
    for i in range(2):
        order = follower.order(1, "me")
        assert order is not None
        holding.ask(order)
        if not i:
            thread.start()
        thread.join(10.0)
        assert not thread.is_alive()
        follower.took(1)
        told = Report(generation=1, sessions={}, loading=holding.loading, failed=holding.failed)
        outcomes += [follower.reported(told) for _ in range(PATIENCE + 1)]
    assert [o.retry for o in outcomes].index(True) == PATIENCE
    assert outcomes[-1].unfit
    assert "CUDA out of memory at 1" in outcomes[-1].why


def test_the_rate_is_the_median_of_the_latest_loads():
    _, holding = keeper(LayersOrder("a", 0, 9, 9e9))
    assert holding.load_bytes_per_s == sorted(holding._rates)[4]
    holding._rates.extend([1.0] * 4)  # four odd ones
    assert holding.load_bytes_per_s > 1e9


def test_a_node_whose_layers_wait_is_not_drained_and_one_that_drops_them_is():
    wanted = (LayersOrder("a", 0, 4, 4.0),)
    follower = NodeFollower(PATIENCE, RETRIES, wanted, 4.0)
    follower.plan(1, {})
    assert follower.order(1, "me") is not None
    follower.took(1)
    waiting = Report(generation=1, sessions={}, layers=(LayersOrder("b", 0, 4, 4.0),), loading=True, waits="1 sessions")
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
    follower, executor = NodeFollower(PATIENCE, RETRIES, room_bytes=room), Watched()
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

    def hold(self, layers: dict[str, tuple[LayersOrder, ...]], room_bytes: dict[str, float]) -> None:
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


def test_a_site_that_is_loaded_anew_is_placed_before_its_nodes_are_told(tmp_path: Path):
    ends = Ends(WIDE)
    placer = placer_of(ends, tmp_path)
    ends.plant, ends.to_hold = TIGHT, {}
    placer.adopt()
    assert ends.to_hold == {"edge0": {"llama": 0}, "edge1": {"qwen": 0}}
    assert all(room > 0 for room in ends.room_bytes.values())


@pytest.mark.parametrize("says", ["", "hello", "x" * 100_000, None])
def test_a_process_that_gives_no_answer_costs_an_answer_and_no_more(tmp_path: Path, says: str | None):
    """None: it cannot even be started."""
    ends = Ends(TIGHT)
    placer, program = placer_of(ends, tmp_path), tmp_path / "program"
    if says is not None:
        program.write_text(f"#!/bin/sh\nprintf '%s\\n' {says}\n")
        program.chmod(0o700)

    async def ask() -> placement.PlacementAnswer:
        return await placer._ask(placer._question())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.executable", str(program))
        assert asyncio.run(ask()).why == "the process that decides it gave no answer"


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
    question = msgspec.msgpack.decode(msgspec.msgpack.encode(placer._question()), type=PlacementQuestion)
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
