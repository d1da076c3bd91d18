"""E2SM-KPM measurements from an OAI gNB and FlexRIC xApp (VERGE dataset, GPL-3.0): one row a period and UE.

Pitfalls of the format, and what is done about each:

- The column `Latency` is a Unix time in microseconds, not a latency. Rows whose value is no such time are dropped.
- Units are not stated. They follow E2SM-KPM and TS 28.552: volumes in kbit, throughput in kbit/s, delay in us.
- `RRU.PrbTotUl` is a percentage in TS 28.552; values of thousands say that here it is a count. It is taken as PRBs
  summed over the slots of the period: a PRB for one slot is 180 Hz s at every numerology, so the uplink's efficiency
  is throughput x period / (180 x PRBs). Where it is a percentage after all, the result is impossible and is blanked.
- Grants are partly padding when the UE has little to send: the efficiency of such rows is too low. NR's lowest one
  (I_MCS 0 of the low spectral efficiency table) is the floor.
- `DRB.UEThpDl` counts only the time with data (TS 28.552 5.1.1.3.1), so that downlink throughput over PRBs of the whole
  period means nothing: no efficiency is made of it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from telemetry import radio
from telemetry.importers.base import (
    LATEST_UNIX_S,
    S_NS,
    ImportTally,
    RanRecording,
    RecordedSample,
    csv_files,
    ran_recording,
    read_table,
)

SOURCE: Final = "oai-kpm"
US_NS: Final = 1_000
EARLIEST_US: Final = 946_684_800_000_000  # 2000-01-01
LATEST_US: Final = LATEST_UNIX_S * 1_000_000


class _KpmRow(NamedTuple):
    at_ns: int
    prbs: float | None
    rate_kbps: float | None


def read(paths: Sequence[Path]) -> RanRecording:
    """Read files, or folders of them; a UE is a UE.Id of a file. Raises BadFile."""
    tally = ImportTally()
    files = csv_files(paths, tally)
    samples = [s for path in files for s in _samples(path, f"@{path.name}" if len(files) > 1 else "", tally)]
    return ran_recording(SOURCE, samples, tally)


def _samples(path: Path, suffix: str, tally: ImportTally) -> list[RecordedSample]:
    table = read_table(path, tally)
    table.require("Latency", "RRU.PrbTotUl", "DRB.UEThpUl")
    tally.rows += len(table.rows)
    time, ue, prbs, rate = (table.column(n) for n in ("Latency", "UE.Id", "RRU.PrbTotUl", "DRB.UEThpUl"))
    rows_of: dict[str, list[_KpmRow]] = defaultdict(list)
    for cells in table.rows:
        at_us = time.number(cells)
        if at_us is None or not EARLIEST_US <= at_us <= LATEST_US:
            tally.dropped["`Latency` is no Unix time in us"] += 1
            continue
        row = _KpmRow(int(at_us) * US_NS, prbs.number(cells), rate.number(cells))
        if min(row.prbs or 0.0, row.rate_kbps or 0.0) < 0:
            tally.dropped["a count or a rate is negative"] += 1
            continue
        rows_of[f"ue{ue.text(cells) or 1}{suffix}"].append(row)
    return [sample for name, rows in rows_of.items() for sample in _of_ue(name, rows, tally)]


def _of_ue(ue: str, rows: list[_KpmRow], tally: ImportTally) -> list[RecordedSample]:
    if backwards := sum(b.at_ns < a.at_ns for a, b in pairwise(rows)):
        tally.remarks["steps back in time, rows sorted"] += backwards
    rows = sorted(rows, key=lambda row: row.at_ns)
    steps = [b.at_ns - a.at_ns for a, b in pairwise(rows) if b.at_ns > a.at_ns]
    period_s = statistics.median(steps) / S_NS if steps else 1.0
    return [RecordedSample(row.at_ns, ue, "cell0", _fields(row, period_s)) for row in rows]


def _fields(row: _KpmRow, period_s: float) -> dict[str, float]:
    """Fields of one report; none where the uplink had no PRB or no throughput."""
    if not row.prbs or not row.rate_kbps:
        return {}
    efficiency = row.rate_kbps * 1e3 * period_s / (row.prbs * radio.PRB_SLOT_HZ_S)
    return {"ul_efficiency_bps_hz": max(efficiency, radio.NR_LOWEST_BPS_HZ), "thp_ul_bps": row.rate_kbps * 1e3}
