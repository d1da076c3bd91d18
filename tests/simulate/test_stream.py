"""Traces drawn from scenarios, and `cosched simulate` as a user runs it."""

import gzip
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cosched.errors import BadInput
from cosched.resources import config_file
from cosched.simulate import stream
from cosched.simulate.arrivals import Lognormal
from cosched.simulate.reports import LEAST_EFFICIENCY
from cosched.simulate.scenario import LoadedScenario, load_scenario, parse_scenario
from cosched.traces import simulation
from telemetry.messages import LlmSession, SiteMessage, TaskOffer, TaskTruth, UeReportBatch
from telemetry.quality import Quarantine
from telemetry.trace import read_trace, write_trace

URBAN = config_file("scenarios", "urban-llm.toml")
WITHOUT_ARRIVALS = URBAN.read_text().split("[arrivals]")[0]
SAMPLE = config_file("traces", "sample.mcap")


@pytest.fixture(scope="module")
def urban() -> LoadedScenario:
    return load_scenario(URBAN)


def test_a_trace_has_its_site_reports_and_offers(urban: LoadedScenario):
    drawn = stream.messages(urban, seed=3, duration_s=5.0, rate_per_s=6.0)
    assert isinstance(drawn[0], SiteMessage)
    batches = [m for m in drawn if isinstance(m, UeReportBatch)]
    assert [b.at_ns for b in batches] == [k * 250_000_000 for k in range(21)]
    assert [b.seq for b in batches] == list(range(21))
    ues = set(batches[0].ue)
    assert len(ues) == urban.site.ues.count
    offers = [m for m in drawn if isinstance(m, TaskOffer)]
    assert {o.ue for o in offers} <= ues
    sessions = {o.task for o in offers if isinstance(o.work, LlmSession)}
    assert {m.task for m in drawn if isinstance(m, TaskTruth)} == sessions
    cells = {c.id for c in urban.site.cells}
    assert {c for b in batches for c in b.cell} <= cells


def test_every_report_is_plausible(urban: LoadedScenario):
    quarantine = Quarantine()
    drawn = stream.messages(urban, seed=4, duration_s=5.0, rate_per_s=6.0)
    assert [quarantine.admit(m) for m in drawn] == drawn
    assert not quarantine.counts
    low = min(v for m in drawn if isinstance(m, UeReportBatch) for v in m.ul_efficiency_bps_hz)
    assert low >= LEAST_EFFICIENCY


def test_seed_decides_and_another_rate_leaves_the_channel(urban: LoadedScenario):
    def batches(**changes: float) -> list[UeReportBatch]:
        arguments = {"seed": 5, "duration_s": 2.0, "rate_per_s": 6.0} | changes
        return [m for m in stream.messages(urban, **arguments) if isinstance(m, UeReportBatch)]

    assert batches() == batches()
    assert batches() == batches(rate_per_s=60.0)
    assert batches() != batches(seed=6)


def test_whoever_is_indoors_keeps_the_channel(urban: LoadedScenario):
    batches = [
        m for m in stream.messages(urban, seed=7, duration_s=10.0, rate_per_s=5.0) if isinstance(m, UeReportBatch)
    ]
    efficiency = np.array([b.ul_efficiency_bps_hz for b in batches])
    still = (np.ptp(efficiency, axis=0) == 0.0).mean()
    assert 0.3 < still < 0.75  # half of the UEs are indoors


def test_the_sample_is_what_its_scenario_gives(urban: LoadedScenario, tmp_path: Path):
    """The command in docs/scenarios.md still makes the file that ships, message by message."""
    write_trace(
        tmp_path / "again.mcap",
        simulation.draw_trace(urban, seed=urban.scenario.seed, duration_s=urban.scenario.duration_s),
    )
    shipped, again = read_trace(SAMPLE), read_trace(tmp_path / "again.mcap")
    assert not shipped.warnings
    assert shipped.messages == again.messages


def test_summary_counts_what_is_there(urban: LoadedScenario):
    drawn = stream.messages(urban, seed=1, duration_s=10.0, rate_per_s=6.0)
    summary = simulation.summary(drawn, 10.0)
    assert summary.tasks == summary.sessions + summary.clips == sum(isinstance(m, TaskOffer) for m in drawn)
    assert summary.reports == 41 * 36
    assert summary.efficiency_p5 <= summary.efficiency_p50 <= summary.efficiency_p95
    by_hand = 0
    batches = [m for m in drawn if isinstance(m, UeReportBatch)]
    for u in range(36):
        served = [b.cell[u] for b in batches]
        by_hand += sum(a != b for a, b in itertools.pairwise(served))
    assert summary.handovers == by_hand


def test_lengths_follow_the_recorded_conversations(shared_data: Path):
    path = shared_data / "llm-azure2023" / "AzureLLMInferenceTrace_conv_rows1-12000.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = [line.strip().split(",") for line in file][1:]
    for column, fit in (
        (1, Lognormal(mu=6.71, sigma=0.98, greatest=14050)),
        (2, Lognormal(mu=4.96, sigma=0.89, greatest=1000)),
    ):
        logs = np.log([int(row[column]) for row in rows])
        assert fit.mu == pytest.approx(logs.mean(), abs=0.005)
        assert fit.sigma == pytest.approx(logs.std(), abs=0.005)
        assert fit.greatest == max(int(row[column]) for row in rows)


def test_recorded_arrivals_keep_their_rate(tmp_path: Path):
    rows = "".join(f"2023-11-16 18:15:{46 + i * 0.5:010.7f},{100 + i},{50}\n" for i in range(20))
    (tmp_path / "requests.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    arrivals = '[arrivals]\nkind = "recorded"\nrequests = { source = "azure-llm", files = ["requests.csv"] }'
    text = WITHOUT_ARRIVALS + arrivals
    loaded = parse_scenario(text, "here", tmp_path)
    assert simulation.rate_per_s(loaded, 1) == pytest.approx(2.0)
    offers = [m for m in simulation.draw_trace(loaded, seed=1, duration_s=20.0) if isinstance(m, TaskOffer)]
    assert len(offers) == 40


def test_load_is_a_multiple_of_what_just_fits():
    rates = [
        simulation.rate_per_s(parse_scenario(f"{WITHOUT_ARRIVALS}[arrivals]\nload = {load}", "here"), 1)
        for load in (1.0, 2.0)
    ]
    assert rates[1] == pytest.approx(2 * rates[0], abs=0.002)
    # what urban-llm.toml says of itself: its 7.3 tasks a second are about load 1
    assert rates[0] == pytest.approx(7.3, rel=0.4)


def test_no_rate_and_nothing_arriving_are_refused(urban: LoadedScenario):
    with pytest.raises(BadInput, match="give rate_per_s or load"):
        simulation.rate_per_s(parse_scenario(WITHOUT_ARRIVALS, "here"), 1)
    with pytest.raises(BadInput, match="nothing arrives"):
        stream.messages(urban, seed=1, duration_s=0.5, rate_per_s=1e-6)


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cosched.cli.main", "simulate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_writes_a_trace(tmp_path: Path):
    out = tmp_path / "t.mcap"
    done = simulate(str(URBAN), "-o", str(out), "--seed", "9", "--duration", "3", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert (printed["v"], printed["seed"], printed["duration_s"], printed["ues"]) == (1, 9, 3.0, 36)
    trace = read_trace(out)
    assert not trace.warnings
    assert sum(isinstance(m, TaskOffer) for m in trace.messages) == printed["tasks"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["none.toml", "-o", "x.mcap"], "none.toml"),
        ([str(URBAN), "-o", "x.mcap", "--duration", "-1"], "--duration -1"),
        ([str(URBAN), "-o", "x.mcap", "--duration", "nan"], "--duration nan"),
        ([str(URBAN), "-o", "no/such/folder/x.mcap", "--duration", "1"], "cannot be written"),
    ],
)
def test_command_refuses_in_one_line(arguments: list[str], complaint: str):
    done = simulate(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
