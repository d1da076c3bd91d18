"""The hindsight bound and what it is made of: never below any policy, and the best channel by a slow loop."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_cases import Message, sample_book

from cosched.core.policy import POLICIES
from cosched.core.settings import Settings
from cosched.fluid.world import ChannelTruth, World
from cosched.replay import hindsight as regret
from cosched.replay.outcome import policy_result
from cosched.replay.past import BestChannel, Cells
from cosched.replay.replayer import Replayer, Workbook
from cosched.replay.workbook import make_book
from cosched.resources import config_file
from cosched.simulate import stream
from cosched.simulate.scenario import parse_scenario
from telemetry.messages import CellReport, LlmSession, TaskOffer, UeReport, UeReportBatch, VideoClip

URBAN = config_file("scenarios", "urban-llm.toml")
WALKING, DRIVING = "speed_m_s = 0.83", "speed_m_s = 40.0"


def drawn(seed: int, rate_per_s: float = 8.0, *, driving: bool = False) -> list[Message]:
    """Draw six seconds of the urban scenario: driving, UEs change their cells."""
    text = URBAN.read_text()
    assert WALKING in text
    loaded = parse_scenario(text.replace(WALKING, DRIVING) if driving else text, "urban", URBAN.parent)
    return stream.messages(loaded, seed=seed, duration_s=6.0, rate_per_s=rate_per_s)


def reached(book: Workbook, name: str, bound: float) -> float:
    return policy_result(book, Replayer(book, POLICIES[name], Settings()).run(), bound).summary.value


def assert_nobody_beats_the_bound(book: Workbook, names: tuple[str, ...] = tuple(POLICIES)) -> None:
    bound = regret.bound(book)
    values = {name: reached(book, name, bound) for name in names}
    assert max(values.values()) > 0
    assert bound <= sum(o.weight for _, o in book.offers) + 1e-9
    for name, value in values.items():
        assert value <= bound + 1e-6, name


@pytest.mark.parametrize("seed", [1, 2])
def test_no_policy_beats_the_bound(seed: int) -> None:
    assert_nobody_beats_the_bound(make_book(drawn(seed), "drawn"))


def test_no_policy_beats_the_bound_on_the_sample() -> None:
    assert_nobody_beats_the_bound(sample_book(5.0))


def test_the_bound_of_an_overload_is_below_what_was_asked_for() -> None:
    book = make_book(drawn(1, 60.0), "overload")
    assert regret.bound(book) < 0.95 * sum(o.weight for _, o in book.offers)


def test_no_policy_beats_the_bound_while_driving() -> None:
    assert_nobody_beats_the_bound(make_book(drawn(3, 20.0, driving=True), "driving"), ("joint", "greedy", "pf"))


def with_cells(book: Workbook, **changes: object) -> Workbook:
    cells = tuple(msgspec.structs.replace(c, **changes) for c in book.site.cells)
    return replace(book, site=msgspec.structs.replace(book.site, cells=cells))


@pytest.mark.parametrize("seed", [4])
def test_no_policy_beats_the_bound_of_weights(seed: int) -> None:
    """In an overload, where the bound is below all that was asked for."""
    book = make_book(drawn(seed, 30.0), "weights")
    heavy = tuple(
        (at_s, msgspec.structs.replace(offer, weight=(1.0, 5.0)[i % 2])) for i, (at_s, offer) in enumerate(book.offers)
    )
    book = replace(book, offers=heavy)
    assert regret.bound(book) < sum(o.weight for _, o in book.offers) - 5
    assert_nobody_beats_the_bound(book, ("joint", "greedy", "predicted", "engine"))


def test_the_bound_is_below_the_one_of_before() -> None:
    for seed in (1, 2):
        book = make_book(drawn(seed, 30.0), "drawn")
        assert regret.bound(book) < 0.99 * regret.loose_bound(book)


def test_whom_the_relaxation_serves_is_worth_the_bound() -> None:
    book = make_book(drawn(1, 30.0), "overload")
    look = regret.look_back(book)
    worth = sum(o.weight * look.served[o.task] for _, o in book.offers)
    assert worth == pytest.approx(look.bound, rel=1e-3)
    assert max(look.served.values()) <= 1 + 1e-6
    assert regret.look_back(book, capacity=0.5).bound < look.bound


def test_who_leaves_its_first_cell_is_not_charged_to_it() -> None:
    """All UEs are first reported in one narrow cell, and from the next report on are spread over all."""
    messages = drawn(1, 30.0)
    first = min(m.at_ns for m in messages if isinstance(m, UeReportBatch))
    gathered_there: list[Message] = []
    later: list[Message] = []
    for m in messages:
        if isinstance(m, UeReportBatch) and m.at_ns == first:
            gathered_there.append(msgspec.structs.replace(m, cell=("cell0",) * len(m.cell)))
            later.append(m)
        elif not isinstance(m, TaskOffer) or m.at_ns > first + 500_000_000:
            gathered_there.append(m)
            later.append(m)
    gathered, spread = (with_cells(make_book(m, "narrow"), ul_prbs=6) for m in (gathered_there, later))
    assert set(gathered.cell_of_ue.values()) == {"cell0"}
    assert len(set(spread.cell_of_ue.values())) > 1
    assert regret.bound(gathered) == pytest.approx(regret.bound(spread), abs=1e-6)


def test_a_task_that_changes_cells_is_charged_to_neither() -> None:
    cells = Cells(make_book(drawn(3, driving=True), "driving"))
    ue, (at_s, _) = next((u, steps[1]) for u, steps in cells._steps.items() if len(steps) == 2)
    assert len(cells.between(ue, at_s - 1.0, at_s + 1.0)) == 2
    assert cells.between(ue, at_s - 0.05, at_s - 0.01) == (cells._steps[ue][0][1],)
    assert cells.between(ue, at_s, at_s) == (cells._steps[ue][1][1],)


def test_a_handover_takes_effect_at_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports fall between two periods here; the world must be at their instant, not before, when it hands over."""
    book = make_book(drawn(3, 20.0, driving=True), "driving")
    book = replace(book, reports=tuple((at_s + 0.037, report) for at_s, report in book.reports))
    cell_of, expected = dict(book.cell_of_ue), []
    for at_s, report in book.reports:
        if isinstance(report, UeReport) and report.cell != cell_of[report.ue]:
            cell_of[report.ue] = report.cell
            expected.append((pytest.approx(at_s), book.ue_rows[report.ue], report.cell))
    found = []
    inner = World.handover

    def spied(world: World, ue: int, cell: int) -> None:
        found.append((world.now_s, ue, book.site.cells[cell].id))
        inner(world, ue, cell)

    monkeypatch.setattr(World, "handover", spied)
    Replayer(book, POLICIES["joint"], Settings(), verify=False).run()
    assert expected
    assert found == expected


def test_other_peoples_load_counts_at_its_least() -> None:
    """The site file says that the cells are nearly full; reports say at once that they are not."""
    free = with_cells(make_book(drawn(2), "free"), background_fraction=0.0)
    busy = with_cells(free, background_fraction=0.97)
    reports = tuple((0.0, CellReport(at_ns=0, source="c", seq=0, cell=c.id)) for c in free.site.cells)
    relieved = replace(busy, reports=(*reports, *busy.reports))
    assert regret.bound(busy) < regret.bound(free)
    assert regret.bound(relieved) == pytest.approx(regret.bound(free), abs=1e-6)
    assert_nobody_beats_the_bound(relieved, ("joint", "pf"))


def test_a_trace_of_none_but_local_tasks_has_nothing_to_reach() -> None:
    assert regret.bound(replace(sample_book(5.0), offers=())) == 0.0


instants = st.lists(st.integers(0, 20).map(lambda k: k / 4), max_size=12)


@given(instants, st.integers(0, 2**32 - 1), st.integers(0, 22), st.integers(0, 12))
def test_best_channel_against_a_loop(at: list[float], seed: int, start: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.sort(np.array(at, dtype=np.float64))
    ue = rng.integers(0, 2, len(times))
    value = rng.uniform(0.1, 6.0, len(times))
    initial = rng.uniform(0.1, 6.0, 2)
    best = BestChannel(ChannelTruth(times, ue, value, initial))
    start_s, end_s = start / 4, (start + length) / 4
    for u in range(2):
        now, most = float(initial[u]), 0.0
        for t, who, v in zip(times, ue, value, strict=True):
            if who == u and t <= start_s:
                now = float(v)
            elif who == u and t <= end_s:
                most = max(most, float(v))
        assert best.between(u, start_s, end_s) == max(now, most)


def test_the_longest_life_is_that_of_a_task_just_met() -> None:
    llm = LlmSession(model="m", context_tokens=0, new_tokens=9, max_output_tokens=99, ttft_s=1.5, tpot_s=0.1)
    clip = VideoClip(frame_flop=1e9, frame_bits=1e5, fps=4.0, deadline_s=0.2, frames=9)
    offer = TaskOffer(at_ns=0, source="s", seq=0, task="t", ue="u", work=llm)
    assert regret.longest_life_s(offer, 11) == pytest.approx(1.5 + 10 * 0.1)
    assert regret.longest_life_s(offer, 1) == pytest.approx(1.5)
    assert regret.longest_life_s(msgspec.structs.replace(offer, work=clip), 9) == pytest.approx(8 / 4 + 0.2)


def test_what_a_met_task_did_is_at_least_what_it_could_not_avoid() -> None:
    """The real node time of every task that was met, by the execution model, against the bound's own count."""
    book = sample_book(5.0)
    run = Replayer(book, POLICIES["joint"], Settings()).run()
    result = policy_result(book, run, 0.0)
    works, _, counts, _, _ = regret.unavoidable(book)
    first = np.concatenate([[0], np.cumsum(counts)])
    n_cells = len(book.site.cells)
    met = {f.task for f in result.fates if f.outcome == "met"}
    assert met
    for i, (_, offer) in enumerate(book.offers):
        if offer.task in met:
            least = works[first[i] : first[i + 1], n_cells:].sum(axis=1).min()
            assert run.served[offer.task].node_busy_s >= least - 1e-9
