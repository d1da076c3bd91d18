"""Nodes that serve in steps: against plain Python (tests/helpers/plain_nodes.py), and what must hold of any step."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from plain_nodes import Job, PlainNode, PlainWorld, Row

from cosched.core.commands import Plan
from cosched.fluid import nodes as steps
from cosched.fluid.world import ChannelTruth, Served, World
from cosched.site import Cell, DeviceShare, ModelRef, Node, Site, Ues
from cosched.workloads.base import PointTable
from telemetry.messages import LlmSession, TaskOffer, VideoClip

HZ = (9e6, 18e6)
BACKGROUND = (0.0, 0.2)  # of the nodes
SITE = Site(
    v=1,
    name="t",
    cells=(Cell(id="c0", ul_prbs=50, scs_khz=15), Cell(id="c1", ul_prbs=50, scs_khz=30, background_fraction=0.1)),
    nodes=tuple(Node(id=f"n{k}", device="a100", background_fraction=b) for k, b in enumerate(BACKGROUND)),
    models=(ModelRef(id="m0", config="llama-3-8b"), ModelRef(id="m1", config="llama-3-8b")),
    ues=Ues(count=3, devices=(DeviceShare(device="phone", share=1.0),)),
)
SECONDS = 4.0


def offer_of(job: Job) -> TaskOffer:
    if job.is_clip:
        work: LlmSession | VideoClip = VideoClip(
            frame_flop=1e9, frame_bits=1e6, fps=1 / job.period_s, deadline_s=job.deadline_s, frames=job.units
        )
    else:
        work = LlmSession(
            model=f"m{job.model}", context_tokens=0, new_tokens=1, max_output_tokens=999, ttft_s=job.deadline_s,
            tpot_s=job.period_s,
        )  # fmt: skip
    return TaskOffer(at_ns=0, source="s", seq=0, task=job.name, ue=f"ue{job.ue}", work=work)


def table_of(job: Job) -> PointTable:
    device, flight = np.array([job.device_s]), np.array([job.flight_s])
    return PointTable(
        point_ids=("p",),
        split=np.ones(1, dtype=np.int64),
        precision_bits=np.zeros(1, dtype=np.int64),
        node=np.array([job.node]),
        quality=np.ones(1),
        fixed_s=device + flight,
        device_s=device,
        ul_bits=np.array([job.bits]),
        node_s=np.array([[job.node_s, 0.0]]),
        node_bytes=np.zeros(1),
        device_energy_j=np.zeros((1, 2)),
        deadline_s=np.array([job.deadline_s, job.period_s]),
        rate_hz=np.ones(2),
        step_s=np.array([[job.shared_s, job.own_s]]),
    )


def plan_of(jobs: list[Job], planned_s: tuple[float, float]) -> Plan:
    n = len(jobs)
    share = np.array([[job.prbs / 50, 0.0, 0.0] for job in jobs]).reshape(n, 3)
    return Plan(
        generation=1, at_s=0.0, valid_until_s=1.0, tasks=tuple(job.name for job in jobs),
        point=np.zeros(n, dtype=np.int64), cell=np.array([job.cell for job in jobs]), share=share,
        node_weight=share[:, 1], node=np.array([job.node for job in jobs], dtype=np.int64), pace_s=np.ones(n),
        wait_s=np.zeros((n, 2)), step_s=np.array(planned_s), period_s=np.full(2, np.inf),
        prbs=np.array([job.prbs for job in jobs]), promised=np.array([job.is_promised for job in jobs], dtype=bool),
        reserved=np.zeros_like(share), efficiency=np.ones(n), planned_use=np.zeros(6), variance=np.zeros(6),
        prices=np.zeros(6), value=0.0, bound=0.0, decisions=(),
    )  # fmt: skip


def new_world(efficiency: list[float]) -> World:
    none = np.zeros(0)
    return World(SITE, ChannelTruth(none, none.astype(np.int64), none, np.array(efficiency)))


def new_plain(efficiency: list[float], planned_s: tuple[float, float]) -> PlainWorld:
    nodes = [PlainNode(t, 1.0 - b) for t, b in zip(planned_s, BACKGROUND, strict=True)]
    return PlainWorld(nodes, list(HZ), [1.0, 0.9], efficiency)


def start(world: World, job: Job) -> None:
    world.start(offer_of(job), table_of(job), 0, job.cell, job.ue, job.units)


def random_job(rng: np.random.Generator, name: str, *, own_s: float = 0.006) -> Job:
    """A clip, a session that its node serves alone (k = 0) or a split one."""
    is_clip, is_split = bool(rng.random() < 0.25), bool(rng.random() < 0.5)
    period_s = float(rng.choice([0.1, 0.2, 0.25]) if is_clip else rng.uniform(0.02, 0.15))
    asks = 1.0 if is_split else 0.0
    device_s, flight_s = rng.uniform(0.001, 0.02, 2), rng.uniform(0.001, 0.01, 2)
    return Job(
        name=name,
        is_clip=is_clip,
        ue=int(rng.integers(3)),
        cell=int(rng.integers(2)),
        node=int(rng.integers(2)),
        device_s=(float(device_s[0]) * (is_clip or is_split), float(device_s[1]) * asks),
        bits=(float(rng.uniform(1e4, 4e5)), float(rng.uniform(1e3, 4e4)) * asks),
        flight_s=(float(flight_s[0]), float(flight_s[1]) * asks),
        node_s=float(rng.uniform(0.002, 0.08)),
        shared_s=0.0 if is_clip else float(rng.uniform(0.004, 0.012)),
        own_s=0.0 if is_clip else float(rng.uniform(0.0005, own_s)),
        model=int(rng.integers(2)),
        deadline_s=period_s if is_clip else float(rng.uniform(0.05, 1.0)),
        period_s=period_s,
        units=int(rng.integers(1, 60)),
        prbs=float(rng.integers(1, 20)),
        is_promised=bool(rng.random() < 0.8),
    )


def assert_same(served: Served | None, row: Row | None, name: str) -> None:
    assert (served is None) == (row is None), name
    if served is None or row is None:
        return
    assert (served.done, served.late) == (row["done"], row["late"]), name
    assert served.first_s == pytest.approx(row["first"], abs=1e-9, nan_ok=True), name
    assert served.last_s == pytest.approx(row["last"], abs=1e-9), name


def assert_same_now(world: World, plain: PlainWorld) -> None:
    """Everybody who runs is equally far."""
    found = {p.task: p for p in world.progress()}
    rows = {row["job"].name: row for row in plain.rows if row["stage"] != "out"}
    assert found.keys() == rows.keys()
    for name, row in rows.items():
        p = found[name]
        assert (p.done, p.late) == (row["done"], row["late"]), name
        assert p.first_s == pytest.approx(row["first"], abs=1e-9, nan_ok=True), name
        assert p.last_s == pytest.approx(row["last"], abs=1e-9), name


def run_both(
    jobs: list[Job], at_s: list[float], planned_s: tuple[float, float], efficiency: list[float], look_s: list[float]
) -> tuple[World, PlainWorld]:
    """Execute jobs that come at these instants in both; look at everybody's progress at others."""
    world, plain = new_world(efficiency), new_plain(efficiency, planned_s)
    world.apply(plan_of([], planned_s))
    ended: dict[str, Served] = {}
    for now, job in sorted([*zip(at_s, jobs, strict=True), *((t, None) for t in look_s)], key=lambda x: x[0]):
        ended |= dict(world.advance(now))
        plain.advance(now)
        assert_same_now(world, plain)
        if job is not None:
            start(world, job)
            plain.start(job)
            world.apply(plan_of(jobs, planned_s))
    for job in jobs:
        assert_same(ended.get(job.name), plain.ended.get(job.name), job.name)
    return world, plain


@pytest.mark.parametrize("seed", range(60))
def test_against_plain_python(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = [random_job(rng, f"t{i}") for i in range(int(rng.integers(1, 12)))]
    lengths = [0.012, 0.02, 0.03, 0.06, math.inf]
    planned_s = (float(rng.choice(lengths)), float(rng.choice(lengths)))
    at_s = [0.0, *rng.uniform(0.0, 1.0, len(jobs) - 1).tolist()]
    look_s = [*rng.uniform(0.0, SECONDS, 12).tolist(), SECONDS, 60.0]
    world, plain = run_both(jobs, at_s, planned_s, rng.uniform(0.5, 3.0, 3).tolist(), look_s)
    for k, node in enumerate(plain.nodes):
        figures = world.figures[k]
        assert figures[steps.STEPS] == len(node.steps)
        assert figures[steps.LENGTH_S] == pytest.approx(sum(length for length, _, _ in node.steps), abs=1e-9)
        assert figures[steps.SEQUENCES] == sum(n for _, n, _ in node.steps)
        assert world.used_node[k] == pytest.approx(node.busy_s, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_decoders_make_no_step_longer_than_planned_and_pieces_beside_them_only_by_their_part(seed: int) -> None:
    """Whoever is alone in a step takes up to 18 ms of 30 ms; pieces are in a hurry, but get 0.3 at most."""
    rng = np.random.default_rng(seed)
    jobs = [random_job(rng, f"t{i}") for i in range(12)]
    at_s = rng.uniform(0.0, 1.0, len(jobs)).tolist()
    world, plain = run_both(jobs, at_s, (0.03, 0.03), rng.uniform(0.5, 3.0, 3).tolist(), [60.0])
    most_s, batches = 0.03 * (1 + 1e-9), 0.0
    for figures, node in zip(world.figures, plain.nodes, strict=True):
        assert figures[steps.OVER] == 0
        for length, _, of_pieces in node.steps:
            assert length - of_pieces <= most_s
            assert length <= most_s or of_pieces <= 0.3 * most_s
            assert length <= 1.3 * most_s
        assert figures[steps.LENGTH_S] <= 1.3 * most_s * figures[steps.STEPS]
        batches = max(batches, figures[steps.SEQUENCES] / max(figures[steps.STEPS], 1))
    assert batches > 1, "steps serve several"


@pytest.mark.parametrize("seed", range(20))
def test_only_a_sequence_that_fits_into_no_step_makes_one_longer_and_it_is_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = [dataclasses.replace(random_job(rng, f"t{i}", own_s=0.02), is_promised=False) for i in range(10)]
    at_s = rng.uniform(0.0, 0.5, len(jobs)).tolist()
    world, plain = run_both(jobs, at_s, (0.018, 0.018), rng.uniform(0.5, 3.0, 3).tolist(), [60.0])
    longer = 0
    for k, node in enumerate(plain.nodes):
        over = [(length, n, of_pieces) for length, n, of_pieces in node.steps if length > 0.018 * (1 + 1e-9)]
        far = sum(length > (1 + steps.MOST_RESERVED) * 0.018 * (1 + 1e-9) for length, _, _ in over)
        assert world.figures[k, steps.OVER] == far, "pieces might have made it so long otherwise"
        for length, n, of_pieces in over:
            assert (n, of_pieces) == (1, 0.0)
            alone = [j.shared_s + j.own_s for j in jobs if j.node == k and not j.is_clip]
            assert length == pytest.approx(min(alone, key=lambda s: abs(s - length)), abs=1e-12)
        longer += len(over)
    assert longer > 0 or max(j.shared_s + j.own_s for j in jobs) <= 0.018


def plain_session(name: str, **changes: object) -> Job:
    """A session that its node serves alone: 20 ms of prefill, steps of 8 + 2 ms, 100 ms a token promised."""
    job = Job(
        name=name, is_clip=False, ue=0, cell=0, node=0, device_s=(0.0, 0.0), bits=(0.0, 0.0), flight_s=(0.0, 0.0),
        node_s=0.02, shared_s=0.008, own_s=0.002, model=0, deadline_s=1.0, period_s=0.1, units=10, prbs=1.0,
        is_promised=True,
    )  # fmt: skip
    return dataclasses.replace(job, **changes)  # type: ignore[arg-type]


def serve(jobs: list[Job], planned_s: float, until_s: float = 60.0) -> tuple[World, dict[str, Served]]:
    world = new_world([1.0, 1.0, 1.0])
    for job in jobs:
        start(world, job)
    world.apply(plan_of(jobs, (planned_s, planned_s)))
    return world, dict(world.advance(until_s))


def test_a_node_with_nothing_else_to_do_makes_tokens_before_they_are_due() -> None:
    world, ended = serve([plain_session("a", units=20)], 0.03)
    assert ended["a"].last_s == pytest.approx(0.02 + 19 * 0.01, abs=1e-9)
    assert world.used_node[0] == pytest.approx(0.02 + 19 * 0.01, abs=1e-9)


def test_who_is_ahead_leaves_the_node_to_a_prefill_until_he_is_due_soon() -> None:
    """After 15 tokens he is 1.35 s ahead: 0.3 s of prefill have the node for themselves, in pieces of a step."""
    jobs = [plain_session("a", units=99)]
    world = new_world([1.0, 1.0, 1.0])
    start(world, jobs[0])
    world.apply(plan_of(jobs, (0.03, 0.03)))
    world.advance(0.17)
    done = world.progress()[0].done
    jobs.append(plain_session("b", node_s=0.3, units=1))
    start(world, jobs[1])
    world.apply(plan_of(jobs, (0.03, 0.03)))
    ended = dict(world.advance(0.5))
    assert ended["b"].last_s <= 0.17 + 0.3 + 0.01 + 1e-9, "after at most the step that was under way"
    assert world.progress()[0].done <= done + 1 + 3


def test_who_is_ahead_joins_the_steps_of_who_is_not() -> None:
    """One that is owed a token every 12 ms starts steps of 12 ms: the other is in all of them, and done as soon."""
    jobs = [plain_session("ahead", period_s=10.0, units=20), plain_session("owed", period_s=0.012, units=20)]
    world, ended = serve(jobs, 0.03)
    assert ended["ahead"].last_s == pytest.approx(ended["owed"].last_s, abs=0.025)
    assert world.figures[0, steps.SEQUENCES] == 2 * 19
    assert world.figures[0, steps.STEPS] <= 20
    # ... but where there is room for one alone, he waits until the other is done
    world, ended = serve(jobs, 0.011)
    assert ended["ahead"].last_s == pytest.approx(ended["owed"].last_s + 19 * 0.01, abs=0.025)


def test_the_one_who_is_due_first_is_served_first_and_who_is_lost_after_all_others() -> None:
    """In steps for one; due after 20, 30 and 40 ms, and one who is more than three tokens behind when he comes."""
    jobs = [plain_session(f"{p}", period_s=p, node_s=0.001, units=2) for p in (0.04, 0.02, 0.03)]
    jobs.append(plain_session("lost", period_s=0.0001, node_s=0.001, units=2, flight_s=(0.0, 0.002)))
    _, ended = serve(jobs, 0.01)
    assert sorted(ended, key=lambda name: ended[name].last_s) == ["0.02", "0.03", "0.04", "lost"]
    jobs[1] = dataclasses.replace(jobs[1], is_promised=False)
    _, ended = serve(jobs, 0.01)
    assert sorted(ended, key=lambda name: ended[name].last_s) == ["0.03", "0.04", "lost", "0.02"]


def test_models_are_read_once_each_and_the_deepest_split_sets_how_much() -> None:
    jobs = [
        plain_session("a", node_s=0.001, units=2),
        plain_session("b", node_s=0.001, shared_s=0.005, units=2),
        plain_session("c", node_s=0.001, shared_s=0.007, model=1, units=2),
    ]
    world, ended = serve(jobs, 0.03)
    for served in ended.values():  # the three prefills are one step, and so are the three tokens
        assert served.last_s == pytest.approx(0.003 + 0.008 + 0.007 + 3 * 0.002, abs=1e-9)
    assert world.figures[0, steps.SEQUENCES] == 3
    assert sum(s.node_busy_s for s in ended.values()) == pytest.approx(world.used_node[0], abs=1e-9)


def test_prefills_take_no_more_than_half_of_a_step_in_which_somebody_decodes() -> None:
    jobs = [plain_session("a", period_s=0.012, units=60)]
    world = new_world([1.0, 1.0, 1.0])
    start(world, jobs[0])
    world.apply(plan_of(jobs, (0.04, 0.04)))
    world.advance(0.1)
    jobs.append(plain_session("b", node_s=0.1, units=1))
    start(world, jobs[1])
    world.apply(plan_of(jobs, (0.04, 0.04)))
    ended = dict(world.advance(0.3))
    assert ended["b"].done == 1
    # five pieces of 20 ms, each beside the 10 ms of a's token, after at most one step that was under way
    assert 5 * 0.03 <= ended["b"].last_s - 0.1 <= 5 * 0.03 + 0.02


def test_a_frame_that_is_dropped_in_a_step_does_not_end_it() -> None:
    """Its piece was to last 0.5 s; the prefill that comes after its deadline, at 0.2 s, waits for all of that."""
    frame = plain_session(
        "v", is_clip=True, node_s=1.0, shared_s=0.0, own_s=0.0, deadline_s=0.2, period_s=5.0, units=1, ue=1
    )
    late = plain_session("a", flight_s=(0.25, 0.0), units=1)
    world, ended = serve([frame, late], 0.5)
    assert (ended["v"].done, ended["v"].late) == (0, 1)
    assert ended["a"].first_s == pytest.approx(0.5 + 0.02, abs=1e-9)
    assert world.used_node[0] == pytest.approx(0.52, abs=1e-9)


def test_a_frame_is_out_before_the_tokens_of_its_step() -> None:
    frame = plain_session("v", is_clip=True, node_s=0.004, shared_s=0.0, own_s=0.0, deadline_s=0.2, units=1, ue=1)
    frame = dataclasses.replace(frame, flight_s=(0.02, 0.0))
    _, ended = serve([plain_session("a", units=2), frame], 0.03)
    assert ended["v"].last_s == pytest.approx(0.024, abs=1e-9)
    assert ended["a"].last_s == pytest.approx(0.034, abs=1e-9)


def test_a_device_works_on_what_is_due_first_and_one_thing_at_a_time() -> None:
    jobs = [
        plain_session("late", device_s=(0.1, 0.0), deadline_s=1.0, units=1),
        plain_session("soon", device_s=(0.03, 0.0), deadline_s=0.5, units=1),
        plain_session("other", device_s=(0.05, 0.0), deadline_s=2.0, units=1, ue=1),
    ]
    world, ended = serve(jobs, 0.02)
    assert ended["soon"].first_s == pytest.approx(0.05, abs=1e-9)
    assert ended["other"].first_s == pytest.approx(0.07, abs=1e-9)
    assert ended["late"].first_s == pytest.approx(0.15, abs=1e-9)
    assert [ended[name].device_busy_s for name in ("soon", "other", "late")] == pytest.approx([0.03, 0.05, 0.1])
    assert world.running == 0
