"""A real daemon in a process of its own, on ipc sockets in a folder of the test's, and a radio that publishes to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cosched.api.client import Client, NoAnswer, Refused
from cosched.api.messages import IngestView, Lease, Quantiles, ShadowView, Status
from telemetry import wire
from telemetry.bus import Publisher
from telemetry.messages import LlmSession, Message, UeReport, UeReportBatch, VideoClip

PATIENCE_S = 60.0  # this machine may be busy; nothing waits that long when it is not
START_PATIENCE_S = 600.0  # without a cache of compiled code a start takes minutes
BUDGET_S = "10"  # of a solve: where it matters that one is over its budget, the test says how much that is
SESSION = LlmSession(
    model="llama-3-8b", context_tokens=200, new_tokens=32, max_output_tokens=200, ttft_s=2.0, tpot_s=0.2
)  # 42 s when nobody reports it
ROOMY = """
v = 1
name = "roomy"
cells = [{ id = "cell0", ul_prbs = 273, scs_khz = 30 }]
nodes = [{ id = "edge0", device = "h100" }, { id = "edge1", device = "h100" }]
models = [{ id = "llama-3-8b", config = "llama-3-8b" }]
ues = { count = 30, devices = [{ device = "laptop", share = 1.0 }] }
"""
CLIP = VideoClip(frame_flop=60e9, frame_bits=5e5, fps=2.0, deadline_s=0.5, frames=100)


@dataclass
class Place:
    """Folders and configuration of one daemon, which may be started again and again."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)  # COSCHED_* without the prefix
    config: Path | None = None
    extra: dict[str, str] = field(default_factory=dict)  # other variables

    @property
    def bus(self) -> str:
        return f"ipc://{self.folder}/bus"

    @property
    def control(self) -> str:
        return f"ipc://{self.folder}/run/control.sock"

    @property
    def captures(self) -> list[Path]:
        return sorted((self.folder / "state" / "captures").glob("*.mcap"))

    def environment(self) -> dict[str, str]:
        # a Ray takes seconds, and few tests report their tasks: what is about either asks for it
        usual = {"SOLVER_BUDGET_S": BUDGET_S, "CLUSTER_MODE": "off", "LEASE_SILENT_S": "1000"}
        own = {f"COSCHED_{name}": value for name, value in {**usual, **self.settings}.items()}
        clean = {k: v for k, v in os.environ.items() if not k.startswith("COSCHED_") or k == "COSCHED_KERNEL"}
        folders = {"STATE_DIRECTORY": f"{self.folder}/state", "RUNTIME_DIRECTORY": f"{self.folder}/run"}
        return {**clean, **folders, "COSCHED_TELEMETRY_BIND": f'["{self.bus}"]', **own, **self.extra}

    @contextlib.contextmanager
    def daemon(self, output: int | None = None, descriptors: int = 0) -> Iterator[Daemon]:
        """Start `cosched run`; it is killed at the end if it still runs. descriptors: as `ulimit -n` has them."""
        command = [
            sys.executable,
            "-m",
            "cosched.cli.main",
            "run",
            *(["--config", str(self.config)] if self.config else []),
        ]
        if descriptors:
            command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
        with (self.folder / "log").open("ab") as log:
            out = log if output is None else output
            process = subprocess.Popen(command, env=self.environment(), stdout=out, stderr=out)
        daemon = Daemon(self, process)
        try:
            yield daemon
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@dataclass
class Daemon:
    place: Place
    process: subprocess.Popen[bytes]

    def client(self) -> Client:
        """Connect as soon as the socket is there."""
        until(lambda: Path(self.place.control.removeprefix("ipc://")).exists() or self.process.poll() is not None)
        assert self.process.poll() is None, (self.place.folder / "log").read_text()
        return Client(self.place.control, timeout_s=PATIENCE_S)

    def ready(self) -> Client:
        """Connect and wait until decisions are made."""
        client = self.client()
        until(lambda: client.status().mode != "STARTING", START_PATIENCE_S)
        return client

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal; return the exit code and how long it took, in seconds."""
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        return code, time.monotonic() - began

    def workers(self) -> list[int]:
        """Process ids of its solve workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"cosched.children.solve" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def log(self) -> str:
        return (self.place.folder / "log").read_text()


@dataclass
class Radio:
    """Publishes reports of UEs `ue0`, `ue1`, ... of one cell."""

    publisher: Publisher
    cell: str = "cell0"
    seq: int = 0

    def send(self, message: Message) -> None:
        self.publisher.send(*wire.encode(message))

    def report(self, *efficiency_bps_hz: float | None) -> None:
        """One report of each UE."""
        for i, value in enumerate(efficiency_bps_hz):
            self.send(
                UeReport(
                    at_ns=time.monotonic_ns(), source=f"ran/ue{i}", seq=self.seq, ue=f"ue{i}", cell=self.cell,
                    ul_efficiency_bps_hz=value,
                )
            )  # fmt: skip
        self.seq += 1

    def batch(self, *efficiency_bps_hz: float | None) -> None:
        """The same as one columnar message."""
        n = len(efficiency_bps_hz)
        self.send(
            UeReportBatch(
                at_ns=time.monotonic_ns(), source="ran", seq=self.seq, ue=tuple(f"ue{i}" for i in range(n)),
                cell=(self.cell,) * n, ul_efficiency_bps_hz=efficiency_bps_hz,
            )
        )  # fmt: skip
        self.seq += 1


@contextlib.contextmanager
def radio(place: Place, client: Client, n_ues: int = 4) -> Iterator[Radio]:
    """Connect a radio and publish until the daemon has heard of all its UEs."""
    publisher = Publisher(place.bus)
    source = Radio(publisher)
    before = client.status().ingest.reports

    def heard() -> bool:
        source.report(*(2.0 + 0.1 * i for i in range(n_ues)))
        return client.status().ingest.reports >= before + n_ues

    try:
        until(heard)
        yield source
    finally:
        publisher.close()


@contextlib.contextmanager
def repeated(action: Callable[[], object], period_s: float) -> Iterator[None]:
    """Do it again and again, in a thread: leases of UEs that the radio is silent about run out."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(period_s):
            action()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition; the pause keeps the daemon's processor free."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def mode(client: Client, wanted: str, **checks: object) -> Status:
    """Wait for a mode and return the status that shows it."""
    seen: list[Status] = []

    def holds() -> bool:
        seen.append(client.status())
        return seen[-1].mode == wanted and all(getattr(seen[-1], k) == v for k, v in checks.items())

    until(holds)
    return seen[-1]


def submit_again(client: Callable[[], Client], task: str, ue: str) -> Lease:
    """Submit until there is a decision, as a client does whose daemon was killed: the same task again."""
    while True:
        try:
            with client() as connection:
                return connection.submit(task, ue, SESSION)
        except NoAnswer:
            time.sleep(0.02)
        except Refused as refused:
            if refused.code != "not_done":
                raise
            time.sleep(0.02)


def cosched(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "cosched.cli.main", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=cwd)


def a_status(**changes: object) -> Status:
    """What a daemon without tasks says, with changes."""
    none = Quantiles()
    plain = Status(
        version="0", pid=1, site="s", policy="joint", baseline="pf", mode="STEADY", mode_since_s=1.0, alarms=(),
        uptime_s=1.0, generation=1, tasks=0, promised=0, value=0.0, bound=0.0, gap=0.0, resources=(), counts={},
        reasons={}, submit_ms=none, solve_ms=none, telemetry_ms=none, ingest=IngestView(),
        shadow=ShadowView(baseline="pf"),
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)
