"""The SCOPE/ColO-RAN importer: real files where they are, and every shape in which the format is known to come."""

from __future__ import annotations

import csv
import gzip
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry import radio
from telemetry.errors import BadFile
from telemetry.importers import tractor
from telemetry.importers.base import RanRecording
from telemetry.messages import UeReport

HEADER = (
    "Timestamp,num_ues,IMSI,RNTI,,slicing_enabled,slice_id,slice_prb,power_multiplier,scheduling_policy,,dl_mcs,"
    "dl_n_samples,dl_buffer [bytes],tx_brate downlink [Mbps],tx_pkts downlink,tx_errors downlink (%),dl_cqi,,ul_mcs,"
    "ul_n_samples,ul_buffer [bytes],rx_brate uplink [Mbps],rx_pkts uplink,rx_errors uplink (%),ul_rssi,ul_sinr,phr,,"
    "sum_requested_prbs,sum_granted_prbs,,dl_pmi,dl_ri,ul_n,ul_turbo_iters"
)
T0 = 1_690_905_299_528
IMSI = "001010000000042"


def row(
    at_ms: object, *, mcs: object = 15, n: object = 100, sinr: object = 20.5, err: object = 10, imsi: str = IMSI
) -> str:
    return (
        f"{at_ms},1,{imsi},70,,0,0,0,1,0,,9,80,0,2.5,40,5,11.5,,{mcs},{n},0,1.5,28,{err},0,{sinr},31,,500,600,,0,0,0,1"
    )


def idle(at_ms: object) -> str:
    return f"{at_ms},1,{IMSI},70,,0,0,0,1,0,,0,0,0,0,0,0,11.5,,0,0,0,0,0,0,0,0,0,,0,0,,0,0,0,0"


def write(path: Path, *rows: str, header: str = HEADER, end: str = "\n", last: bool = True) -> Path:
    text = end.join([header, *rows]) + (end if last else "")
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def some_rows(start_ms: int = T0, count: int = 30) -> list[str]:
    return [row(start_ms + 250 * i) for i in range(count)]


def samples(recording: RanRecording) -> list[UeReport]:
    return [r for r in recording.reports if r.ul_efficiency_bps_hz is not None]


def test_a_row_becomes_a_report_in_our_units(tmp_path: Path) -> None:
    recording = tractor.read([write(tmp_path / f"{IMSI}_metrics.csv", row(T0), idle(T0 + 250))])
    busy, quiet = recording.reports
    assert (busy.at_ns, quiet.at_ns) == (0, 250_000_000)
    assert recording.start_unix_ns == T0 * 1_000_000
    assert (busy.ue, busy.cell, busy.source, busy.seq, quiet.seq) == (IMSI, "cell0", f"tractor/{IMSI}", 0, 1)
    # I_MCS 15 of PUSCH is I_TBS 14: 13536 bits on 48 PRBs in 1 ms (TS 36.213), 90 % of it without errors
    assert busy.ul_efficiency_bps_hz == pytest.approx(0.9 * 13536 / (48 * 180))
    assert busy.dl_efficiency_bps_hz == pytest.approx(0.95 * 7480 / (48 * 180))
    assert (busy.ul_sinr_db, busy.ul_mcs, busy.ul_error_fraction, busy.dl_cqi) == (20.5, 15, 0.1, 11.5)
    assert (busy.thp_ul_bps, busy.thp_dl_bps, busy.prb_used_dl) == (1.5e6, 2.5e6, 600 / 250)
    assert busy.power_headroom_db is None  # phr holds 31 or 0 only
    assert busy.prb_used_ul is None  # the PRB columns are downlink
    assert quiet == UeReport(at_ns=250_000_000, source=f"tractor/{IMSI}", seq=1, ue=IMSI, cell="cell0")
    assert (recording.tally.rows, recording.tally.valid, recording.tally.idle) == (2, 1, 1)


@pytest.mark.parametrize(
    "not_a_sample", [row(T0 + 250, n=20), row(T0 + 250, mcs=0), row(T0 + 250, sinr=0), idle(T0 + 250)]
)
def test_idle_is_no_sample(not_a_sample: str, tmp_path: Path) -> None:
    recording = tractor.read([write(tmp_path / "a.csv", row(T0), not_a_sample, row(T0 + 500))])
    assert [r.ul_efficiency_bps_hz is not None for r in recording.reports] == [True, False, True]
    assert recording.reports[1].ul_sinr_db is None


def test_a_row_of_errors_only_has_the_floor(tmp_path: Path) -> None:
    recording = tractor.read([write(tmp_path / "a.csv", row(T0, err=100))])
    assert recording.reports[0].ul_efficiency_bps_hz == tractor.EFFICIENCY_FLOOR_BPS_HZ


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_shapes_of_text_do_not_matter(name: str, end: str, last: bool, bom: str, tmp_path: Path) -> None:
    plain = tractor.read([write(tmp_path / "plain.csv", *some_rows())])
    other = tractor.read([write(tmp_path / name, *some_rows(), header=bom + HEADER, end=end, last=last)])
    assert other.reports == plain.reports


def test_columns_may_be_more_fewer_and_in_another_order(tmp_path: Path) -> None:
    path = tmp_path / f"{IMSI}_metrics.csv"
    write(path, "20.5, 7,15,junk,100,1690905299528,", header="ul_sinr,new,UL_MCS ,text,ul_n_samples,Timestamp,")
    (report,) = tractor.read([path]).reports
    assert report.ue == IMSI
    assert report.ul_efficiency_bps_hz == pytest.approx(radio.lte_ul_efficiency(15))
    assert report.dl_cqi is None


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "1,2", header="Timestamp,dl_cqi")
    with pytest.raises(BadFile, match=r"a\.csv: no column 'ul_mcs', 'ul_n_samples', 'ul_sinr'"):
        tractor.read([path])


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "inf", "x", "-"])
@pytest.mark.parametrize("column", ["mcs", "n", "sinr", "err"])
def test_unreadable_cells_drop_the_row_and_are_counted(cell: str, column: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", row(T0), row(T0 + 250, **{column: cell}), row(T0 + 500))
    recording = tractor.read([path])
    assert [r.at_ns for r in recording.reports] == [0, 500_000_000]
    name = {"mcs": "ul_mcs", "n": "ul_n_samples", "sinr": "ul_sinr", "err": "ul_errors"}[column]
    assert recording.tally.dropped == {f"{name} is empty or not a number": 1}


def test_impossible_values_are_counted(tmp_path: Path) -> None:
    cqi = row(T0 + 250).replace(",11.5,", ",1835,")
    path = write(
        tmp_path / "a.csv", row(T0), cqi, row(T0 + 500, mcs=77), row(T0 + 750, sinr=1e9), row(T0 + 1000, err=-5)
    )
    recording = tractor.read([path])
    assert len(recording.reports) == 3
    assert recording.reports[1].dl_cqi is None
    assert recording.tally.dropped == {"LTE PUSCH MCS outside its table": 1, "error rate outside 0..100 %": 1}
    assert recording.tally.remarks == {
        "values blanked: dl_cqi outside 0..15": 1,
        "values blanked: ul_sinr_db outside -40..60": 1,
    }


def test_times_that_are_negative_missing_repeated_or_out_of_order(tmp_path: Path) -> None:
    times = (T0 + 250, T0, -5, 1e300, "", "nan", T0 + 500, T0 + 500)
    recording = tractor.read([write(tmp_path / "a.csv", *(row(at) for at in times))])
    assert [r.at_ns for r in recording.reports] == [0, 250_000_000, 500_000_000]
    assert recording.tally.dropped == {
        "time is negative or after 2100": 2,
        "time is missing": 2,
        "time repeated within one UE": 1,
    }
    assert recording.tally.remarks == {"steps back in time, rows sorted": 1}


def test_stale_rows_of_a_run_months_before_are_dropped(tmp_path: Path) -> None:
    month_ms = 30 * 24 * 3600 * 1000
    stale = some_rows(T0 - 5 * month_ms, 50)
    stray = [row(T0 + 3 * month_ms)]
    recording = tractor.read([write(tmp_path / "a.csv", *stale, *some_rows(count=40), *stray)])
    assert len(recording.reports) == 40
    assert recording.start_unix_ns == T0 * 1_000_000
    assert recording.tally.dropped == {
        "stale: of a run at least a day before": 50,
        "time over a day after the run": 1,
    }


def test_a_reattached_ue_stays_one_ue_with_its_gap(tmp_path: Path) -> None:
    rows = [*some_rows(), *some_rows(T0 + 400_000)]
    recording = tractor.read([write(tmp_path / "a.csv", *rows)])
    assert {r.ue for r in recording.reports} == {IMSI}
    assert [r.seq for r in recording.reports] == list(range(60))
    assert recording.tally.remarks == {"gaps of over 2 s (the UE was detached)": 1}


def test_files_that_went_through_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "mmtc_t6r_clean.csv"
    recording = tractor.read([write(path, *(row("1.67088E+12", imsi="1.01012E+12") for _ in range(8)))])
    assert [r.at_ns for r in recording.reports] == [i * 250_000_000 for i in range(8)]
    assert {r.ue for r in recording.reports} == {"mmtc_t6r_clean"}
    assert recording.tally.remarks == {"files whose times a spreadsheet rounded: rows numbered at 250 ms": 1}


def test_several_imsis_in_one_file_and_one_imsi_in_two_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", row(T0), row(T0, imsi="7"), row(T0 + 250, imsi="7"))
    (tmp_path / "run2").mkdir()
    second = write(tmp_path / "run2" / "b.csv", row(T0 + 1000))
    recording = tractor.read([first, second])
    assert [(r.at_ns // 10**6, r.ue) for r in recording.reports] == [
        (0, IMSI),
        (0, "7"),
        (250, "7"),
        (1000, f"{IMSI}@run2"),
    ]


def test_a_folder_gives_its_per_ue_files_at_any_depth_and_its_cells(tmp_path: Path) -> None:
    for cell, imsi in (("bs1", "11"), ("bs2", "12")):
        folder = tmp_path / "exp1" / cell / f"slices_{cell}"
        folder.mkdir(parents=True)
        write(folder / f"{imsi}_metrics.csv", row(T0, imsi=imsi))
        write(folder.parent / f"{cell}.csv", "1,2,3,4", header="time,nof_ue,dl_brate,ul_brate")
    recording = tractor.read([tmp_path / "exp1"])
    assert [(r.ue, r.cell) for r in recording.reports] == [("11", "bs1"), ("12", "bs2")]
    assert recording.tally.remarks == {"other .csv files in the folder, without _metrics in their name, left aside": 2}


def test_a_gzip_that_is_cut_off_gives_its_good_part(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv.gz", *(row(T0 + 250 * i, sinr=10 + i % 17 / 7) for i in range(5000)))
    path.write_bytes(path.read_bytes()[:-3000])
    recording = tractor.read([path])
    assert 100 < len(recording.reports) < 5000
    assert [remark for remark in recording.tally.remarks if "cut off" in remark]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (HEADER.encode(), "no usable row"),
        (b"\x00\x01\x02" * 50, "binary"),
        (b'a,b\n"' + b"x" * 200_000, "not CSV"),
        ((HEADER + "\n" + idle(-1) + "\n").encode(), "no usable row"),
    ],
)
def test_files_that_are_none_of_these(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=says):
        tractor.read([path])


def test_missing_files_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="No such file"):
        tractor.read([tmp_path / "none.csv"])
    with pytest.raises(BadFile, match=r"no \.csv"):
        tractor.read([tmp_path])
    with pytest.raises(BadFile, match="no input"):
        tractor.read([])


@given(st.binary(max_size=300))
def test_no_bytes_make_it_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.csv"
    path.write_bytes(HEADER.encode() + b"\n" + content)
    try:
        recording = tractor.read([path])
    except BadFile:
        return
    assert recording.reports


# ---- the real recordings


@pytest.fixture(scope="module")
def recorded(shared_data: Path) -> RanRecording:
    return tractor.read([shared_data / "ran-tractor" / "multi10ue_trial1"])


def test_every_recorded_row_is_accounted_for(recorded: RanRecording) -> None:
    tally = recorded.tally
    assert tally.rows == 29_166
    assert tally.valid + tally.idle == len(recorded.reports) == 29_166
    assert tally.valid == 5_602
    assert not tally.dropped
    assert len({r.ue for r in recorded.reports}) == 10
    assert [r.at_ns for r in recorded.reports] == sorted(r.at_ns for r in recorded.reports)
    assert recorded.reports[0].at_ns == 0


def raw_rows(folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for path in sorted(folder.rglob("*.gz")):
        with gzip.open(path, "rt", newline="") as stream:
            rows += csv.DictReader(stream)
    return rows


def test_uplink_efficiency_predicts_the_rate_of_full_buffer_rows(shared_data: Path) -> None:
    """Efficiency x 48 PRBs x the share of TTIs with a transport block, against the rate that was measured."""
    ratios = []
    for cells in raw_rows(shared_data / "ran-tractor"):
        blocks, rate_bps = float(cells["rx_pkts uplink"]), float(cells["rx_brate uplink [Mbps]"]) * 1e6
        if blocks >= 100 and float(cells["ul_mcs"]) > 0 and float(cells["ul_sinr"]) != 0:
            errors = float(cells["rx_errors uplink (%)"]) / 100
            efficiency = max(radio.lte_ul_efficiency(float(cells["ul_mcs"])) * (1 - errors), 0.08)
            ratios.append(efficiency * 48 * 180e3 * blocks / 250 / rate_bps)
    assert len(ratios) > 400
    assert statistics.median(ratios) == pytest.approx(1.08, abs=0.02)


def test_downlink_efficiency_times_prbs_is_the_downlink_rate(recorded: RanRecording) -> None:
    ratios = [
        r.dl_efficiency_bps_hz * 180e3 * r.prb_used_dl / r.thp_dl_bps
        for r in recorded.reports
        if r.dl_efficiency_bps_hz and r.prb_used_dl and r.prb_used_dl > 5 and r.thp_dl_bps
    ]
    assert len(ratios) > 3000
    assert statistics.median(ratios) == pytest.approx(1.0, abs=0.08)


def test_the_sliced_and_the_6_ue_run(shared_data: Path) -> None:
    sliced = tractor.read([shared_data / "ran-tractor" / "single_ue_sliced"])
    assert (sliced.tally.rows, sliced.tally.valid) == (9_529, 701)
    six = tractor.read(sorted((shared_data / "ran-tractor" / "multi6ue_trial2").glob("*.gz")))
    assert (six.tally.rows, six.tally.valid, len({r.ue for r in six.reports})) == (18_815, 5_508, 6)
    assert len(samples(six)) == six.tally.valid
