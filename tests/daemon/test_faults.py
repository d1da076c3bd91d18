"""What fails around a daemon, made to fail for real: what the user sees, and that it passes."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from daemon_cases import PATIENCE_S, SESSION, Daemon, Place, cosched, mode, radio, until

from cosched.api.client import Refused
from cosched.config.settings import load
from cosched.core.channel import ChannelRow
from cosched.core.events import Tick
from cosched.core.snapshot import TaskRow
from cosched.daemon.capture import Capture
from cosched.daemon.journal import TOPICS
from cosched.daemon.store import Kept, Store, StoreFailed
from cosched.daemon.verify import verify
from cosched.errors import BadInput
from cosched.profiles.calibration import LEAST
from telemetry.messages import TaskOffer, TaskTiming
from telemetry.trace import Recorder, read_records

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks into /proc")


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Hold processes still: a solve that never ends."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGCONT)


def test_a_solve_that_never_ends_is_killed_and_a_simpler_policy_answers(tmp_path: Path) -> None:
    place = Place(tmp_path, {"SOLVER_BUDGET_S": "0.2", "TELEMETRY_STALE_INPUT_S": "1000"})
    with place.daemon() as daemon, daemon.ready() as client, radio(place, client):
        client.submit("before", "ue0", SESSION)
        until(lambda: len(daemon.workers()) == 2)
        held = daemon.workers()
        with stopped(held):
            lease = client.submit("during", "ue1", SESSION)
            assert lease.task == "during", "answered all the same"
            status = mode(client, "DEGRADED")
            assert any("over its budget" in a or "no worker" in a for a in status.alarms)
            assert status.counts["solves_failed"] >= 1
            assert "before" in [view.task for view in client.list().tasks]
        mode(client, "STEADY")
        assert set(held) - set(daemon.workers()), "one that hung was killed"
        assert client.submit("after", "ue1", SESSION).reason == "admitted"
        for pid in daemon.workers():
            os.kill(pid, signal.SIGKILL)
        assert client.submit("bereft", "ue1", SESSION).task == "bereft"
        mode(client, "STEADY")
        assert daemon.stop()[0] == 0
    done = cosched("verify", *map(str, place.captures))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\([1-9]\d* given up\)", done.stdout)
    _flipped_bits(place.captures[0], tmp_path)


def _flipped_bits(capture: Path, folder: Path) -> None:
    """Every flipped bit is found, wherever it is."""
    whole, bad = capture.read_bytes(), folder / "bad.mcap"
    for at in range(8, len(whole), len(whole) // 40):
        bad.write_bytes(_flipped(whole, at))
        assert verify(bad).difference.startswith("the file is not as it was written"), at
    done = cosched("verify", str(bad))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"{bad}: the file is not as it was written")
    _changed_records(capture, bad)


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


FORGED = {  # topic: how its first record that can be is changed, and what of the difference is named
    "decision": (lambda at_ns, text: (at_ns, text.replace(b'"weight_prb":', b'"weight_prb":1')), "weight_prb"),
    "plan": (lambda at_ns, text: (at_ns, text.replace(b'"value":', b'"value":1')), "value"),
    "ran.ue": (lambda at_ns, text: (at_ns, text.replace(b'hz":2', b'hz":3')), ""),
    "offered": (lambda at_ns, text: (at_ns, text.replace(b'"ttft_s":2', b'"ttft_s":1')), ""),
    "solved": (lambda at_ns, text: (at_ns ^ 1 << 10, text), ""),  # a microsecond: the lease ends at another instant
    "tick": (lambda _, text: (0, text), "order of events"),
}


def _changed_records(capture: Path, bad: Path) -> None:
    """A forger recomputes the checksums; what his first change leads to is named all the same."""
    records = read_records(capture).records
    for topic, (forge, named) in FORGED.items():
        at = next(i for i, (name, *record) in enumerate(records) if name == topic and forge(*record) != tuple(record))
        with bad.open("wb") as stream:
            recorder = Recorder(stream, checksums=True)
            for i, (name, *record) in enumerate(records):
                at_ns, payload = forge(*record) if i == at else record
                recorder.record(name, msgspec.json.decode(payload, type=TOPICS[name]), at_ns=at_ns, source_ns=at_ns)
            recorder.finish()
        difference = verify(bad).difference
        assert re.match(r"(the order of events|plan \d+( at [\d.]+ s|, task \w+)): ", difference), (topic, difference)
        assert named in difference, (topic, difference)


def test_stale_input_hands_over_to_the_baseline_and_back(tmp_path: Path) -> None:
    place = Place(tmp_path, {"TELEMETRY_STALE_INPUT_S": "0.6", "TELEMETRY_STALE_UE_S": "2.5"})
    with place.daemon() as daemon, daemon.ready() as client, radio(place, client) as source:
        client.submit("quiet", "ue3", SESSION)
        assert mode(client, "DEGRADED", policy="pf-admit").alarms == ("telemetry: no valid radio report for 0.6 s",)
        source.report(None, None, None, None)  # heard, but without a sample
        assert client.status().mode == "DEGRADED"

        def steady() -> bool:
            source.report(2.0, 2.0, 2.0)
            return client.status().mode == "STEADY" and client.status().policy == "joint"

        until(steady)
        client.submit("loud", "ue0", SESSION)

        def ended() -> bool:
            source.report(2.0, 2.0, 2.0)
            return client.show("quiet").lease.reason == "stale"

        until(ended)
        assert [view.task for view in client.list().tasks] == ["loud"]


def test_measured_times_correct_profiles_and_outlive_a_kill(tmp_path: Path) -> None:
    place = Place(tmp_path, {"TELEMETRY_STALE_INPUT_S": "1000"})
    private = msgspec.structs.replace(SESSION, private=True)
    with place.daemon() as daemon, daemon.ready() as client, radio(place, client) as source:
        point = client.submit("slow", "ue0", private).point
        stamp = {"at_ns": 0, "source": "runtime", "task": "slow", "point": point, "tokens": 9}
        for seq in range(LEAST):
            source.send(TaskTiming(**stamp, seq=seq, device_token_s=30.0, node_token_s=30.0))
        until(lambda: len(client.show("slow").calibration) == 2)
        factors = client.show("slow").calibration
        assert set(factors.values()) == {4.0}, "bounded, however slow"
        status = mode(client, "STEADY")
        assert any(a.startswith("calibration: ") and "takes 4 x its profile" in a for a in status.alarms)
        shown = cosched("ctl", "--endpoint", place.control, "show", "slow")
        assert "takes 4 x its profile, as measured" in shown.stdout
        daemon.stop(signal.SIGKILL)
    with place.daemon() as daemon, daemon.ready() as client, radio(place, client):
        assert client.show("slow").calibration == factors
        assert any("calibration" in alarm for alarm in client.status().alarms)
        later = client.submit("later", "ue0", private)
        slower = later.predicted_s[1:] > client.show("slow").lease.predicted_s[1:]
        assert slower or later.point != point or later.reason != "admitted", "the corrected times are planned with"
        assert daemon.stop()[0] == 0
    done = cosched("verify", *map(str, place.captures))
    assert done.returncode == 0, done.stdout + done.stderr


CONFIG = """
policy = "{policy}"
site = "{site}"
[core]
z = {z}
[telemetry]
stale_input_s = 1000.0
[solver]
budget_s = 5.0
"""


def test_reload_is_all_or_nothing(tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(30)
        config = tmp_path / "cosched.toml"
        config.write_text(CONFIG.format(policy="joint", site="balanced", z=0.4))
        extra = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "600000"}
        place = Place(tmp_path, config=config, extra=extra)
        with place.daemon() as daemon, daemon.ready() as client, radio(place, client):
            told = _until_told(manager, "READY=1")
            assert not any("RELOADING" in t for t in told)
            client.submit("t", "ue0", SESSION)
            _refused(client, config, 'policy = "best"', "there are")
            _refused(client, config, "polcy = 'joint'", "did you mean 'policy'")
            _refused(client, config, "[state]\ndir = '/elsewhere'", "only a restart")
            _refused(client, config, "policy = ", "cosched.toml")
            _refused(client, config, f"site = '{_without_edge(tmp_path)}'", "no place for 1 tasks")
            assert client.status().policy == "joint"
            config.write_text(CONFIG.format(policy="greedy", site="balanced", z=0.8))
            daemon.process.send_signal(signal.SIGHUP)
            told = _until_told(manager, "RELOADING=1")
            assert re.search(r"MONOTONIC_USEC=\d+", told[-1])
            _until_told(manager, "READY=1")
            until(lambda: client.status().policy == "greedy")
            assert [view.task for view in client.list().tasks] == ["t"]
            _watchdog(daemon, manager)
            assert daemon.stop()[0] == 0
            _until_told(manager, "STOPPING=1")
    assert len(place.captures) == 2, "a new configuration begins a new capture"
    done = cosched("verify", *map(str, place.captures))
    assert done.returncode == 0, done.stdout + done.stderr


def _refused(client: object, config: Path, text: str, reason: str) -> None:
    config.write_text(text)
    with pytest.raises(Refused, match=re.escape(reason)) as refused:
        client.reload()  # type: ignore[attr-defined]
    assert refused.value.code == "refused_configuration"


def _without_edge(folder: Path) -> Path:
    """Write the site with its node called otherwise."""
    from cosched.resources import config_file

    path = folder / "other.toml"
    path.write_text(config_file("sites", "balanced.toml").read_text().replace('"edge0"', '"edge9"'))
    return path


def _until_told(manager: socket.socket, what: str) -> list[str]:
    told: list[str] = []
    end_s = time.monotonic() + PATIENCE_S
    while not told or what not in told[-1]:
        assert time.monotonic() < end_s, f"{what} was not told"  # signs of life would go on for ever
        told.append(manager.recv(4096).decode())
    return told


def _watchdog(daemon: Daemon, manager: socket.socket) -> None:
    """Signs of life come while decisions are made, and stop when none is: the budget here is longer than that."""
    _until_told(manager, "WATCHDOG=1")
    with stopped(daemon.workers()):
        silent_s = 0.0
        while silent_s < 1.5:
            began = time.monotonic()
            told = manager.recv(4096).decode()
            silent_s = 0.0 if "WATCHDOG=1" in told else silent_s + time.monotonic() - began
    _until_told(manager, "WATCHDOG=1")


def test_a_daemon_that_compiles_ends_at_once(tmp_path: Path) -> None:
    """Without a cache of compiled code a start takes a minute and more, and the compiler cannot be interrupted."""
    place = Place(tmp_path, extra={"NUMBA_CACHE_DIR": str(tmp_path / "empty")})
    with place.daemon() as daemon, daemon.client() as client:
        assert client.status().mode == "STARTING"
        until(lambda: "for_s=2" in daemon.log())  # in the midst of it; it says why it is not ready yet
        assert "make it where it is not there: minutes, once" in daemon.log()
        assert client.status().mode == "STARTING"
        code, took_s = daemon.stop()
    assert code == 0
    assert took_s < 10.0
    assert "stopped" in daemon.log()


def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    first = Store(tmp_path / "state.sqlite")
    with pytest.raises(BadInput, match="another daemon uses it"):
        Store(tmp_path / "state.sqlite")
    first.close()
    Store(tmp_path / "state.sqlite").close()


def test_a_full_disk_stops_recording_with_an_alarm(tmp_path: Path) -> None:
    """The limit on file size stands in for the disk: the system refuses the write in the same way."""
    settings = load(environ={}).settings.capture
    capture = Capture(settings, tmp_path)
    capture.begin(1, Tick)  # type: ignore[arg-type,return-value]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        for n in range(1, 20_000):
            capture.add("tick", Tick(), n)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capture.alarm == "capture: File too large"
    assert capture.path == ""
    (left,) = tmp_path.iterdir()
    assert read_records(left).records, "what was written can be read"
    assert not capture.is_due(2)
    assert capture.is_due(10**12)
    capture.begin(10**12, Tick)  # type: ignore[arg-type,return-value]
    assert capture.alarm == ""
    capture.close(10**12)


def test_what_cannot_be_stored_is_not_stored_in_part(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.sqlite")
    store.load(1)
    kept = [_kept(f"t{n}") for n in range(200)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(StoreFailed, match="state: "):
            store.commit(kept, [], 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.load(2).tasks == ()
    store.commit(kept[:2], [], 5)
    store.commit([], ["t0"], 6)
    store.close()
    again = Store(tmp_path / "state.sqlite").load(3)
    assert [k.row.offer.task for k in again.tasks] == ["t1"]
    assert again.generation > 6
    snapshot = again.snapshot(10**9)
    assert snapshot.cell_of_ue == {"u": "cell0"}
    assert [row.ue for row in snapshot.channel] == ["u"]


def _kept(task: str) -> Kept:
    offer = TaskOffer(at_ns=1, source="s", seq=0, task=task, ue="u", work=SESSION)
    return Kept(
        row=TaskRow(offer=offer, cell="cell0", table_cell="cell0", point="k=0/edge0"),
        channel=ChannelRow("u", 2.0, 0.1, 0.5),
    )


def test_captures_rotate_and_the_oldest_go(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(load(environ={}).settings.capture, max_bytes=1, keep=3)
    capture = Capture(settings, tmp_path)
    for n in range(1, 7):
        assert capture.is_due(n)
        capture.begin(n, Tick)  # type: ignore[arg-type,return-value]
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 3
    assert capture.path.endswith(names[-1])
    capture.close(7)
    shutil.rmtree(tmp_path)
