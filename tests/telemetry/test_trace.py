"""MCAP traces: what goes in comes out, sorted; what is damaged is counted; no file makes the reader crash."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap.writer import Writer

from telemetry.errors import BadTrace
from telemetry.messages import (
    TOPICS,
    LlmSession,
    Message,
    NodeReport,
    SiteMessage,
    TaskOffer,
    TaskTruth,
    UeReport,
    UeReportBatch,
    VideoClip,
)
from telemetry.trace import (
    CHUNK_BYTES,
    MAGIC,
    Recorder,
    json_schema,
    read_records,
    read_trace,
    sort_key,
    write_trace,
)

SESSION = LlmSession(model="m", context_tokens=9, new_tokens=1, max_output_tokens=4, ttft_s=1, tpot_s=0.1, private=True)
CLIP = VideoClip(frame_flop=1e9, frame_bits=1e6, fps=5, deadline_s=0.2, frames=10)


def ue_report(at_ns: int, seq: int = 0, ue: str = "u", **fields: float) -> UeReport:
    return UeReport(at_ns=at_ns, source=f"ran/{ue}", seq=seq, ue=ue, cell="c", **fields)


def offer(at_ns: int, seq: int = 0, ue: str = "u", work: LlmSession | VideoClip = SESSION) -> TaskOffer:
    return TaskOffer(at_ns=at_ns, source="offers", seq=seq, task=f"t{seq}", ue=ue, work=work)


def a_few() -> list[Message]:
    return [
        offer(5, 1, work=CLIP),
        TaskTruth(at_ns=5, task="t1", output_tokens=3),
        ue_report(5, 2, ul_efficiency_bps_hz=1.25, ul_sinr_db=-3.5),
        ue_report(0, 1),
        SiteMessage(at_ns=0, toml="v = 1"),
        NodeReport(at_ns=3, source="n", seq=0, node="edge0", up=False),
        UeReportBatch(at_ns=4, source="b", seq=0, ue=("u",), cell=("c",), ul_efficiency_bps_hz=(None,)),
    ]


def test_messages_come_back_sorted_with_the_site_first(tmp_path: Path) -> None:
    path = tmp_path / "t.mcap"
    write_trace(path, a_few())
    trace = read_trace(path)
    assert trace.messages == sorted(a_few(), key=sort_key)
    assert isinstance(trace.messages[0], SiteMessage)
    assert trace.site_toml == "v = 1"
    assert trace.duration_s == 5e-9
    assert trace.warnings == []
    assert len(trace.sha256) == 64


def test_the_same_messages_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    shuffled = [a_few()[i] for i in np.random.default_rng(3).permutation(len(a_few()))]
    write_trace(tmp_path / "a.mcap", a_few())
    write_trace(tmp_path / "b.mcap", shuffled)
    assert (tmp_path / "a.mcap").read_bytes() == (tmp_path / "b.mcap").read_bytes()
    assert not list(tmp_path.glob("*.part"))


floats = st.none() | st.floats(0, 15)
reports = st.builds(ue_report, st.integers(0, 2**50), st.integers(0, 2**40), st.sampled_from(["a", "é", "b c"]))
offers = st.builds(offer, st.integers(0, 2**50), st.integers(0, 99), st.just("a"), st.sampled_from([SESSION, CLIP]))


@given(messages=st.lists(reports | offers, min_size=1, max_size=30))
def test_any_messages_survive(messages: list[Message], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "t.mcap"
    write_trace(path, messages)
    assert read_trace(path).messages == sorted(messages, key=sort_key)


def test_the_official_reader_opens_it_with_a_schema_for_every_topic(tmp_path: Path) -> None:
    path = tmp_path / "t.mcap"
    write_trace(path, a_few())
    with path.open("rb") as stream:
        seen = {}
        for schema, channel, message in make_reader(stream, validate_crcs=True).iter_messages():
            assert schema is not None
            seen[channel.topic] = (schema.encoding, channel.message_encoding, json.loads(schema.data))
            assert json.loads(message.data)["at_ns"] == message.log_time
    assert set(seen) == {"site", "ran.ue", "ran.ue.batch", "compute.node", "task", "task.truth"}
    assert all(s[:2] == ("jsonschema", "json") and s[2]["type"] == "object" for s in seen.values())


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_schemas_name_every_field(topic: str) -> None:
    schema = json_schema(TOPICS[topic])
    properties = schema["properties"]
    assert isinstance(properties, dict)
    assert list(properties) == list(TOPICS[topic].__struct_fields__)
    text = json.dumps(schema)
    assert all(ref in schema["$defs"] for ref in _references(text))  # type: ignore[operator]


def _references(text: str) -> list[str]:
    return [part.split('"')[0] for part in text.split("#/$defs/")[1:]]


@pytest.fixture(scope="module")
def many() -> list[Message]:
    """Make a few chunks of reports, with numbers that zstd cannot shrink to nothing."""
    numbers = np.random.default_rng(1).random(12_000).tolist()
    return [ue_report(i * 1000, i, f"u{i % 7}", ul_efficiency_bps_hz=x) for i, x in enumerate(numbers)]


def test_a_trace_cut_off_anywhere_gives_its_whole_chunks(many: list[Message], tmp_path: Path) -> None:
    path = tmp_path / "t.mcap"
    write_trace(path, many)
    data = path.read_bytes()
    lengths = []
    for part in (0.3, 0.6, 0.9):
        path.write_bytes(data[: int(part * len(data))])
        trace = read_trace(path)
        lengths.append(len(trace.messages))
        assert trace.messages == many[: len(trace.messages)]
        assert any("cut off" in line for line in trace.warnings)
    assert 0 < lengths[0] < lengths[1] < lengths[2] < len(many)
    assert lengths[2] > len(many) * 0.9 - 2 * CHUNK_BYTES / 100


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, int]:
    """A recording of some chunks, closed by its writer: where it is, its bytes, where its summary begins."""
    path = tmp_path_factory.mktemp("closed") / "r.mcap"
    with path.open("wb") as stream:
        recorder = Recorder(stream, chunk_bytes=2_000, checksums=True)
        for n in range(100):
            recorder.record("ran.ue", ue_report(n, n), at_ns=n, source_ns=n)
        recorder.finish()
    data = path.read_bytes()
    assert read_records(path).is_whole
    footer = len(data) - len(MAGIC) - 20  # the record's content: two offsets and a checksum
    return path, data, int.from_bytes(data[footer : footer + 8], "little")


def test_a_recording_whose_writer_was_killed_while_it_was_closing_is_cut_off_and_not_damaged(
    closed: tuple[Path, bytes, int], tmp_path: Path
) -> None:
    path, data, summary = closed
    whole, cut = read_records(path), tmp_path / "cut.mcap"
    for end in (*range(summary - 13, len(data), 97), *range(len(data) - 60, len(data))):
        cut.write_bytes(data[:end])
        found = read_records(cut)
        assert (found.records, found.damage, found.is_whole) == (whole.records, [], False), end


def test_a_recording_that_was_closed_is_damaged_where_any_bit_of_its_end_is_another(
    closed: tuple[Path, bytes, int], tmp_path: Path
) -> None:
    _, data, summary = closed
    bad = tmp_path / "bad.mcap"
    for at in (*range(summary - 13, len(data), 41), *range(len(data) - 60, len(data))):
        for bit in (0, 7):
            bad.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            found = read_records(bad)
            assert found.damage, (at, bit)
            assert found.is_whole or at >= len(data) - len(MAGIC)


def test_a_damaged_chunk_costs_only_itself(many: list[Message], tmp_path: Path) -> None:
    path = tmp_path / "t.mcap"
    write_trace(path, many)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    trace = read_trace(path)
    assert len(many) / 2 < len(trace.messages) < len(many)
    assert [line for line in trace.warnings if "damaged chunk" in line]


def test_no_damage_raises_anything_but_bad_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.mcap"
    write_trace(path, [*a_few(), *(ue_report(i) for i in range(50))])
    good = path.read_bytes()
    rng = np.random.default_rng(7)
    for _ in range(300):
        data = bytearray(good)
        for at in rng.integers(8, len(data), size=rng.integers(1, 5)):
            data[at] = rng.integers(256)
        path.write_bytes(data[: rng.integers(8, len(data) + 1)])
        with contextlib.suppress(BadTrace):
            read_trace(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"Timestamp,num_ues\n1,2\n", "not an MCAP file"), (b"\x89MCAP0\r\n", "no telemetry message")],
)
def test_what_is_no_trace_is_said_to_be_none(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "t.mcap"
    path.write_bytes(content)
    with pytest.raises(BadTrace, match=says):
        read_trace(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="No such file"):
        read_trace(tmp_path / "none.mcap")
    with pytest.raises(BadTrace, match="Is a directory"):
        read_trace(tmp_path)


def test_an_empty_trace_and_negative_times_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="nothing to write"):
        write_trace(tmp_path / "t.mcap", [])
    with pytest.raises(BadTrace, match="starts at 0"):
        write_trace(tmp_path / "t.mcap", [ue_report(-1)])
    with pytest.raises(BadTrace, match="cannot be written"):
        write_trace(tmp_path / "no" / "t.mcap", [ue_report(1)])
    assert list(tmp_path.iterdir()) == []


def write_raw(path: Path, rows: list[tuple[str, bytes]]) -> None:
    with path.open("wb") as stream:
        writer = Writer(stream)
        writer.start()
        schema = writer.register_schema("x", "jsonschema", b"{}")
        channels = {topic: writer.register_channel(topic, "json", schema) for topic, _ in rows}
        for topic, data in rows:
            writer.add_message(channels[topic], log_time=0, publish_time=0, data=data)
        writer.finish()


def test_foreign_malformed_and_impossible_messages_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.mcap"
    good = msgspec.json.encode(ue_report(1, ul_efficiency_bps_hz=1.0))
    write_raw(
        path,
        [
            ("ran.ue", good),
            ("ran.ue", good[:-5]),
            ("ran.ue", b'{"at_ns": NaN}'),
            ("ran.ue", msgspec.json.encode(ue_report(2, dl_cqi=1835.0))),
            ("ran.ue", b'{"new_field": [1], ' + good[1:]),
            ("link", b'{"at_ns":0,"source":"l","seq":0,"link":"x","one_way_s":-3.5e12}'),
            ("diagnostics", b"{}"),
            ("task", msgspec.json.encode(offer(3, ue="nobody"))),
        ],
    )
    trace = read_trace(path)
    assert len(trace.messages) == 4
    assert trace.other_topics == {"diagnostics": 1}
    text = "\n".join(trace.warnings)
    assert "2 malformed ran.ue messages dropped" in text
    assert "dl_cqi outside 0..15 (1)" in text
    assert "one_way_s outside 0..3600 (1)" in text
    assert "1 tasks of UE nobody, which no RAN report names" in text


def test_reading_is_fast(many: list[Message], tmp_path: Path) -> None:
    path = tmp_path / "t.mcap"
    write_trace(path, many)
    started = time.perf_counter()
    read_trace(path)
    assert len(many) / (time.perf_counter() - started) > 10_000  # 100 000 and more on an idle core
