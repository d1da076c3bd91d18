"""Bytes of the telemetry bus <-> messages: what a hostile, broken or merely odd publisher sends ends here.

A payload is one MessagePack map, or JSON if it begins with `{`. The common case is decoded and checked in one call:
the types used here carry the limits of telemetry/quality.py. Whatever fails is looked at again slowly, to blank what
may be blanked and to count the rest by source and reason.

Units are part of every field's name. A measurement that comes under a name without its unit (`thp_ul`, or 3GPP's
`DRB.UEThpUl`, whose unit depends on the version) refuses the message: it is not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Final, get_type_hints

import msgspec
import numpy as np

from telemetry import quality
from telemetry.messages import (
    CellReport,
    LinkReport,
    Message,
    NodeReport,
    TaskProgress,
    TaskTiming,
    UeReport,
    UeReportBatch,
)
from telemetry.quality import OTHERS, REQUIRED_LIMITS, UE_LIMITS, Range

BUS: Final[dict[bytes, type]] = {
    b"ran.ue": UeReport,
    b"ran.ue.batch": UeReportBatch,
    b"ran.cell": CellReport,
    b"compute.node": NodeReport,
    b"link": LinkReport,
    b"task": TaskProgress,
    b"task.timing": TaskTiming,
}
TOPIC_OF: Final = {kind: topic for topic, kind in BUS.items()}

MAX_BYTES: Final = 1 << 20  # of a payload: a columnar batch of 10 000 UEs is 300 kB
MAX_SOURCES: Final = (
    1_000  # fewer than quality.KEYS, that are counted by name; a hostile publisher may invent any number
)
MAX_ROWS: Final = 100_000  # of a batch
ID_CHARS: Final = 128  # of a source, UE, cell, node, task

_UNITS: Final = ("_bps_hz", "_bps", "_db", "_hz", "_s", "_ns", "_bits", "_fraction")
_3GPP: Final = ("DRB.UEThpUl", "DRB.UEThpDl", "RRU.PrbUsedUl", "RRU.PrbUsedDl", "RRU.PrbTotUl", "RRU.PrbTotDl")


def _without_unit(name: str) -> str:
    """`thp_ul_bps` -> `thp_ul`; "" where the name has no unit."""
    return next((name.removesuffix(u) for u in _UNITS if name.endswith(u)), "")


def _undeclared(kind: type[msgspec.Struct]) -> frozenset[str]:
    """Names under which a field of this kind would come without its unit."""
    fields = kind.__struct_fields__
    stems = {_without_unit(name) for name in fields} - {"", "at", *fields}
    return frozenset(stems | set(_3GPP)) if kind in {UeReport, UeReportBatch, CellReport} else frozenset(stems)


UNDECLARED: Final = {kind: _undeclared(kind) for kind in BUS.values()}

_REFUSED: Final = Annotated[int, msgspec.Meta(ge=1, le=0)]  # no value is of this type: the key may not be there
_ID = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS)]
_IDS: Final[dict[Any, Any]] = {str: _ID, tuple[str, ...]: tuple[_ID, ...]}


def _limited(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """Return the kind with its limits as types. What this type decodes, quality.inspect() would pass unchanged."""
    hints = get_type_hints(kind)
    limits: dict[str, Range] = {**REQUIRED_LIMITS[kind], **(UE_LIMITS if kind is UeReport else {})}
    fields: list[tuple[str, Any, Any]] = []
    defaults = dict(zip(kind.__struct_fields__[::-1], kind.__struct_defaults__[::-1], strict=False))
    for name, hint in hints.items():
        default = defaults.get(name, msgspec.NODEFAULT)
        if name in limits:
            fields.append((name, _within(hint, limits[name]), default))
        elif hint in _IDS:
            fields.append((name, _IDS[hint], default))
    fields += [(f"undeclared_{i}", _REFUSED, 0) for i in range(len(UNDECLARED[kind]))]
    rename = {f"undeclared_{i}": name for i, name in enumerate(sorted(UNDECLARED[kind]))}
    return msgspec.defstruct(
        kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True, omit_defaults=True, rename=rename,
        module=__name__,
    )  # fmt: skip


def _within(hint: Any, limit: Range) -> Any:  # noqa: ANN401  # a type form, of which Python has no type
    if hint is int:
        return Annotated[int, msgspec.Meta(ge=int(limit.low), le=int(limit.high))]
    narrow = Annotated[float, msgspec.Meta(ge=limit.low, le=limit.high)]
    return narrow if hint is float else narrow | None


class _Codec:
    """Decoders of one topic in one encoding."""

    def __init__(self, kind: type[msgspec.Struct], module: Any) -> None:  # noqa: ANN401  # msgspec.json or .msgpack
        limited = _limited(kind)
        self.fast: Callable[[bytes | memoryview], Any] = module.Decoder(limited).decode
        self.plain: Callable[[bytes | memoryview], Any] = module.Decoder(kind).decode
        self.loose: Callable[[bytes | memoryview], Any] = module.Decoder().decode


_CODECS: Final = {
    (topic, as_json): _Codec(kind, msgspec.json if as_json else msgspec.msgpack)
    for topic, kind in BUS.items()
    for as_json in (False, True)
}


class Intake:
    """Decodes frames and keeps the counts: by (source, reason) what was refused or blanked, and gaps by source."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.quarantine = quality.Quarantine()
        self.gaps = quality.SequenceGaps()
        self.messages = 0
        self.reports = 0  # rows of batches counted one by one
        self._max_bytes = max_bytes
        self._sources: set[str] = set()

    def decode(self, topic: bytes, payload: bytes | memoryview, user: str = "") -> Message | None:
        """Return the plausible message in a frame; None, and counted, where there is none."""
        self.messages += 1
        codec = _CODECS.get((topic, payload[:1] == b"{"))
        if codec is None or len(payload) > self._max_bytes:
            self.refuse(user, "unknown topic" if codec is None else "too large")
            return None
        try:
            message: Message | None = codec.fast(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            message = self._slow(topic, codec, payload, user)
        else:
            if isinstance(message, UeReport):  # stays of the type used here: it is the one that comes by the thousand
                if message.thp_ul_bps is not None or message.thp_dl_bps is not None:
                    message = self._inspect(message)
            elif isinstance(message, UeReportBatch):
                message = _plain(message) if _clean(message) else self._inspect(message)
            else:
                message = _plain(message)
        if message is None:
            return None
        self.reports += len(message.ue) if isinstance(message, UeReportBatch) else isinstance(message, UeReport)
        self.gaps.observe(self.name(message.source), message.seq)  # type: ignore[union-attr]  # bus kinds have both
        return message

    def refuse(self, source: str, reason: str) -> None:
        """Count a frame or a value that is not taken."""
        self.quarantine.counts.count((self.name(source), reason))

    def name(self, source: str) -> str:
        """Return the source as it is counted: those beyond the first thousand are one."""
        if source in self._sources:
            return source
        if len(self._sources) < MAX_SOURCES and len(source) <= ID_CHARS:
            self._sources.add(source)
            return source
        return OTHERS

    def _inspect(self, message: Message) -> Message | None:
        clean, reasons = quality.inspect(_plain(message))
        for reason in reasons:
            self.refuse(message.source, reason)  # type: ignore[union-attr]
        return clean

    def _slow(self, topic: bytes, codec: _Codec, payload: bytes | memoryview, user: str) -> Message | None:
        """Find out what is wrong with a payload: blank it, refuse it, or take a batch that came as `ran.ue`."""
        try:
            raw = codec.loose(payload)
        except (msgspec.DecodeError, RecursionError, ValueError, TypeError):
            raw = None
        if not isinstance(raw, dict):
            self.refuse(user, "not a MessagePack or JSON map")
            return None
        if topic == b"ran.ue" and isinstance(raw.get("ue"), list):
            self.messages -= 1
            return self.decode(b"ran.ue.batch", payload, user)
        source = raw.get("source")
        source = source if isinstance(source, str) else user
        try:
            if not (reason := _refusal(raw, UNDECLARED[BUS[topic]])):
                return self._inspect(codec.plain(payload))
        except msgspec.ValidationError as error:
            reason = _schema_reason(error)
        self.refuse(source, reason)
        return None


def _refusal(raw: dict[object, object], undeclared: frozenset[str]) -> str:
    """Why no part of this map can be taken, "" otherwise."""
    if found := sorted(name for name in raw if isinstance(name, str) and name in undeclared):
        return f"{found[0]}: its unit is not declared"
    for value in raw.values():
        for text in value[:MAX_ROWS] if isinstance(value, list) else (value,):
            if isinstance(text, str) and not 0 < len(text) <= ID_CHARS:
                return "an id is empty or too long"
    return ""


def _schema_reason(error: msgspec.ValidationError) -> str:
    """Where a payload breaks its schema, without its values: a hostile source must not invent reasons."""
    missing = re.search(r"missing required field `(\w+)`", str(error))
    if missing:
        return f"{missing[1]} is missing"
    where = re.search(r"at `\$\.?([\w.]*)", str(error))
    return f"{where[1] if where and where[1] else 'message'} has the wrong type"


def _plain(message: Any) -> Message:  # noqa: ANN401  # a type made here
    """Return the message as its public type (the types here are subclasses of those)."""
    kind: Any = next(k for k in type(message).__mro__ if k in REQUIRED_LIMITS)
    made: Message = kind(**{name: getattr(message, name) for name in kind.__struct_fields__})
    return made


def _clean(batch: UeReportBatch) -> bool:
    """Whether no value of a batch has to be looked at: columns of one length, all values within their limits."""
    n = len(batch.ue)
    if len(batch.cell) != n or len(batch.ul_efficiency_bps_hz) != n:
        return False
    for name in ("ul_efficiency_bps_hz", "dl_efficiency_bps_hz", "ul_sinr_db", "prb_used_ul"):
        column = getattr(batch, name)
        if column and not _column_clean(column, n, UE_LIMITS[name]):
            return False
    return True


def _column_clean(column: tuple[float | None, ...], n: int, limit: Range) -> bool:
    values = np.array(column, dtype=np.float64)  # None becomes NaN
    inside = np.count_nonzero((values >= limit.low) & (values <= limit.high))
    return len(column) == n and inside + column.count(None) == n


def encode(message: Message, *, as_json: bool = False) -> tuple[bytes, bytes]:
    """Return (topic, payload) of a message that travels on the bus. Raises KeyError for one that does not."""
    topic = TOPIC_OF[type(_plain(message))]
    return topic, (msgspec.json if as_json else msgspec.msgpack).encode(message)
