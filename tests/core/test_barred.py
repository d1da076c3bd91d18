"""Nodes that no task may be on: whoever is there is planned elsewhere at once, or ends with a reason."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from core_cases import answer, report
from hypothesis import given, settings
from hypothesis import strategies as st
from two_nodes import TWO, WORK, nodes_of, offer, reasons, serving

from cosched.core.events import Barred, Offered, Progress, Progressed, Shrunk, Tick
from cosched.core.policy import POLICIES
from cosched.core.settings import Settings
from cosched.core.snapshot import Snapshot


def test_the_tasks_of_a_lost_node_are_on_the_other_with_the_next_plan():
    core, _ = serving(n=2)  # on one node: the second reads nothing that is not read anyway
    each = max(float(t.table.node_bytes[t.point]) for t in core.state.tasks.values())
    answer(core, core.handle(Shrunk({"edge0": float(core._node_bytes[0]) - 2.5 * each}), 0.12), 0.12)
    for name in ("t2", "t3"):  # no memory for them there
        answer(core, core.handle(Offered((offer(name, 0.15),)), 0.15), 0.15)
    assert nodes_of(core) == {"t0": "edge0", "t1": "edge0", "t2": "edge1", "t3": "edge1"}
    there = {task for task, node in nodes_of(core).items() if node == "edge0"}
    assert there
    assert there != set(nodes_of(core))
    plans = answer(core, core.handle(Barred(("edge0",)), 0.2), 0.2)
    assert reasons(plans) == dict.fromkeys(there, "moved_node_lost")
    assert set(nodes_of(core).values()) == {"edge1"}
    assert reasons(answer(core, core.handle(Tick(), 0.3), 0.3)) == {}
    answer(core, core.handle(Barred(()), 0.4), 0.4)
    assert set(nodes_of(core).values()) == {"edge1"}  # nobody moves back for nothing
    answer(core, core.handle(Shrunk({}), 0.45), 0.45)
    answer(core, core.handle(Offered((offer("new", 0.5),)), 0.5), 0.5)
    assert nodes_of(core)["new"] == "edge1"  # where weights are read already
    answer(core, core.handle(Barred(("edge1",)), 0.6), 0.6)
    assert set(nodes_of(core).values()) == {"edge0"}
    assert nodes_of(core).keys() == {"t0", "t1", "t2", "t3", "new"}


def test_without_another_node_they_end_and_say_why():
    core, _ = serving("one")
    plans = answer(core, core.handle(Barred(("edge0", "unheard-of")), 0.2), 0.2)
    assert reasons(plans) == {f"t{i}": "node_lost" for i in range(4)}
    assert core.state.tasks == {}
    assert core.handle(Tick(), 0.3) == []
    plans = answer(core, core.handle(Offered((offer("late", 0.4),)), 0.4), 0.4)
    assert reasons(plans) == {"late": "rejected_no_point"}


def test_a_decoder_moves_with_what_it_has_generated():
    core, _ = serving(n=1)
    (home,) = nodes_of(core).values()
    progress = Progress(task="t0", phase=1, done=50, late=0, first_s=0.15, last_s=2.5, ul_bits_left=0.0,
                        node_s_left=0.0, fixed_s_left=0.0)  # fmt: skip
    core.handle(Progressed((progress,)), 2.6)
    (plan,) = answer(core, core.handle(Barred((home,)), 2.6), 2.6)
    assert reasons([plan]) == {"t0": "moved_node_lost"}
    assert core.state.tasks["t0"].progress == progress
    assert plan.promised.all()


@pytest.mark.parametrize(("left_s", "reason"), [(1.0, "moved_node_lost"), (0.1, "node_lost")])
def test_who_is_not_reported_needs_all_of_its_ttft_and_moves_while_some_is_left(left_s: float, reason: str):
    core, _ = serving(n=1)
    (home,) = nodes_of(core).values()
    at_s = 0.1 + WORK.ttft_s - left_s
    assert reasons(answer(core, core.handle(Barred((home,)), at_s), at_s)) == {"t0": reason}


def test_a_solve_that_was_open_is_planned_anew():
    core, _ = serving()
    (tick,) = core.handle(Tick(), 0.2)
    (solve,) = core.handle(Barred(("edge0",)), 0.21)  # nobody waited for the tick's
    assert solve.request != tick.request
    answer(core, [solve], 0.22)
    assert set(nodes_of(core).values()) == {"edge1"}
    newcomer = core.handle(Offered((offer("new", 0.3),)), 0.3)
    assert core.handle(Barred(("edge1",)), 0.31) == []  # somebody waits for this one
    answer(core, newcomer, 0.32)
    answer(core, core.handle(Tick(), 0.4), 0.4)
    assert set(nodes_of(core).values()) == {"edge0"}


@pytest.mark.parametrize("name", ["pf-admit", "greedy", "equal-rate-admit", "compute-only"])
def test_baselines_leave_a_lost_node_too(name: str):
    assert name in POLICIES
    core, _ = serving(n=2, policy=name)
    answer(core, core.handle(Barred(("edge0",)), 0.2), 0.2)
    assert set(nodes_of(core).values()) <= {"edge1"}


def test_another_core_goes_on_without_the_node():
    core, _ = serving()
    answer(core, core.handle(Barred(("edge0",)), 0.2), 0.2)
    snapshot = msgspec.json.decode(msgspec.json.encode(core.snapshot()), type=Snapshot)
    other = TWO.core("joint", Settings())
    assert other.restore(snapshot) == ()
    both = [answer(c, c.handle(Offered((offer("x", 0.3),)), 0.3), 0.3)[0] for c in (core, other)]
    assert both[0].share.tobytes() == both[1].share.tobytes()
    assert set(nodes_of(other).values()) == {"edge1"}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=12), st.integers(0, 99))
def test_no_plan_ever_has_a_task_on_a_barred_node(steps: list[tuple[int, bool, bool]], seed: int):
    core = TWO.core("joint", Settings())
    core.handle(msgspec.structs.replace(report("ue00", 0.0, 4.0), cell="cell0"), 0.0)
    rng, ids, n = np.random.default_rng(seed), ("edge0", "edge1"), 0
    for i, (offered, *gone) in enumerate(steps):
        at = 1.0 + i
        barred = tuple(node for node, is_gone in zip(ids, gone, strict=True) if is_gone)
        plans = answer(core, core.handle(Barred(barred), at), at)
        plans += answer(core, core.handle(Offered(tuple(offer(f"t{n + k}", at) for k in range(offered))), at), at)
        n += offered
        assert not set(nodes_of(core).values()) & set(barred)
        for plan in plans:
            assert set(plan.tasks) == {d.task for d in plan.decisions if d.point >= 0} | (
                set(plan.tasks) & set(core.state.tasks)
            )
        if core.state.tasks and rng.random() < 0.3:
            core.state.remove(str(rng.choice(sorted(core.state.tasks))))
