"""UCC MISL 5G production dataset (GPL-3.0): G-NetTrack Pro logs of one phone, about one row a second, one UE a file.

Pitfalls of the format, and what is done about each:

- Rows fall back to LTE, HSPA+ or UMTS; their CQI and SNR are another radio's (or `-`): no 5G sample.
- A missing value is the string `-`.
- Times are local, whole seconds; 4 to 13 % repeat: rows of one second are spread evenly over it.
- Only the downlink is measured. The uplink's efficiency is a stand-in: the truncated Shannon bound of TR 38.803 for
  the uplink, at the downlink's SNR. Every import says so.
- The log does not say which CQI table the network used. Table 1 (up to 64QAM) is taken: at the median SNR of 3 dB the
  median CQI of 11 stands for 3.3 bit/s/Hz, twice Shannon's bound, by table 1 already; by table 2 (256QAM) for 5.1.
- NRxRSRP and NRxRSRQ are a neighbour cell's; bit rates are kbit/s, with idle zeros in them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby, pairwise
from pathlib import Path
from typing import Final

from telemetry import radio
from telemetry.errors import BadTable
from telemetry.importers.base import (
    S_NS,
    Column,
    ImportTally,
    RanRecording,
    RecordedSample,
    csv_files,
    ran_recording,
    read_table,
)

SOURCE: Final = "uccmisl"
CQI_TABLE: Final = 1
UPLINK_REMARK: Final = f"uplink efficiency stands in for: {radio.NR_UPLINK.name} at the downlink's SNR, samples"
_NEEDED: Final = ("NetworkMode", "CQI", "SNR")
_MODES_5G: Final = ("5G", "NR")
_TIME_FORMAT: Final = "%Y.%m.%d_%H.%M.%S"


def read(paths: Sequence[Path]) -> RanRecording:
    """Read files, or folders of them; each file is a UE named after it. Raises BadFile."""
    tally = ImportTally()
    samples = [sample for path in csv_files(paths, tally) for sample in _samples(path, tally)]
    recording = ran_recording(SOURCE, samples, tally)
    tally.remarks[UPLINK_REMARK] += tally.valid
    return recording


def _samples(path: Path, tally: ImportTally) -> list[RecordedSample]:
    table = read_table(path, tally)
    table.require("Timestamp", *_NEEDED)
    tally.rows += len(table.rows)
    time, columns = table.column("Timestamp"), {name: table.column(name) for name in (*_NEEDED, "DL_bitrate")}
    timed = [(at, cells) for cells in table.rows if (at := _second(time.text(cells), tally)) is not None]
    if backwards := sum(b[0] < a[0] for a, b in pairwise(timed)):
        tally.remarks["steps back in time, rows sorted"] += backwards
    timed.sort(key=lambda row: row[0])
    return [
        RecordedSample(
            at * S_NS + k * S_NS // len(rows), path.name.split(".csv")[0], "cell0", _fields(columns, cells, tally)
        )
        for at, rows in ((at, list(group)) for at, group in groupby(timed, key=lambda row: row[0]))
        for k, (_, cells) in enumerate(rows)
    ]


def _second(text: str, tally: ImportTally) -> int | None:
    """Unix time in seconds of a local time without a zone, taken as UTC: only differences matter."""
    try:
        return int(datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC).timestamp())
    except ValueError:
        tally.dropped["time is not of the form 2020.02.13_15.02.01"] += 1
        return None


def _fields(columns: dict[str, Column], cells: list[str], tally: ImportTally) -> dict[str, float]:
    """Fields of one row's report, none where the phone was not on 5G."""
    if not columns["NetworkMode"].text(cells).startswith(_MODES_5G):
        tally.remarks["rows not on 5G: no sample"] += 1
        return {}
    cqi, snr_db = columns["CQI"].number(cells), columns["SNR"].number(cells)
    rate_kbps = columns["DL_bitrate"].number(cells)
    fields: dict[str, float] = {}
    if cqi is not None:
        fields["dl_cqi"] = cqi
        with contextlib.suppress(BadTable):  # telemetry.quality blanks and counts an impossible CQI
            fields["dl_efficiency_bps_hz"] = radio.cqi_efficiency(cqi, CQI_TABLE)
    if snr_db is not None:
        fields["ul_efficiency_bps_hz"] = max(radio.NR_UPLINK.efficiency_bps_hz(snr_db), radio.NR_LOWEST_BPS_HZ)
    if rate_kbps is not None:
        fields["thp_dl_bps"] = rate_kbps * 1e3
    return fields
