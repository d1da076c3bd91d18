"""Memory that a node really has: what is made of reports, what the core makes of that, and a daemon that is told."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from core_cases import answer
from daemon_cases import Place, cosched, radio, until
from hypothesis import given
from hypothesis import strategies as st
from two_nodes import NODES, ONE, TWO, WORK, nodes_of, offer, serving

from cosched.api.messages import RayNode
from cosched.cluster import capacity
from cosched.cluster.dispatcher import Dispatcher
from cosched.cluster.messages import NodeNews, Update
from cosched.config.settings import load
from cosched.core.core import Core
from cosched.core.events import Offered, Shrunk, Tick
from cosched.core.settings import Settings
from cosched.daemon.cluster_link import ClusterLink
from cosched.daemon.store import Store
from telemetry.messages import NodeReport

H100 = TWO.profiles.node_devices[0].memory_bytes
SLICE = NODES.replace('{ id = "edge0", device = "h100" }', '{ id = "edge0", device = "h100", fraction = 0.25 }')
GB = 1e9


def news(node: str, memory_bytes: float = 0.0, ray: RayNode | None = None) -> NodeNews:
    return NodeNews(node=node, state="up", memory_bytes=memory_bytes, ray=ray)


def agent(node: str, gpu_memory_bytes: float | None) -> NodeReport:
    return NodeReport(at_ns=time.monotonic_ns(), source=f"agent/{node}", seq=0, node=node,
                      gpu_memory_bytes=gpu_memory_bytes)  # fmt: skip


def link(folder: Path) -> ClusterLink:
    """Of a daemon that has reached no cluster."""
    cluster = msgspec.structs.replace(load(environ={}).settings.cluster, mode="join", address="127.0.0.1:1")
    return ClusterLink(
        cluster, TWO, Store(folder / "state.sqlite"), 0.1, folder / "note", lambda: None, lambda *_: None
    )


def test_what_the_link_remembers_does_not_grow(tmp_path: Path):
    """Agents of other sites report, and tasks come and go while no cluster is reached."""
    found = link(tmp_path)
    for name in ("edge0", "nobody", "else"):
        found.heard(agent(name, 1e9))
    assert set(found.short_bytes) == {"edge0"}
    assert set(found._agents) == {"edge0"}
    core, plan = serving(n=1)
    for i in range(1, 6):
        core.state.remove(f"t{i - 1}")
        (plan,) = answer(core, core.handle(Offered((offer(f"t{i}", 0.1),)), 0.1), 0.1)
        found.plan(plan, core.state.tasks)
        assert set(found._fresh) == set(found._known) == {f"t{i}"}
    found.nothing(9)
    assert not found._fresh


def test_a_plans_paces_promises_and_steps_come_to_its_nodes(tmp_path: Path):
    """From the plan by the daemon's link to what the dispatcher orders of each node."""
    found = link(tmp_path)
    core, plan = serving(n=3)
    found.plan(plan, core.state.tasks)
    assert found._newest is not None
    begin = found._begin()
    dispatcher = Dispatcher(begin, lambda _: None)
    for update in (
        msgspec.structs.replace(found._newest, assigned=tuple(found._fresh.values())),
        (found.nothing(plan.generation + 1), found._newest)[1],
    ):
        dispatcher.update(msgspec.msgpack.decode(msgspec.msgpack.encode(update), type=Update))
        for i, node in enumerate(dispatcher._nodes):
            order = node.follower.order(1, "me")
            assert order is not None
            rows = [row for row, at in enumerate(plan.node) if at == i] if update.tasks else []
            step_s = float(plan.step_s[i]) if update.tasks and np.isfinite(plan.step_s[i]) else 0.0
            assert order.step_s == step_s
            told = {s.task: (s.pace_s, s.priority) for s in order.hold}
            assert told == {plan.tasks[row]: (plan.pace_s[row], int(plan.promised[row])) for row in rows}
        if update.tasks:
            assert any(node.follower.step_s > 0 for node in dispatcher._nodes)


# --- what is made of reports ----------------------------------------------------------------------------------------

reports = st.one_of(st.just(0.0), st.floats(1.0, 2 * H100))


@given(reports, st.one_of(st.none(), reports))
def test_the_least_that_is_said_counts_where_it_is_less_than_the_site_says(executor: float, of_agent: float | None):
    told = [b for b in (executor, of_agent) if b]
    found = capacity.short_bytes(TWO.profiles, {"edge0": news("edge0", executor)}, {"edge0": agent("edge0", of_agent)})
    lacks = H100 - min(told, default=H100)
    assert found == ({"edge0": lacks} if lacks > 0 else {})
    notice = capacity.memory_notice(TWO.profiles, {"edge0": news("edge0", executor)}, {})
    assert bool(notice) == (0 < executor < 0.9 * H100)


def test_a_slice_lacks_its_part_and_a_node_that_the_site_does_not_have_nothing():
    from cosched.config.wiring import plant

    sliced = plant(SLICE, "sliced", {})
    found = capacity.short_bytes(sliced.profiles, {"edge0": news("edge0", H100 / 2)}, {"nobody": agent("nobody", 1.0)})
    assert found == {"edge0": H100 / 8}


def test_a_ray_node_without_a_gpu_is_named_where_the_site_says_one():
    bare, card = (RayNode(id="1", address="10.0.0.1", gpus=gpus) for gpus in (0.0, 1.0))
    found = capacity.without_gpu(TWO.profiles, {"edge0": news("edge0", ray=bare), "edge1": news("edge1", ray=card)})
    assert found == ["edge0: the site says h100, and its Ray node has no GPU"]
    assert capacity.without_gpu(TWO.profiles, {"edge0": news("edge0")}) == []  # no Ray node: that is said elsewhere


# --- what the core makes of it --------------------------------------------------------------------------------------


def session_bytes(core: Core) -> float:
    (task, *_) = core.state.tasks.values()
    return float(task.table.node_bytes[task.point])


def room(core: Core) -> float:
    """Memory for sessions on a node, as planned before anything is known of it."""
    return float(core._node_bytes[0])


def test_newcomers_fit_in_the_memory_that_is_there():
    core, _ = serving("one", n=1)
    each, whole = session_bytes(core), room(core)
    answer(core, core.handle(Shrunk({"edge0": whole - 2.5 * each}), 0.2), 0.2)
    plans = answer(core, core.handle(Offered(tuple(offer(f"n{i}", 0.3) for i in range(4))), 0.3), 0.3)
    assert len(core.state.tasks) == 2
    refused = [d for p in plans for d in p.decisions if d.point < 0]
    assert {str(d.reason) for d in refused} == {"rejected_no_capacity"}
    assert {d.binding for d in refused} == {"edge0/mem"}
    answer(core, core.handle(Shrunk({}), 0.4), 0.4)  # the site was right after all
    answer(core, core.handle(Offered((offer("late", 0.5),)), 0.5), 0.5)
    assert len(core.state.tasks) == 3


def test_who_runs_on_memory_that_is_not_there_keeps_no_promise_beyond_it_and_a_replay_agrees():
    twins = [serving("two")[0] for _ in range(2)]
    whole = room(twins[0])
    seen = []
    for core in twins:
        plans = answer(core, core.handle(Shrunk({"edge0": whole + GB}), 0.2), 0.2)
        plans += answer(core, core.handle(Tick(), 0.3), 0.3)
        seen.append([(p.tasks, p.promised.tolist(), p.planned_use.tolist()) for p in plans])
    assert seen[0] == seen[1]
    tasks, promised, _ = seen[0][-1]
    held = nodes_of(twins[0])
    assert not any(promised[tasks.index(name)] for name, node in held.items() if node == "edge0")
    assert all(promised[tasks.index(name)] for name, node in held.items() if node == "edge1")


def test_a_successor_plans_with_the_memory_that_was_known():
    core, _ = serving("one", n=1)
    each = session_bytes(core)
    answer(core, core.handle(Shrunk({"edge0": room(core) - 1.5 * each, "gone": 1.0}), 0.2), 0.2)
    fresh = ONE.core("joint", Settings())
    assert fresh.restore(core.snapshot()) == ()
    assert fresh.snapshot() == core.snapshot()
    for one in (core, fresh):
        answer(one, one.handle(Offered((offer("late", 0.3),)), 0.3), 0.3)
        assert "late" not in one.state.tasks
    np.testing.assert_array_equal(core.state.prices, fresh.state.prices)


# --- a daemon that is told ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_daemon_plans_with_the_gpu_memory_that_an_agent_reports_and_verify_agrees(tmp_path: Path):
    (tmp_path / "site.toml").write_text(NODES)
    place = Place(tmp_path, {"SITE": f"{tmp_path}/site.toml", "TELEMETRY_STALE_UE_S": "1000",
                             "TELEMETRY_STALE_INPUT_S": "1000"})  # fmt: skip
    with place.daemon() as daemon, daemon.ready() as client, radio(place, client, 4) as source:
        assert client.submit("before", "ue0", WORK).reason == "admitted"
        for node in ("edge0", "edge1"):  # weights fit, and next to nothing else
            source.send(agent(node, 5.5 * GB))
        until(lambda: any(a.startswith("capacity: edge0 has 5.5 GB") for a in client.status().alarms))
        until(lambda: client.submit("after", "ue1", WORK).reason == "rejected_no_capacity")
        status = client.status()
        assert status.mode == "STEADY"  # it is a notice: the plan knows
        assert "edge1 has 5.5 GB of memory, the site's h100 " in status.alarms[0]
        assert daemon.stop()[0] == 0
    done = cosched("verify", *map(str, place.captures))
    assert done.returncode == 0, done.stdout + done.stderr
