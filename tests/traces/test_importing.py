"""`cosched import`: what is merged, what is counted, what is refused; on made-up files and on the real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from cosched.cli.main import app
from cosched.errors import BadInput
from cosched.resources import config_dir
from cosched.traces.importing import ImportOptions, best_window, import_trace, read_site
from telemetry.errors import BadFile, TelemetryError, UnknownSource
from telemetry.messages import LlmSession, Message, SiteMessage, TaskOffer, TaskTruth, UeReport, VideoClip
from telemetry.trace import read_trace

HEADER = "Timestamp,IMSI,ul_mcs,ul_n_samples,ul_sinr,rx_errors uplink (%)"
T0 = 1_690_905_299_528


def ue_file(folder: Path, imsi: str, *, start_s: float = 0.0, count: int = 400, mcs: int = 12) -> Path:
    """Write one UE's log: a row every 250 ms, each third one idle."""
    path = folder / f"{imsi}_metrics.csv"
    rows = [
        f"{T0 + 1000 * start_s + 250 * i:.0f},{imsi},{mcs if i % 3 else 0},{100 if i % 3 else 0},{20 if i % 3 else 0},0"
        for i in range(count)
    ]
    path.write_text("\n".join([HEADER, *rows]))
    return path


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """Make a folder of three UEs: 0 to 100 s, 50 to 150 s, 300 to 302 s."""
    folder = tmp_path / "ran"
    folder.mkdir()
    ue_file(folder, "101")
    ue_file(folder, "102", start_s=50, mcs=14)
    ue_file(folder, "103", start_s=300, count=8)
    return folder


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    path = tmp_path / "conv.csv"
    rows = [f"2023-11-16 18:15:{i % 60:02d}.{i:07d},{80 * i + 1},{i + 1}" for i in range(60)]
    path.write_text("\r\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    return path


def options(ran: Path, azure: Path | None = None, **changes: object) -> ImportOptions:
    plain = ImportOptions(
        source="tractor", files=(ran,), requests=f"azure-llm:{azure}" if azure else None, duration_s=30.0
    )
    return replace(plain, **changes)


def replace(plain: ImportOptions, **changes: object) -> ImportOptions:
    fields = {name: getattr(plain, name) for name in ImportOptions.__slots__}
    return ImportOptions(**(fields | changes))


def of_kind(messages: list[Message], kind: type) -> list[Message]:
    return [m for m in messages if isinstance(m, kind)]


def test_a_mapped_trace(ran: Path, azure: Path) -> None:
    messages, summary = import_trace(options(ran, azure, rate_per_s=4.0))
    assert isinstance(messages[0], SiteMessage)
    assert messages[0].toml == (config_dir() / "sites" / "node-bound.toml").read_text()
    reports = [m for m in messages if isinstance(m, UeReport)]
    assert {r.ue for r in reports} == {f"ue{i:02d}" for i in range(96)}
    assert max(r.at_ns for r in reports) < 30e9
    offers = [m for m in messages if isinstance(m, TaskOffer)]
    assert Counter(type(o.work) for o in offers) == {LlmSession: summary.sessions, VideoClip: summary.clips}
    assert {m.task for m in messages if isinstance(m, TaskTruth)} == {
        o.task for o in offers if isinstance(o.work, LlmSession)
    }
    assert (summary.ues, summary.channels, summary.rows, summary.reports) == (96, 2, 808, len(reports))
    assert summary.rows_valid + summary.rows_idle == 808
    assert "1 channels left out, under 20 valid samples: 103 (5)" in "\n".join(summary.warnings)


def test_a_seed_gives_a_trace_and_another_rate_the_same_channels(ran: Path, azure: Path) -> None:
    first, _ = import_trace(options(ran, azure))
    assert import_trace(options(ran, azure))[0] == first
    other, _ = import_trace(options(ran, azure, seed=1))
    assert other != first
    busier, _ = import_trace(options(ran, azure, rate_per_s=9.0))
    assert of_kind(busier, UeReport) == of_kind(first, UeReport)
    assert len(of_kind(busier, TaskOffer)) > len(of_kind(first, TaskOffer))


def test_keep_ues_takes_the_window_with_most_ues(ran: Path, azure: Path) -> None:
    messages, summary = import_trace(options(ran, azure, keep_ues=True))
    assert summary.start_s == 50.0  # 101 and 102 overlap from 50 to 100 s
    assert summary.ues == summary.channels == 2
    reports = [m for m in messages if isinstance(m, UeReport)]
    assert {r.ue for r in reports} == {"101", "102"}
    assert {r.cell for r in reports} == {"cell0"}
    assert 0 <= min(r.at_ns for r in reports) < 0.3e9
    assert max(r.at_ns for r in reports) < 30e9
    assert {o.ue for o in of_kind(messages, TaskOffer)} == {"101", "102"}  # type: ignore[attr-defined]
    assert any("1 UEs left out: no valid sample in the window" in line for line in summary.warnings)


def test_keep_ues_from_a_given_start(ran: Path, azure: Path) -> None:
    messages, summary = import_trace(options(ran, azure, keep_ues=True, start_s=120.0))
    assert {r.ue for r in of_kind(messages, UeReport)} == {"102"}  # type: ignore[attr-defined]
    assert summary.start_s == 120.0
    with pytest.raises(BadInput, match=r"no UE has a valid uplink sample from 200 to 230 s; .* to 301\.75 s"):
        import_trace(options(ran, azure, keep_ues=True, start_s=200.0))


def test_best_window_against_trying_every_second() -> None:
    rng = np.random.default_rng(4)
    by_ue = {
        f"u{k}": [
            UeReport(at_ns=int(t * 1e9), source="s", seq=i, ue=f"u{k}", cell="c", ul_efficiency_bps_hz=1.0)
            for i, t in enumerate(np.sort(rng.uniform(40 * k, 40 * k + 90, 120)))
        ]
        for k in range(5)
    }

    def score(start: int) -> tuple[int, int]:
        counts = [sum(start <= r.at_ns / 1e9 < start + 25 for r in reports) for reports in by_ue.values()]
        return sum(c >= 20 for c in counts), sum(counts)

    best = max(range(300), key=lambda s: (*score(s), -s))
    assert best_window(by_ue, 25.0) == best


def test_without_a_request_source_lengths_are_drawn_and_that_is_said(ran: Path) -> None:
    messages, summary = import_trace(options(ran))
    assert summary.sessions > 0
    assert len({o.work.new_tokens for o in of_kind(messages, TaskOffer) if isinstance(o.work, LlmSession)}) > 3  # type: ignore[attr-defined]
    assert any("drawn" in line for line in summary.warnings)


def test_mooncake_requests_and_recorded_arrivals(ran: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(f'{{"timestamp": {i * i}, "input_length": 900, "output_length": 9}}' for i in range(50)))
    _, summary = import_trace(options(ran, requests=f"mooncake:{path}", arrivals="recorded", rate_per_s=3.0))
    assert summary.sessions > 10


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rate_per_s": 1.0, "load": 1.0}, "give one"),
        ({"load": -1.0}, "load"),
        ({"start_s": 5.0}, "--keep-ues"),
        ({"start_s": -5.0, "keep_ues": True}, "starts at 0"),
        ({"cut_idle": True, "keep_ues": True}, "give one"),
        ({"duration_s": 0.0}, "--duration"),
        ({"duration_s": float("nan")}, "--duration"),
        ({"rate_per_s": -1.0}, "rate"),
        ({"rate_per_s": 1e-9}, "nothing arrives"),
        ({"site": "nowhere"}, "node-bound"),
        ({"site": "nowhere.toml"}, "No such file"),
        ({"requests": "azure-llm"}, "SOURCE:FILE"),
        ({"requests": "azure-llm:"}, "SOURCE:FILE"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], says: str, ran: Path) -> None:
    with pytest.raises(BadInput, match=says):
        import_trace(options(ran, **changes))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"source": "nothing"}, UnknownSource),
        ({"source": "azure-llm"}, UnknownSource),
        ({"requests": "tractor:x.csv"}, UnknownSource),
        ({"requests": "azure-llm:none.csv"}, BadFile),
        ({"files": (Path("none.csv"),)}, BadFile),
    ],
)
def test_errors_of_the_importers_pass_through(
    changes: dict[str, object], error: type[TelemetryError], ran: Path
) -> None:
    with pytest.raises(error):
        import_trace(options(ran, **changes))


def test_every_site_that_ships_is_read() -> None:
    for path in sorted((config_dir() / "sites").glob("*.toml")):
        site, text = read_site(path.stem)
        assert site.name == path.stem
        assert text == path.read_text()
        assert read_site(str(path))[0] == site


# ---- the command


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit | TelemetryError | BadInput)
    return result.exit_code, result.stdout, result.stderr


def test_the_command_writes_a_trace_that_reads_back(ran: Path, azure: Path, tmp_path: Path) -> None:
    output = tmp_path / "t.mcap"
    code, out, err = run(
        *(
            "import",
            "coloran",
            ran,
            "--requests",
            f"azure-llm:{azure}",
            "--duration",
            20,
            "--rate",
            3,
            "-o",
            output,
            "--json",
        )
    )
    assert code == 0, err
    summary = json.loads(out)
    trace = read_trace(output)
    assert trace.warnings == []
    assert trace.site_toml is not None
    assert len(of_kind(trace.messages, UeReport)) == summary["reports"]
    assert len(of_kind(trace.messages, TaskOffer)) == summary["sessions"] + summary["clips"]
    assert summary["v"] == 1
    assert "warning: tractor: 1 channels left out" in err


def test_the_table_of_the_command(ran: Path, tmp_path: Path) -> None:
    code, out, err = run("import", "tractor", ran, "-o", tmp_path / "t.mcap", "--keep-ues", "--duration", "20")
    assert code == 0, err
    for words in ("rows read", "s of the recording", "idle (no sample)", "LLM sessions", "video clips"):
        assert words in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["tractor", "none.csv"], "none.csv: No such file"),
        (["colosseum", "none.csv"], "unknown RAN source 'colosseum'; there are: tractor"),
        (["tractor", "{ran}", "--requests", "azure-llm:none.csv"], "none.csv: No such file"),
        (["tractor", "{ran}", "--site", "nowhere"], "no such file; there are: "),
    ],
)
def test_bad_input_is_one_line_and_exit_2(args: list[str], says: str, ran: Path, tmp_path: Path) -> None:
    words = [a.format(ran=ran) for a in args]
    command = [sys.executable, "-m", "cosched.cli.main", "import", *words, "-o", str(tmp_path / "t.mcap")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert not (tmp_path / "t.mcap").exists()


# ---- the real recordings


def test_the_recorded_channels_with_azure_conversations(shared_data: Path) -> None:
    requests = shared_data / "llm-azure2023" / "AzureLLMInferenceTrace_conv_rows1-12000.csv.gz"
    messages, summary = import_trace(
        options(shared_data / "ran-tractor" / "multi10ue_trial1", requests, duration_s=120.0, rate_per_s=3.4)
    )
    assert (summary.rows, summary.rows_valid, summary.rows_idle) == (29_166, 5_602, 23_564)
    assert (summary.ues, summary.channels) == (96, 8)
    assert summary.sessions + summary.clips == pytest.approx(408, abs=80)
    assert msgspec.json.encode(summary)
    kept, window = import_trace(
        options(shared_data / "ran-tractor" / "multi10ue_trial1", requests, duration_s=60.0, keep_ues=True)
    )
    assert window.ues >= 8
    assert len(kept) < len(messages)


def test_a_load_becomes_a_rate(shared_data: Path) -> None:
    recording = shared_data / "ran-tractor" / "multi6ue_trial2"
    _, one = import_trace(options(recording, load=1.0))
    _, half = import_trace(options(recording, load=0.5))
    assert half.rate_per_s == pytest.approx(one.rate_per_s / 2)
    assert 1.0 < one.rate_per_s < 12.0  # scenarios.md: about 3.4 a second at a quarter of an A100
