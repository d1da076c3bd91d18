"""E2SM-KPM measurements as JSON, by their names of TS 28.552: one indication, as xApps print or forward it.

The shape is that of the decoded indication (O-RAN.WG3.E2SM-KPM 8.2.1.4): measurements of single UEs (formats 2 and 3),
of the whole E2 node (format 1), or both:

    {"e2_node_id": "gnb1", "colletStartTime": ..., "granulPeriod": 1000,
     "ueMeasData": {"0": {"measData": {"DRB.UEThpUl": [1206.5]}, "granulPeriod": 1000}}, "measData": {...}}

Pitfalls of the format, and what is done about each:

- An indication carries no units, and neither version of E2SM-KPM (v2, v3) settles them: TS 28.552 has throughput in
  kbit/s, delays in 0.1 ms and RRU.PrbTotUl in percent, but OAI's RRU.PrbTotUl is a count summed over slots and its
  delays are us, and ns-O-RAN's throughput is Mbit/s. So each measurement's unit must be declared in the options; one
  without is not used, and counted.
- Over one period the values are a list, oldest first: the last one counts. Its end is start + periods x length.
- TS 28.552's UE throughput counts only the time with data (5.1.1.3); implementations print a mean over the period. The
  uplink's efficiency is made of the volume, which has no such ambiguity, and of throughput only where it is declared.
- srsRAN's `RSRP` and `RSRQ` are PUSCH SNR, and are not used; its `CQI` is the first UE's: declare no unit there.
- The key of the start time is spelt `colletStartTime` in the standard's own ASN.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from telemetry import radio
from telemetry.adapters import base
from telemetry.adapters.base import Decoded, Report, blocks_and_errors, json_object, number, unix_ns
from telemetry.messages import LinkReport, UeReport

MS_NS: Final = 1_000_000

# unit -> (dimension, factor to ours). "PRB": mean over the slots of the period; "PRB slots": summed over them.
UNITS: Final[dict[str, tuple[str, float]]] = {
    "bit/s": ("rate", 1.0),
    "kbit/s": ("rate", 1e3),
    "Mbit/s": ("rate", 1e6),
    "bit": ("volume", 1.0),
    "kbit": ("volume", 1e3),
    "Mbit": ("volume", 1e6),
    "byte": ("volume", 8.0),
    "PRB": ("prb", 1.0),
    "PRB slots": ("prb slots", 1.0),
    "%": ("percent", 1.0),
    "index": ("index", 1.0),
    "count": ("count", 1.0),
    "s": ("time", 1.0),
    "ms": ("time", 1e-3),
    "0.1 ms": ("time", 1e-4),
    "us": ("time", 1e-6),
}

# measurement -> the dimensions that it can be read in. What is not here is not used.
MEASUREMENTS: Final[dict[str, tuple[str, ...]]] = {
    "DRB.UEThpUl": ("rate",),
    "DRB.UEThpDl": ("rate",),
    "DRB.RlcSduTransmittedVolumeUL": ("volume",),
    "DRB.PdcpSduVolumeUL": ("volume",),
    "RRU.PrbUsedUl": ("prb", "prb slots"),
    "RRU.PrbUsedDl": ("prb", "prb slots"),
    "RRU.PrbTotUl": ("percent", "prb slots"),
    "RRU.PrbTotDl": ("percent", "prb slots"),
    "CQI": ("index",),
    "DRB.UECqiDl": ("index",),
    "TB.TotNbrUl": ("count",),
    "TB.ErrTotNbrUl": ("count",),
    "GTP.DelayDlPsaUpfNgranMean": ("time",),
}

TIME_NS: Final = {"s": base.S_NS, "ms": MS_NS, "us": 1000, "ns": 1, "ISO 8601": base.S_NS}


class Options(base.Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of this adapter."""

    units: dict[str, str]
    """Measurement -> its unit, one of UNITS."""

    time_unit: Literal["s", "ms", "us", "ns", "ISO 8601"]
    """Of `colletStartTime`, Unix time."""

    scs_khz: Literal[15, 30, 60, 120] = 15
    """Subcarrier spacing of the cells: slots a second, where PRBs are summed over slots."""

    cell_prbs: int = 0
    """PRBs of a cell, needed where a measurement is a percentage of them."""

    throughput_is_period_mean: bool = False
    """Whether DRB.UEThpUl is a mean over the whole period, not only over the time with data."""

    def __post_init__(self) -> None:
        """Refuse a unit that does not fit its measurement (ValueError, which msgspec reports with its place)."""
        for name, unit in self.units.items():
            if name not in MEASUREMENTS:
                raise ValueError(f"units: '{name}' is not used; there are: {', '.join(MEASUREMENTS)}")
            if UNITS.get(unit, ("",))[0] not in MEASUREMENTS[name]:
                fit = [u for u, (dimension, _) in UNITS.items() if dimension in MEASUREMENTS[name]]
                raise ValueError(f"units: '{name}' in '{unit}': it can be read in {', '.join(fit)}")
            if unit == "%" and self.cell_prbs < 1:
                raise ValueError(f"units: '{name}' in %: needs cell_prbs")


def decode(payload: bytes, options: Options, received_ns: int) -> Decoded:
    """Decode one indication. Raises BadMessage when it is no JSON object."""
    root = json_object(payload)
    node = str(root.get("e2_node_id", ""))
    start_ns = unix_ns(root.get("colletStartTime"), TIME_NS[options.time_unit])
    problems: list[str] = []
    reports: list[Report] = []
    per_ue = root.get("ueMeasData")
    for ue, record in per_ue.items() if isinstance(per_ue, dict) else ():
        if values := _values(record, root, options, problems):
            at_ns = _instant(start_ns, values, received_ns, problems)
            reports.append(_ue_report(str(ue), node, values, at_ns, options))
    delay = _values(root, root, options, problems).get("GTP.DelayDlPsaUpfNgranMean")
    if delay is not None:
        at_ns = received_ns if start_ns is None else start_ns
        link = options.cells.get(node, node)
        reports.append(LinkReport(at_ns=at_ns, source=options.source, seq=0, link=link, one_way_s=delay))
    return Decoded(tuple(reports), tuple(problems))


_PERIOD: Final = "period_s"
_COUNT: Final = "periods"


def _values(record: object, root: Mapping[str, Any], options: Options, problems: list[str]) -> dict[str, float]:
    """Latest value of each usable measurement in our unit, with the period's length and how many periods there were."""
    measured = record.get("measData") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(measured, dict):
        return {}
    values: dict[str, float] = {}
    for name, series in measured.items():
        column = series if isinstance(series, list) else [series]
        value = number({name: column[-1]}, name) if column else None
        if name not in MEASUREMENTS or value is None:
            continue
        if name not in options.units:
            problems.append(f"unit of {name} is not declared")
            continue
        values[name] = value * UNITS[options.units[name]][1]
        values[_COUNT] = max(values.get(_COUNT, 0.0), len(column))
    period_ms = number(record, "granulPeriod") or number(root, "granulPeriod")
    return values | ({_PERIOD: period_ms / 1e3} if values and period_ms and period_ms > 0 else {})


def _instant(start_ns: int | None, values: Mapping[str, float], received_ns: int, problems: list[str]) -> int:
    if start_ns is None:
        problems.append("colletStartTime missing or not understood: time of arrival taken")
        return received_ns
    return start_ns + round(values[_COUNT] * values.get(_PERIOD, 0.0) * base.S_NS)


def _ue_report(ue: str, node: str, values: Mapping[str, float], at_ns: int, options: Options) -> UeReport:
    blocks, errors = blocks_and_errors(values.get("TB.TotNbrUl"), 0.0)
    if blocks:
        errors = values.get("TB.ErrTotNbrUl", 0.0) / blocks
    return UeReport(
        at_ns=at_ns,
        source=options.source,
        seq=0,
        ue=options.ues.get(ue, ue),
        cell=options.cells.get(node, node),
        ul_efficiency_bps_hz=_efficiency(values, options),
        dl_cqi=values.get("CQI", values.get("DRB.UECqiDl")),
        ul_error_fraction=errors if blocks and "TB.ErrTotNbrUl" in values else None,
        prb_used_ul=_mean_prbs(values, "Ul", options),
        prb_used_dl=_mean_prbs(values, "Dl", options),
        thp_ul_bps=values.get("DRB.UEThpUl"),
        thp_dl_bps=values.get("DRB.UEThpDl"),
    )


def _mean_prbs(values: Mapping[str, float], direction: str, options: Options) -> float | None:
    """Mean PRBs over the slots of the period, None where no measurement tells."""
    for name in (f"RRU.PrbUsed{direction}", f"RRU.PrbTot{direction}"):
        if name not in values:
            continue
        dimension = UNITS[options.units[name]][0]
        if dimension == "percent":
            return values[name] / 100 * options.cell_prbs
        if dimension == "prb":
            return values[name]
        if _PERIOD in values:
            return values[name] / (values[_PERIOD] * 1e3 * options.scs_khz / 15)  # slots: TS 38.211 4.3.2
    return None


def _efficiency(values: Mapping[str, float], options: Options) -> float | None:
    """bit/s/Hz of the PUSCH granted: bits over (PRBs x 12 subcarriers x spacing x time); None where idle or unknown."""
    prbs = _mean_prbs(values, "Ul", options)
    volumes = (values[n] for n in ("DRB.RlcSduTransmittedVolumeUL", "DRB.PdcpSduVolumeUL") if n in values)
    bits, period_s = next(volumes, None), values.get(_PERIOD)
    rate_bps = bits / period_s if bits is not None and period_s else None
    if rate_bps is None and options.throughput_is_period_mean:
        rate_bps = values.get("DRB.UEThpUl")
    if not prbs or not rate_bps or prbs < 0 or rate_bps < 0:
        return None
    return max(rate_bps / (prbs * radio.PRB_SUBCARRIERS * options.scs_khz * 1e3), radio.NR_LOWEST_BPS_HZ)
