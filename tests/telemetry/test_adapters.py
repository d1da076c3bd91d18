"""Adapters: golden inputs in the public formats, garbage in them, and hostile payloads."""

from __future__ import annotations

import importlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgeric_protos import MESSAGES
from hypothesis import given
from hypothesis import strategies as st

from telemetry import radio
from telemetry.adapters import edgeric, protobuf, registry
from telemetry.adapters.base import Adapter, unix_ns
from telemetry.errors import BadMessage, UnknownSource
from telemetry.messages import LinkReport, UeReport

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
ARRIVED = 1_772_443_900_000_000_000
AT_0930 = 1_772_443_801_250_000_000  # 2026-03-02T09:30:01.250Z
MCS = {"ul_mcs_table": "qam64", "dl_mcs_table": "qam256"}
KPM = {
    "units": {
        "DRB.UEThpUl": "kbit/s",
        "DRB.UEThpDl": "kbit/s",
        "DRB.RlcSduTransmittedVolumeUL": "kbit",
        "RRU.PrbUsedUl": "PRB",
        "RRU.PrbUsedDl": "PRB",
        "CQI": "index",
        "TB.TotNbrUl": "count",
        "TB.ErrTotNbrUl": "count",
        "GTP.DelayDlPsaUpfNgranMean": "0.1 ms",
    },
    "time_unit": "s",
    "scs_khz": 30,
    "cells": {"gnb_001_001_0001": "cell0"},
}
OAI = {
    "units": {
        "RRU.PrbTotUl": "PRB slots",
        "DRB.UEThpUl": "kbit/s",
        "DRB.PdcpSduVolumeUL": "kbit",
        "GTP.DelayDlPsaUpfNgranMean": "us",
    },
    "time_unit": "us",
}
EVERY: dict[str, dict[str, Any]] = {"srsran": MCS, "e2sm-kpm": KPM, "edgeric": {"schema": "tti", "cell": "cell0"}}


def feed(name: str, options: dict[str, Any], *payloads: bytes) -> tuple[list[Any], Adapter]:
    adapter = registry.adapter(name, options)
    return [report for payload in payloads for report in adapter.feed(payload, ARRIVED)], adapter


def lines(name: str) -> list[bytes]:
    return (GOLDEN / name).read_bytes().splitlines()


# ---- srsRAN


def test_srsran_of_today() -> None:
    options = MCS | {"cells": {"1": "north"}, "ues": {"4601": "ue-7"}}
    reports, adapter = feed("srsran", options, *lines("srsran-25.ndjson")[:3])
    first, second, third = reports
    # 16: 16QAM, 658/1024 (TS 38.214 Table 5.1.3.1-1); a tenth of the blocks in error
    assert first.ul_efficiency_bps_hz == pytest.approx(4 * 658 / 1024 * 0.9)
    # 20: 256QAM 682.5/1024 (Table 5.1.3.1-2)
    assert first.dl_efficiency_bps_hz == pytest.approx(8 * 682.5 / 1024 * 0.99)
    assert (first.ue, first.cell, first.at_ns, first.seq) == ("ue-7", "north", AT_0930, 0)
    assert (first.dl_cqi, first.ul_sinr_db, first.power_headroom_db, first.thp_ul_bps) == (12, 21.4, 14, 5.1e6)
    assert first.ul_error_fraction == pytest.approx(0.1)
    assert (second.ue, second.cell, second.seq) == ("4602", "north", 1)
    assert second.ul_efficiency_bps_hz == pytest.approx(2 * 2 * 379 / 1024)  # two layers of I_MCS 5
    assert second.dl_cqi is second.power_headroom_db is None
    assert (third.ue, third.cell, third.dl_cqi) == ("460a", "2", None)
    assert third.ul_efficiency_bps_hz is None, "three blocks are no sample"
    assert adapter.quarantine.counts == {("srsran", "dl_cqi outside 0..15"): 2}
    assert not adapter.problems


def test_a_throughput_that_outlives_its_traffic_is_never_planned_with() -> None:
    reports, adapter = feed("srsran", MCS, *lines("srsran-25.ndjson")[3:])
    assert [(r.at_ns - AT_0930) / 1e9 for r in reports] == [1, 11, 31]
    assert all(r.thp_ul_bps is None and r.prb_used_ul == 0 and r.ul_efficiency_bps_hz is None for r in reports)
    assert adapter.quarantine.counts == {("srsran", "thp_ul_bps without a PRB used"): 3}


def test_srsran_of_release_24() -> None:
    reports, adapter = feed("srsran", MCS, *lines("srsran-24.ndjson"))
    (report,) = reports
    assert report.at_ns == AT_0930
    assert report.ul_efficiency_bps_hz == pytest.approx(6 * 948 / 1024)
    assert report.dl_efficiency_bps_hz == pytest.approx(2 * 8 * 948 / 1024)  # `ri` was one number for the downlink
    assert adapter.problems == {"MCS outside the table that was declared": 1, "UE without a valid pci and rnti": 1}


def test_srsran_without_a_time_is_stamped_on_arrival() -> None:
    payload = b'{"timestamp": "noon", "cells": [{"ue_list": [{"pci": 1, "rnti": 5}]}]}'
    reports, adapter = feed("srsran", MCS, payload)
    assert [r.at_ns for r in reports] == [ARRIVED]
    assert adapter.problems == {"timestamp missing or not understood: time of arrival taken": 1}


def test_negative_counts_make_no_efficiency() -> None:
    ue = {"pci": 1, "rnti": 5, "ul_nof_ok": 100, "ul_nof_nok": -50, "ul_mcs": 9, "last_phr": 0, "cqi": -1}
    reports, _ = feed("srsran", MCS, json.dumps({"timestamp": 1e9, "ue_list": [ue]}).encode())
    assert reports == [UeReport(at_ns=10**18, source="srsran", seq=0, ue="0005", cell="1")]


# ---- E2SM-KPM


def test_kpm_in_the_units_of_ts_28552() -> None:
    reports, adapter = feed("e2sm-kpm", KPM, (GOLDEN / "kpm-ts28552.json").read_bytes())
    first, second, third, link = reports
    assert first.at_ns == 1_772_443_802 * 10**9, "end of the second period of one second"
    assert (first.ue, first.cell, first.dl_cqi) == ("0", "cell0", 13)
    assert (first.thp_ul_bps, first.thp_dl_bps) == (1206.5e3, 5.2e6)
    assert (first.prb_used_ul, first.prb_used_dl) == (8, 21)
    assert first.ul_error_fraction == pytest.approx(0.1)
    assert first.ul_efficiency_bps_hz == pytest.approx(1206e3 / (8 * 12 * 30e3))
    assert (second.dl_cqi, second.thp_ul_bps, second.ul_efficiency_bps_hz) == (None, 0, None)
    assert (third.dl_cqi, third.thp_ul_bps) == (None, None)
    assert link == LinkReport(at_ns=1_772_443_800 * 10**9, source="e2sm-kpm", seq=3, link="cell0", one_way_s=43e-4)
    assert adapter.quarantine.counts == {
        ("e2sm-kpm", "dl_cqi outside 0..15"): 2,
        ("e2sm-kpm", "thp_ul_bps without a PRB used"): 1,
    }


def test_kpm_as_oai_sends_it() -> None:
    reports, adapter = feed("e2sm-kpm", OAI, (GOLDEN / "kpm-oai.json").read_bytes())
    (report,) = reports  # the delay of -3.5e18 us is refused
    assert report.at_ns == 1_742_549_398_862_580_000
    assert report.prb_used_ul == pytest.approx(6.048)
    assert report.ul_efficiency_bps_hz == pytest.approx(1185e3 / (6048 * 180))
    assert adapter.quarantine.counts == {("e2sm-kpm", "one_way_s outside 0..3600"): 1}
    assert adapter.problems == {"unit of RRU.PrbTotDl is not declared": 1, "unit of DRB.UEThpDl is not declared": 1}


def test_the_unit_that_is_declared_is_the_unit_that_is_taken() -> None:
    payload = b'{"colletStartTime": 1e9, "ueMeasData": {"7": {"measData": {"DRB.UEThpUl": [2.5]}}}}'
    for unit, bps in (("bit/s", 2.5), ("kbit/s", 2500.0), ("Mbit/s", 2.5e6)):
        reports, _ = feed("e2sm-kpm", {"units": {"DRB.UEThpUl": unit}, "time_unit": "s"}, payload)
        assert reports[0].thp_ul_bps == pytest.approx(bps)


def test_percent_of_the_cell() -> None:
    payload = b'{"colletStartTime": 1e9, "ueMeasData": {"7": {"measData": {"RRU.PrbTotUl": 25}}}}'
    options = {"units": {"RRU.PrbTotUl": "%"}, "time_unit": "s", "cell_prbs": 48}
    assert feed("e2sm-kpm", options, payload)[0][0].prb_used_ul == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "missing required field `units`"),
        ({"units": {"DRB.UEThpUl": "furlong"}, "time_unit": "s"}, "it can be read in bit/s, kbit/s, Mbit/s"),
        ({"units": {"DRB.UEThpUl": "kbit"}, "time_unit": "s"}, "'DRB.UEThpUl' in 'kbit'"),
        ({"units": {"DRB.UEThp": "kbit/s"}, "time_unit": "s"}, "'DRB.UEThp' is not used; there are: DRB.UEThpUl"),
        ({"units": {"RRU.PrbTotUl": "%"}, "time_unit": "s"}, "needs cell_prbs"),
        ({"units": {}, "time_unit": "h"}, "Invalid enum value 'h'"),
        ({"units": {}, "time_unit": "s", "unit": {}}, "unknown field `unit`"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadMessage, match=r"options of the adapter 'e2sm-kpm': .*docs/adapters\.md") as caught:
        registry.adapter("e2sm-kpm", options)
    assert message in str(caught.value)


# ---- EdgeRIC


def test_edgeric_tti_reports() -> None:
    options = {"schema": "tti", "cell": "cell0"}
    reports, adapter = feed("edgeric", options, (GOLDEN / "edgeric-tti.bin").read_bytes())
    idle, busy, garbage = reports
    assert (idle.ue, idle.cell, idle.at_ns) == ("4601", "cell0", AT_0930)
    assert (idle.dl_cqi, idle.prb_used_dl, idle.prb_used_ul, idle.ul_efficiency_bps_hz) == (15, 48, 0, None)
    assert idle.ul_sinr_db == pytest.approx(25.3)
    assert busy.ul_efficiency_bps_hz == pytest.approx(241 * 8 / (12 * 180))
    assert (busy.ul_mcs, busy.prb_used_ul) == (6, 12)
    assert garbage.dl_cqi is garbage.ul_efficiency_bps_hz is None
    assert adapter.quarantine.counts == {
        ("edgeric", "dl_cqi outside 0..15"): 1,
        ("edgeric", "ul_efficiency_bps_hz outside 0..29.7"): 1,
    }


@pytest.mark.parametrize(("schema", "ue", "cqi", "snr_db"), [("5g", "4601", 12, 21.5), ("4g", "0046", 7, 12.25)])
def test_edgeric_without_grants_is_planned_by_its_snr(schema: str, ue: str, cqi: int, snr_db: float) -> None:
    options = {"schema": schema, "cell": "cell0"}
    report = feed("edgeric", options, (GOLDEN / f"edgeric-{schema}.bin").read_bytes())[0][0]
    assert (report.ue, report.dl_cqi, report.ul_sinr_db, report.at_ns) == (ue, cqi, snr_db, ARRIVED)
    assert report.ul_efficiency_bps_hz == pytest.approx(0.4 * math.log2(1 + 10 ** (snr_db / 10)))


def test_edgeric_with_the_wrong_schema_is_noticed() -> None:
    for schema, file in (("5g", "tti"), ("tti", "5g"), ("4g", "5g"), ("5g", "4g")):
        reports, adapter = feed(
            "edgeric", {"schema": schema, "cell": "c"}, (GOLDEN / f"edgeric-{file}.bin").read_bytes()
        )
        assert reports == []
        assert adapter.problems.total() == 1, (schema, file)


uint32 = st.integers(0, 2**32 - 1)


@given(
    at=st.integers(0, 2**64 - 1),
    ues=st.lists(st.tuples(uint32, uint32, st.floats(width=32, allow_nan=False), uint32, uint32), max_size=5),
)
def test_protobuf_is_read_as_its_library_writes_it(at: int, ues: list[tuple[int, int, float, int, int]]) -> None:
    message = MESSAGES["tti"](timestamp_us=at)
    for rnti, cqi, snr, prbs, unknown in ues:
        ue = message.ues.add(rnti=rnti)
        ue.mac.cqi, ue.mac.snr, ue.mac.ul_prbs, ue.mac.dl_harq_nack = cqi, snr, prbs, unknown
    parsed = protobuf.parse(message.SerializeToString(), edgeric.SCHEMAS["tti"])
    assert parsed.get("timestamp_us", 0) == at
    read = [
        (u.get("rnti", 0), u["mac"].get("cqi", 0), u["mac"].get("snr", 0.0), u["mac"].get("ul_prbs", 0))
        for u in parsed["ues"]
    ]
    assert read == [ue[:4] for ue in ues]


@given(cut=st.integers(1, 200))
def test_a_cut_protobuf_message_is_refused_or_shorter(cut: int) -> None:
    whole = (GOLDEN / "edgeric-tti.bin").read_bytes()
    reports, adapter = feed("edgeric", {"schema": "tti", "cell": "c"}, whole[:-cut])
    assert len(reports) < 3 or adapter.problems or cut <= 4  # only the last field, which is not read, is gone


# ---- all of them


@pytest.mark.parametrize("name", sorted(registry.ADAPTERS))
def test_every_line_of_the_registry_leads_to_a_documented_adapter(name: str) -> None:
    module = importlib.import_module(registry.ADAPTERS[name])
    assert module.__doc__ is not None
    assert "Pitfalls" in module.__doc__
    assert issubclass(module.Options, msgspec.Struct)
    docs = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    assert f"## {name}" in docs
    for option in module.Options.__struct_fields__:
        assert f"`{option}`" in docs


def test_an_unknown_adapter_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownSource, match="unknown adapter 'oai'; there are: srsran, e2sm-kpm, edgeric"):
        registry.adapter("oai", {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: (
        st.lists(below, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["cells", "ue_list", "pci", "rnti", "timestamp", "ul_mcs", "ul_nof_ok", "ul_nof_nok", "cqi"]
            )
            | st.sampled_from(
                ["ueMeasData", "measData", "DRB.UEThpUl", "RRU.PrbUsedUl", "granulPeriod", "colletStartTime"]
            ),
            below,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@pytest.mark.parametrize("name", sorted(EVERY))
@given(payload=st.binary(max_size=120) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_payload_makes_an_adapter_raise_or_lets_garbage_through(name: str, payload: bytes) -> None:
    reports, adapter = feed(name, EVERY[name], payload)
    assert [r.seq for r in reports] == list(range(len(reports)))
    for report in reports:
        assert adapter.quarantine.admit(report) == report
    assert all("\n" not in problem and len(problem) < 120 for problem in adapter.problems)


def test_what_cannot_be_decoded_is_counted_once_per_payload_by_a_fixed_reason() -> None:
    adapter = registry.adapter("srsran", MCS)
    for payload in (b"", b"{", b"[1]", b"\xff\xfe", b'"text"', b"[" * 5000):
        assert adapter.feed(payload, ARRIVED) == []
    assert adapter.problems == Counter({"payload is not JSON": 4, "payload is JSON, but not an object": 2})


def test_times_after_2100_and_before_1970_are_no_times() -> None:
    for value in (-1, 0, 1e30, True, None, "", "yesterday", float("inf"), float("nan"), 4_102_444_801, 10**400):
        assert unix_ns(value, 10**9) is None, value
    assert unix_ns("2026-03-02T10:30:01.250+01:00", 1) == AT_0930


def test_floor_of_the_efficiency_is_the_lowest_of_nr() -> None:
    ue = {"pci": 1, "rnti": 5, "ul_nof_ok": 0, "ul_nof_nok": 50, "ul_mcs": 9}
    reports, _ = feed("srsran", MCS, json.dumps({"timestamp": 1e9, "ue_list": [ue]}).encode())
    assert reports[0].ul_efficiency_bps_hz == radio.NR_LOWEST_BPS_HZ
