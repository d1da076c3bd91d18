"""Parts of the daemon on their own: snapshots, modes, progress on pace, packing, batches of reports."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_cases import fingerprint, sample, sample_book, watched

from cosched.children.framing import framed
from cosched.children.packing import Ask, pack, solve_packed, unpack_ask
from cosched.children.pool import Worker
from cosched.children.solve import READY
from cosched.config import wiring as build
from cosched.core.commands import Command, Dispatch, Plan, Solve
from cosched.core.core import EMPTY, Core, StaleEvent
from cosched.core.events import Event, Finished, Offered, Solved, Switched, Tick
from cosched.core.policy import fallback, policy
from cosched.core.settings import Settings
from cosched.core.snapshot import Snapshot
from cosched.daemon.mode import IllegalMove, Mode, Modes, Move
from cosched.daemon.progress import SILENT_S, Tracker
from solvers import registry
from telemetry.messages import LlmSession, SiteMessage, TaskOffer, TaskProgress, UeReport, UeReportBatch, VideoClip

SECONDS = 6.0
TOML = next(m.toml for m in sample() if isinstance(m, SiteMessage))
PLANT = build.plant(TOML, "sample", {})


def new_core(name: str = "joint") -> Core:
    return PLANT.core(name, Settings())


def day() -> list[tuple[float, Event]]:
    """Reports and offers of the sample's first seconds, a tick every 100 ms, an end now and then."""
    book = sample_book(SECONDS)
    events: list[tuple[float, Event]] = [*book.reports]
    events += [(at_s, Offered((offer,))) for at_s, offer in book.offers]
    events += [(0.1 * n, Tick()) for n in range(1, int(10 * SECONDS))]
    events += [(at_s + 1.0, Finished(offer.task)) for at_s, offer in book.offers[::3]]
    return sorted(events, key=lambda e: (e[0], type(e[1]).__name__))


def feed(core: Core, at_s: float, event: Event, *, fail: bool = False) -> list[Plan]:
    plans: list[Plan] = []
    todo: list[Command] = core.handle(event, at_s)
    core.validate()
    while todo:
        command = todo.pop(0)
        if isinstance(command, Dispatch):
            plans.append(command.plan)
        elif isinstance(command, Solve) and fail and command.policy.solver != "local":
            todo += core.handle(Solved(command.request, failed="late"), at_s)
        elif isinstance(command, Solve):
            solve = partial(registry.solve, command.policy.solver)
            solution = solve(command.problem, warm=command.warm, options=command.policy.options)
            todo += core.handle(Solved(command.request, solution=solution), at_s)
            core.validate()
    return plans


def test_a_core_goes_on_from_a_snapshot_bit_for_bit():
    """Handed on as JSON once in every half second, to a core that knows nothing."""
    whole, parts = new_core(), new_core()
    compared = 0
    for n, (at_s, event) in enumerate(day()):
        expected, got = feed(whole, at_s, event), feed(parts, at_s, event)
        assert [fingerprint(p) for p in got] == [fingerprint(p) for p in expected]
        compared += len(expected)
        if n % 40 == 0 and parts.is_quiet and np.isfinite(parts.snapshot().at_s):
            text = msgspec.json.encode(parts.snapshot())
            parts = new_core()
            assert parts.restore(msgspec.json.decode(text, type=Snapshot)) == ()
            assert msgspec.json.encode(parts.snapshot()) == text
    assert compared > 50


def test_a_snapshot_of_another_site_names_who_has_no_place():
    core = new_core()
    for at_s, event in day():
        feed(core, at_s, event)
    taken = core.snapshot()
    assert taken.tasks
    other = build.plant(TOML.replace('"edge0"', '"elsewhere"'), "other", {}).core("joint", Settings())
    lost = other.restore(taken)
    away = [row.offer.task for row in taken.tasks if row.point.endswith("/edge0")]
    assert list(lost) == away
    with pytest.raises(StaleEvent):
        core.restore(msgspec.structs.replace(taken, at_s=taken.at_s - 1))


def test_failed_solves_fall_back_to_greedy_then_local_and_nobody_running_is_dropped():
    core = new_core()
    events = day()
    for at_s, event in events[: len(events) // 2]:
        feed(core, at_s, event)
    running = set(core.state.tasks)
    assert running
    now = events[len(events) // 2][0]
    (plan,) = feed(core, now, Tick(), fail=True)
    assert set(plan.tasks) >= {t for t in running if t in core.state.tasks}
    assert plan.generation == core.snapshot().generation
    names, p = [], policy("joint")
    for _ in range(4):
        p = fallback(p)
        names.append(p.name)
    assert names == ["greedy", "local", "local", "local"]
    with pytest.raises(StaleEvent):
        core.handle(Solved(10**6, failed="late"), now)


def test_a_switched_policy_plans_from_the_next_solve_on():
    core = new_core()
    assert core.handle(Switched("greedy"), 0.0) == []
    cell = PLANT.site.cells[0].id
    core.handle(UeReport(at_ns=0, source="", seq=0, ue="u", cell=cell, ul_efficiency_bps_hz=2.0), 0.0)
    (solve,) = core.handle(Offered((TaskOffer(at_ns=0, source="", seq=0, task="t", ue="u", work=CLIP),)), 0.1)
    assert isinstance(solve, Solve)
    assert solve.policy.name == "greedy"


ROWS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["cell0", "nowhere"]), st.none() | st.floats(0.01, 29)),
    max_size=8,
)


@given(st.lists(ROWS, max_size=5))
def test_a_batch_is_its_reports_one_by_one(batches: list[list[tuple[str, str, float | None]]]):
    cell = {"cell0": PLANT.site.cells[0].id, "nowhere": "nowhere"}
    at_once, singly = new_core(), new_core()
    for n, rows in enumerate(batches):
        columns = [tuple(column) for column in zip(*rows, strict=True)] or [(), (), ()]
        cells = tuple(cell[c] for c in columns[1])
        batch = UeReportBatch(at_ns=0, source="", seq=0, ue=columns[0], cell=cells, ul_efficiency_bps_hz=columns[2])
        at_once.handle(batch, 0.1 * n)
        for ue, c, value in rows:
            report = UeReport(at_ns=0, source="", seq=0, ue=ue, cell=cell[c], ul_efficiency_bps_hz=value)
            singly.handle(report, 0.1 * n)
    a, b = at_once.snapshot(), singly.snapshot()
    assert msgspec.json.encode((a.channel, a.cell_of_ue)) == msgspec.json.encode((b.channel, b.cell_of_ue))


def test_problems_travel_without_losing_a_bit():
    for problem, solution in watched(sample_book(SECONDS), "joint").asked[-20:]:
        ask = Ask(
            request=7, solver="joint", options=dict(policy("joint").options), warm=np.zeros(problem.n_resources),
            problem=problem,
        )  # fmt: skip
        back = unpack_ask(pack(ask))
        for name in ("value", "slack", "slot", "work", "floor", "rigid", "first", "held"):
            assert getattr(back.problem, name).tobytes() == getattr(problem, name).tobytes()
        answer = solve_packed(pack(ask))
        assert answer.solution is not None
        assert solution.chosen.shape == answer.solution.chosen.shape


def test_a_problem_that_no_solver_knows_is_answered_with_the_reason():
    problem = watched(sample_book(SECONDS), "joint").asked[-1][0]
    ask = Ask(request=1, solver="magic", options={}, warm=np.zeros(problem.n_resources), problem=problem)
    assert "magic" in solve_packed(pack(ask)).error


def test_a_worker_that_is_ready_when_nobody_waits_any_more_is_no_defect():
    async def work() -> None:
        worker = Worker()
        waiting = asyncio.create_task(worker.begin())
        await asyncio.sleep(0)
        waiting.cancel()  # the daemon ends
        await asyncio.gather(waiting, return_exceptions=True)
        worker.pipe_data_received(1, framed(READY))

    asyncio.run(work())


# --- modes ----------------------------------------------------------------------------------------------------------


def test_modes_follow_their_table():
    modes = Modes(0.0)
    with pytest.raises(IllegalMove):
        modes.move(Move.RESUME, 1.0)
    with pytest.raises(IllegalMove):  # or a resume would say that it is steady before it can decide
        modes.move(Move.DRAIN, 1.0)
    assert (modes.mode, modes.since_s) == (Mode.STARTING, 0.0)
    assert modes.alarm("solver", "late", 1.0)
    assert modes.mode is Mode.STARTING
    modes.move(Move.READY, 2.0)
    assert modes.mode is Mode.DEGRADED
    assert not modes.alarm("solver", "late", 3.0)
    assert modes.alarms == ("solver: late",)
    modes.move(Move.DRAIN, 4.0)
    modes.alarm("solver", "", 5.0)
    assert modes.mode is Mode.DRAINING
    modes.move(Move.RESUME, 6.0)
    assert (modes.mode, modes.since_s) == (Mode.STEADY, 6.0)
    modes.move(Move.STOP, 7.0)
    with pytest.raises(IllegalMove):
        modes.move(Move.STOP, 8.0)


# --- progress -------------------------------------------------------------------------------------------------------

SESSION = LlmSession(model="m", context_tokens=1, new_tokens=1, max_output_tokens=10, ttft_s=1.0, tpot_s=0.5)
CLIP = VideoClip(frame_flop=1e9, frame_bits=1e5, fps=2.0, deadline_s=0.5, frames=8)


def tracker(work: LlmSession | VideoClip) -> Tracker:
    return Tracker(TaskOffer(at_ns=10**10, source="", seq=0, task="t", ue="u", work=work))


def told(seq: int, **fields: float | bool) -> TaskProgress:
    return msgspec.convert({"at_ns": 0, "source": "r", "seq": seq, "task": "t", **fields}, TaskProgress)


def test_whoever_is_not_reported_is_on_its_deadlines():
    session, clip = tracker(SESSION), tracker(CLIP)
    assert [session.units_done(10.0 + s) for s in (0.0, 0.9, 1.0, 1.6, 2.1, 99.0)] == [0, 0, 1, 2, 3, 10]
    assert [clip.units_done(10.0 + s) for s in (0.0, 0.6, 3.9, 99.0)] == [0, 1, 7, 8]
    assert not session.is_over(10.0 + 5.4)
    assert session.is_over(10.0 + 5.6), "1 s to the first token, 9 x 0.5 s for the others"
    assert clip.is_over(10.0 + 4.0)
    assert session.progress(10.5, EMPTY, 0) is None
    progress = session.progress(12.1, EMPTY, 0)
    assert progress is not None
    assert (progress.phase, progress.done, progress.last_s - progress.first_s) == (1, 3, pytest.approx(1.0))


def test_whoever_is_not_reported_is_where_the_plan_wants_it():
    """Planned at 0.9 of its deadlines and taken to be on them, it would fall behind the plan with every token."""
    session = Tracker(tracker(SESSION).offer, margin=0.9)
    progress = session.progress(12.1, EMPTY, 0)
    assert progress is not None
    assert (progress.done, progress.last_s - progress.first_s) == (3, pytest.approx(0.9))
    session.tell(told(1, done=4, decoding_s=1.4), 12.5)
    later = session.progress(12.5 + SILENT_S + 0.1, EMPTY, 0)
    assert later is not None
    assert (later.done, later.last_s - later.first_s) == (10, pytest.approx(1.4 + 6 * 0.45))


def test_a_report_counts_until_its_sender_falls_silent():
    session = tracker(SESSION)
    session.tell(told(2, done=4, decoding_s=0.9), 11.0)
    session.tell(told(1, done=9), 11.1)
    assert session.units_done(12.0) == 4, "an older report is ignored, and nothing is made up while reports come"
    assert session.is_reported(11.0 + SILENT_S)
    assert not session.is_reported(11.1 + SILENT_S)
    assert session.units_done(11.0 + SILENT_S + 0.1) == 10
    progress = session.progress(12.0, EMPTY, 0)
    assert progress is not None
    assert progress.last_s - progress.first_s == pytest.approx(0.9)
    session.tell(told(3, done=5, finished=True), 12.0)
    assert session.is_over(12.0)


def test_a_prefill_under_way_is_as_long_as_told():
    session = tracker(SESSION)
    table = PLANT.points(sample_book(SECONDS).offers[0][1], 0)
    session.tell(told(1), 10.1)
    whole = session.progress(10.2, table, 0)
    assert whole is not None
    assert whole.ul_bits_left == table.ul_bits[0, 0]
    session.tell(told(2, ul_bits_left=5.0, node_s_left=0.25), 10.2)
    part = session.progress(10.3, table, 0)
    assert part is not None
    assert (part.phase, part.ul_bits_left, part.node_s_left, part.fixed_s_left) == (0, 5.0, 0.25, 0.0)


def test_frames_are_counted_in_time_and_late():
    clip = tracker(CLIP)
    clip.tell(told(1, done=3, late=2), 11.0)
    progress = clip.progress(11.1, EMPTY, 0)
    assert progress is not None
    assert (progress.done, progress.late) == (3, 2)
    clip.tell(told(2, done=6, late=2), 12.0)
    assert clip.is_over(12.0)
