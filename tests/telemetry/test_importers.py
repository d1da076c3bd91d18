"""The other importers and the registry: real files where they are, and the pitfalls that their docstrings name."""

from __future__ import annotations

import contextlib
import gzip
import importlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry import radio
from telemetry.errors import BadFile, UnknownSource
from telemetry.importers import azure_llm, mooncake, oai_kpm, registry, uccmisl
from telemetry.importers.base import RecordedRequest

# ---- azure-llm

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"


def azure_file(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_bytes((AZURE + "\r\n".join(rows)).encode())  # as the source: CRLF, no newline at the end
    return path


def test_seven_fractional_digits_are_kept(tmp_path: Path) -> None:
    path = azure_file(tmp_path, "2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:46.6805901,396,109")
    recording = azure_llm.read([path])
    assert recording.requests == (RecordedRequest(0.0, 374, 44), RecordedRequest(1e-7, 396, 109))


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("1970-01-01 00:00:01", 1_000_000_000),
        ("1970-01-01 00:00:01.5", 1_500_000_000),
        ("1970-01-01T00:00:01.0000001", 1_000_000_100),
        ("1970-01-01 00:00:01.009930+00:00", 1_009_930_000),
        ("1970-01-01 01:00:01.25+01:00", 1_250_000_000),
        ("1970-01-01 00:00:01Z", 1_000_000_000),
    ],
)
def test_forms_of_time(text: str, expected_ns: int) -> None:
    assert azure_llm.unix_ns(text) == expected_ns


def test_bad_azure_rows_are_counted_and_late_ones_sorted(tmp_path: Path) -> None:
    path = azure_file(
        tmp_path,
        "2023-11-16 18:15:48.0,10,20",
        "2023-11-16 18:15:47.0,30,40",
        "yesterday,1,1",
        "2023-11-16 18:15:49.0,,5",
        "2023-11-16 18:15:49.0,nan,5",
        "2023-11-16 18:15:49.0,7,0",
        "2023-11-16 18:15:49.0,-7,5",
        "2023-11-16 18:15:49.0,1e300,5",
        "2023-11-16 18:1",
    )
    recording = azure_llm.read([path])
    assert recording.requests == (RecordedRequest(0.0, 30, 40), RecordedRequest(1.0, 10, 20))
    assert recording.tally.dropped == {
        "time is not of the form 2023-11-16 18:15:46.6805900": 2,
        "a token count is empty or not a number": 2,
        "no token to read or to write, or impossibly many": 3,
    }
    assert recording.tally.remarks == {"steps back in time, rows sorted": 1}


def test_azure_files_without_a_request(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no usable request"):
        azure_llm.read([azure_file(tmp_path, "x,1,1")])
    (tmp_path / "trace.csv").write_text("time,tokens\n1,2\n")
    with pytest.raises(BadFile, match="no column 'TIMESTAMP', 'ContextTokens', 'GeneratedTokens'"):
        azure_llm.read([tmp_path / "trace.csv"])


@pytest.mark.parametrize(
    ("name", "rows", "last_s"), [("conv_rows1-12000", 12_000, 2054.28), ("code_rows1-4000", 4_000, 1365.36)]
)
def test_the_azure_recordings(name: str, rows: int, last_s: float, shared_data: Path) -> None:
    path = shared_data / "llm-azure2023" / f"AzureLLMInferenceTrace_{name}.csv.gz"
    recording = azure_llm.read([path])
    assert len(recording.requests) == recording.tally.rows == rows
    assert not recording.tally.dropped
    assert recording.requests[-1].at_s == pytest.approx(last_s, abs=0.01)
    again = gzip.decompress(path.read_bytes()).decode().split("\n")[1:]
    tokens = [tuple(int(n) for n in line.split(",")[1:]) for line in again if line]
    assert [(r.context_tokens, r.output_tokens) for r in recording.requests] == tokens


# ---- mooncake


def test_mooncake_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"timestamp": 3000, "input_length": 5, "output_length": 6, "hash_ids": [1, 2]}\n'
        '{"timestamp": 3000, "input_length": 7, "output_length": 8}\n\n'
        '{"timestamp": -1, "input_length": 7, "output_length": 8}\n'
        '{"timestamp": 3100, "input_length": 0, "output_length": 8}\n'
        '{"timestamp": NaN, "input_length": 7, "output_length": 8}\n'
        '{"timestamp": 1e308, "input_length": 7, "output_length": 8}\n'
        '{"timestamp": 3500.5, "input_length": 9, "output_length": 1}\n'
        '{"timestamp": 4000, "input_le'
    )
    recording = mooncake.read([path])
    assert recording.requests == (RecordedRequest(0.0, 5, 6), RecordedRequest(0.0, 7, 8), RecordedRequest(0.5005, 9, 1))
    assert recording.tally.rows == 8
    assert sum(recording.tally.dropped.values()) == 5


def test_the_mooncake_recording(shared_data: Path) -> None:
    recording = mooncake.read([shared_data / "llm-mooncake" / "conversation_trace_lines1-4000.jsonl.gz"])
    assert len(recording.requests) == 4_000
    assert not recording.tally.dropped
    assert recording.requests[0] == RecordedRequest(0.0, 6758, 500)
    assert max(Counter(r.at_s for r in recording.requests).values()) > 1


# ---- uccmisl

UCC = (
    "Timestamp,Longitude,Latitude,Speed,Operatorname,CellID,NetworkMode,"
    "RSRP,RSRQ,SNR,CQI,RSSI,DL_bitrate,UL_bitrate,State"
)


def ucc_row(at: str, mode: str = "5G", snr: str = "3.0", cqi: str = "10") -> str:
    return f"{at},-8.39,51.88,0,B,11,{mode},-93,-15,{snr},{cqi},-107,120,10,D"


def ucc_file(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "B_2020.02.13_15.02.01.csv"
    path.write_text("\n".join([UCC, *rows]))
    return path


def test_rows_on_lte_or_hspa_are_no_5g_sample(tmp_path: Path) -> None:
    path = ucc_file(
        tmp_path,
        ucc_row("2020.02.13_15.02.01"),
        ucc_row("2020.02.13_15.02.02", mode="LTE"),
        ucc_row("2020.02.13_15.02.03", mode="HSPA+", snr="-", cqi="-"),
    )
    first, lte, hspa = uccmisl.read([path]).reports
    assert first.ul_efficiency_bps_hz == pytest.approx(radio.NR_UPLINK.efficiency_bps_hz(3.0))
    assert first.dl_efficiency_bps_hz == pytest.approx(2.7305, abs=1e-4)  # CQI 10 of Table 5.2.2.1-2
    assert (first.dl_cqi, first.thp_dl_bps, first.ul_sinr_db) == (10, 120e3, None)
    assert first.ue == "B_2020.02.13_15.02.01"
    assert lte.ul_efficiency_bps_hz is lte.dl_cqi is hspa.ul_efficiency_bps_hz is None


def test_rows_of_one_second_are_spread_over_it(tmp_path: Path) -> None:
    seconds = ("01", "01", "02", "03", "03", "03", "03")
    recording = uccmisl.read([ucc_file(tmp_path, *(ucc_row(f"2020.02.13_15.02.{s}") for s in seconds))])
    assert [r.at_ns / 1e9 for r in recording.reports] == [0, 0.5, 1, 2, 2.25, 2.5, 2.75]


def test_bad_values_of_ucc(tmp_path: Path) -> None:
    path = ucc_file(
        tmp_path,
        ucc_row("2020.02.13_15.02.03", cqi="1835"),
        ucc_row("2020.02.13_15.02.01", snr="-"),
        ucc_row("13/02/2020"),
        ucc_row("2020.02.13_15.02.05", snr="-40"),
    )
    recording = uccmisl.read([path])
    assert [(r.at_ns, r.ul_efficiency_bps_hz is None, r.dl_cqi) for r in recording.reports] == [
        (0, True, 10),
        (2_000_000_000, False, None),
        (4_000_000_000, False, 10),
    ]
    assert recording.reports[2].ul_efficiency_bps_hz == radio.NR_LOWEST_BPS_HZ
    assert recording.tally.dropped == {"time is not of the form 2020.02.13_15.02.01": 1}
    assert recording.tally.remarks["values blanked: dl_cqi outside 0..15"] == 1
    assert recording.tally.remarks["steps back in time, rows sorted"] == 1


def test_the_ucc_recordings(shared_data: Path) -> None:
    recording = uccmisl.read([shared_data / "gpl-3.0" / "ran-ucc5g"])
    tally = recording.tally
    assert (tally.rows, tally.valid, tally.idle) == (18_502, 13_368, 5_134)
    assert not tally.dropped
    assert tally.remarks["rows not on 5G: no sample"] == 5_134
    by_ue: dict[str, list[int]] = {}
    for report in recording.reports:
        by_ue.setdefault(report.ue, []).append(report.at_ns)
    assert len(by_ue) == 6
    assert all(len(set(times)) == len(times) for times in by_ue.values())


# ---- oai-kpm

KPM = (
    "Register,UE.Id,Latency,RRU.PrbTotDl,RRU.PrbTotUl,DRB.PdcpSduVolumeDL,DRB.PdcpSduVolumeUL,"
    "DRB.RlcSduDelayDl,DRB.UEThpDl,DRB.UEThpUl"
)
T0_US = 1_742_549_397_862_580


def kpm_file(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "kpm.csv"
    path.write_text("\n".join([KPM, *rows]) + "\n")
    return path


def test_latency_is_the_clock_and_prbs_give_the_efficiency(tmp_path: Path) -> None:
    rows = (
        f"1,1,{T0_US},87,6048,3,1185,3.89,0,1206.49",
        f"2,1,{T0_US + 1_000_000},157,0,8,1569,9.18,0,1574.66",
        f"3,1,{T0_US + 2_000_000},79,5539,1,901,2.21,785,0",
        "4,1,-3500000000000000000,79,5539,1,901,2.21,785,900",
        "5,1,,79,5539,1,901,2.21,785,900",
        f"6,1,{T0_US + 5_000_000},79,-5539,1,901,2.21,785,900",
    )
    recording = oai_kpm.read([kpm_file(tmp_path, *rows)])
    busy, no_prb, no_data = recording.reports
    # 1206.49 kbit in 1 s over 6048 PRBs for one slot each, 180 Hz s
    assert busy.ul_efficiency_bps_hz == pytest.approx(1206.49e3 / (6048 * 180))
    assert busy.thp_ul_bps == pytest.approx(1206.49e3)
    assert no_prb.ul_efficiency_bps_hz is no_data.ul_efficiency_bps_hz is None
    assert [r.at_ns for r in recording.reports] == [0, 1_000_000_000, 2_000_000_000]
    assert recording.tally.dropped == {"`Latency` is no Unix time in us": 2, "a count or a rate is negative": 1}


def test_prbs_in_percent_are_noticed(tmp_path: Path) -> None:
    """TS 28.552's RRU.PrbTotUl is a percentage; then the quotient is impossible and no efficiency is claimed."""
    rows = (f"{i},1,{T0_US + i * 1_000_000},10,45,3,1185,3.89,0,1206.49" for i in range(3))
    recording = oai_kpm.read([kpm_file(tmp_path, *rows)])
    assert recording.tally.valid == 0
    assert recording.tally.remarks == {"values blanked: ul_efficiency_bps_hz outside 0..29.7": 3}


def test_the_kpm_recording(shared_data: Path) -> None:
    recording = oai_kpm.read([shared_data / "gpl-3.0" / "ran-verge-oai-kpm" / "kpm_metrics_first_half.csv.gz"])
    assert (recording.tally.rows, recording.tally.valid) == (569, 569)
    efficiencies = sorted(r.ul_efficiency_bps_hz or 0.0 for r in recording.reports)
    assert 0.9 < efficiencies[len(efficiencies) // 2] < 1.0
    assert efficiencies[-1] < 5.55  # within 64QAM: PRBs are counts, summed over slots


# ---- all of them

EVERY = {**registry.RAN, **registry.REQUESTS}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_every_line_of_the_registry_leads_to_a_documented_importer(name: str) -> None:
    module, function = EVERY[name].split(":")
    imported = importlib.import_module(module)
    assert callable(getattr(imported, function))
    assert imported.__doc__ is not None
    assert "Pitfalls" in imported.__doc__


def test_unknown_sources_are_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownSource, match="unknown RAN source 'colosseum'; there are: tractor, coloran"):
        registry.ran_importer("colosseum")
    with pytest.raises(UnknownSource, match="unknown request source 'tractor'"):
        registry.request_importer("tractor")
    with pytest.raises(UnknownSource, match="--requests azure-llm:FILE"):
        registry.ran_importer("azure-llm")
    assert registry.ran_importer("coloran") is registry.ran_importer("tractor")


@pytest.mark.parametrize("name", sorted(EVERY))
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_file_makes_an_importer_crash(name: str, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.csv"
    headers = {"azure-llm": AZURE, "uccmisl": UCC + "\n", "oai-kpm": KPM + "\n"}
    path.write_bytes(headers.get(name, "").encode() + content)
    importer = registry.ran_importer(name) if name in registry.RAN else registry.request_importer(name)
    with contextlib.suppress(BadFile):
        assert importer([path]).tally.rows > 0


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    importer = registry.ran_importer(name) if name in registry.RAN else registry.request_importer(name)
    with pytest.raises(BadFile, match=r"none\.csv: No such file"):
        importer([tmp_path / "none.csv"])
