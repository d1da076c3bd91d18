"""UEs that are forgotten: deterministic, never one with a task, and not at the will of whoever invents ids."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from replay_cases import sample

from cosched.config import wiring as build
from cosched.core.channel import ChannelEstimates
from cosched.core.core import Core
from cosched.core.events import Event, Offered, Reported, Solved, Tick
from cosched.core.known import KnownUes
from cosched.core.settings import Settings
from cosched.core.snapshot import Snapshot
from solvers import registry
from telemetry.messages import LlmSession, SiteMessage, TaskOffer, UeReport, UeReportBatch

MOST = 320
PLANT = build.plant(next(m.toml for m in sample() if isinstance(m, SiteMessage)), "sample", {})
CELL = PLANT.site.cells[0].id
SESSION = LlmSession(
    model="llama-3-8b", context_tokens=200, new_tokens=32, max_output_tokens=200, ttft_s=2.0, tpot_s=0.2
)


def new_core() -> Core:
    return PLANT.core("joint", Settings(max_ues=MOST))


def batch(names: list[str], value: float | None = 2.0) -> UeReportBatch:
    n = len(names)
    columns = {"ue": tuple(names), "cell": (CELL,) * n, "ul_efficiency_bps_hz": (value,) * n}
    return UeReportBatch(at_ns=0, source="", seq=0, **columns)


def offer(task: str, ue: str, at_s: float) -> TaskOffer:
    return TaskOffer(at_ns=round(at_s * 1e9), source="", seq=0, task=task, ue=ue, work=SESSION)


def decide(core: Core, at_s: float, *ues: str) -> None:
    (solve,) = core.handle(Offered(tuple(offer(f"task of {ue}", ue, at_s) for ue in ues)), at_s)
    solution = registry.solve(solve.policy.solver, solve.problem, warm=solve.warm, options=solve.policy.options)
    core.handle(Solved(solve.request, solution=solution), at_s)
    core.validate()


def test_the_table_never_fills_for_good() -> None:
    core = new_core()
    for n in range(20 * MOST):
        core.handle(batch([f"passer-by {n}"]), 0.01 * n)
        assert len(core.state.cell_of_ue) <= MOST
        assert f"passer-by {n}" in core.state.cell_of_ue, "who comes is known"
    assert len(core.state.channel._mean) < 4 * MOST, "rows are used again"
    assert core.state.known.forgotten == 20 * MOST - len(core.state.cell_of_ue)


def test_who_invents_ids_drives_out_his_own() -> None:
    """Real UEs report every 100 ms; thousands of invented ids a second, each once, or a few times in a moment."""
    core, real = new_core(), [f"ue{i}" for i in range(50)]
    for tick in range(100):
        core.handle(batch(real), 0.1 * tick)
        if tick > 15:
            core.handle(batch([f"invented {tick} {i}" for i in range(2 * MOST)]), 0.1 * tick)
            core.handle(batch([f"invented {tick} {i}" for i in range(MOST // 2)]), 0.1 * tick + 0.01)
        assert core.state.cell_of_ue.keys() >= set(real), tick
        assert len(core.state.cell_of_ue) <= MOST


def test_who_has_a_task_or_waits_with_one_is_never_forgotten() -> None:
    core = new_core()
    core.handle(batch(["running", "asked", "waiting", "idle"]), 0.0)
    decide(core, 0.0, "running")
    assert core.state.tasks
    (solve,) = core.handle(Offered((offer("a", "asked", 0.1),)), 0.1)  # is being decided,
    assert core.handle(Offered((offer("w", "waiting", 0.2),)), 0.2) == []  # and waits for that
    for n in range(5):
        core.handle(batch([f"crowd {n} {i}" for i in range(2 * MOST)]), 100.0 * n + 1)
    assert core.state.cell_of_ue.keys() >= {"running", "asked", "waiting"}
    assert "idle" not in core.state.cell_of_ue
    rows = {core.state.channel.index(ue) for ue in core.state.channel._index}
    assert len(rows) == len(core.state.channel._index), "no two UEs share a row"
    solution = registry.solve(solve.policy.solver, solve.problem, warm=solve.warm, options=solve.policy.options)
    core.handle(Solved(solve.request, solution=solution), 500.0)
    assert core.state.channel.row("running").mean_bps_hz == 2.0


def test_silent_ones_go_before_it_is_full() -> None:
    core = new_core()
    core.handle(batch([f"old{i}" for i in range(MOST * 8 // 10)]), 0.0)
    for n in range(MOST // 8):
        core.handle(batch([f"new{n}"]), 100.0 + n)
    assert len(core.state.cell_of_ue) < MOST // 4
    assert not core.state.known.is_crowded


@pytest.mark.parametrize("seed", range(4))
def test_a_core_that_goes_on_from_a_snapshot_forgets_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole, parts = new_core(), new_core()
    now_s = 0.0
    for n in range(400):
        now_s += float(rng.choice([0.01, 0.5, 30.0], p=[0.6, 0.38, 0.02]))
        names = [f"u{i}" for i in rng.integers(0, 1500, rng.integers(1, 40))]
        event: Event = batch(names, None if rng.random() < 0.2 else float(rng.uniform(0.5, 5)))
        if rng.random() < 0.3:
            reports = (UeReport(at_ns=0, source="", seq=0, ue=u, cell=CELL, ul_efficiency_bps_hz=1.0) for u in names)
            event = Reported(tuple(reports))
        for core in (whole, parts):
            core.handle(event, now_s)
        if n in {40, 200}:
            for core in (whole, parts):
                decide(core, now_s, names[0])
        text = msgspec.json.encode(parts.snapshot())
        assert msgspec.json.encode(whole.snapshot()) == text
        if n % 7 == 0:
            parts = new_core()
            parts.restore(msgspec.json.decode(text, type=Snapshot))
            assert msgspec.json.encode(parts.snapshot()) == text
    assert whole.state.known.forgotten > MOST


def test_a_floods_ues_go_half_a_minute_after_it_and_a_few_static_ones_stay() -> None:
    core = new_core()
    core.handle(batch(["with-task"]), 0.0)
    decide(core, 0.5, "with-task")
    for at_s in (1.0, 2.5):  # real ones, for more than a moment
        core.handle(batch([f"real{n}" for n in range(50)]), at_s)
    names = [f"evil{n}" for n in range(MOST // 2)]
    core.handle(batch(names), 3.0)
    core.handle(Tick(), 32.9)
    assert len(core.state.known) == MOST // 2 + 51
    core.handle(Tick(), 33.1)
    assert set(core.state.cell_of_ue) == {"with-task", *(f"real{n}" for n in range(50))}
    static = new_core()
    static.handle(batch([f"u{n}" for n in range(MOST // 4)]), 0.0)
    static.handle(Tick(), 1_000.0)
    assert len(static.state.known) == MOST // 4


def test_looking_is_shared_out_over_newcomers() -> None:
    known = KnownUes(MOST)
    looks = 0
    for n in range(10 * MOST):
        known.heard(f"u{n}", 0.001 * n)
        if known.is_due:
            looks += 1
            known.forget(0.001 * n, ())
    assert looks < 10 * 64 * 1.5


def test_estimates_of_one_ue_do_not_leak_into_the_next_of_its_row() -> None:
    channel = ChannelEstimates(Settings())
    for i in range(40):
        channel.update(f"u{i}", 1.0, 1.0 + i)
        channel.update(f"u{i}", 2.0, 9.0)
    channel.forget("u7")
    channel.forget("u7")
    channel.update_many(["new", "u8"], 3.0, np.array([4.0, 5.0]))
    assert channel.row("new") == ("new", 4.0, 0.0, 3.0)
    assert channel.index("u7") == -1
    assert [row.ue for row in channel.rows()][-1] == "new"
