"""Bytes of the bus: what comes through, what is blanked, what is refused, and that every refusal is counted."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from telemetry import quality, wire
from telemetry.messages import CellReport, Message, NodeReport, TaskProgress, UeReport, UeReportBatch

BASE: dict[str, Any] = {"at_ns": 5, "source": "ran/0", "seq": 1, "ue": "ue1", "cell": "cell0"}
MPACK = msgspec.msgpack.encode


def taken(payload: dict[str, Any] | bytes, topic: bytes = b"ran.ue") -> tuple[Message | None, dict[Any, int]]:
    """Decode one payload; return the message and what was counted."""
    intake = wire.Intake()
    data = payload if isinstance(payload, bytes) else MPACK(payload)
    message = intake.decode(topic, data, "publisher")
    return message, dict(intake.quarantine.counts)


def fields(message: object, kind: type) -> dict[str, Any]:
    return {name: getattr(message, name) for name in kind.__struct_fields__}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "message",
    [
        UeReport(**BASE, ul_efficiency_bps_hz=2.5, dl_cqi=7.0),
        UeReportBatch(at_ns=1, source="b", seq=2, ue=("a", "b"), cell=("c", "c"), ul_efficiency_bps_hz=(1.0, None)),
        CellReport(at_ns=1, source="c", seq=0, cell="cell0", background_ul_fraction=0.25),
        NodeReport(at_ns=1, source="n", seq=0, node="edge0", up=False),
        TaskProgress(at_ns=1, source="t", seq=3, task="t1", done=4, decoding_s=0.3),
    ],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("as_json", [False, True])
def test_messages_come_back_as_they_were(message: Message, as_json: bool) -> None:
    topic, payload = wire.encode(message, as_json=as_json)
    got, counts = taken(payload, topic)
    assert isinstance(got, type(message))
    assert fields(got, type(message)) == fields(message, type(message))
    assert wire.encode(got) == wire.encode(message)
    assert counts == {}


def test_unknown_fields_are_accepted_and_left_out():
    message, counts = taken(BASE | {"ul_efficiency_bps_hz": 2.0, "antenna_tilt_deg": 4, "vendor": {"x": [1]}})
    assert isinstance(message, UeReport)
    assert message.ul_efficiency_bps_hz == 2.0
    assert counts == {}


@pytest.mark.parametrize(
    "name", ["thp_ul", "ul_sinr", "ul_efficiency", "DRB.UEThpUl", "RRU.PrbUsedUl", "power_headroom"]
)
@pytest.mark.parametrize("value", [3, 3.5, None, "3"])
def test_a_value_without_its_unit_refuses_the_message(name: str, value: object):
    message, counts = taken(BASE | {name: value})
    assert message is None
    assert counts == {("ran/0", f"{name}: its unit is not declared"): 1}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dl_cqi", 1835), ("dl_cqi", -33.9), ("ul_sinr_db", float("nan")), ("ul_sinr_db", float("inf")),
        ("ul_efficiency_bps_hz", -1e-3), ("ul_mcs", 29.0), ("thp_ul_bps", 1e12), ("ul_error_fraction", 1.01),
    ],
)  # fmt: skip
def test_impossible_values_are_blanked_and_counted(field: str, value: float):
    message, counts = taken(BASE | {"prb_used_ul": 3.0, field: value})
    assert isinstance(message, UeReport)
    assert getattr(message, field) is None
    assert message.prb_used_ul == 3.0
    ((source, reason),) = counts
    assert source == "ran/0"
    assert reason.startswith(field)
    assert not any(c.isdigit() for c in reason) or "outside" in reason, "a source must not invent reasons"


def test_throughput_that_outlives_its_traffic_is_blanked():
    message, counts = taken(BASE | {"prb_used_ul": 0.0, "thp_ul_bps": 5e6})
    assert isinstance(message, UeReport)
    assert message.thp_ul_bps is None
    assert counts == {("ran/0", "thp_ul_bps without a PRB used"): 1}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not a MessagePack or JSON map"),
        (b"{", "not a MessagePack or JSON map"),
        (b"\xc1", "not a MessagePack or JSON map"),
        (b"{" * 100_000, "not a MessagePack or JSON map"),
        (b"\x91" * 100_000, "not a MessagePack or JSON map"),
        (MPACK([1, 2]), "not a MessagePack or JSON map"),
        (b'{"at_ns": NaN}', "not a MessagePack or JSON map"),
        (b"{}", "at_ns is missing"),
        (b"\xff" * (wire.MAX_BYTES + 1), "too large"),
    ],
    ids=["empty", "open", "reserved", "deep json", "deep msgpack", "list", "nan", "no key", "large"],
)
def test_garbage_is_counted_with_the_sender_named(payload: bytes, reason: str):
    message, counts = taken(payload)
    assert message is None
    assert counts == {("publisher", reason): 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ue": 7}, "ue has the wrong type"),
        ({"at_ns": -1}, "at_ns outside 0..9.22337e+18"),
        ({"at_ns": 1.5}, "at_ns has the wrong type"),
        ({"ue": ""}, "an id is empty or too long"),
        ({"cell": "c" * 129}, "an id is empty or too long"),
        ({"source": 3}, "source has the wrong type"),
    ],
)
def test_broken_required_fields_refuse_the_message(change: dict[str, Any], reason: str):
    message, counts = taken(BASE | change)
    assert message is None
    assert [r for _, r in counts] == [reason]


def test_a_batch_may_come_under_the_topic_of_reports():
    columns = {"ue": ["a", "b"], "cell": ["c", "c"], "ul_efficiency_bps_hz": [1.0, 99.0]}
    message, counts = taken(BASE | columns)
    assert isinstance(message, UeReportBatch)
    assert message.ul_efficiency_bps_hz == (1.0, None)
    assert list(counts) == [("ran/0", "ul_efficiency_bps_hz outside 0..29.7")]
    message, counts = taken(BASE | columns | {"cell": ["c"]})
    assert message is None
    assert list(counts) == [("ran/0", "columns of unequal length")]


def test_unknown_topics_and_invented_sources_cannot_fill_the_memory():
    intake = wire.Intake()
    assert intake.decode(b"ran.ue.rude", MPACK(BASE)) is None
    for i in range(wire.MAX_SOURCES + 50):
        intake.decode(b"ran.ue", MPACK(BASE | {"source": f"s{i}", "ul_mcs": 77}))
    names = {source for source, _ in intake.quarantine.counts}
    assert len(names) <= wire.MAX_SOURCES + 1
    assert intake.quarantine.counts[wire.OTHERS, "ul_mcs outside 0..28"] >= 50


def test_loss_is_counted_from_sequence_numbers():
    intake = wire.Intake()
    for seq in (0, 1, 4, 3, 5):
        intake.decode(b"ran.ue", MPACK(BASE | {"seq": seq}))
    assert intake.gaps.lost == {"ran/0": 2}
    assert intake.gaps.late == {"ran/0": 1}
    assert (intake.messages, intake.reports) == (5, 5)


NUMBERS = st.none() | st.floats(width=64) | st.integers(-50, 2000)
OPTIONAL = dict.fromkeys(quality.UE_LIMITS, NUMBERS)


@given(st.fixed_dictionaries({}, optional=OPTIONAL))
@example({"prb_used_dl": 0, "thp_dl_bps": 1.0})
def test_the_fast_path_says_what_the_slow_one_says(values: dict[str, Any]):
    """Independent of the limits as types: plain decoding and quality.inspect, which importers use."""
    payload = MPACK(BASE | values)
    expected = quality.inspect(msgspec.msgpack.decode(payload, type=UeReport))
    message, counts = taken(payload)
    assert isinstance(message, UeReport)
    assert fields(message, UeReport) == fields(expected.message, UeReport)
    assert sorted(r for (_, r), n in counts.items() for _ in range(n)) == sorted(expected.reasons)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=6))
def test_the_fast_path_of_batches_says_what_the_slow_one_says(rows: list[tuple[Any, Any]]):
    columns = {
        "ue": [f"u{i}" for i in range(len(rows))], "cell": ["c"] * len(rows),
        "ul_efficiency_bps_hz": [r[0] for r in rows], "ul_sinr_db": [r[1] for r in rows],
    }  # fmt: skip
    payload = MPACK(BASE | columns)
    expected = quality.inspect(msgspec.msgpack.decode(payload, type=UeReportBatch))
    message, counts = taken(payload, b"ran.ue.batch")
    assert message == expected.message
    assert sum(counts.values()) == len(expected.reasons)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers(-(2**63), 2**63)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(wire.BUS)), st.dictionaries(st.sampled_from([*BASE, "done", "thp_ul", "node"]), JUNK))
def test_no_map_raises(topic: bytes, payload: dict[str, Any]):
    taken(MPACK(payload), topic)


@given(st.sampled_from(sorted(wire.BUS)), st.binary(max_size=64))
def test_no_bytes_raise(topic: bytes, payload: bytes):
    taken(payload, topic)
    taken(b"{" + payload, topic)
