"""What nodes hold decides what may be planned, and what recent arrivals ask for decides what nodes are to hold."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from core_cases import answer
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import (
    GB,
    LAYERS,
    SITE,
    TIGHT,
    WIDE,
    core_of,
    demand,
    holds,
    homes,
    offer,
    place_of,
    reasons,
    submit,
)

from cosched.config.wiring import plant
from cosched.core.bids import Arrival, life_work
from cosched.core.core import StaleEvent
from cosched.core.events import Barred, Offered, Placed, Progress, Progressed, Tick
from cosched.core.layers import NodeLayers
from cosched.core.placement import arriving, choose, running, stock_of
from cosched.core.settings import Settings
from cosched.core.snapshot import Snapshot
from cosched.errors import BadInput
from cosched.workloads.context import session_memory_bytes, weight_memory_bytes
from solvers.placement import Layers
from telemetry.messages import TaskOffer, VideoClip

# --- what may be planned --------------------------------------------------------------------------------------------


def test_without_word_of_the_nodes_everything_is_open():
    core = core_of(WIDE)
    assert submit(core, 0.1, offer("t0", 0.1), offer("t1", 0.1, "qwen")) == {"t0": "admitted", "t1": "admitted"}


def test_newcomers_go_where_their_layers_are():
    core = core_of(WIDE)
    core.handle(Placed(holds(edge0={"llama": 0}, edge1={"llama": 4})), 0.1)
    assert submit(core, 0.2, offer("q", 0.2, "qwen")) == {"q": "rejected_not_loaded"}
    assert submit(core, 0.3, *(offer(f"t{i}", 0.3) for i in range(6)), offer("p", 0.3, private=True))["p"] == "admitted"
    for task in core.state.tasks:
        node, split = place_of(core, task)
        assert node == "edge0" or split >= 4
    answer(core, core.handle(Placed(holds(edge0={"qwen": 1}, edge1={})), 0.4), 0.4)
    assert submit(core, 0.4, offer("q1", 0.4, "qwen")) == {"q1": "admitted"}
    assert place_of(core, "q1")[1] >= 1


def test_layers_that_are_to_go_serve_those_who_run_there_and_nobody_else():
    core = core_of(WIDE)
    core.handle(Placed(holds(edge0={"llama": 0}, edge1={})), 0.1)
    assert submit(core, 0.2, offer("t0", 0.2)) == {"t0": "admitted"}
    leaving = NodeLayers(node="edge0", holds={"llama": 0}, keeps={}), *holds(edge1={})
    assert core.handle(Placed(leaving), 0.3) == []
    assert reasons(answer(core, core.handle(Tick(), 0.3), 0.3)) == {}
    assert place_of(core, "t0")[0] == "edge0"
    assert submit(core, 0.4, offer("t1", 0.4)) == {"t1": "rejected_not_loaded"}


def test_who_runs_where_layers_vanish_is_planned_elsewhere_or_ends():
    core = core_of(WIDE)
    submit(core, 0.1, *(offer(f"t{i}", 0.1) for i in range(4)))
    home, other = homes(core)
    gone = Placed(holds(**{home: {}, other: {"llama": 0}}))
    there = {task for task in core.state.tasks if place_of(core, task)[0] == home}
    assert reasons(answer(core, core.handle(gone, 0.2), 0.2)) == dict.fromkeys(there, "moved_node_lost")
    plans = answer(core, core.handle(Placed(holds(**{home: {}, other: {"qwen": 0}})), 0.3), 0.3)
    assert reasons(plans) == {f"t{i}": "node_lost" for i in range(4)}


def test_a_solve_comes_to_its_end_while_nodes_load_layer_by_layer():
    core = core_of(WIDE)
    submit(core, 0.1, *(offer(f"t{i}", 0.1) for i in range(4)))
    home, other = homes(core)
    there = {task for task in core.state.tasks if place_of(core, task)[0] == home}
    (late,) = core.handle(Tick(), 0.2)
    for first in (9, 8, 7):
        assert core.handle(Placed(holds(**{other: {"llama": 0, "qwen": first}})), 0.2) == []
    assert len(answer(core, [late], 0.2)) == 1
    (stale,) = core.handle(Tick(), 0.3)
    (solve,) = core.handle(Placed(holds(**{home: {}, other: {"llama": 0}})), 0.3)  # some must go: now
    for first in (3, 2, 1):
        assert core.handle(Placed(holds(**{home: {}, other: {"llama": 0, "qwen": first}})), 0.3) == []
    with pytest.raises(StaleEvent):
        answer(core, [stale], 0.3)
    assert reasons(answer(core, [solve], 0.3)) == dict.fromkeys(there, "moved_node_lost")


def test_who_stays_is_not_gathered_anew_when_other_layers_change():
    core = core_of(WIDE)
    submit(core, 0.1, *(offer(f"t{i}", 0.1) for i in range(4)))
    home, other = homes(core)
    before = {name: task.block(core.state.places) for name, task in core.state.tasks.items()}
    core.handle(Placed(holds(**{home: {"llama": 0}, other: {"llama": 0, "qwen": 30}})), 0.2)
    assert all(task.block(core.state.places) is before[name] for name, task in core.state.tasks.items())
    going = NodeLayers(node=home, holds={"llama": 0}, keeps={})
    core.handle(Placed((going, *holds(**{other: {"llama": 0}}))), 0.3)
    for name, task in core.state.tasks.items():
        stays = place_of(core, name)[0] == other
        assert (task.block(core.state.places) is before[name]) == stays
        assert (task.block(core.state.places).moves is None) == stays


def test_a_clip_needs_no_layers():
    core = core_of(WIDE)
    core.handle(Placed(holds(edge0={}, edge1={})), 0.1)
    clip = TaskOffer(at_ns=0, source="s", seq=0, task="v", ue="ue00",
                     work=VideoClip(frame_flop=60e9, frame_bits=5e5, fps=2.0, deadline_s=0.5, frames=20))  # fmt: skip
    assert submit(core, 0.2, clip) == {"v": "admitted"}


def test_another_core_goes_on_with_the_same_layers():
    core = core_of(WIDE)
    core.handle(Placed(holds(edge0={"llama": 0}, edge1={})), 0.1)
    core.handle(Barred(("edge1",)), 0.1)
    snapshot = msgspec.json.decode(msgspec.json.encode(core.snapshot()), type=Snapshot)
    other = WIDE.core("joint", Settings())
    assert other.restore(snapshot) == ()
    both = [answer(c, c.handle(Offered((offer("x", 0.3), offer("q", 0.3, "qwen"))), 0.3), 0.3) for c in (core, other)]
    assert reasons(both[0]) == reasons(both[1]) == {"x": "admitted", "q": "rejected_not_loaded"}
    assert both[0][0].share.tobytes() == both[1][0].share.tobytes()


first = st.one_of(st.none(), st.dictionaries(st.sampled_from(["llama", "qwen"]), st.integers(0, 9)))


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(first, first, st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_no_plan_has_a_task_on_layers_that_its_node_does_not_hold(steps: list[tuple[dict[str, int] | None, ...]]):
    core = core_of(WIDE)
    for i, (edge0, edge1, *barred) in enumerate(steps):
        at, told = 1.0 + i, {"edge0": edge0, "edge1": edge1}
        gone = {name for name, is_gone in zip(told, barred, strict=True) if is_gone}
        answer(core, core.handle(Barred(tuple(sorted(gone))), at), at)
        nodes = tuple(NodeLayers(node=n, holds=f, keeps=f) for n, f in told.items())
        answer(core, core.handle(Placed(nodes), at), at)
        models = itertools.cycle(LAYERS)
        submit(core, at, *(offer(f"t{i}-{k}", at, next(models), private=k > 1) for k in range(4)))
        for task, held in core.state.tasks.items():
            if held.table.node[held.point] < 0:
                continue
            node, split = place_of(core, task)
            assert node not in gone
            there = told[node]
            assert there is None or split >= there.get(held.model, LAYERS[held.model])


# --- what is to be held ---------------------------------------------------------------------------------------------


def held(found: Sequence[Layers]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {"edge0": {}, "edge1": {}}
    for x in found:
        table[x.node][x.model] = x.first
    return table


def test_the_arithmetic_of_memory_counts_what_is_held():
    stock = stock_of(TIGHT.profiles, {})
    total = {m.id: sum(m.layer_bytes) for m in stock.models}
    for name, served in TIGHT.profiles.models.items():
        assert total[name] == pytest.approx(served.model.weight_bytes(4, TIGHT.profiles.node_devices[0].weight_format))
    assert stock.room_bytes == pytest.approx((6.5 * GB, 6.5 * GB))
    assert not stock.fits
    assert stock_of(WIDE.profiles, {}).fits
    assert sum(stock_of(WIDE.profiles, {}).room_bytes) == pytest.approx(2 * sum(total.values()))
    short = stock_of(WIDE.profiles, {"edge1": 75 * GB})  # its caches had 69 GB, so 6 of what weights take are lacking
    assert short.room_bytes == pytest.approx((sum(total.values()), 5 * GB))
    assert not short.fits
    assert stock.has_room(stock.first_fit())
    assert not stock.has_room(stock.everything())
    assert {x.model for x in stock.first_fit() if x.first == 0} == {"llama", "qwen"}  # not the same on both


def test_who_has_no_room_for_all_says_so_unless_layers_are_placed():
    small = plant(SITE.replace(" MEMORY", ", fraction = 0.1"), "small", {})  # 8 GB
    with pytest.raises(BadInput, match="the models' weights take"):
        session_memory_bytes(small.profiles)
    sessions, weights = session_memory_bytes(small.profiles, placed=True), weight_memory_bytes(small.profiles, {})
    assert sessions + weights == pytest.approx([8 * GB, 8 * GB])
    assert not stock_of(small.profiles, {}).fits
    assert small.core("joint", Settings()).state.tasks == {}


def test_layers_follow_demand_and_stay_where_it_does_not_change():
    stock = stock_of(TIGHT.profiles, {})
    core = core_of(TIGHT)
    now = stock.first_fit()
    assert choose(core.state, core.bids, Settings(), stock, now, {}) is None  # nobody asked
    demand(core, {"llama": 40})
    first_found = choose(core.state, core.bids, Settings(), stock, now, {})
    assert first_found is not None
    assert [held(first_found.layers)[n].get("llama") for n in ("edge0", "edge1")].count(0) >= 1
    again = choose(core.state, core.bids, Settings(), stock, first_found.layers, {})
    assert again is not None
    assert (again.layers, again.moved_bytes) == (first_found.layers, 0.0)
    later = core_of(TIGHT)
    demand(later, {"qwen": 1000})
    old = [x for x in stock.everything() if x.model == "llama"]
    found = choose(later.state, later.bids, Settings(), stock, old, {})
    assert found is not None
    assert all(held(found.layers)[n]["qwen"] <= 4 for n in ("edge0", "edge1"))  # a phone has 8 layers
    assert stock.has_room(found.layers)


def test_a_slow_disk_keeps_layers_where_they_are():
    stock, core = stock_of(TIGHT.profiles, {}), core_of(TIGHT)
    demand(core, {"qwen": 20})
    now = [x for x in stock.everything() if x.model == "llama"]
    slow = choose(core.state, core.bids, Settings(), stock, now, {"edge0": 5e7, "edge1": 1e9})  # 114 s and 6 s
    assert slow is not None
    assert held(slow.layers)["edge0"] == {"llama": 0}
    assert "qwen" in held(slow.layers)["edge1"]


def test_those_who_run_keep_their_layers_against_less_demand():
    stock, core = stock_of(TIGHT.profiles, {}), core_of(TIGHT)
    core.handle(Placed(holds(edge0={"llama": 0}, edge1={})), 0.1)
    submit(core, 0.2, *(offer(f"t{i}", 0.2) for i in range(8)))
    assert {place_of(core, t)[0] for t in core.state.tasks} == {"edge0"}
    (kept,) = {x for d in running(core.state, Settings(), stock) for w in d.ways for x in w.pieces}
    assert (kept.node, kept.model) == ("edge0", "llama")
    demand(core, {"qwen": 4})
    both = [Layers("edge0", "llama", 0, 32), Layers("edge1", "llama", 0, 32)]
    found = choose(core.state, core.bids, Settings(), stock, both, {})
    assert found is not None
    assert "llama" in held(found.layers)["edge0"]
    assert held(found.layers)["edge1"].get("qwen") is not None


@pytest.mark.parametrize("private", [False, True])
def test_demand_is_what_each_arrival_gains_by_the_layers_held(private: bool):
    """Against a plain search over all points of all arrivals."""
    stock, core, ours = stock_of(TIGHT.profiles, {}), core_of(TIGHT), Settings()
    demand(core, {"llama": 3, "qwen": 2}, private=private)
    core._bids.price = np.array([0.3, 0.1, 0.2])
    arrivals = list(core.bids.arrivals)
    span_s = arrivals[-1].at_s - arrivals[0].at_s
    seen = 0  # they are less than the nodes can do
    for found in arriving(core.state, core.bids, ours, stock):
        for way in found.ways:
            (piece,) = way.pieces
            node = ("edge0", "edge1").index(piece.node)
            value = load = 0.0
            for one in (a for a in arrivals if a.offer.work.model == piece.model):
                seconds, alone_s = life_work(core.state.site, one, ours.expected_output)
                best = (0.0, 0.0)
                for j in range(one.table.n_points):
                    late = one.table.fixed_s[j] + alone_s[j] / ours.bid_share > one.table.deadline_s
                    if late.any() or one.table.node[j] != node or one.table.split[j] < piece.first:
                        continue
                    best = max(best, (one.table.quality[j] - 0.3 * seconds[j, 0], -seconds[j, 1 + node]))
                value, load = value + best[0] / span_s, load - best[1] / span_s
            assert way.value_per_s == pytest.approx(value)
            assert way.load == pytest.approx((load,))
            assert piece.first >= int(private)
            seen += 1
    assert seen >= 4


def test_of_more_than_all_nodes_can_do_the_placement_sees_what_they_can():
    """A class is served in parts of a hundredth: of 1000 times what a node can do not even one would fit."""
    stock, core = stock_of(TIGHT.profiles, {}), core_of(TIGHT)
    for i in range(400):
        asked = offer(f"t{i}", 10.0 + 0.05 * i, "qwen")
        asked = msgspec.structs.replace(asked, work=msgspec.structs.replace(asked.work, max_output_tokens=100_000))
        core.bids.note(Arrival(asked.at_ns * 1e-9, asked, core._points(asked, 0, ()), 0, 4.0))
    (found,) = arriving(core.state, core.bids, Settings(), stock)
    assert min(load for way in found.ways for load in way.load) == pytest.approx(2.0)
    chosen = choose(core.state, core.bids, Settings(), stock, stock.first_fit(), {})
    assert chosen is not None
    assert all("qwen" in of_node for of_node in held(chosen.layers).values())


def test_ticks_without_anybody_cost_nothing_after_layers_have_changed():
    core = core_of(WIDE)
    assert core.handle(Placed(holds(edge0={})), 0.1) == []
    assert core.handle(Tick(), 0.2) == []
    progress = Progress(task="nobody", phase=1, done=1, late=0, first_s=0.1, last_s=0.1, ul_bits_left=0.0,
                        node_s_left=0.0, fixed_s_left=0.0)  # fmt: skip
    assert core.handle(Progressed((progress,)), 0.3) == []
