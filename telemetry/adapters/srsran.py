"""srsRAN Project JSON metrics, from its WebSocket (newer releases) or UDP socket (older ones): one object a period.

Field names: apps/helpers/metrics/json_generators/du_high/scheduler.cpp of srsRAN Project 25, metrics_plotter_json.cpp
of release 24. Pitfalls of the format, and what is done about each:

- Two shapes: `{"cells": [{"ue_list": [{...}]}]}` in newer releases, `{"ue_list": [{"ue_container": {...}}]}` in older
  ones. The time is ISO 8601 text in UTC without a zone, or Unix seconds.
- The stream holds metrics of other layers and answers to commands too: they give no reports.
- MCS and rates of a period without a transport block are zeros: such a period is no sample. Fewer than ten blocks say
  nothing about the error rate either.
- The MCS table is not in the metrics (`pusch: mcs_table` of the gNB's configuration): it must be declared.
- OCUDU writes -1 for "no CQI" and 0 for "no power headroom"; both are left out.
- `ul_brate` is bit/s over the period; a rate without any block is the tail of a filter (telemetry.quality).
- A UE is known by its RNTI, which changes when it attaches anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

from telemetry import radio
from telemetry.adapters import base
from telemetry.adapters.base import Decoded, blocks_and_errors, json_object, number, objects, unix_ns
from telemetry.errors import BadTable
from telemetry.messages import UeReport

MIN_BLOCKS: Final = 10  # transport blocks in a period: fewer give no error rate worth the name
MCS_TABLE: Final = {"qam64": 1, "qam256": 2, "qam64LowSE": 3}  # of TS 38.214 5.1.3.1, as the gNB's configuration says


class Options(base.Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of this adapter."""

    ul_mcs_table: Literal["qam64", "qam256", "qam64LowSE"]
    """`pusch: mcs_table` of the gNB's configuration."""

    dl_mcs_table: Literal["qam64", "qam256", "qam64LowSE"]
    """`pdsch: mcs_table` of the gNB's configuration."""


def decode(payload: bytes, options: Options, received_ns: int) -> Decoded:
    """Decode one JSON object. Raises BadMessage when it is none."""
    root = json_object(payload)
    records = list(_ues(root))
    if not records:
        return Decoded(())
    at_ns = unix_ns(root.get("timestamp"), base.S_NS)
    found = [_report(record, options, received_ns if at_ns is None else at_ns) for record in records]
    problems = [] if at_ns is not None else ["timestamp missing or not understood: time of arrival taken"]
    problems += [reason for reason in found if isinstance(reason, str)]
    return Decoded(tuple(report for report in found if isinstance(report, UeReport)), tuple(problems))


def _ues(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for cell in objects(root.get("cells")):
        yield from objects(cell.get("ue_list"))
    for entry in objects(root.get("ue_list")):
        record = entry.get("ue_container", entry)
        yield from objects([record])


def _report(record: dict[str, Any], options: Options, at_ns: int) -> UeReport | str:
    pci, rnti = number(record, "pci"), number(record, "rnti")
    if pci is None or rnti is None or not 0 <= pci <= 1007 or not 0 <= rnti <= 65535:  # TS 38.211 7.4.2, TS 38.321 7.1
        return "UE without a valid pci and rnti"
    cell, ue = f"{pci:.0f}", f"{int(rnti):04x}"
    try:
        fields = _uplink(record, options) | _downlink(record, options)
    except BadTable:
        return "MCS outside the table that was declared"
    return UeReport(
        at_ns=at_ns,
        source=options.source,
        seq=0,
        ue=options.ues.get(ue, ue),
        cell=options.cells.get(cell, cell),
        **fields,
    )


def _uplink(record: dict[str, Any], options: Options) -> dict[str, float | None]:
    blocks, errors = blocks_and_errors(number(record, "ul_nof_ok"), number(record, "ul_nof_nok"))
    i_mcs = number(record, "ul_mcs")
    fields: dict[str, float | None] = {
        "ul_sinr_db": number(record, "pusch_snr_db"),
        "power_headroom_db": number(record, "last_phr") or None,
        "thp_ul_bps": number(record, "ul_brate"),
    }
    if blocks == 0:
        fields["prb_used_ul"] = 0.0  # without a transport block there was no grant
    if blocks is None or blocks < MIN_BLOCKS or i_mcs is None:
        return fields
    efficiency = _efficiency(i_mcs, number(record, "ul_ri"), errors, options.ul_mcs_table)
    return fields | {"ul_mcs": i_mcs, "ul_error_fraction": errors, "ul_efficiency_bps_hz": efficiency}


def _downlink(record: dict[str, Any], options: Options) -> dict[str, float | None]:
    blocks, errors = blocks_and_errors(number(record, "dl_nof_ok"), number(record, "dl_nof_nok"))
    i_mcs, cqi = number(record, "dl_mcs"), number(record, "cqi")
    fields: dict[str, float | None] = {"dl_cqi": None if cqi == -1 else cqi, "thp_dl_bps": number(record, "dl_brate")}
    if blocks == 0:
        fields["prb_used_dl"] = 0.0
    if blocks is None or blocks < MIN_BLOCKS or i_mcs is None:
        return fields
    ri = number(record, "dl_ri") or number(record, "ri")
    return fields | {"dl_efficiency_bps_hz": _efficiency(i_mcs, ri, errors, options.dl_mcs_table)}


def _efficiency(i_mcs: float, rank: float | None, errors: float, table: str) -> float:
    """bit/s/Hz of I_MCS by its table x layers x (1 - block error rate), at least the lowest of NR. Raises BadTable."""
    per_layer = radio.mcs_efficiency(i_mcs, MCS_TABLE[table])
    return max(per_layer * (1.0 if rank is None else rank) * (1 - errors), radio.NR_LOWEST_BPS_HZ)
