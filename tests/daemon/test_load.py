"""1000 UEs reporting every 100 ms and 50 submits a second against a real daemon: nothing is lost, memory stays flat.

Each UE reports when its own 100 ms are over, so that a hundred reports come every 10 ms. A third of the sessions can be
served by the device alone, the others need the network. The delays are printed (`pytest -s`), not asserted: the
machine's other load is in them. DAEMON_LOAD_S=60 is the whole test of docs/daemon.md; DAEMON_LOAD_UES=5000 and
DAEMON_LOAD_SESSIONS=1000, that go on all the time, are its step up: there reports come in columns, as from a large RAN.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
from daemon_cases import ROOMY, Daemon, Place, cosched, until

from cosched.api.client import Client
from telemetry import wire
from telemetry.bus import Dealer, Publisher
from telemetry.messages import LlmSession, UeReport, UeReportBatch

DURATION_S = float(os.environ.get("DAEMON_LOAD_S", "4"))
UES = int(os.environ.get("DAEMON_LOAD_UES", "1000"))
SESSIONS = int(os.environ.get("DAEMON_LOAD_SESSIONS", "0"))
PERIOD_S, SUBMITS_HZ = 0.1, 50
ONE_BY_ONE, ROWS = 1_000, 500  # UEs that report one by one; rows of a batch
STEP_S = 0.002  # between two looks at what is due
SIZES_S = 5.0  # between two looks at the daemon's memory
SHORT = LlmSession(
    model="llama-3-8b", context_tokens=200, new_tokens=32, max_output_tokens=20, ttft_s=2.0, tpot_s=0.2
)  # 6 s when nobody reports it
HASTY = msgspec.structs.replace(SHORT, ttft_s=1.0, tpot_s=0.06)  # too fast for a laptop
LONG = LlmSession(
    model="llama-3-8b", context_tokens=200, new_tokens=32, max_output_tokens=3_000, ttft_s=5.0, tpot_s=1.0, private=True
)
WORKS = (SHORT, HASTY, msgspec.structs.replace(HASTY, private=True))


@dataclass
class Load:
    """Publishes and submits on a fixed schedule; keeps when each submit left and how long its answer took."""

    publisher: Publisher
    dealer: Dealer
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(11))
    sent: int = 0
    batches: int = 0
    left_s: dict[int, float] = field(default_factory=dict)
    took_ms: list[float] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)

    def report(self, until: int) -> None:
        """Reports of the UEs whose turn it is, until so many were sent in all."""
        if UES > ONE_BY_ONE:
            self.report_columns(until)
            return
        at_ns = time.monotonic_ns()
        for value in self.rng.uniform(1.0, 5.0, max(0, until - self.sent)).tolist():
            seq, u = divmod(self.sent, UES)
            report = UeReport(
                at_ns=at_ns, source=f"ran/{u}", seq=seq, ue=f"ue{u}", cell="cell0", ul_efficiency_bps_hz=value
            )
            self.publisher.send(*wire.encode(report))
            self.sent += 1

    def report_columns(self, until: int) -> None:
        """The same as batches, each of UEs that follow each other."""
        while (n := min(until - self.sent, UES - self.sent % UES, ROWS)) > 0:
            first = self.sent % UES
            batch = UeReportBatch(
                at_ns=time.monotonic_ns(), source="ran", seq=self.batches, cell=("cell0",) * n,
                ue=tuple(f"ue{u}" for u in range(first, first + n)),
                ul_efficiency_bps_hz=tuple(self.rng.uniform(1.0, 5.0, n).tolist()),
            )  # fmt: skip
            self.publisher.send(*wire.encode(batch))
            self.sent, self.batches = self.sent + n, self.batches + 1

    def submit(self, number: int) -> None:
        args = {"task": f"t{number}", "ue": f"ue{number % UES}", "work": msgspec.to_builtins(WORKS[number % 3])}
        self.left_s[number] = time.monotonic()
        self.dealer.send(msgspec.msgpack.encode({"verb": "submit", "id": number, "args": args}))

    def hold(self, client: Client) -> int:
        """Submit the sessions that go on; return how many were admitted."""
        admitted = 0
        for number in range(SESSIONS):
            if number % 20 == 0:
                self.report(self.sent + UES)  # or the channel would be stale
            admitted += client.submit(f"long{number}", f"ue{number % UES}", LONG).reason == "admitted"
        return admitted

    def hear(self, wait_s: float) -> None:
        self.dealer.wait(max(0.0, wait_s))
        now_s = time.monotonic()
        for answer in map(msgspec.msgpack.decode, self.dealer.drain()):
            assert answer["ok"], answer
            self.reasons.add(answer["result"]["reason"])
            self.took_ms.append(1e3 * (now_s - self.left_s.pop(answer["id"])))

    def run(self, duration_s: float, look: Callable[[], None]) -> None:
        """Keep to the schedule; `look` is called now and then."""
        began, sent = time.monotonic(), self.sent
        submits = looks = 0
        while (now_s := time.monotonic() - began) < duration_s:
            self.report(sent + int(now_s / PERIOD_S * UES))
            while now_s >= submits / SUBMITS_HZ:
                self.submit(submits)
                submits += 1
            if now_s >= looks * SIZES_S:
                look()
                looks += 1
            self.hear(STEP_S)
        until(lambda: self.hear(0.05) is None and not self.left_s)


def rss_bytes(daemon: Daemon) -> int:
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def cpu_s(daemon: Daemon) -> float:
    """CPU time of the daemon and its workers so far."""
    ticks = 0
    for pid in (daemon.process.pid, *daemon.workers()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_thousand_ues_and_fifty_submits_a_second(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(ROOMY)
    place = Place(tmp_path, {"SITE": f"{tmp_path}/site.toml", "LOG_LEVEL": "warning", "LEASE_SILENT_S": "1000"})
    with place.daemon() as daemon, daemon.ready() as client:
        load = Load(Publisher(place.bus), Dealer(place.control))
        _first_reports(load, client)
        held = load.hold(client)
        before = client.status()
        sent, sizes, used = load.sent, [], -cpu_s(daemon)
        load.run(DURATION_S, lambda: sizes.append(rss_bytes(daemon)))
        if UES <= ONE_BY_ONE:
            until(lambda: client.status().ingest.reports - before.ingest.reports >= load.sent - sent)
        status = client.status()
        used += cpu_s(daemon)
        sizes.append(rss_bytes(daemon))
        load.publisher.close()
        load.dealer.close()
        _show(load, status, sizes, used)
        taken = status.ingest.reports - before.ingest.reports
        print(f"{taken} of {load.sent - sent} reports taken, refused {status.ingest.refused}")  # noqa: T201
        if UES <= ONE_BY_ONE:
            assert taken == load.sent - sent
            assert status.ingest.lost == before.ingest.lost
            assert status.ingest.refused == before.ingest.refused
        assert len(load.took_ms) == pytest.approx(DURATION_S * SUBMITS_HZ, rel=0.2)
        assert "admitted" in load.reasons
        assert sizes[-1] < 1.02 * sizes[len(sizes) // 3] + 8e6  # by then as many tasks live as will
        kept = sum(view.task.startswith("long") for view in client.list(limit=10_000).tasks) if SESSIONS else 0
        print(f"sessions that go on: {held} admitted, {kept} at the end")  # noqa: T201
        assert kept >= 0.95 * held >= 0.95 * 0.9 * SESSIONS
        assert daemon.stop()[0] == 0
    done = cosched("verify", *map(str, place.captures))
    assert done.returncode == 0, done.stdout + done.stderr


def _first_reports(load: Load, client: Client) -> None:
    def heard() -> bool:
        load.report(load.sent + UES)
        return client.status().ingest.reports >= UES

    until(heard)
    load.publisher.send(b"mark", b"?")  # frames arrive in order: once this one is refused, all before it are counted
    until(lambda: bool(client.status().ingest.refused))


def _show(load: Load, status: object, sizes: list[int], used_s: float) -> None:
    took = np.array(load.took_ms)
    print(  # noqa: T201  # figures for whoever runs this with -s
        f"\n{len(took)} submits: p50 {np.percentile(took, 50):.1f} p99 {np.percentile(took, 99):.1f} ms at the client, "
        f"daemon {status.submit_ms}\ntelemetry to decision {status.telemetry_ms}\nsolve {status.solve_ms}\n"  # type: ignore[attr-defined]
        f"CPU {used_s / DURATION_S:.2f} s per s, tasks {status.tasks}, "  # type: ignore[attr-defined]
        f"RSS {[round(s / 1e6) for s in sizes]} MB, reasons {status.reasons}"  # type: ignore[attr-defined]
    )
