"""`cosched replay` and bad input: one line on stderr, exit 2, never a traceback; what is left of a trace is used."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from mcap.opcode import Opcode
from replay_cases import Message, sample

from cosched.resources import sample_trace
from solvers import baselines as defective
from solvers import registry
from solvers.baselines import common as baselines
from solvers.problem import Problem
from solvers.solution import Solution
from telemetry.messages import SiteMessage, TaskOffer, TaskTruth, UeReport, UeReportBatch
from telemetry.trace import read_trace, write_trace

SECONDS = 1.5
FAST = ("--policy", "local")
Cosched = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trace(tmp_path: Path) -> Callable[[Sequence[Message]], Path]:
    def write(messages: Sequence[Message]) -> Path:
        write_trace(tmp_path / "t.mcap", messages)
        return tmp_path / "t.mcap"

    return write


Trace = Callable[[Sequence[Message]], Path]


def refused(answer: tuple[int, str, str]) -> str:
    """Return the one line of a refusal."""
    code, out, err = answer
    assert code == 2, err
    assert out == ""
    errors = [line for line in err.splitlines() if not line.startswith("cosched: warning: ")]
    assert len(errors) == 1
    assert errors[0].startswith("cosched: error: ")
    return errors[0]


def without_samples(message: Message) -> Message:
    if isinstance(message, UeReportBatch):
        return msgspec.structs.replace(message, ul_efficiency_bps_hz=(None,) * len(message.ue))
    if isinstance(message, UeReport):
        return msgspec.structs.replace(message, ul_efficiency_bps_hz=None)
    return message


def test_a_file_that_is_not_there(cosched: Cosched, tmp_path: Path) -> None:
    assert "nowhere.mcap: No such file" in refused(cosched("replay", tmp_path / "nowhere.mcap"))


def test_a_directory(cosched: Cosched, tmp_path: Path) -> None:
    assert "Is a directory" in refused(cosched("replay", tmp_path))


@pytest.mark.parametrize(("content", "why"), [(b"", "empty"), (b"at_s,ue\n0,1\n", "not an MCAP"), (b"\x89", "MCAP")])
def test_a_file_that_is_no_trace(cosched: Cosched, tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "x.mcap"
    path.write_bytes(content)
    assert why in refused(cosched("replay", path))


@pytest.fixture
def chunked(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return the data section of a trace of many chunks: the shipped sample is one, with an index at the end."""
    monkeypatch.setattr("telemetry.trace.CHUNK_BYTES", 2048)
    data = trace(sample(SECONDS)).read_bytes()
    return data[: data.rindex(bytes([Opcode.DATA_END]) + (4).to_bytes(8, "little"))]


def test_the_good_part_of_a_trace_cut_off_is_replayed_with_a_warning(
    cosched: Cosched, tmp_path: Path, chunked: bytes
) -> None:
    path = tmp_path / "cut.mcap"
    path.write_bytes(chunked[: len(chunked) // 2])
    code, out, err = cosched("replay", path, *FAST, "--json", "-")
    assert code == 0
    assert err.startswith("cosched: warning: the file is cut off")
    assert 0 < json.loads(out)["trace"]["duration_s"] < SECONDS - 0.3


@pytest.mark.parametrize("left", [8, 9, 60, 400, 0.5])
def test_a_trace_cut_off_before_the_end_of_its_first_chunk_is_refused(
    cosched: Cosched, tmp_path: Path, left: float
) -> None:
    whole = sample_trace().read_bytes()
    path = tmp_path / "cut.mcap"
    path.write_bytes(whole[: int(left if left > 1 else left * len(whole))])
    assert "holds no telemetry message" in refused(cosched("replay", path, *FAST))


@pytest.mark.parametrize("at", [0.1, 0.4, 0.7])
def test_a_trace_with_a_hole_is_replayed_without_it_or_refused(
    cosched: Cosched, tmp_path: Path, chunked: bytes, at: float
) -> None:
    data = bytearray(chunked)
    middle = int(at * len(data))
    data[middle : middle + 64] = b"\xff" * 64
    path = tmp_path / "hole.mcap"
    path.write_bytes(data)
    code, _, err = cosched("replay", path, *FAST)
    assert code in (0, 2)
    assert err
    assert all(line.startswith(("cosched: warning: ", "cosched: error: ")) for line in err.splitlines())


@pytest.mark.parametrize(
    ("gone", "why"),
    [(SiteMessage, "no site description"), (TaskOffer, "no task is offered"), (UeReportBatch, "no valid radio sample")],
)
def test_a_trace_without(cosched: Cosched, trace: Trace, gone: type, why: str) -> None:
    path = trace([m for m in sample(SECONDS) if not isinstance(m, gone)])
    line = refused(cosched("replay", path))
    assert why in line
    assert str(path) in line


def test_a_trace_of_idle_ues_only(cosched: Cosched, trace: Trace) -> None:
    path = trace([without_samples(m) for m in sample(SECONDS)])
    assert "no valid radio sample" in refused(cosched("replay", path))


def test_a_site_that_is_not_toml(cosched: Cosched, trace: Trace) -> None:
    rest = [m for m in sample(SECONDS) if not isinstance(m, SiteMessage)]
    assert "site" in refused(cosched("replay", trace([SiteMessage(at_ns=0, toml="cells = ["), *rest])))


def test_a_ue_in_a_cell_that_the_site_lacks(cosched: Cosched, trace: Trace) -> None:
    stray = UeReport(at_ns=0, source="r", seq=0, ue="stray", cell="mars", ul_efficiency_bps_hz=1.0)
    line = refused(cosched("replay", trace([*sample(SECONDS), stray])))
    assert "'mars'" in line
    assert "cell0" in line


def test_a_ue_that_is_never_reported_costs_its_tasks_and_is_told(cosched: Cosched, trace: Trace) -> None:
    offers = [m for m in sample(SECONDS) if isinstance(m, TaskOffer)]
    ghosts = [msgspec.structs.replace(o, ue="ghost", task=f"g{i}") for i, o in enumerate(offers[:3])]
    code, out, err = cosched("replay", trace([*sample(SECONDS), *ghosts]), *FAST, "--json", "-")
    assert code == 0
    assert all(line.startswith("cosched: warning: ") for line in err.splitlines())
    assert "3 tasks of UE ghost" in err
    assert "3 tasks left out" in err
    assert json.loads(out)["trace"]["tasks"] == len(offers)


def test_none_but_tasks_of_ues_that_are_never_reported(cosched: Cosched, trace: Trace) -> None:
    ghosts = [msgspec.structs.replace(m, ue="ghost") if isinstance(m, TaskOffer) else m for m in sample(SECONDS)]
    assert "tasks is of a UE with a valid radio sample" in refused(cosched("replay", trace(ghosts), *FAST))


def test_twins(cosched: Cosched, trace: Trace) -> None:
    offer = next(m for m in sample(SECONDS) if isinstance(m, TaskOffer))
    line = refused(cosched("replay", trace([*sample(SECONDS), msgspec.structs.replace(offer, seq=10_000)])))
    assert f"task '{offer.task}' is offered twice" in line


def test_a_model_that_the_site_does_not_serve(cosched: Cosched, trace: Trace) -> None:
    changed: list[Message] = []
    for m in sample(SECONDS):
        if isinstance(m, TaskOffer) and hasattr(m.work, "model"):
            changed.append(msgspec.structs.replace(m, work=msgspec.structs.replace(m.work, model="gpt-9")))
        else:
            changed.append(m)
    assert "gpt-9" in refused(cosched("replay", trace(changed), *FAST))


def test_truths_of_nobody_and_missing_truths_are_no_obstacle(cosched: Cosched, trace: Trace) -> None:
    rest = [m for m in sample(SECONDS) if not isinstance(m, TaskTruth)]
    path = trace([*rest, TaskTruth(at_ns=0, task="nobody", output_tokens=3)])
    assert cosched("replay", path, *FAST)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--policy", "magic"), "no such policy; there are: joint"),
        (("--policy", "pf-util:rho=high"), "is not option=number"),
        (("--policy", "pf-util:colour=1"), "colour"),
        (("--policy", "pf-util:rho=-1"), "rho"),
        (("--policy", "pf-admit:overbook=nan"), "overbook"),
        (("--speed", "fast"), "--speed fast"),
        (("--speed", "0"), "--speed 0"),
        (("--speed", "-1"), "--speed -1"),
        (("--speed", "nan"), "--speed nan"),
        (("--speed", "inf"), "--speed inf"),
    ],
)
def test_options_that_make_no_sense(cosched: Cosched, trace: Trace, arguments: tuple[str, ...], why: str) -> None:
    assert why in refused(cosched("replay", trace(sample(SECONDS)), *arguments))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"v": 1}', b'{"v": 1, "name": "x", "command": "", "rows": 3}'])
def test_a_sweep_that_is_none(cosched: Cosched, trace: Trace, tmp_path: Path, content: bytes) -> None:
    sweep, report = tmp_path / "s.json", tmp_path / "r.html"
    sweep.write_bytes(content)
    answer = cosched("replay", trace(sample(SECONDS)), *FAST, "--report", report, "--sweep", sweep)
    assert answer[0] == 2
    assert "not a sweep of 'cosched bench" in answer[2]
    assert answer[2].count("\n") == 1
    assert not report.exists()


def test_a_sweep_that_is_not_there(cosched: Cosched, trace: Trace, tmp_path: Path) -> None:
    report = tmp_path / "r.html"
    answer = cosched("replay", trace(sample(SECONDS)), *FAST, "--report", report, "--sweep", tmp_path / "no.json")
    assert answer[0] == 2
    assert "no.json: No such file" in answer[2]


@pytest.mark.parametrize("option", ["--json", "--report", "--record"])
@pytest.mark.parametrize("where", ["missing/x", "file/x", "."])
def test_where_nothing_can_be_written(cosched: Cosched, trace: Trace, tmp_path: Path, option: str, where: str) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = cosched("replay", trace(sample(SECONDS)), *FAST, option, tmp_path / where)
    assert code == 2
    assert err.startswith("cosched: error: ")
    assert err.count("\n") == 1


def test_what_is_wrong_with_the_options_is_said_before_anything_is_replayed(
    cosched: Cosched, trace: Trace, tmp_path: Path
) -> None:
    """A comparison of an hour must not be lost to a sweep file that was misspelt."""
    answer = cosched(
        "replay", trace(sample(SECONDS)), *FAST, "--report", tmp_path / "r.html", "--sweep", tmp_path / "no.json"
    )
    assert answer[1] == ""


SUMMARY = {
    "offered", "admitted", "met", "met_ratio", "value", "hindsight_bound", "gap_p50", "gap_max", "latency_ms",
    "decide_ms", "fairness_jain", "switches", "utilisation", "energy_j", "decisions_sha256",
    "promised", "broken", "met_unpromised", "tokens_met", "step_ms", "batch",
}  # fmt: skip


def test_json_on_stdout_is_json_alone_with_the_keys_of_the_interface(cosched: Cosched, trace: Trace) -> None:
    path = trace(sample(SECONDS))
    code, out, err = cosched("replay", path, "--policy", "joint", "--policy", "pf", "--json", "-")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert set(told) == {"v", "trace", "policies"}
    assert set(told["trace"]) == {
        *("path", "local_feasible", "sha256", "duration_s", "ues", "tasks", "overlap_share", "most_at_once"),
    }
    assert told["trace"]["path"] == str(path)
    assert list(told["policies"]) == ["joint", "pf"]
    for figures in told["policies"].values():
        assert set(figures) == SUMMARY
        assert set(figures["latency_ms"]) == {"p50", "p95", "p99"}
        assert set(figures["decide_ms"]) == {"p50", "p99", "max"}
        assert figures["met"] <= figures["admitted"] <= figures["offered"]
        assert figures["broken"] <= figures["promised"] <= figures["admitted"]
        assert figures["promised"] - figures["broken"] + figures["met_unpromised"] == figures["met"]
        assert figures["tokens_met"] > 0
        assert set(figures["step_ms"]) == set(figures["batch"])
        assert all(ms > 0 for ms in figures["step_ms"].values())
        assert all(mean >= 1 for mean in figures["batch"].values())
        assert figures["value"] <= figures["hindsight_bound"] + 1e-6
        assert all(0 <= u <= 1 + 1e-9 for u in figures["utilisation"].values())
        assert len(figures["decisions_sha256"]) == 64


def test_json_to_a_file_is_the_same_and_the_table_is_printed(cosched: Cosched, trace: Trace, tmp_path: Path) -> None:
    path, target = trace(sample(SECONDS)), tmp_path / "out.json"
    code, out, _ = cosched("replay", path, *FAST, "--json", target)
    assert code == 0
    assert "tasks met" in out.lower() or "met" in out
    assert set(json.loads(target.read_bytes())["policies"]) == {"local"}


def test_json_on_stdout_stays_alone_when_files_are_written_too(cosched: Cosched, trace: Trace, tmp_path: Path) -> None:
    written = ("--record", tmp_path / "r.mcap", "--report", tmp_path / "r.html")
    code, out, err = cosched("replay", trace(sample(SECONDS)), *FAST, "--json", "-", *written)
    assert (code, err) == (0, "")
    assert json.loads(out)["v"] == 1
    assert (tmp_path / "r.mcap").stat().st_size > 0
    assert (tmp_path / "r.html").stat().st_size > 0


def overfilling(problem: Problem, **_: object) -> Solution:
    """A policy with a defect: everybody gets everything."""
    chosen = np.where(np.diff(problem.first) > 0, problem.first[:-1], -1)
    share = np.where((chosen >= 0)[:, None], np.ones((problem.n_tasks, problem.slot.shape[1])), 0.0)
    return baselines.solution(problem, "edge", chosen, share, chosen >= 0, evaluations=1)


def test_a_policy_that_fails_verification_is_named_and_the_others_are_compared(
    cosched: Cosched, trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defective, "overfilling", overfilling, raising=False)
    monkeypatch.setitem(registry.SOLVERS, "edge", "solvers.baselines:overfilling")
    path, target = trace(sample(SECONDS)), tmp_path / "r.mcap"
    asked = ("--policy", "edge", "--policy", "local", "--record", target)
    code, out, err = cosched("replay", path, *asked, "--json", "-")
    told = json.loads(out)
    assert code == 1
    assert list(told["policies"]) == ["local"]
    assert list(told["failed"]) == ["edge"]
    assert err.startswith("cosched: error: policy edge at ")
    assert err.count("\n") == 1
    assert not target.exists()
    code, out, _ = cosched("replay", path, *asked)
    assert code == 1
    assert "local" in out


def test_memory_is_not_overbooked_in_a_replay(cosched: Cosched, trace: Trace) -> None:
    """Shares may be given away several times over; with rigid memory that ended the whole comparison."""
    path = trace(sample(5.0))
    specs = [f"compute-only:overbook={o}" for o in (2, 4)]
    code, out, err = cosched("replay", path, "--policy", specs[0], "--policy", specs[1], "--json", "-")
    assert (code, err) == (0, "")
    assert list(json.loads(out)["policies"]) == specs


def test_two_traces_cannot_be_recorded_into_one_file(cosched: Cosched, trace: Trace, tmp_path: Path) -> None:
    path = trace(sample(SECONDS))
    assert "give one trace" in refused(cosched("replay", path, path, *FAST, "--record", tmp_path / "r.mcap"))
    assert not (tmp_path / "r.mcap").exists()


def test_several_traces_come_as_a_list(cosched: Cosched, trace: Trace) -> None:
    path = trace(sample(SECONDS))
    _, out, _ = cosched("replay", path, path, *FAST, "--json", "-")
    told = json.loads(out)
    assert told["v"] == 1
    assert len(told["replays"]) == 2


def test_a_recording_holds_the_trace_and_its_decisions(cosched: Cosched, trace: Trace, tmp_path: Path) -> None:
    path, target = trace(sample(SECONDS)), tmp_path / "recorded.mcap"
    code, _, err = cosched("replay", path, "--policy", "joint", "--record", target)
    assert (code, err) == (0, "")
    messages = read_trace(target).messages
    kinds = [type(m).__name__ for m in messages]
    assert kinds.count("DecisionMessage") >= kinds.count("TaskOffer") / 2
    assert [m for m in messages if type(m).__name__ != "DecisionMessage"] == read_trace(path).messages
