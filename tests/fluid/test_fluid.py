"""The fluid execution model against hand-made cases and an independent simulation in small steps."""

from __future__ import annotations

import numpy as np
import pytest

from cosched.core.commands import Plan
from cosched.fluid.world import ChannelTruth, World
from cosched.site import Cell, DeviceShare, Node, Site, Ues
from cosched.workloads.base import Floats, PointTable
from telemetry.messages import LlmSession, TaskOffer, VideoClip

SITE = Site(
    v=1,
    name="t",
    cells=(Cell(id="c", ul_prbs=50, scs_khz=15),),  # 9 MHz
    nodes=tuple(Node(id=f"n{k}", device="a100") for k in range(4)),
    models=(),
    ues=Ues(count=1, devices=(DeviceShare(device="phone", share=1.0),)),
)
HZ = 9e6


Phases = tuple[float, float]


def row(values: Phases) -> Floats:
    return np.array([values], dtype=np.float64)


def table(
    device: Phases, bits: Phases, flight: Phases, prefill_s: float = 0.0, step: Phases = (0.0, 0.0), node: int = 0
) -> PointTable:
    """One way to serve a session; step: the shared and the own part of the step of a token."""
    return PointTable(
        point_ids=("p",),
        split=np.array([1]),
        precision_bits=np.array([16]),
        node=np.array([node]),
        quality=np.ones(1),
        fixed_s=row(device) + row(flight),
        device_s=row(device),
        ul_bits=row(bits),
        node_s=row((prefill_s, 0.0)),
        node_bytes=np.zeros(1),
        device_energy_j=np.zeros((1, 2)),
        deadline_s=np.array([1.0, 0.1]),
        rate_hz=np.ones(2),
        step_s=row(step),
    )


def session(task: str, tpot_s: float = 1e-3) -> TaskOffer:
    """Nobody is ahead of 1 ms a token: who is would not start a step (test_nodes.py)."""
    work = LlmSession(model="m", context_tokens=0, new_tokens=1, max_output_tokens=99, ttft_s=1.0, tpot_s=tpot_s)
    return TaskOffer(at_ns=0, source="s", seq=0, task=task, ue="u", work=work)


def clip(task: str, fps: float, frames: int) -> TaskOffer:
    work = VideoClip(frame_flop=1e9, frame_bits=1e6, fps=fps, deadline_s=1 / fps, frames=frames)
    return TaskOffer(at_ns=0, source="s", seq=0, task=task, ue="u", work=work)


def constant(*efficiency: float) -> ChannelTruth:
    return ChannelTruth(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0), np.array(efficiency))


def weights(names: list[str], prbs: list[float], node: list[float]) -> Plan:
    share = np.stack([np.array(prbs) / 50, np.array(node), np.zeros(len(names))], axis=1)
    return Plan(
        generation=1, at_s=0.0, valid_until_s=1.0, tasks=tuple(names), point=np.zeros(len(names), dtype=np.int64),
        cell=np.zeros(len(names), dtype=np.int64), node=np.zeros(len(names), dtype=np.int64),
        share=share, node_weight=np.array(node), pace_s=np.zeros(len(names)), wait_s=np.zeros((len(names), 2)),
        step_s=np.full(4, np.inf), period_s=np.full(4, np.inf), prbs=np.array(prbs),
        promised=np.ones(len(names), dtype=bool), reserved=np.zeros_like(share),
        planned_use=np.zeros(9),
        efficiency=np.ones(len(names)), variance=np.zeros(9), prices=np.zeros(9), value=0.0, bound=0.0, decisions=(),
    )  # fmt: skip


def test_a_lone_session_takes_the_sum_of_its_stages():
    world = World(SITE, constant(2.0))
    world.start(session("a"), table((0.01, 0.002), (1.8e6, 1.8e5), (0.02, 0.01), 0.05, (0.003, 0.001)), 0, 0, 0, 6)
    ((name, served),) = world.advance(5.0)
    first = 0.01 + 1.8e6 / (2 * HZ) + 0.02 + 0.05
    token = 0.002 + 1.8e5 / (2 * HZ) + 0.01 + 0.004
    assert name == "a"
    assert served.done == 6
    assert served.first_s == pytest.approx(first, abs=1e-9)
    assert served.last_s == pytest.approx(first + 5 * token, abs=1e-9)
    assert served.node_busy_s == pytest.approx(0.05 + 5 * 0.004, abs=1e-9)
    assert world.used_cell[0] == pytest.approx((1.8e6 + 5 * 1.8e5) / (2 * HZ), abs=1e-9)


def test_weights_share_the_uplink_and_what_is_unused_flows_on():
    world = World(SITE, constant(1.0))
    upload = table((0.0, 0.0), (9e6, 0.0), (0.0, 0.0))
    for name in "ab":
        world.start(session(name), upload, 0, 0, 0, 1)
    world.apply(weights(["a", "b"], [30.0, 10.0], [0.5, 0.5]))
    ends = {name: served.last_s for name, served in world.advance(10.0)}
    # 3 : 1 until a is done at 4/3 s; then b has sent a third and has the cell to itself
    assert ends["a"] == pytest.approx(4 / 3, abs=1e-9)
    assert ends["b"] == pytest.approx(4 / 3 + 2 / 3, abs=1e-9)


def test_a_frame_that_is_late_is_dropped_and_the_next_one_starts_at_its_release():
    world = World(SITE, constant(1.0))
    # 9 Mbit at 9 Mbit/s are 1 s, the deadline is 0.5 s: every frame is dropped at its deadline
    world.start(clip("v", 2.0, 4), table((0.0, 0.0), (9e6, 0.0), (0.0, 0.0)), 0, 0, 0, 4)
    ((_, served),) = world.advance(10.0)
    assert (served.done, served.late) == (0, 4)
    world = World(SITE, constant(4.0))
    world.start(clip("v", 2.0, 4), table((0.0, 0.0), (9e6, 0.0), (0.0, 0.0)), 0, 0, 0, 4)
    ((_, served),) = world.advance(10.0)
    assert (served.done, served.late) == (4, 0)
    assert served.last_s == pytest.approx(3 * 0.5 + 0.25, abs=1e-9)


def test_the_channel_changes_when_the_truth_says_so():
    truth = ChannelTruth(np.array([0.5]), np.array([0]), np.array([3.0]), np.array([1.0]))
    world = World(SITE, truth)
    world.start(session("a"), table((0.0, 0.0), (9e6, 0.0), (0.0, 0.0)), 0, 0, 0, 1)
    ((_, served),) = world.advance(2.0)
    assert served.last_s == pytest.approx(0.5 + 0.5 / 3, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_against_an_independent_simulation_in_small_steps(seed: int):
    """Each has a node to himself: how nodes serve several is test_nodes.py's."""
    rng = np.random.default_rng(seed)
    efficiency = rng.uniform(0.5, 3, size=4)
    world = World(SITE, constant(*efficiency))
    names, tables, units, prbs, node = [], [], [], [], []
    for i in range(4):
        device, flight = rng.uniform(0.001, 0.02, 2), rng.uniform(0.001, 0.02, 2)
        prefill_s, *step = rng.uniform(0.001, 0.03, 3).tolist()
        tables.append(table(device, rng.uniform(1e4, 1e6, 2), flight, prefill_s, (step[0], step[1]), node=i))
        names.append(f"t{i}")
        units.append(int(rng.integers(1, 8)))
        prbs.append(float(rng.integers(1, 20)))
        node.append(float(rng.uniform(0.05, 0.4)))
        world.start(session(names[i]), tables[i], 0, 0, i, units[i])
    world.apply(weights(names, prbs, node))
    ends = {name: served.last_s for name, served in world.advance(60.0)}
    expected = _slow(tables, units, prbs, efficiency, 1e-5)
    for i, name in enumerate(names):
        assert ends[name] == pytest.approx(expected[i], rel=2e-3, abs=2e-3)


def _slow(tables: list[PointTable], units: list[int], prbs: list[float], efficiency: Floats, dt: float) -> list[float]:
    """Take fixed steps in plain Python: who is in which stage gets its weighted share."""
    stages = []  # per task: list of [kind, work left]
    for t, n in zip(tables, units, strict=True):
        todo = []
        for u in range(n):
            q = 0 if u == 0 else 1
            flight = t.fixed_s[0, q] - t.device_s[0, q]
            todo += [["d", t.device_s[0, q]], ["u", t.ul_bits[0, q]], ["d", flight], ["n", t.least_s[0, q]]]
        stages.append(todo)
    now, ends = 0.0, [None] * len(tables)
    while any(e is None for e in ends):
        air = sum(prbs[i] for i, s in enumerate(stages) if s and s[0][0] == "u")
        for i, s in enumerate(stages):
            if not s:
                continue
            rate = {"d": 1.0, "u": efficiency[i] * HZ * prbs[i] / air if air else 0, "n": 1.0}
            s[0][1] -= rate[s[0][0]] * dt
        now += dt
        for i, s in enumerate(stages):
            if s and s[0][1] <= 0:
                s.pop(0)
                if not s:
                    ends[i] = now
    return ends


def test_the_same_advance_in_one_go_or_in_many_pieces():
    ends = []
    for pieces in (1, 37):
        world = World(SITE, constant(1.5, 0.7))
        for i, name in enumerate("ab"):
            world.start(
                session(name), table((0.01, 0.002), (1e6, 1e5), (0.02, 0.01), 0.05, (0.003, 0.001)), 0, 0, i, 20
            )
        world.apply(weights(["a", "b"], [5.0, 10.0], [0.2, 0.3]))
        done = {}
        for k in range(pieces):
            done |= {name: served.last_s for name, served in world.advance(20.0 * (k + 1) / pieces)}
        ends.append(done)
    assert ends[0] == pytest.approx(ends[1], abs=1e-9)
