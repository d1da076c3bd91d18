"""Suite `ingest`: UE reports a second from the socket into the core, as the daemon takes them in.

The receiving process is this one; its CPU time counts whole, ZeroMQ's thread with the decryption included, so that the
figure is what one core carries. The publisher is another process, on loopback tcp.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cosched.api.access import Access, Identity, IdentityLimits
from cosched.api.zap import Authenticator, new_pair
from cosched.bench.model import BenchRow, ModelClaim, Result, spread
from cosched.bench.publisher import ROWS
from cosched.config import wiring as build
from cosched.core.core import Core
from cosched.core.events import Reported
from cosched.core.settings import Settings
from cosched.daemon.ingest import Ingest
from cosched.errors import BadInput
from telemetry import bus
from telemetry.messages import Message, UeReport
from telemetry.wire import Intake

SUITE: Final = "ingest"
CASES: Final = {"single": (30_000, 1), "batch": (100, ROWS)}  # messages a round, reports in each
ASKED_PER_S: Final = {"single": 100_000.0, "batch": 200_000.0}
PATIENCE_S: Final = 30.0
NS: Final = 1e-9


@dataclass
class Sink:
    """The receiving end: socket, decoding, permission, core."""

    socket: bus.TelemetrySocket
    core: Core
    authenticator: Authenticator | None
    access: Access | None
    reports: int = 0

    def __post_init__(self) -> None:
        self.intake = Intake()
        self.ingest = Ingest(self.socket, self.intake, self._reports, self._report, time.monotonic_ns)
        self.ingest.access = self.access

    def _reports(self, reports: Sequence[UeReport], at_ns: int) -> None:
        self.reports += len(reports)
        self.core.handle(Reported(tuple(reports)), at_ns * NS)

    def _report(self, message: Message, at_ns: int) -> None:
        self.reports += ROWS
        self.core.handle(message, at_ns * NS)  # type: ignore[arg-type]  # batches alone come here

    def take(self, reports: int) -> None:
        """Take in until so many more reports have come. Raises BadInput when they do not."""
        wanted, end_s = self.reports + reports, time.monotonic() + PATIENCE_S
        while self.reports < wanted:
            if self.authenticator is not None:
                self.authenticator.drain()
            if not self.ingest.drain():
                self.socket.wait(0.01)
            if time.monotonic() > end_s:
                raise BadInput(f"{wanted - self.reports} of {reports} reports did not come: {self.intake.quarantine}")


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """Rounds of single reports and of columnar batches in turn, with CURVE and without; `seeds` rounds of each."""
    rates: dict[tuple[str, str], list[float]] = {}
    done = 0
    for security in ("curve", "plain"):
        with _sink(curve=security == "curve") as (sink, publisher):
            for _ in range(seeds):
                for kind, (messages, rows) in CASES.items():
                    rates.setdefault((security, kind), []).append(_round(sink, publisher, kind, messages, rows))
                done += 1
                progress(done / (2 * seeds))
    rows_ = []
    for (security, kind), values in rates.items():
        p50, p99, mean = spread(values)
        rows_.append(
            BenchRow(
                suite=SUITE, case=kind, subject=security, figure="reports_per_cpu_s", p50=p50, p99=p99, n=len(values),
                value=mean,
            )
        )  # fmt: skip
    claims = [
        ModelClaim(text=f"UE reports per CPU second, {kind}, CURVE, median", reached=row.p50, asked=asked)
        for kind, asked in ASKED_PER_S.items()
        for row in rows_
        if (row.subject, row.case) == ("curve", kind)
    ]
    return Result(rows=rows_, claims=claims, sweeps=[])


def _round(sink: Sink, publisher: subprocess.Popen[str], kind: str, messages: int, rows: int) -> float:
    """Reports per second of this process's CPU time; the wait for the publisher's first message is not in it."""
    assert publisher.stdin is not None  # noqa: S101  # it was asked for
    publisher.stdin.write(f"{kind} {messages}\n")
    publisher.stdin.flush()
    sink.socket.wait(PATIENCE_S)
    started = time.process_time()
    sink.take(messages * rows)
    return messages * rows / (time.process_time() - started)


@contextmanager
def _sink(*, curve: bool) -> Iterator[tuple[Sink, subprocess.Popen[str]]]:
    """Bind the receiving end, start the publisher and wait until they hear each other."""
    daemon, peer = new_pair("daemon"), new_pair("bench")
    access = authenticator = None
    if curve:
        limits = IdentityLimits(messages_per_s=1e9)
        access = Access(
            [Identity(name="bench", public=peer.public, role="publisher", ues=("*",), cells=("*",), limits=limits)]
        )
        authenticator = Authenticator(access)
    socket = bus.TelemetrySocket(bus.Curve(daemon.public, daemon.secret) if curve else None)
    socket.bind(["tcp://127.0.0.1:*"])
    plant = build.plant(*build.site_text("balanced"), {})
    sink = Sink(socket, plant.core("joint", Settings()), authenticator, access)
    keys = (peer.public, peer.secret, daemon.public) if curve else ("", "", "")
    command = [sys.executable, "-m", "cosched.bench.publisher", socket.endpoints[0], *keys]
    publisher = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)  # noqa: S603  # our own module
    try:
        sink.take(1)
        assert publisher.stdin is not None  # noqa: S101  # it was asked for
        publisher.stdin.write("start\n")
        publisher.stdin.flush()
        while socket.wait(0.2):  # the last of the greetings
            sink.ingest.drain()
        yield sink, publisher
    finally:
        publisher.kill()
        publisher.wait()
        socket.close()
        if authenticator is not None:
            authenticator.close()
