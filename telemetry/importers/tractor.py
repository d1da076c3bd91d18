"""SCOPE/ColO-RAN per-UE gNB logs, as in TRACTOR (MIT), ColO-RAN and COMMAG: one CSV per UE, a row every 250 ms.

Pitfalls of the format, and what is done about each:

- An idle UE goes on reporting rows of zeros with a frozen `dl_cqi`. They become reports without a sample. A row is
  a sample of the uplink when ul_n_samples > 20, ul_mcs > 0 and ul_sinr != 0.
- Files can start with rows of a run months before; they end where time jumps by more than a day, and are dropped.
- Files that went through a spreadsheet have `1.67088E+12` as the time of every row (and as IMSI): such rows are
  numbered at 250 ms, and the file's name names the UE.
- `sum_requested_prbs` and `sum_granted_prbs` are downlink, summed over the window; `phr` holds nothing.
- The stack is LTE: efficiency is TBS(mean MCS) per PRB x (1 - HARQ error rate), which agrees with the measured rates
  of full-buffer rows. What an NR cell could do at that SINR is another question (telemetry.radio.NR_UPLINK).
- A UE re-attaches with a new RNTI after a gap: it stays the same UE.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from telemetry import radio
from telemetry.errors import BadTable
from telemetry.importers.base import (
    LATEST_UNIX_S,
    MS_NS,
    S_NS,
    ImportTally,
    RanRecording,
    RecordedSample,
    SourceTable,
    csv_files,
    ran_recording,
    read_table,
)

SOURCE: Final = "tractor"
PERIOD_NS: Final = 250 * MS_NS  # reporting window of SCOPE
TTIS: Final = 250  # in one window: a PRB sum divided by it is a mean
MIN_UL_SAMPLES: Final = 20  # fewer are a few transport blocks: their mean says little
EFFICIENCY_FLOOR_BPS_HZ: Final = 0.08  # a row with all blocks in error still gets HARQ retransmissions through
REATTACH_GAP_NS: Final = 2 * S_NS
STALE_GAP_NS: Final = 24 * 3600 * S_NS
MIN_RUN_ROWS: Final = 20  # 5 s: fewer rows after a jump of a day are stray clocks, not the run
_NEEDED: Final = ("ul_mcs", "ul_n_samples", "ul_sinr")  # whether a row is a sample, and which


class _Row(NamedTuple):
    at_ns: int
    cells: list[str]


@dataclass(frozen=True, slots=True)
class _Channel:
    """One UE of one file: its rows in order of time."""

    ue: str
    table: SourceTable
    rows: list[_Row]


def read(paths: Sequence[Path]) -> RanRecording:
    """Read files, or folders of them (`*_metrics.csv[.gz]`). Raises BadFile."""
    tally = ImportTally()
    channels: dict[str, _Channel] = {}
    for path in csv_files(paths, tally, "_metrics"):
        for channel in _channels(path, tally):
            channels[_free_name(channel, channels)] = channel
    samples = [sample for ue, channel in channels.items() for sample in _samples(ue, channel, tally)]
    return ran_recording(SOURCE, samples, tally)


def _free_name(channel: _Channel, taken: Iterable[str]) -> str:
    """Two files of one IMSI are two recordings, often of different days: the second is named after its folder too."""
    names = [channel.ue, f"{channel.ue}@{channel.table.path.parent.name}"]
    names += [f"{channel.ue}#{n}" for n in range(2, len(list(taken)) + 3)]
    return next(name for name in names if name not in taken)


def _channels(path: Path, tally: ImportTally) -> list[_Channel]:
    table = read_table(path, tally)
    table.require("Timestamp", *_NEEDED)
    tally.rows += len(table.rows)
    rows_of: dict[str, list[_Row]] = defaultdict(list)
    time, imsi = table.column("Timestamp"), table.column("IMSI")
    for cells in table.rows:
        at_ms = time.number(cells)
        if at_ms is None or not 0 <= at_ms < LATEST_UNIX_S * 1e3:
            tally.dropped["time is missing" if at_ms is None else "time is negative or after 2100"] += 1
        else:
            rows_of[_ue(imsi.text(cells), path)].append(_Row(_ns(at_ms), cells))
    channels = [_Channel(ue, table, _ordered(rows, tally)) for ue, rows in rows_of.items()]
    return [c for c in channels if c.rows]


def _ns(at_ms: float) -> int:
    whole = int(at_ms)
    return whole * MS_NS + round((at_ms - whole) * MS_NS)


def _ue(imsi: str, path: Path) -> str:
    """Return the IMSI, or the file's name where a spreadsheet has rounded the IMSI or the column is missing."""
    if imsi.isdigit() and int(imsi):
        return imsi
    return path.name.removesuffix(".gz").removesuffix(".csv").removesuffix("_metrics")


def _ordered(rows: list[_Row], tally: ImportTally) -> list[_Row]:
    if _times_are_lost(rows):
        tally.remarks["files whose times a spreadsheet rounded: rows numbered at 250 ms"] += 1
        return [row._replace(at_ns=rows[0].at_ns + i * PERIOD_NS) for i, row in enumerate(rows)]
    backwards = sum(b.at_ns < a.at_ns for a, b in pairwise(rows))
    if backwards:
        tally.remarks["steps back in time, rows sorted"] += backwards
    rows = sorted(rows, key=lambda row: row.at_ns)
    kept = [row for i, row in enumerate(rows) if i == 0 or row.at_ns != rows[i - 1].at_ns]
    if len(kept) < len(rows):
        tally.dropped["time repeated within one UE"] += len(rows) - len(kept)
    return _run(kept, tally)


def _times_are_lost(rows: list[_Row]) -> bool:
    repeats = sum(b.at_ns == a.at_ns for a, b in pairwise(rows))
    return 2 * repeats > len(rows)


def _run(rows: list[_Row], tally: ImportTally) -> list[_Row]:
    """Return the last stretch without a jump of a day that is long enough to be a run (else the longest)."""
    cuts = [i for i in range(1, len(rows)) if rows[i].at_ns - rows[i - 1].at_ns > STALE_GAP_NS]
    stretches = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    chosen = next((s for s in reversed(stretches) if len(s) >= MIN_RUN_ROWS), max(stretches, key=len))
    stale = sum(row.at_ns < chosen[0].at_ns for row in rows)
    if stale:
        tally.dropped["stale: of a run at least a day before"] += stale
    if after := len(rows) - stale - len(chosen):
        tally.dropped["time over a day after the run"] += after
    return chosen


def _samples(ue: str, channel: _Channel, tally: ImportTally) -> list[RecordedSample]:
    if gaps := sum(b.at_ns - a.at_ns > REATTACH_GAP_NS for a, b in pairwise(channel.rows)):
        tally.remarks["gaps of over 2 s (the UE was detached)"] += gaps
    reader, cell = _Reader(channel.table, tally), _cell(channel.table.path)
    read = ((row.at_ns, reader.fields(row.cells)) for row in channel.rows)
    return [RecordedSample(at_ns, ue, cell, fields) for at_ns, fields in read if fields is not None]


class _Reader:
    """Turns rows of one file into fields of reports; counts in the tally what it cannot use."""

    def __init__(self, table: SourceTable, tally: ImportTally) -> None:
        self._tally = tally
        names = ("ul_mcs", "ul_n_samples", "ul_sinr", "dl_mcs", "dl_n_samples", "dl_cqi", "sum_granted_prbs")
        self._columns = {name: table.column(name) for name in names}
        self._columns["ul_errors"] = table.column("rx_errors uplink (%)", "rx_errors up (%)")
        self._columns["dl_errors"] = table.column("tx_errors downlink (%)", "tx_errors dn (%)")
        self._errors = [name for name in ("ul_errors", "dl_errors") if self._columns[name].exists]
        self._columns["ul_mbps"] = table.column("rx_brate uplink [Mbps]", "rx_brate up [Mbps]")
        self._columns["dl_mbps"] = table.column("tx_brate downlink [Mbps]", "tx_brate dn [Mbps]")

    def fields(self, cells: list[str]) -> dict[str, float] | None:
        """Return one row's fields (none where the UE was idle), None where the row is unusable."""
        row = {name: column.number(cells) for name, column in self._columns.items()}
        reason = self._unusable(row)
        if not reason:
            try:
                return {**_uplink(row), **_downlink(row)}
            except BadTable as error:
                reason = f"{error}".split(":", maxsplit=1)[0] + " outside its table"
        self._tally.dropped[reason] += 1
        return None

    def _unusable(self, row: dict[str, float | None]) -> str:
        for name in (*_NEEDED, *self._errors):
            if row[name] is None:
                return f"{name} is empty or not a number"
        if not all(0 <= (row[name] or 0.0) <= 100 for name in self._errors):
            return "error rate outside 0..100 %"
        return ""


def _cell(path: Path) -> str:
    """ColO-RAN keeps each base station's UEs in a folder bs1, bs2, ...; TRACTOR has one cell."""
    return next((p for p in reversed(path.parent.parts) if p[:2] == "bs" and p[2:].isdigit()), "cell0")


def _uplink(row: dict[str, float | None]) -> dict[str, float]:
    n_samples, i_mcs, sinr_db = row["ul_n_samples"] or 0.0, row["ul_mcs"] or 0.0, row["ul_sinr"] or 0.0
    if not (n_samples > MIN_UL_SAMPLES and i_mcs > 0 and sinr_db != 0):
        return {}
    errors = (row["ul_errors"] or 0.0) / 100
    efficiency = max(radio.lte_ul_efficiency(i_mcs) * (1 - errors), EFFICIENCY_FLOOR_BPS_HZ)
    fields = {"ul_efficiency_bps_hz": efficiency, "ul_mcs": i_mcs, "ul_sinr_db": sinr_db, "ul_error_fraction": errors}
    return fields | ({} if row["ul_mbps"] is None else {"thp_ul_bps": row["ul_mbps"] * 1e6})


def _downlink(row: dict[str, float | None]) -> dict[str, float]:
    """Fields of the downlink, none where it was idle: the `dl_cqi` of an idle UE is frozen and says nothing."""
    n_samples, i_mcs = row["dl_n_samples"] or 0.0, row["dl_mcs"] or 0.0
    if not (n_samples > MIN_UL_SAMPLES and i_mcs > 0):
        return {}
    errors = (row["dl_errors"] or 0.0) / 100
    optional = {
        "dl_cqi": row["dl_cqi"],
        "prb_used_dl": None if row["sum_granted_prbs"] is None else row["sum_granted_prbs"] / TTIS,
        "thp_dl_bps": None if row["dl_mbps"] is None else row["dl_mbps"] * 1e6,
    }
    fields = {name: value for name, value in optional.items() if value is not None}
    return fields | {"dl_efficiency_bps_hz": radio.lte_dl_efficiency(i_mcs) * (1 - errors)}
