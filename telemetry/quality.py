"""Plausibility, quarantine, staleness and sequence gaps. No clock: `now_ns` is handed in.

Values that real sources have been seen to send (a CQI of 1835, a SINR of -33.9 dB in the CQI field, a latency of
-3.5e18 us, NaN, a throughput that outlives its traffic) are never planned with: an optional field is blanked, a
message whose required fields are impossible is refused, and both are counted by source and reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

import msgspec

from telemetry.messages import (
    CellReport,
    DecisionMessage,
    LinkReport,
    LlmSession,
    Message,
    NodeReport,
    SiteMessage,
    TaskOffer,
    TaskProgress,
    TaskTiming,
    TaskTruth,
    UeReport,
    UeReportBatch,
    VideoClip,
)

S_NS: Final = 1_000_000_000
Key = TypeVar("Key", bound=Hashable)


class Range(NamedTuple):
    """Inclusive limits of a plausible value."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the value is within the limits; NaN never is."""
        return self.low <= value <= self.high


_FRACTION: Final = Range(0.0, 1.0)
_COUNT: Final = Range(0, 2**40)
_SECONDS: Final = Range(0.0, 3600.0)
_POSITIVE: Final = Range(1e-9, 1e18)

# Optional fields of a UE's report: outside is blanked.
UE_LIMITS: Final[dict[str, Range]] = {
    "ul_efficiency_bps_hz": Range(0.0, 29.7),  # 4 layers of 256QAM, TS 38.214 Table 5.1.3.1-2
    "dl_efficiency_bps_hz": Range(0.0, 59.3),  # 8 layers
    "ul_mcs": Range(0, 28),  # TS 38.214 5.1.3.1; 29 to 31 are reserved
    "dl_cqi": Range(0, 15),  # TS 38.214 5.2.2.1
    "ul_sinr_db": Range(-40.0, 60.0),  # TS 38.133 10.1.16 reports -23 to 40; receivers print a little more
    "ul_error_fraction": _FRACTION,
    "power_headroom_db": Range(-33.0, 41.0),  # TS 38.133 10.1.17
    "prb_used_ul": Range(0.0, 275.0),  # TS 38.211 4.4.2: largest resource grid
    "prb_used_dl": Range(0.0, 275.0),
    "thp_ul_bps": Range(0.0, 10e9),  # peak of ITU-R M.2410 4.1
    "thp_dl_bps": Range(0.0, 20e9),
}

_STAMP: Final = {"at_ns": Range(0, 2**63 - 1), "seq": Range(0, 2**63 - 1)}

# Required fields: outside refuses the message.
REQUIRED_LIMITS: Final[dict[type, dict[str, Range]]] = {
    SiteMessage: {"at_ns": _STAMP["at_ns"]},
    UeReport: _STAMP,
    UeReportBatch: _STAMP,
    CellReport: _STAMP | {"background_ul_fraction": _FRACTION},
    NodeReport: _STAMP
    | {"background_fraction": _FRACTION, "cpu_fraction": _FRACTION, "memory_fraction": _FRACTION}
    | {"gpu_fraction": _FRACTION, "gpu_memory_fraction": _FRACTION, "rtt_s": _SECONDS}
    | {"gpu_memory_bytes": _POSITIVE},
    LinkReport: _STAMP | {"one_way_s": _SECONDS, "background_fraction": _FRACTION},
    TaskOffer: _STAMP | {"weight": _POSITIVE},
    TaskProgress: _STAMP
    | {"done": _COUNT, "late": _COUNT, "decoding_s": _SECONDS, "ul_bits_left": Range(0.0, 1e15)}
    | {"node_s_left": _SECONDS},
    TaskTiming: _STAMP
    | {"tokens": _COUNT, "ttft_s": _SECONDS, "tpot_s": _SECONDS, "device_prefill_s": _SECONDS}
    | {"device_token_s": _SECONDS, "node_prefill_s": _SECONDS, "node_token_s": _SECONDS},
    TaskTruth: {"at_ns": _STAMP["at_ns"], "output_tokens": _COUNT},
    DecisionMessage: _STAMP,
    LlmSession: {"context_tokens": _COUNT, "new_tokens": _COUNT, "max_output_tokens": _COUNT}
    | {"ttft_s": _POSITIVE, "tpot_s": _POSITIVE},
    VideoClip: {"frame_flop": Range(0.0, 1e18), "frame_bits": Range(0.0, 1e15), "fps": _POSITIVE}
    | {"deadline_s": _POSITIVE, "frames": _COUNT, "target_ratio": _FRACTION},
}


class Inspected(NamedTuple):
    """`message`: what is left of it, None when it is refused. `reasons`: one per value found impossible."""

    message: Message | None
    reasons: tuple[str, ...]


def inspect(message: Message) -> Inspected:
    """Blank impossible optional values of a message, or refuse it. Pure."""
    wrong = _outside(message, REQUIRED_LIMITS[type(message)])
    if isinstance(message, TaskOffer):
        wrong |= _outside(message.work, REQUIRED_LIMITS[type(message.work)])
    if wrong:
        return Inspected(None, tuple(wrong.values()))
    if isinstance(message, UeReport):
        return _inspect_report(message)
    if isinstance(message, UeReportBatch):
        return _inspect_batch(message)
    return Inspected(message, ())


def _outside(record: object, limits: dict[str, Range]) -> dict[str, str]:
    """Return field -> reason for the fields outside their limits; None is no value."""
    wrong: dict[str, str] = {}
    for name, limit in limits.items():
        value = getattr(record, name)
        if value is not None and not limit.low <= value <= limit.high:  # NaN fails both comparisons
            wrong[name] = f"{name} {_kind(value, limit)}"
    return wrong


def _kind(value: float, limit: Range) -> str:
    """Name the reason without the value: reasons are counted, and a hostile source must not invent new ones."""
    if math.isnan(value):
        return "is NaN"
    if math.isinf(value):
        return "is infinite"
    return f"outside {limit.low:g}..{limit.high:g}"


def _inspect_report(report: UeReport) -> Inspected:
    wrong = _outside(report, UE_LIMITS)
    if report.prb_used_ul == 0 and (report.thp_ul_bps or 0) > 0:
        wrong.setdefault("thp_ul_bps", "thp_ul_bps without a PRB used")  # a filter that outlives the traffic
    if report.prb_used_dl == 0 and (report.thp_dl_bps or 0) > 0:
        wrong.setdefault("thp_dl_bps", "thp_dl_bps without a PRB used")
    if not wrong:
        return Inspected(report, ())
    return Inspected(msgspec.structs.replace(report, **dict.fromkeys(wrong)), tuple(wrong.values()))


def _inspect_batch(batch: UeReportBatch) -> Inspected:
    columns = [name for name in UE_LIMITS if name in UeReportBatch.__struct_fields__]
    sizes = {len(batch.ue), len(batch.cell), len(batch.ul_efficiency_bps_hz)}
    sizes |= {len(getattr(batch, name)) for name in columns if getattr(batch, name)}
    if len(sizes) > 1:
        return Inspected(None, ("columns of unequal length",))
    reasons: list[str] = []
    clean = {name: _clean_column(name, getattr(batch, name), reasons) for name in columns}
    return Inspected(msgspec.structs.replace(batch, **clean) if reasons else batch, tuple(reasons))


def _clean_column(name: str, column: tuple[float | None, ...], reasons: list[str]) -> tuple[float | None, ...]:
    limit = UE_LIMITS[name]
    reasons += [f"{name} {_kind(v, limit)}" for v in column if v is not None and not limit.holds(v)]
    return tuple(v if v is None or limit.holds(v) else None for v in column)


MOST: Final = 2**63 - 1  # that a count reaches: the largest whole number of all readers of MessagePack
KEYS: Final = 2_000  # that a tally holds: whoever invents names fills it once, not the memory
OTHERS: Final = "(others)"


class Tally(Counter[Key]):
    """Counts by keys that others choose: it never holds more than `KEYS` of them, nor a number beyond `MOST`.

    What comes when it is full is counted under `others(key)`.
    """

    def __init__(self, others: Callable[[Key], Key]) -> None:
        super().__init__()
        self._others = others

    def count(self, key: Key, n: int = 1) -> None:
        """Add to a count."""
        if key not in self and len(self) >= KEYS:
            key = self._others(key)
        self[key] = min(MOST, self[key] + n)


def by_source() -> Tally[str]:
    """Counts by source."""
    return Tally(lambda _: OTHERS)


def by_reason() -> Tally[tuple[str, str]]:
    """Counts by (source, reason); reasons are fixed sentences, so that there are few for any number of sources."""
    return Tally(lambda key: (OTHERS, key[1]))


@dataclass(slots=True)
class Quarantine:
    """Counts what was refused or blanked, by (source, reason)."""

    counts: Tally[tuple[str, str]] = field(default_factory=by_reason)

    def admit(self, message: Message) -> Message | None:
        """Return the message without impossible values, None when it is refused."""
        clean, reasons = inspect(message)
        source = getattr(message, "source", "")
        for reason in reasons:
            self.counts.count((source, reason))
        return clean


def age_s(at_ns: int, now_ns: int) -> float:
    """Age of a sample in seconds; 0 for one that claims to be from the future (clocks of two machines differ)."""
    return max(0, now_ns - at_ns) / S_NS


def is_stale(at_ns: int, now_ns: int, max_age_s: float) -> bool:
    """Whether a sample is older than `max_age_s`."""
    return age_s(at_ns, now_ns) > max_age_s


REORDER_WINDOW: Final = 64  # a step back by less is a late message, by more (or to 0) a restarted source
LOSS_WINDOW: Final = 1_000_000  # a step ahead by more is one, too: at 10 000 messages/s that is 100 s of silence


@dataclass(slots=True)
class SequenceGaps:
    """Loss per source, from sequence numbers: counts of messages lost, late or repeated, and restarts of the source.

    Sources beyond the first `KEYS` are not followed: their messages are counted in `unfollowed`.
    """

    lost: Tally[str] = field(default_factory=by_source)
    late: Tally[str] = field(default_factory=by_source)
    restarts: Tally[str] = field(default_factory=by_source)
    unfollowed: int = 0
    _last: dict[str, int] = field(default_factory=dict)

    def observe(self, source: str, seq: int) -> int:
        """Take note of a message; return how many of this source are missing before it."""
        last = self._last.get(source)
        if last is None:
            if len(self._last) >= KEYS or source == OTHERS:
                self.unfollowed += 1
            else:
                self._last[source] = seq
            return 0
        if last < seq <= last + LOSS_WINDOW:
            self._last[source] = seq
            if missing := seq - last - 1:
                self.lost.count(source, missing)
            return missing
        if seq == 0 or seq > last or last - seq > REORDER_WINDOW:
            self.restarts.count(source)
            self._last[source] = seq
        else:
            self.late.count(source)
        return 0
