"""Traces: MCAP files of telemetry messages, one channel per topic with its JSON schema (https://mcap.dev/spec).

Written in chunks, each with a checksum, so that a file cut off by a crash gives all its whole chunks. Payloads are
JSON, so that Foxglove and the `mcap` tool open them.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import msgspec
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk
from mcap.stream_reader import get_chunk_data_stream
from mcap.writer import Writer
from zstandard import ZstdError

from telemetry.errors import BadTrace
from telemetry.messages import TOPICS, Message, SiteMessage, TaskOffer, UeReport, UeReportBatch
from telemetry.quality import Quarantine

MAGIC: Final = b"\x89MCAP0\r\n"
CHUNK_BYTES: Final = 256 * 1024  # what a crash can lose; smaller chunks compress worse
LIBRARY: Final = "cosched"  # without a version: the same messages give the same bytes
MAX_CHUNK_BYTES: Final = 1 << 30  # a damaged size must not eat the memory
S_NS: Final = 1_000_000_000
CUT_OFF: Final = "the file is cut off: read up to its last whole chunk"

_RANK: Final = {kind: rank for rank, kind in enumerate(TOPICS.values())}
_TOPIC: Final = {kind: topic for topic, kind in TOPICS.items()}
_RECORD: Final = struct.Struct("<BQ")  # opcode, length of what follows
_DATA_END: Final = struct.Struct("<BQI")  # opcode, length, checksum of the data section
_FOOTER: Final = struct.Struct("<BQQQI")  # opcode, length, start of the summary, of its offsets, checksum
_MESSAGE: Final = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time; then the payload

# What reading a damaged record raises: CRC and text errors are ValueErrors, lz4 raises RuntimeError.
_DAMAGE: Final = (McapError, ZstdError, ValueError, RuntimeError, struct.error)


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace as read. `duration_s`: instant of its last message; `other_topics`: messages of channels unknown here."""

    messages: list[Message]
    site_toml: str | None
    sha256: str
    duration_s: float
    warnings: list[str]
    other_topics: Counter[str]


def sort_key(message: Message) -> tuple[int, int, int]:
    """Order of a trace: instant, then topic in the order of TOPICS, then the source's own sequence number."""
    return message.at_ns, _RANK[type(message)], getattr(message, "seq", 0)


class Recorder:
    """Appends records of any struct type to an MCAP stream, one channel per topic with the type's JSON schema.

    checksums: the whole file is covered, not its chunks alone, so that any flipped bit is found.
    """

    def __init__(self, stream: IO[bytes], *, chunk_bytes: int | None = None, checksums: bool = False) -> None:
        self._writer = Writer(stream, chunk_size=chunk_bytes or CHUNK_BYTES, enable_data_crcs=checksums)
        self._writer.start(library=LIBRARY)
        self._channels: dict[str, int] = {}
        self._encoder = msgspec.json.Encoder()

    def record(self, topic: str, record: msgspec.Struct, *, at_ns: int, source_ns: int, seq: int = 0) -> None:
        """Append one record. at_ns: on the writer's clock; source_ns: as the source says."""
        channel = self._channels.get(topic)
        if channel is None:
            text = msgspec.json.encode(json_schema(type(record)))
            schema = self._writer.register_schema(topic, "jsonschema", text)
            channel = self._channels[topic] = self._writer.register_channel(topic, "json", schema)
        self._writer.add_message(
            channel_id=channel,
            log_time=at_ns,
            publish_time=source_ns,
            sequence=seq & 0xFFFFFFFF,
            data=self._encoder.encode(record),
        )

    def finish(self) -> None:
        """Write the rest of the last chunk and the summary."""
        self._writer.finish()  # type: ignore[no-untyped-call]  # mcap annotates only some of its methods


class TraceWriter:
    """Appends messages to an MCAP stream; a context manager. Every full chunk reaches the stream at once."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._recorder = Recorder(stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._recorder.finish()

    def add(self, message: Message) -> None:
        """Write one message. Raises BadTrace for an instant before 0, which MCAP cannot hold."""
        if message.at_ns < 0:
            raise BadTrace(f"{_TOPIC[type(message)]} message at {message.at_ns} ns: a trace starts at 0")
        topic, seq = _TOPIC[type(message)], getattr(message, "seq", 0)
        self._recorder.record(topic, message, at_ns=message.at_ns, source_ns=message.at_ns, seq=seq)


def json_schema(kind: type) -> dict[str, object]:
    """JSON schema of a message type with an object at its top, as Foxglove wants it (not a reference)."""
    _, parts = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    return {**parts[kind.__name__], "$defs": parts}


def write_trace(path: Path, messages: Iterable[Message]) -> None:
    """Sort the messages and write them; a file of that name is replaced only once all is written. Raises BadTrace."""
    ordered = sorted(messages, key=sort_key)
    if not ordered:
        raise BadTrace(f"{path}: nothing to write: the trace would be empty")
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream, TraceWriter(stream) as writer:
            for message in ordered:
                writer.add(message)
        part.replace(path)
    except OSError as error:
        raise BadTrace(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def read_trace(path: Path) -> Trace:
    """Read a trace, sorted; what is damaged, refused or unknown is counted in its warnings.

    Raises BadTrace when the file is missing, not MCAP, or holds no message.
    """
    data = _read_bytes(path)
    reading = _Reading()
    for topic, _, payload in _payloads(data, reading):
        reading.take(topic, payload)
    if not reading.messages:
        detail = f" ({'; '.join(reading.warnings())})" if reading.warnings() else ""
        raise BadTrace(f"{path}: the trace holds no telemetry message{detail}")
    messages = sorted(reading.messages, key=sort_key)
    site = next((m.toml for m in messages if isinstance(m, SiteMessage)), None)
    return Trace(
        messages=messages,
        site_toml=site,
        sha256=hashlib.sha256(data).hexdigest(),
        duration_s=messages[-1].at_ns / S_NS,
        warnings=reading.warnings() + _orphans(messages),
        other_topics=reading.other_topics,
    )


@dataclass(frozen=True, slots=True)
class Records:
    """A recording's raw records in the order of writing; `damage` names what is not as it was written."""

    records: list[tuple[str, int, bytes]]  # topic, log time in ns, JSON
    damage: list[str]
    is_whole: bool  # closed by its writer


def read_records(path: Path) -> Records:
    """Read a recording without sorting or judging its messages. Raises BadTrace when it is missing or not MCAP."""
    data = _read_bytes(path)
    reading = _Reading()
    records = [(topic, at_ns, bytes(payload)) for topic, at_ns, payload in _payloads(data, reading)]
    is_cut = any(what == CUT_OFF for what in reading.damage) and not data.endswith(MAGIC)
    damage = [what for what in sorted(reading.damage) if not (is_cut and what == CUT_OFF)]
    if not is_cut:
        damage = damage or _checksums(data)
    return Records(records, damage, is_whole=not is_cut)


def _checksums(data: bytes) -> list[str]:
    """Compare the checksums of a whole file's data and summary sections (MCAP specification, Data End and Footer)."""
    end = len(data) - len(MAGIC)
    footer = end - _FOOTER.size
    opcode, _, summary, _, summary_crc = _FOOTER.unpack_from(data, max(footer, 0))
    if data[end:] != MAGIC or opcode != Opcode.FOOTER or not _DATA_END.size < summary <= footer:
        return ["the end of the file is damaged"]
    opcode, length, data_crc = _DATA_END.unpack_from(data, summary - _DATA_END.size)
    found = [] if (opcode, length) == (Opcode.DATA_END, 4) else ["the end of the data section is damaged"]
    if data_crc and zlib.crc32(data[: summary - _DATA_END.size]) != data_crc:
        found.append("the data section's checksum does not hold")
    if zlib.crc32(data[summary : end - 4]) != summary_crc:
        found.append("the summary's checksum does not hold")
    return found


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadTrace(f"{path}: {error.strerror}") from None
    if not data:
        raise BadTrace(f"{path}: the file is empty")
    if not data.startswith(MAGIC):
        raise BadTrace(f"{path}: not an MCAP file, which 'cosched import', 'simulate' and 'run' write")
    return data


@dataclass(slots=True)
class _Reading:
    """What one pass over a file has found so far."""

    messages: list[Message] = field(default_factory=list)
    other_topics: Counter[str] = field(default_factory=Counter)
    damage: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)
    quarantine: Quarantine = field(default_factory=Quarantine)
    _decoders: dict[str, msgspec.json.Decoder[Message]] = field(
        default_factory=lambda: {topic: msgspec.json.Decoder(kind) for topic, kind in TOPICS.items()}
    )

    def take(self, topic: str, payload: memoryview) -> None:
        """Decode and inspect one message."""
        decoder = self._decoders.get(topic)
        if decoder is None:
            self.other_topics[topic] += 1
            return
        try:
            message = self.quarantine.admit(decoder.decode(payload))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.malformed[topic] += 1
            return
        if message is not None:
            self.messages.append(message)

    def warnings(self) -> list[str]:
        """One line per thing that is wrong, each with its count."""
        lines = [f"{what} ({n})" for what, n in sorted(self.damage.items())]
        lines += [f"{n} malformed {topic} messages dropped" for topic, n in sorted(self.malformed.items())]
        counts = sorted(self.quarantine.counts.items())
        return lines + [f"{source or 'a source without name'}: {why} ({n})" for (source, why), n in counts]


def _payloads(data: bytes, reading: _Reading) -> Iterator[tuple[str, int, memoryview]]:
    """Yield (topic, log time, payload) of every message in whole records; note damage, of which a file may hold any."""
    topics: dict[int, str] = {}
    for opcode, content in _records(memoryview(data)[len(MAGIC) :], reading):
        try:
            found = _in_chunk(content, topics) if opcode == Opcode.CHUNK else _direct(opcode, content, topics)
        except _DAMAGE as error:
            reading.damage[f"damaged chunks left out: {type(error).__name__}"] += 1
            continue
        yield from found


def _records(view: memoryview, reading: _Reading) -> Iterator[tuple[int, memoryview]]:
    """Yield (opcode, content) up to the end of the data section; note when the file ends before, or in its summary."""
    at = 0
    while at + _RECORD.size <= len(view):
        opcode, length = _RECORD.unpack_from(view, at)
        end = at + _RECORD.size + length
        if opcode == Opcode.DATA_END:
            if _ends_early(view[at:]):
                break
            return
        if end > len(view):
            break
        yield opcode, view[at + _RECORD.size : end]
        at = end
    reading.damage[CUT_OFF] += 1


def _ends_early(rest: memoryview) -> bool:
    """Whether a file whose end begins here was not written to its last byte: its writer was killed, or had no room."""
    at = 0
    while at + _RECORD.size <= len(rest):
        opcode, length = _RECORD.unpack_from(rest, at)
        at += _RECORD.size + length
        if opcode == Opcode.FOOTER and at <= len(rest):
            left = bytes(rest[at:])
            return len(left) < len(MAGIC) and MAGIC.startswith(left)
    return True


def _in_chunk(content: memoryview, topics: dict[int, str]) -> list[tuple[str, int, memoryview]]:
    chunk = Chunk.read(ReadDataStream(BytesIO(content)))
    if chunk.uncompressed_size > MAX_CHUNK_BYTES:
        raise ValueError(f"a chunk of {chunk.uncompressed_size} bytes")
    stream, size = get_chunk_data_stream(chunk, validate_crc=True)
    view, at = memoryview(stream.read(size)), 0
    found: list[tuple[str, int, memoryview]] = []
    while at < len(view):
        opcode, length = _RECORD.unpack_from(view, at)
        at += _RECORD.size
        found += _direct(opcode, view[at : at + length], topics)
        at += length
    return found


def _direct(opcode: int, content: memoryview, topics: dict[int, str]) -> list[tuple[str, int, memoryview]]:
    if opcode == Opcode.MESSAGE:
        channel, _, at_ns, _ = _MESSAGE.unpack_from(content)
        return [(topics.get(channel, f"channel {channel}"), at_ns, content[_MESSAGE.size :])]
    if opcode == Opcode.CHANNEL:
        known = Channel.read(ReadDataStream(BytesIO(content)))
        topics[known.id] = known.topic
    return []


def _orphans(messages: list[Message]) -> list[str]:
    """Count tasks of UEs that no RAN report names: they can never be served."""
    seen: set[str] = set()
    for message in messages:
        if isinstance(message, UeReport):
            seen.add(message.ue)
        elif isinstance(message, UeReportBatch):
            seen.update(message.ue)
    lost = Counter(m.ue for m in messages if isinstance(m, TaskOffer) and m.ue not in seen)
    return [f"{n} tasks of UE {ue}, which no RAN report names" for ue, n in sorted(lost.items())]
