"""What holds of every decision of a replay: verified in full, near the bound, whole PRBs, and blind to the future."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_cases import Message, Watched, fingerprint, first_difference_s, sample, sample_book, watched

from cosched.core.policy import POLICIES
from cosched.core.reasons import Reason
from cosched.replay.replayer import Workbook
from cosched.replay.workbook import make_book
from solvers import check
from telemetry.messages import LlmSession, TaskOffer, UeReportBatch

SECONDS = 5.0
CUT_S = 2.5
PROMISING = ("joint", "greedy", "greedy-residual", "pf-admit", "pf-util", "equal-rate-admit", "compute-only", "local")
STARTED = (Reason.ADMITTED, Reason.UNPROMISED)


@pytest.fixture(scope="module")
def runs() -> dict[str, Watched]:
    return {name: watched(sample_book(SECONDS), name) for name in POLICIES}


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_decision_passes_the_whole_referee_the_bound_included(runs: Mapping[str, Watched], name: str) -> None:
    assert runs[name].asked
    for problem, solution in runs[name].asked:
        assert check.verify(problem, solution, dual=True) == []


def test_joint_loses_at_most_one_task_to_the_bound_and_mostly_nothing(runs: Mapping[str, Watched]) -> None:
    """An optimum of the relaxation splits at most one task per priced resource; here it never costs more than one."""
    asked = runs["joint"].asked
    for problem, solution in asked:
        gap, most = solution.certificate.gap, problem.value.max(initial=0.0)
        assert gap <= (solution.prices > 0).sum() * most + 1e-6
        assert gap <= most + 1e-6
    assert np.mean([s.certificate.gap < 1e-6 for _, s in asked]) > 0.9


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_nobody_starts_before_being_offered(runs: Mapping[str, Watched], name: str) -> None:
    offered_s = {o.task: at for at, o in sample_book(SECONDS).offers}
    for plan in runs[name].plans:
        for d in plan.decisions:
            assert plan.at_s >= offered_s[d.task]
    for task, served in runs[name].run.served.items():
        assert served.arrival_s >= offered_s[task]


@pytest.mark.parametrize("name", PROMISING)
def test_a_promised_share_is_whole_prbs_no_less_than_the_share(runs: Mapping[str, Watched], name: str) -> None:
    site = sample_book(SECONDS).site
    cell_of = {o.task: sample_book(SECONDS).cell_of_ue[o.ue] for _, o in sample_book(SECONDS).offers}
    prbs = {c.id: c.ul_prbs for c in site.cells}
    for plan in runs[name].plans:
        whole = plan.prbs[plan.promised]
        assert (whole == np.round(whole)).all()
        for i in np.flatnonzero(plan.promised):
            exact = plan.share[i, 0] * prbs[cell_of[plan.tasks[i]]]
            assert exact - 1e-6 <= plan.prbs[i] < exact + 1 + 1e-6


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_raw_data_of_private_tasks_never_leave_the_device(runs: Mapping[str, Watched], name: str) -> None:
    private = {o.task for _, o in sample_book(SECONDS).offers if o.work.private}
    assert private
    for plan in runs[name].plans:
        for d in plan.decisions:
            if d.point >= 0 and d.task in private:
                assert d.table.split[d.point] >= 1


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_offer_is_answered_once_and_stands_by_its_answer(runs: Mapping[str, Watched], name: str) -> None:
    answers: dict[str, list[str]] = {}
    for plan in runs[name].plans:
        for d in plan.decisions:
            answers.setdefault(d.task, []).append(d.reason)
    assert set(answers) == {o.task for _, o in sample_book(SECONDS).offers}
    for said in answers.values():
        first, *later = said
        assert first in STARTED or first.startswith("rejected_")
        assert not (set(later) & {*STARTED}), "admitted twice"
        assert not (first.startswith("rejected_") and later), "decided on after a refusal"


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_plan_has_generation_lease_and_tasks_in_order(runs: Mapping[str, Watched], name: str) -> None:
    plans = runs[name].plans
    assert [p.generation for p in plans] == list(range(1, len(plans) + 1))
    for before, after in itertools.pairwise(plans):
        assert before.at_s <= after.at_s
    for plan in plans:
        assert plan.valid_until_s > plan.at_s
        assert len(set(plan.tasks)) == len(plan.tasks)


def other_future(kind: str) -> Workbook:
    """The sample with another story from CUT_S on; the past is the same message for message."""
    changed: list[Message] = []
    for m in sample(SECONDS):
        late = m.at_ns >= CUT_S * 1e9
        if late and kind == "worse" and isinstance(m, UeReportBatch):
            worse = tuple(None if v is None else 0.2 * v for v in m.ul_efficiency_bps_hz)
            changed.append(msgspec.structs.replace(m, ul_efficiency_bps_hz=worse))
        elif (late and kind == "nobody comes" and isinstance(m, TaskOffer)) or (
            late and kind == "it ends" and not isinstance(m, TaskOffer)
        ):
            continue
        elif late and kind == "others come" and isinstance(m, TaskOffer):
            changed.append(msgspec.structs.replace(m, weight=5.0, task=f"x{m.task}"))
        else:
            changed.append(m)
    return make_book(changed, kind)


@pytest.mark.parametrize("kind", ["worse", "nobody comes", "it ends", "others come"])
@pytest.mark.parametrize("name", ["joint", "greedy-residual", "pf", "pf-util", "compute-only"])
def test_no_decision_knows_the_future(runs: Mapping[str, Watched], name: str, kind: str) -> None:
    book = other_future(kind)
    until_s = first_difference_s(sample_book(SECONDS), book)
    assert CUT_S - 1.0 < until_s < SECONDS
    other = watched(book, name)
    past = [[fingerprint(p) for p in r.plans if p.at_s < until_s] for r in (runs[name], other)]
    assert len(past[0]) > CUT_S  # more than one plan a second
    assert past[0] == past[1]
    assert runs[name].run.decisions_sha256 != other.run.decisions_sha256


def first_end_s(found: Watched) -> float:
    return min((s.last_s for s in found.run.served.values() if s.finished), default=np.inf)


@pytest.mark.parametrize("name", ["joint", "greedy", "pf-admit"])
@pytest.mark.parametrize("kind", ["permuted", "endless", "mute"])
def test_how_long_a_session_really_is_is_known_when_it_ends(runs: Mapping[str, Watched], name: str, kind: str) -> None:
    book = sample_book(SECONDS)
    sessions = [o.task for _, o in book.offers if isinstance(o.work, LlmSession)]
    order = np.random.default_rng(3).permutation(len(sessions))
    real = {t: book.units[t] for t in sessions}
    lengths = {
        "permuted": {t: real[sessions[k]] for t, k in zip(sessions, order, strict=True)},
        "endless": dict.fromkeys(sessions, 900),
        "mute": dict.fromkeys(sessions, 1),
    }[kind]
    other = watched(replace(book, units={**book.units, **lengths}), name)
    until_s = min(first_end_s(runs[name]), first_end_s(other))
    past = [[fingerprint(p) for p in r.plans if p.at_s < until_s] for r in (runs[name], other)]
    assert past[0]
    assert past[0] == past[1]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_the_order_of_messages_in_a_file_is_no_information(seed: int) -> None:
    """Messages of one trace come sorted (telemetry/trace.py); the book sorts offers by itself."""
    messages = list(sample(SECONDS))
    offers = [m for m in messages if isinstance(m, TaskOffer)]
    shuffled = [offers[i] for i in np.random.default_rng(seed).permutation(len(offers))]
    rest = [m for m in messages if not isinstance(m, TaskOffer)]
    assert make_book([*rest, *shuffled], "shuffled").offers == sample_book(SECONDS).offers
