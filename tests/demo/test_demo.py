"""The demo without its cluster part: a few seconds of the sample, ends by signals and faults, the player's runtimes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from daemon_cases import CLIP, PATIENCE_S, SESSION, Place, a_status, radio, until
from replay_cases import sample

from cosched.api.messages import CellView, Lease, ResourceView
from cosched.cli import demo, demo_live, main
from cosched.cli.demo_live import PlayedLive
from cosched.core.policy import POLICIES
from cosched.demo.player import Running
from telemetry.messages import LlmSession, TaskOffer, TaskProgress, UeReport, VideoClip
from telemetry.trace import write_trace

SECONDS = 3.0
RESOURCES = (("cell0/ul", "comm"), ("edge0", "compute"), ("edge0/mem", "memory"))


def exit_code(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main.main(["demo", *args])
    return int(caught.value.code or 0)


@contextmanager
def started(tmp_path: Path, *options: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """The program as a user starts it, with its own folder for temporary files."""
    command = [sys.executable, "-m", "cosched.cli.main", "demo", "--report", str(tmp_path / "r.html"), *options]
    env = os.environ | {"TMPDIR": str(tmp_path), "COSCHED_SITE": "of another daemon"} | environ
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"ended before it said '{text}'")


def daemon_of(process: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(int(pid) for pid in children if b"\0run\0" in Path(f"/proc/{pid}/cmdline").read_bytes())


def test_the_whole_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """On the first seconds of the sample; the lines are what a first user reads."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    trace = tmp_path / "short.mcap"
    write_trace(trace, sample(SECONDS))
    monkeypatch.setattr("cosched.resources.sample_trace", lambda: trace)
    monkeypatch.setattr("cosched.core.policy.POLICIES", {name: POLICIES[name] for name in ("joint", "pf-admit")})
    monkeypatch.setattr("cosched.runtime.extra.find_spec", lambda _: None)
    assert exit_code("--report", str(tmp_path / "r.html"), "--speed", "3") == 0
    out = capsys.readouterr().out
    live, _, rest = out.partition("\n2. Cluster: left out, torch is not installed: pip install 'cosched[llm]'.\n")
    _, _, rest = rest.partition("3. Replay")
    replayed, _, verified = rest.partition("4. Verify")
    assert "3 x as fast" in live
    assert "The daemon is ready after" in live
    assert "radio reports, 0 lost" in live
    assert "best of its row" in replayed
    assert "Live, the daemon admitted" in replayed
    assert "recomputed, equal to the last bit" in verified
    assert (tmp_path / "r.html").stat().st_size > 10_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "short.mcap"], "nothing is left behind"


def working_in(folder: Path) -> list[int]:
    """Processes that were told of a folder."""
    found = []
    for pid in (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and int(p.name) != os.getpid()):
        with suppress(OSError):
            if any(str(folder).encode() in Path(f"/proc/{pid}/{told}").read_bytes() for told in ("cmdline", "environ")):
                found.append(pid)
    return found


@pytest.mark.parametrize(
    ("number", "code", "option"), [(signal.SIGINT, 130, "--no-cluster"), (signal.SIGTERM, 143, "--cluster")]
)
def test_a_signal_ends_it_with_its_daemons(tmp_path: Path, number: int, code: int, option: str):
    """With the cluster, in the midst of the start of its Ray."""
    with started(tmp_path, option) as process:
        read_until(process, "the latest decision")
        assert daemon_of(process) in working_in(tmp_path)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    assert "Traceback" not in err
    until(lambda: working_in(tmp_path) == [])
    assert list(tmp_path.iterdir()) == []


def test_kill_9_of_it_ends_its_daemon_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And the next one removes its folder, but none that is in use."""
    with started(tmp_path, "--no-cluster") as process:
        read_until(process, "the latest decision")
        daemon = daemon_of(process)
        log = Path(f"/proc/{daemon}/fd/2").readlink()
        process.kill()
        process.wait()
        until(lambda: working_in(tmp_path) == [])
    assert " stopped " in log.read_text().splitlines()[-1]
    (left,) = tmp_path.iterdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with demo._folder() as mine, demo._folder() as other:
        assert left not in {mine, other}
        assert set(tmp_path.iterdir()) == {mine, other}


def test_a_daemon_that_dies_is_the_error(tmp_path: Path):
    with started(tmp_path, "--no-cluster") as process:
        read_until(process, "the latest decision")
        os.kill(daemon_of(process), signal.SIGKILL)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert err.startswith("cosched: error: the daemon ended by itself, signal 9; its log ends: ")
    assert "decided" in err, "what it said last"
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert exit_code("--report", str(tmp_path / "none" / "r.html")) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "cannot be written there" in said.err


def test_a_folder_too_deep_for_a_socket_is_said(tmp_path: Path):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with started(tmp_path, TMPDIR=str(deep)) as process:
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "too long a path for a socket; name a shorter folder in $TMPDIR" in err


def test_what_a_terminal_and_a_pipe_are_shown():
    load = [ResourceView(id=i, kind=k, planned=0.42, background=0.0, price=0.0) for i, k in RESOURCES]
    found = a_status(tasks=7, resources=tuple(load), cells=(CellView(id="cell0", ues=3, stale_ues=0),))
    played = PlayedLive()
    played.told(lease((0.4, 0.05), 0.1))
    played.told(msgspec.structs.replace(lease((), 0.0), task="t2", point="", reason="rejected_no_point"))
    above, under = demo_live.head(found).splitlines()[1], demo_live.line(3.0, found, played)
    for name in ("cell0", "edge0"):
        assert under[: above.index(name) + len(name)].endswith(" 42"), "a figure stands under its name"
    assert "STEADY" not in under
    assert "1/2" in under
    assert under.endswith("t2 refused: no point")
    assert "DEGRADED: solver: late" in demo_live.line(3.0, a_status(mode="DEGRADED", alarms=("solver: late",)), played)
    picture = demo_live.picture(3.0, found, played)
    assert "1 of 2 tasks admitted so far" in picture
    assert "t k=1/edge0: 0.0 PRBs, 0 %; 400/500, 50/150 ms" in picture
    assert "gain" not in picture, "the demo's daemon has no shadow"


# --- the runtimes that the player stands for ------------------------------------------------------------------------


def lease(predicted_s: tuple[float | None, ...], slack_s: float) -> Lease:
    slacks = tuple(None if p is None else slack_s for p in predicted_s)
    return Lease(
        at_ns=0, source="cosched", seq=1, task="t", plan=1, reason="admitted", point="k=1/edge0",
        predicted_s=predicted_s, slack_s=slacks,
    )  # fmt: skip


def running(work: LlmSession | VideoClip, units: int, predicted_s: tuple[float | None, ...], slack_s: float) -> Running:
    offer = TaskOffer(at_ns=0, source="offers", seq=0, task="t", ue="ue0", work=work)
    return Running(offer, units, lease(predicted_s, slack_s), begun_s=0.0, seen_s=0.0)


def test_a_session_generates_as_its_lease_predicts():
    session = running(SESSION, 10, (0.4, 0.1), 0.05)
    assert session.advance(0.3) is None, "before its first token there is nothing to report"
    first = session.advance(0.4)
    assert first is not None
    assert (first.done, first.decoding_s) == (1, 0.0)
    later = session.advance(0.75)
    assert later is not None
    assert (later.done, later.finished) == (4, False)
    assert later.decoding_s == pytest.approx(0.3), "to the latest whole token"
    last = session.advance(1.5)
    assert last is not None
    assert last.finished


def test_a_session_without_a_share_waits():
    session = running(SESSION, 10, (0.4, None), 0.0)
    session.advance(0.5)
    waiting = session.advance(5.0)
    assert waiting is not None
    assert (waiting.done, waiting.decoding_s, waiting.finished) == (1, 0.0, False)
    session.lease = msgspec.structs.replace(session.lease, predicted_s=(0.4, 0.5), slack_s=(0.0, 0.0))
    going_on = session.advance(6.0)
    assert going_on is not None
    assert going_on.done == 3


@pytest.mark.parametrize(("slack_s", "done", "late"), [(0.1, 8, 0), (-0.1, 0, 8)])
def test_frames_are_in_time_or_late(slack_s: float, done: int, late: int):
    clip = running(CLIP, 10, (0.4,), slack_s)
    report = clip.advance(4.0)
    assert report is not None
    assert (report.done, report.late, report.finished) == (done, late, False)


def test_an_end_and_reports_that_come_together_leave_the_daemon_alive(tmp_path: Path):
    """The core's time goes on with the end; reports that arrived with it are not of the past."""
    place = Place(tmp_path)
    with place.daemon() as daemon, daemon.ready() as client, radio(place, client, 2) as source:
        for n in range(5):
            client.submit(f"t{n}", "ue0", SESSION)
        for n in range(5):
            source.send(TaskProgress(at_ns=0, source="rt", seq=n, task=f"t{n}", done=200, finished=True))
            for i in range(50):
                source.send(UeReport(at_ns=0, source="x", seq=50 * n + i, ue="ue1", cell="cell0"))
        until(lambda: client.status().tasks == 0)
        assert daemon.process.poll() is None
        daemon.stop()
    verdict = subprocess.run(
        [sys.executable, "-m", "cosched.cli.main", "verify", *map(str, place.captures)], check=False
    )
    assert verdict.returncode == 0
