"""Impossible values are blanked or refused, and counted; staleness and gaps are pure functions of what is handed in."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry import quality
from telemetry.messages import (
    TOPICS,
    LinkReport,
    LlmSession,
    NodeReport,
    TaskOffer,
    TaskTruth,
    UeReport,
    UeReportBatch,
    VideoClip,
)

STAMP = {"at_ns": 0, "source": "gnb0", "seq": 0}


def report(**fields: float | None) -> UeReport:
    return UeReport(**STAMP, ue="u", cell="c", **fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dl_cqi", 1835.0),
        ("dl_cqi", -33.9),
        ("dl_cqi", math.nan),
        ("ul_efficiency_bps_hz", math.inf),
        ("ul_efficiency_bps_hz", -0.1),
        ("ul_mcs", 31.0),
        ("ul_sinr_db", 500.0),
        ("prb_used_ul", -1.0),
        ("ul_error_fraction", 1.5),
        ("thp_ul_bps", 1e15),
    ],
)
def test_impossible_values_are_blanked_and_the_rest_is_kept(field: str, value: float) -> None:
    found = quality.inspect(report(**{"ul_sinr_db": 10.0, field: value}))
    assert isinstance(found.message, UeReport)
    assert getattr(found.message, field) is None
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith(field)
    if field != "ul_sinr_db":
        assert found.message.ul_sinr_db == 10.0


def test_a_good_report_comes_back_itself() -> None:
    good = report(dl_cqi=15, ul_mcs=28, ul_sinr_db=-33.9, ul_efficiency_bps_hz=0.0)
    assert quality.inspect(good) == (good, ())


def test_a_throughput_without_a_prb_is_blanked() -> None:
    found = quality.inspect(report(prb_used_ul=0.0, thp_ul_bps=1e5, prb_used_dl=0.0, thp_dl_bps=0.0))
    assert isinstance(found.message, UeReport)
    assert found.message.thp_ul_bps is None
    assert found.message.thp_dl_bps == 0.0
    assert found.reasons == ("thp_ul_bps without a PRB used",)


SESSION = LlmSession(model="m", context_tokens=0, new_tokens=1, max_output_tokens=1, ttft_s=1, tpot_s=0.1)
CLIP = VideoClip(frame_flop=1e9, frame_bits=1e6, fps=5, deadline_s=0.2, frames=10)


@pytest.mark.parametrize(
    "bad",
    [
        report().__class__(**{**STAMP, "at_ns": -1}, ue="u", cell="c"),
        LinkReport(**STAMP, link="l", one_way_s=-3.5e12),
        LinkReport(**STAMP, link="l", one_way_s=math.nan),
        NodeReport(**STAMP, node="n", background_fraction=2.0),
        TaskTruth(at_ns=0, task="t", output_tokens=-1),
        TaskOffer(**STAMP, task="t", ue="u", work=SESSION, weight=math.nan),
        TaskOffer(**STAMP, task="t", ue="u", work=msgspec.structs.replace(SESSION, new_tokens=-5)),
        TaskOffer(**STAMP, task="t", ue="u", work=msgspec.structs.replace(SESSION, ttft_s=0.0)),
        TaskOffer(**STAMP, task="t", ue="u", work=msgspec.structs.replace(CLIP, frame_bits=math.inf)),
        TaskOffer(**STAMP, task="t", ue="u", work=msgspec.structs.replace(CLIP, fps=-1.0)),
    ],
)
def test_messages_with_impossible_required_fields_are_refused(bad: object) -> None:
    found = quality.inspect(bad)  # type: ignore[arg-type]
    assert found.message is None
    assert found.reasons


def test_batches_lose_single_entries_or_are_refused_when_ragged() -> None:
    batch = UeReportBatch(
        **STAMP,
        ue=("a", "b", "c"),
        cell=("x", "x", "x"),
        ul_efficiency_bps_hz=(1.0, -2.0, None),
        ul_sinr_db=(1e9, 3, 4),
    )
    found = quality.inspect(batch)
    assert isinstance(found.message, UeReportBatch)
    assert found.message.ul_efficiency_bps_hz == (1.0, None, None)
    assert found.message.ul_sinr_db == (None, 3, 4)
    assert len(found.reasons) == 2
    ragged = msgspec.structs.replace(batch, ue=("a", "b"))
    assert quality.inspect(ragged) == (None, ("columns of unequal length",))


def test_every_message_type_has_limits() -> None:
    assert set(TOPICS.values()) <= set(quality.REQUIRED_LIMITS)
    for kind, limits in quality.REQUIRED_LIMITS.items():
        assert set(limits) <= set(kind.__struct_fields__)
    assert set(quality.UE_LIMITS) <= set(UeReport.__struct_fields__)


@given(st.dictionaries(st.sampled_from(sorted(quality.UE_LIMITS)), st.floats() | st.none()))
def test_whatever_a_report_holds_what_is_left_is_plausible(fields: dict[str, float | None]) -> None:
    found = quality.inspect(report(**fields))
    assert isinstance(found.message, UeReport)
    for name, limit in quality.UE_LIMITS.items():
        value = getattr(found.message, name)
        assert value is None or limit.low <= value <= limit.high
    assert quality.inspect(found.message).reasons == ()


def test_quarantine_counts_by_source_and_reason_and_reasons_do_not_grow_with_values() -> None:
    quarantine = quality.Quarantine()
    for cqi in range(100, 200):
        assert quarantine.admit(report(dl_cqi=float(cqi))) is not None
    assert dict(quarantine.counts) == {("gnb0", "dl_cqi outside 0..15"): 100}


@given(st.integers(0, 2**60), st.integers(0, 2**60), st.floats(0, 1e6))
def test_staleness_is_age(at_ns: int, now_ns: int, max_age_s: float) -> None:
    age = quality.age_s(at_ns, now_ns)
    assert age == max(0, now_ns - at_ns) / 1e9
    assert quality.is_stale(at_ns, now_ns, max_age_s) == (age > max_age_s)


def test_sequence_gaps() -> None:
    gaps = quality.SequenceGaps()
    assert [gaps.observe("a", seq) for seq in (5, 6, 9, 8, 9)] == [0, 0, 2, 0, 0]
    assert gaps.observe("b", 100) == 0  # another source counts for itself
    assert dict(gaps.lost) == {"a": 2}
    assert dict(gaps.late) == {"a": 2}  # 8 came late, 9 came twice
    assert gaps.observe("a", 0) == 0
    assert gaps.observe("a", 1) == 0
    assert gaps.observe("b", 1) == 0
    assert dict(gaps.restarts) == {"a": 1, "b": 1}


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_in_order_losses_are_all_counted(arrives: list[bool]) -> None:
    gaps = quality.SequenceGaps()
    seen = [seq for seq, there in enumerate(arrives) if there]
    for seq in seen:
        gaps.observe("s", seq)
    expected = (seen[-1] - seen[0] + 1 - len(seen)) if seen else 0
    assert gaps.lost["s"] == expected
    assert not gaps.late
