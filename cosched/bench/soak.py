"""Suite `soak`: a daemon at an everyday load for long: what grows, what is kept, and whether captures verify.

200 UEs that report ten times a second and ten submits a second: of sessions that are reported to their end, released,
or left by their clients, and of clips. Memory, descriptors and the state file are looked at every few seconds; over
the last half their slope is held against its own scatter. SOAK_S in the environment says how long (120 s; 3 600 for
the hour that docs/daemon.md states).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from cosched.api.client import Client
from cosched.bench.model import BenchRow, ModelClaim, Result
from cosched.config.paths import Home
from cosched.daemon.verify import verify
from cosched.errors import BadInput
from telemetry.bus import Dealer, Publisher
from telemetry.messages import LlmSession, TaskProgress, UeReport, VideoClip
from telemetry.wire import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITE: Final = "soak"
LENGTH_S: Final = float(os.environ.get("SOAK_S", "120"))
UES: Final = 200
REPORTS_HZ: Final = 10.0
SUBMITS_HZ: Final = 10.0
PROGRESS_HZ: Final = 1.0
LOOK_S: Final = 5.0
LIVES_S: Final = 20.0  # of a task that is released or reported to its end
STEP_S: Final = 0.005
PATIENCE_S: Final = 600.0
SCATTER: Final = 3.0  # standard errors of a slope that are still noise
# growth over half the run that is noise too
SMALL: Final = {"rss_mb": 2.0, "workers_mb": 2.0, "descriptors": 1.0, "state_mb": 0.5}
SESSION: Final = LlmSession(
    model="llama-3-8b", context_tokens=200, new_tokens=32, max_output_tokens=100, ttft_s=1.0, tpot_s=0.06, private=True
)
CLIP: Final = VideoClip(frame_flop=60e9, frame_bits=2e5, fps=2.0, deadline_s=0.5, frames=40)
SITE: Final = """
v = 1
name = "soak"
cells = [{ id = "cell0", ul_prbs = 273, scs_khz = 30 }, { id = "cell1", ul_prbs = 273, scs_khz = 30 }]
nodes = [{ id = "edge0", device = "h100" }, { id = "edge1", device = "a100" }]
models = [{ id = "llama-3-8b", config = "llama-3-8b" }]
ues = { count = 200, devices = [{ device = "laptop", share = 0.5 }, { device = "phone", share = 0.5 }] }
"""
CONFIG: Final = """\
site = '{folder}/site.toml'
[telemetry]
bind = ['ipc://{{run}}/telemetry.sock']
[cluster]
mode = 'off'
[capture]
max_bytes = 33554432
keep = 6
[log]
level = 'warning'
"""


@dataclass
class Living:
    """A task that its client looks after: its kind decides how it ends."""

    name: str
    born_s: float
    kind: int  # 0: reported to its end, 1: released, 2: left


@dataclass
class Soak:
    """The clients and the radio."""

    publisher: Publisher
    dealer: Dealer
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))
    sent: int = 0
    submits: int = 0
    answered: int = 0
    faults: int = 0
    reported: int = 0
    took_ms: list[float] = field(default_factory=list)
    left_s: dict[int, float] = field(default_factory=dict)
    living: dict[str, Living] = field(default_factory=dict)

    def step(self, now_s: float) -> None:
        """Do what is due."""
        self._reports(int(now_s * REPORTS_HZ * UES))
        while self.submits < now_s * SUBMITS_HZ:
            self._submit(now_s)
        if now_s >= self.reported / PROGRESS_HZ:
            self._progress(now_s)
            self.reported += 1
        self.dealer.wait(STEP_S)
        self._hear(now_s)

    def _reports(self, until: int) -> None:
        until = min(until, self.sent + 2_000)
        for value in self.rng.uniform(1.0, 5.0, max(0, until - self.sent)).tolist():
            seq, u = divmod(self.sent, UES)
            report = UeReport(
                at_ns=time.monotonic_ns(), source=f"ran/{u}", seq=seq, ue=f"ue{u}", cell=f"cell{u % 2}",
                ul_efficiency_bps_hz=value,
            )  # fmt: skip
            self.publisher.send(*encode(report))
            self.sent += 1

    def _submit(self, now_s: float) -> None:
        n = self.submits
        work = msgspec.to_builtins(CLIP if n % 5 == 4 else SESSION)
        name = f"t{n}"
        args: dict[str, Any] = {"task": name, "ue": f"ue{n * 7 % UES}", "work": work, "weight": 1.0 + n % 3}
        self.dealer.send(msgspec.msgpack.encode({"verb": "submit", "id": n + 1, "args": args}))
        self.left_s[n + 1] = time.monotonic()
        self.living[name] = Living(name, now_s, n % 3)
        self.submits += 1

    def _progress(self, now_s: float) -> None:
        for one in list(self.living.values()):
            age_s = now_s - one.born_s
            if one.kind == 0:
                done = max(0, int((age_s - 1.0) / 0.05))
                report = TaskProgress(
                    at_ns=time.monotonic_ns(), source="soak", seq=self.reported, task=one.name, done=min(done, 100),
                    decoding_s=min(3600.0, 0.05 * max(0, done - 1)), finished=done >= 100,
                )  # fmt: skip
                self.publisher.send(*encode(report))
            if one.kind == 1 and age_s > 0.2 * LIVES_S:
                self.dealer.send(msgspec.msgpack.encode({"verb": "release", "id": 0, "args": {"task": one.name}}))
                del self.living[one.name]
            elif age_s > LIVES_S:
                del self.living[one.name]

    def _hear(self, now_s: float) -> None:
        del now_s
        at_s = time.monotonic()
        for data in self.dealer.drain():
            answer = msgspec.msgpack.decode(data)
            left_s = self.left_s.pop(answer["id"], None)
            if left_s is None:
                continue
            self.answered += 1
            self.faults += not answer["ok"]
            self.took_ms.append(1e3 * (at_s - left_s))
            if answer["ok"] and not answer["result"]["point"]:
                self.living.pop(answer["result"]["task"], None)


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """Run once; `seeds` is not used."""
    del seeds
    with tempfile.TemporaryDirectory(prefix="cosched-soak-") as folder:
        return _run(Path(folder), progress)


def _run(folder: Path, progress: Callable[[float], None]) -> Result:
    looks: list[dict[str, float]] = []
    with _daemon(folder) as (process, home):
        soak = Soak(Publisher(home.telemetry), Dealer(home.control))
        began_s = time.monotonic()
        while (now_s := time.monotonic() - began_s) < LENGTH_S:
            soak.step(now_s)
            if now_s >= len(looks) * LOOK_S:
                looks.append({"at_s": now_s, **_look(process.pid, folder)})
                progress(now_s / LENGTH_S)
            if process.poll() is not None:
                raise BadInput(f"suite {SUITE}: the daemon ended with {process.returncode}: {_tail(folder)}")
        with Client(home.control) as client:
            status = client.status()
        soak.publisher.close()
        soak.dealer.close()
        process.terminate()
        code = process.wait(30.0)
    captures = sorted((folder / "state" / "captures").glob("*.mcap"))
    differences = [verdict.difference for path in captures if (verdict := verify(path)).difference]
    for difference in differences:
        sys.stderr.write(f"soak: {difference}\n")
    return _result(soak, looks, code, status.counts, len(captures), len(differences))


def _result(
    soak: Soak, looks: list[dict[str, float]], code: int, counts: dict[str, int], captures: int, differences: int
) -> Result:
    rows, claims = [], []
    for name, small in SMALL.items():
        values = [look[name] for look in looks]
        growth, error = _growth([look["at_s"] for look in looks], values)
        figures = {"level": values, "growth_over_last_half": [growth], "noise": [error]}
        rows += [_row(figure, name, numbers) for figure, numbers in figures.items()]
        left = max(SCATTER * error, small) - growth
        claims.append(ModelClaim(text=f"growth of {name} over the last half, left to noise", reached=left, asked=0.0))
    rows.append(_row("submit", "ms", soak.took_ms))
    totals = {"submits": soak.submits, "answered": soak.answered, "faults": soak.faults, "captures": captures}
    rows += [_row("count", name, [float(value)]) for name, value in {**totals, **counts}.items()]
    claims += [
        ModelClaim(text="submits answered, part", reached=soak.answered / max(1, soak.submits), asked=0.999),
        ModelClaim(text="captures that verify, part", reached=1.0 - differences / max(1, captures), asked=1.0),
        ModelClaim(text="exit code is 0", reached=float(code == 0), asked=1.0),
    ]
    return Result(rows=rows, claims=claims, sweeps=[])


def _row(figure: str, subject: str, values: list[float]) -> BenchRow:
    p50, p99 = (float(np.percentile(values, q)) if values else 0.0 for q in (50, 99))
    return BenchRow(
        suite=SUITE, case=f"{LENGTH_S:g} s", subject=subject, figure=figure, p50=p50, p99=p99, n=len(values),
        value=float(np.mean(values)) if values else 0.0,
    )  # fmt: skip


def _growth(at_s: list[float], values: list[float]) -> tuple[float, float]:
    """Growth over the last half by least squares, and its standard error, scatter taken as correlated over a minute."""
    half = len(values) // 2
    t, y = np.array(at_s[half:]), np.array(values[half:])
    if len(t) < 4:
        return 0.0, 0.0
    t0 = t - t.mean()
    slope = float((t0 * y).sum() / (t0 * t0).sum())
    rest = y - y.mean() - slope * t0
    together = max(1.0, 60.0 / LOOK_S)  # looks of a minute stand for one
    error = float(np.sqrt((rest * rest).sum() / max(1, len(t) - 2) * together / (t0 * t0).sum()))
    span = float(t[-1] - t[0])
    return slope * span, error * span


def _look(pid: int, folder: Path) -> dict[str, float]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    state = sum(p.stat().st_size for p in (folder / "state").glob("state.sqlite*"))
    return {
        "rss_mb": _rss_mb(pid),
        "workers_mb": sum(_rss_mb(int(child)) for child in children),
        "descriptors": float(len(os.listdir(f"/proc/{pid}/fd"))),  # noqa: PTH208  # numbers, not paths
        "state_mb": 1e-6 * state,
    }


def _rss_mb(pid: int) -> float:
    with suppress(OSError, IndexError):
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        return 1.024e-3 * int(text.partition("VmRSS:")[2].split()[0])
    return 0.0


def _tail(folder: Path) -> str:
    return (folder / "log").read_text(encoding="utf-8", errors="replace")[-500:]


@contextmanager
def _daemon(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Home]]:
    """Start a daemon and wait until it decides. Raises BadInput."""
    home = Home(folder)
    (folder / "site.toml").write_text(SITE, encoding="utf-8")
    (folder / "cosched.toml").write_text(CONFIG.format(folder=folder), encoding="utf-8")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("COSCHED_") or k == "COSCHED_KERNEL"}
    command = [sys.executable, "-m", "cosched.cli.main", "run", "--config", str(folder / "cosched.toml")]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, env={**clean, **home.variables}, stdout=log, stderr=log)  # noqa: S603
    try:
        end_s = time.monotonic() + PATIENCE_S
        while not _is_ready(home):
            if process.poll() is not None or time.monotonic() > end_s:
                raise BadInput(f"suite {SUITE}: the daemon did not start: {_tail(folder)}")
            time.sleep(0.1)
        yield process, home
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _is_ready(home: Home) -> bool:
    if not Path(home.control.removeprefix("ipc://")).exists():
        return False
    with suppress(Exception), Client(home.control) as client:
        return client.status().mode != "STARTING"
    return False
