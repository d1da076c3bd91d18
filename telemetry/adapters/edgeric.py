"""EdgeRIC's real-time reports: one protobuf message a TTI from its ipc PUB socket.

Three schemas are in use, told apart by no byte of the message: they share field numbers with different meanings, so the
one that the gNB was built with is declared (`schema`). Numbers and names are those of their metrics.proto:

- `tti`: message TtiMetrics (EdgeRIC for srsRAN 25.10, ipc:///tmp/metrics_data);
- `5g`: message Metrics of EdgeRIC v2 for srsRAN 5G (ipc:///tmp/metrics);
- `4g`: message Metrics of the first EdgeRIC for srsRAN 4G.

Pitfalls of the format, and what is done about each:

- proto3 does not send zeros: CQI 0 and SNR 0.0 cannot be told from "none", and are left out.
- A report says what was scheduled in one TTI. Without an uplink grant in it, it is no sample of the uplink.
- A transport block's CRC result comes slots after its grant: goodput and PRBs of one report are of different blocks.
  Efficiency is TBS over PRBs of the same grants, and HARQ errors are not taken off: one TTI tells no error rate.
- `5g` and `4g` know neither MCS nor PRBs of the uplink. Its efficiency stands in: the truncated Shannon bound of
  TR 38.803 at the PUSCH SNR that is reported.
- There is no cell in a report: `cell` is an option. There is no time in `5g` and `4g`: the arrival's is taken.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from telemetry import radio
from telemetry.adapters import base
from telemetry.adapters.base import Decoded
from telemetry.adapters.protobuf import Field, Schema, parse
from telemetry.messages import UeReport

_MAC: Final[Schema] = {
    1: Field("cqi", "uint"),
    2: Field("snr", "float"),
    6: Field("ul_tbs", "uint"),  # bytes scheduled in this TTI
    12: Field("ul_mcs", "uint"),
    13: Field("dl_prbs", "uint"),
    14: Field("ul_prbs", "uint"),
}
_TTI: Final[Schema] = {
    1: Field("tti_index", "uint"),
    2: Field("timestamp_us", "uint"),
    3: Field("ues", "message", {1: Field("rnti", "uint"), 2: Field("mac", "message", _MAC)}, repeated=True),
}
_METRICS_5G: Final[Schema] = {
    1: Field("tti_cnt", "uint"),
    2: Field(
        "ues",
        "message",
        {1: Field("rnti", "uint"), 2: Field("cqi", "uint"), 3: Field("snr", "float")},
        repeated=True,
    ),
}
_METRICS_4G: Final[Schema] = {
    1: Field("tti_cnt", "uint"),
    2: Field(
        "ues",
        "message",
        # 3 is not used, but it is a float in `5g`: a message of that schema is noticed by it
        {1: Field("rnti", "uint"), 2: Field("cqi", "uint"), 3: Field("backlog", "uint"), 4: Field("snr", "float")},
        repeated=True,
    ),
}
SCHEMAS: Final[dict[str, Schema]] = {"tti": _TTI, "5g": _METRICS_5G, "4g": _METRICS_4G}


class Options(base.Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of this adapter."""

    schema: Literal["tti", "5g", "4g"]
    """Which metrics.proto the gNB was built with."""

    cell: str
    """Cell id of the site; EdgeRIC speaks for one cell."""


def decode(payload: bytes, options: Options, received_ns: int) -> Decoded:
    """Decode one report. Raises BadMessage when it is not of the declared schema."""
    message = parse(payload, SCHEMAS[options.schema])
    at_ns = base.unix_ns(message.get("timestamp_us", 0), base.US_NS)
    problems = []
    if options.schema == "tti" and message["ues"] and at_ns is None:
        problems.append("timestamp_us missing or not understood: time of arrival taken")
    fields = _tti_fields if options.schema == "tti" else _legacy_fields
    reports = []
    for record in message["ues"]:
        ue = f"{record.get('rnti', 0):04x}"
        report = UeReport(
            at_ns=received_ns if at_ns is None else at_ns,
            source=options.source,
            seq=0,
            ue=options.ues.get(ue, ue),
            cell=options.cell,
            **fields(record),
        )
        reports.append(report)
    return Decoded(tuple(reports), tuple(problems))


def _legacy_fields(record: dict[str, Any]) -> dict[str, float | None]:
    snr_db = record.get("snr", 0.0) or None
    efficiency = None if snr_db is None else max(radio.NR_UPLINK.efficiency_bps_hz(snr_db), radio.NR_LOWEST_BPS_HZ)
    return {"dl_cqi": record.get("cqi") or None, "ul_sinr_db": snr_db, "ul_efficiency_bps_hz": efficiency}


def _tti_fields(record: dict[str, Any]) -> dict[str, float | None]:
    mac = record.get("mac", {})
    prbs, tbs = mac.get("ul_prbs", 0), mac.get("ul_tbs", 0)
    fields: dict[str, float | None] = {
        "dl_cqi": mac.get("cqi") or None,
        "ul_sinr_db": mac.get("snr", 0.0) or None,
        "prb_used_ul": prbs,
        "prb_used_dl": mac.get("dl_prbs", 0),
    }
    if not prbs or not tbs:
        return fields
    # TBS and PRBs are both sums over the grants of the TTI; one PRB for one slot is 180 Hz s at every numerology.
    efficiency = max(tbs * 8 / (prbs * radio.PRB_SLOT_HZ_S), radio.NR_LOWEST_BPS_HZ)
    return fields | {"ul_mcs": mac.get("ul_mcs", 0), "ul_efficiency_bps_hz": efficiency}
