"""Suite `attack`: what becomes of a bystander while somebody else attacks the daemon: quiet and attack in one run.

A daemon of its own with keys, a bystander (a radio, a client with sessions that go on and short submits), and one
attacker at a time in a process of its own: an identity that is let in, a process on this machine without keys, or a
stranger. The bystander's delays while it is quiet and under attack, the longest time that one of its sessions was
without a lease, and the daemon's resident memory before, during, and when it is back to the former.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from cosched.api import keys
from cosched.api.access import Identity
from cosched.api.client import Client
from cosched.api.zap import new_pair
from cosched.bench.attacks.bystander import Bystander, Ends, Seen
from cosched.bench.attacks.messages import Target
from cosched.bench.model import BenchRow, ModelClaim, Result
from cosched.config.paths import Home
from cosched.errors import BadInput
from telemetry.bus import Curve

SUITE: Final = "attack"
QUIET_S: Final = 12.0
ATTACK_S: Final = 20.0
SETTLE_S: Final = 20.0  # after an attack: on a virtual machine freed memory goes back to the host, and disks wait
BACK_S: Final = 60.0  # in which memory is to be back
START_S: Final = 600.0  # without a cache of compiled code a start takes minutes
MOST_TIMES: Final = 5.0  # a submit's p99 under attack, of its quiet p99
MOST_MS: Final = 250.0
MOST_LAPSE_MS: Final = 100.0
MOST_BYTES: Final = 600e6
NEAR: Final = 1.1  # of the memory before
CELL: Final = "cell0"
CONFIG: Final = """\
site = 'balanced'
[telemetry]
bind = ['ipc://{{run}}/telemetry.sock', 'tcp://127.0.0.1:{port}']
[control]
bind = ['ipc://{{run}}/control.sock', 'tcp://127.0.0.1:{control}']
decisions = ['ipc://{{run}}/decisions.sock', 'tcp://127.0.0.1:{decisions}']
[cluster]
mode = 'off'
[security]
keys = '{folder}/keys'
[log]
level = 'warning'
"""


@dataclass(frozen=True)
class Attack:
    """Who attacks with what. module: of cosched.bench.attacks; role: of the attacker's key, "" = none."""

    name: str
    module: str = "messages"
    role: str = ""
    socket: str = "control"  # of a stranger's attack
    count: int = 2_000


ATTACKS: Final = (
    Attack("sequence_numbers", role="publisher"),
    Attack("small_reports", role="publisher"),
    Attack("small_reports"),
    Attack("large_batches", role="publisher"),
    Attack("large_batches"),
    Attack("whatif_infinite", role="viewer"),
    Attack("whatif_copies", role="viewer"),
    Attack("lists", role="viewer"),
    Attack("lists"),
    Attack("statuses", role="viewer"),
    Attack("endless_clips", role="client"),
    Attack("many_clips", role="client"),
    Attack("submits_and_releases", role="client"),
    Attack("flood_connections", "connections"),
    Attack("flood_curve_handshakes", "connections"),
    Attack("flood_garbage", "connections", socket="telemetry"),
    Attack("flood_subscriptions", "connections", socket="decisions", count=2_000_000),
    Attack("hang_up_when_full", "connections", socket="telemetry"),
)


@dataclass
class AttackOutcome:
    """One attack's figures; memory in bytes."""

    attack: Attack
    quiet: Seen
    under: Seen
    before: float
    most: float
    back_s: float  # until memory was near what it was; BACK_S: it was not
    sent: str
    exits: int

    @property
    def subject(self) -> str:
        """Who attacked."""
        return self.attack.role or ("no key" if self.attack.module == "messages" else "stranger")


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """Every attack once; `seeds` is not used: nothing is drawn."""
    del seeds
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="cosched-attack-") as folder, _site(Path(folder)) as site:
        for n, attack in enumerate(ATTACKS):
            outcomes.append(site.attacked(attack))
            progress((n + 1) / len(ATTACKS))
    return Result(rows=[row for one in outcomes for row in _rows(one)], claims=_claims(outcomes), sweeps=[])


def _rows(one: AttackOutcome) -> list[BenchRow]:
    mb = 1e-6
    figures = {
        "quiet_submit_ms": one.quiet.submit_ms,
        "attack_submit_ms": one.under.submit_ms,
        "longest_lapse_ms": [one.under.longest_lapse_ms],
        "lost": [float(one.under.lost)],
        "rss_before_mb": [one.before * mb],
        "rss_most_mb": [one.most * mb],
        "back_s": [one.back_s],
    }
    return [
        BenchRow(
            suite=SUITE, case=one.attack.name, subject=one.subject, figure=name, p50=_quantile(values, 50),
            p99=_quantile(values, 99), n=len(values), value=float(np.mean(values)) if values else 0.0,
        )
        for name, values in figures.items()
    ]  # fmt: skip


def _claims(outcomes: list[AttackOutcome]) -> list[ModelClaim]:
    """What must hold of every attack, as its worst case."""

    def worst(text: str, most: float, figure: Callable[[AttackOutcome], float]) -> ModelClaim:
        one = max(outcomes, key=figure)
        named = f"{text}, worst ({one.attack.name}, {one.subject}), as a part of what is allowed"
        return ModelClaim(text=named, reached=1.0 - figure(one) / most, asked=0.0)

    return [
        ModelClaim(text="daemon ended under attack, times", reached=-float(sum(o.exits for o in outcomes)), asked=0.0),
        worst("submit p99 over quiet p99", MOST_TIMES, lambda o: _p99(o.under) / max(_p99(o.quiet), 1e-9)),
        worst("submit p99", MOST_MS, lambda o: _p99(o.under)),
        worst("lapse of a lease", MOST_LAPSE_MS, lambda o: o.under.longest_lapse_ms),
        worst("resident memory", MOST_BYTES, lambda o: o.most),
        ModelClaim(
            text="attacks after which memory was back within 10 % in a minute",
            reached=float(sum(o.back_s < BACK_S for o in outcomes)),
            asked=float(len(outcomes)),
        ),
    ]


def _p99(seen: Seen) -> float:
    return _quantile(seen.submit_ms, 99)


def _quantile(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else 0.0


@dataclass
class AttackedSite:
    """The daemon under attack, and the bystander."""

    folder: Path
    process: subprocess.Popen[bytes]
    ends: dict[str, str]
    pairs: dict[str, keys.KeyPair]
    bystander: Bystander
    sizes: list[float] = field(default_factory=list)

    def attacked(self, attack: Attack) -> AttackOutcome:
        """Measure one attack. Raises BadInput when the daemon has ended."""
        quiet, before = self._phase(QUIET_S), self._resident()
        with self._attacker(attack) as attacker:
            under = self._phase(ATTACK_S)
            sent = self._ended(attacker)
        most, exits = max(self.sizes, default=before), int(self.process.poll() is not None)
        if exits:
            raise BadInput(f"{attack.name}: the daemon ended with {self.process.returncode}: {self.folder / 'log'}")
        back_s = self._back(before)
        self._phase(max(0.0, SETTLE_S - back_s))
        return AttackOutcome(attack, quiet, under, before, most, back_s, sent, exits)

    def _phase(self, seconds: float) -> Seen:
        self.sizes = []
        return self.bystander.run(seconds, lambda: self.sizes.append(self._resident()))

    def _back(self, before: float) -> float:
        """Seconds until memory is near what it was."""
        began_s = time.monotonic()
        while (took_s := time.monotonic() - began_s) < BACK_S:
            if self._resident() <= NEAR * before:
                return took_s
            self._phase(1.0)
        return BACK_S

    def _resident(self) -> float:
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        except OSError:
            return 0.0
        return 1024.0 * int(text.partition("VmRSS:")[2].split()[0]) if "VmRSS:" in text else 0.0

    @contextmanager
    def _attacker(self, attack: Attack) -> Iterator[subprocess.Popen[bytes]]:
        module = f"cosched.bench.attacks.{attack.module}"
        seconds = str(ATTACK_S)
        if attack.module == "connections":
            args, told = [attack.name, self.ends[f"{attack.socket}-key"], str(attack.count), seconds], b""
        else:
            args, told = [attack.name, seconds], msgspec.json.encode(self._target(attack))
        command = [sys.executable, "-m", module, *args]
        attacker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603  # our own
        assert attacker.stdin is not None  # noqa: S101  # opened as a pipe
        attacker.stdin.write(told)
        attacker.stdin.close()
        try:
            yield attacker
        finally:
            attacker.kill()
            attacker.wait()

    def _target(self, attack: Attack) -> Target:
        if not attack.role:
            return Target(telemetry=self.ends["telemetry"], control=self.ends["control"], cell=CELL)
        pair = self.pairs[f"evil-{attack.role}"]
        return Target(
            telemetry=self.ends["telemetry-key"], control=self.ends["control-key"], public=pair.public,
            secret=pair.secret, server=self.pairs["daemon"].public, cell=CELL,
        )  # fmt: skip

    def _ended(self, attacker: subprocess.Popen[bytes]) -> str:
        assert attacker.stdout is not None  # noqa: S101  # opened as a pipe
        try:
            attacker.wait(ATTACK_S)
        except subprocess.TimeoutExpired:
            return "?"
        return attacker.stdout.read().decode().strip()


@contextmanager
def _site(folder: Path) -> Iterator[AttackedSite]:
    """Start a daemon with keys, and a bystander that is served. Raises BadInput."""
    home, ports = Home(folder), _free_ports(3)
    pairs = _keys(folder / "keys")
    text = CONFIG.format(folder=folder, port=ports[0], control=ports[1], decisions=ports[2])
    (folder / "cosched.toml").write_text(text, encoding="utf-8")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("COSCHED_") or k == "COSCHED_KERNEL"}
    command = [sys.executable, "-m", "cosched.cli.main", "run", "--config", str(folder / "cosched.toml")]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, env={**clean, **home.variables}, stdout=log, stderr=log)  # noqa: S603
    ends = {
        "telemetry": home.telemetry, "control": home.control, "decisions": f"ipc://{folder}/run/decisions.sock",
        "telemetry-key": f"tcp://127.0.0.1:{ports[0]}", "control-key": f"tcp://127.0.0.1:{ports[1]}",
        "decisions-key": f"tcp://127.0.0.1:{ports[2]}",
    }  # fmt: skip
    try:
        _await_ready(process, home, folder)
        by = Ends(
            ends["telemetry-key"], ends["control-key"], ends["decisions-key"],
            radio=_curve(pairs, "radio"), client=_curve(pairs, "good"),
        )  # fmt: skip
        bystander = Bystander(by, CELL)
        bystander.hold(30.0)
        yield AttackedSite(folder, process, ends, pairs, bystander)
        bystander.close()
    finally:
        process.terminate()
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()


def _curve(pairs: dict[str, keys.KeyPair], name: str) -> Curve:
    return Curve(pairs[name].public, pairs[name].secret, pairs["daemon"].public)


def _keys(folder: Path) -> dict[str, keys.KeyPair]:
    """Make everybody's keys; the attackers' are let in with the usual limits."""
    everybody: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
        "radio": ("publisher", {"ues": ("by*",), "cells": ("*",), "tasks": ("held*", "by*")}),
        "good": ("client", {"ues": ("by*",), "tasks": ("held*", "by*")}),
        "evil-publisher": ("publisher", {"ues": ("evil*",), "cells": ("*",)}),
        "evil-viewer": ("viewer", {}),
        "evil-client": ("client", {"ues": ("evil*",), "tasks": ("evil*",)}),
    }
    folder.mkdir()
    pairs = {name: new_pair(name) for name in ("daemon", *everybody)}
    keys.write_pair(folder, pairs["daemon"])
    identities = [
        msgspec.convert({"name": name, "public": pairs[name].public, "role": role, **scope}, Identity)
        for name, (role, scope) in everybody.items()
    ]
    keys.write_allowed(folder / keys.ALLOWED, identities)
    return pairs


def _free_ports(n: int) -> list[int]:
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for one in sockets:
        one.close()
    return ports


def _await_ready(process: subprocess.Popen[bytes], home: Home, folder: Path) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s and process.poll() is None:
        if Path(home.control.removeprefix("ipc://")).exists():
            with Client(home.control) as client:
                if client.status().mode != "STARTING":
                    return
        time.sleep(0.1)
    raise BadInput(f"suite {SUITE}: the daemon did not start: {(folder / 'log').read_text(encoding='utf-8')[-500:]}")


if __name__ == "__main__":  # one attack by name, for a closer look
    with tempfile.TemporaryDirectory(prefix="cosched-attack-") as name, _site(Path(name)) as found:
        for chosen in [a for a in ATTACKS if a.name in sys.argv[1:]] or ATTACKS:
            print(json.dumps([msgspec.to_builtins(row) for row in _rows(found.attacked(chosen))]), flush=True)  # noqa: T201
