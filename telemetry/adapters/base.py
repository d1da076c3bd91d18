"""What adapters share: options, what a payload decodes to, and the way through quality control to numbered reports.

An adapter is a pure function of the payload, its options and the instant of arrival. It never guesses: a value whose
unit the source does not declare is left out and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from telemetry.errors import BadMessage
from telemetry.messages import LinkReport, Message, UeReport
from telemetry.quality import Quarantine

S_NS: Final = 1_000_000_000
US_NS: Final = 1_000
LATEST_UNIX_NS: Final = 4_102_444_800 * S_NS  # the year 2100: later is a broken clock
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Report = UeReport | LinkReport


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every adapter must be told, because no payload says it."""

    source: str
    """Name under which the reports are published, and their faults counted."""

    cells: dict[str, str] = {}
    """The source's cell (PCI, E2 node) -> cell id of the site. One that is not listed keeps its own name."""

    ues: dict[str, str] = {}
    """The source's UE -> UE id of the site. One that is not listed keeps its own name."""


class Decoded(NamedTuple):
    """Reports as the source states them (`seq` 0, impossible values still in), and what could not be used and why."""

    reports: tuple[Report, ...]
    problems: tuple[str, ...] = ()


class Decode(Protocol):
    """An adapter's function."""

    def __call__(self, payload: bytes, options: Options, received_ns: int) -> Decoded:
        """Decode one payload that arrived at `received_ns` (Unix time). Raises BadMessage."""
        ...


@dataclass(slots=True)
class Adapter:
    """One source's stream: decodes payloads, quarantines what is impossible, numbers what is left. Never raises."""

    decode: Decode
    options: Options
    quarantine: Quarantine = field(default_factory=Quarantine)
    problems: Counter[str] = field(default_factory=Counter)
    seq: int = 0

    def feed(self, payload: bytes, received_ns: int) -> list[Message]:
        """Return the plausible reports of a payload, numbered on; what is wrong with it is counted."""
        try:
            decoded = self.decode(payload, self.options, received_ns)
        except BadMessage as error:
            self.problems[str(error)] += 1
            return []
        self.problems.update(decoded.problems)
        return [self._numbered(clean) for report in decoded.reports if (clean := self.quarantine.admit(report))]

    def _numbered(self, report: Message) -> Message:
        self.seq += 1
        return msgspec.structs.replace(report, seq=self.seq - 1)


def json_object(payload: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises BadMessage; it does not quote the payload, for reasons are counted."""
    try:
        value = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadMessage("payload is not JSON") from None
    if not isinstance(value, dict):
        raise BadMessage("payload is JSON, but not an object")
    return value


def number(record: Mapping[str, Any], name: str) -> float | None:
    """Return a finite number, None where the field is missing, null, text or true/false."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond any float
        return None


def objects(value: object) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a JSON list; anything else in it, or in its place, is passed over."""
    yield from (entry for entry in value if isinstance(entry, dict)) if isinstance(value, list) else ()


def unix_ns(value: object, unit_ns: int) -> int | None:
    """Return Unix time in ns from a number of units or ISO 8601 text in UTC, None where it is no time before 2100."""
    try:
        if isinstance(value, str):
            at = datetime.fromisoformat(value)
            value, unit_ns = (
                ((at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1),
                US_NS,
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        # 53 bits hold Unix time to a quarter of a microsecond: what a float says beyond is noise
        at_ns = value * unit_ns if isinstance(value, int) else round(value * (unit_ns / US_NS)) * US_NS
    except (ValueError, OverflowError):
        return None
    return at_ns if 0 < at_ns < LATEST_UNIX_NS else None


def blocks_and_errors(good: float | None, bad: float | None) -> tuple[float | None, float]:
    """Return transport blocks and the share of them in error; (None, 0) where a count is missing or negative."""
    if good is None or bad is None or good < 0 or bad < 0:
        return None, 0.0
    return good + bad, bad / (good + bad) if good + bad else 0.0
