"""kill -9 under load: no accepted task is lost, none is doubled, generations only grow, captures still verify."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
from daemon_cases import ROOMY, SESSION, Daemon, Place, Radio, cosched, radio

from cosched.api.client import Client
from cosched.api.messages import Lease, Released
from telemetry.bus import Dealer

KILLS = int(os.environ.get("DAEMON_KILLS", "3"))  # 50 of them take some minutes
SEED = int(os.environ.get("DAEMON_KILLS_SEED", "20"))
N_UES = 30
LONG = msgspec.structs.replace(SESSION, max_output_tokens=20_000, tpot_s=0.5, ttft_s=5.0)


@dataclass
class Ledger:
    """What the client was told, and may rely on."""

    accepted: dict[str, Lease] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)  # submitted or released, and no answer heard
    generation: int = 0

    def hear(self, payload: bytes) -> None:
        answer = msgspec.msgpack.decode(payload)
        assert answer["ok"], answer
        if "released" in answer["result"]:
            released = msgspec.convert(answer["result"], Released)
            self.accepted.pop(released.task, None)
            self.released.add(released.task)
            self.asked.discard(released.task)
            return
        lease = msgspec.convert(answer["result"], Lease)
        self.asked.discard(lease.task)
        self.generation = max(self.generation, lease.plan)
        if lease.point:
            self.accepted[lease.task] = lease


def load(
    dealer: Dealer, source: Radio | None, ledger: Ledger, rng: np.random.Generator, until_s: float, run: int
) -> None:
    """Submit and release as fast as answers come, until the clock says stop."""
    n = 0
    while time.monotonic() < until_s:
        if source is not None:
            source.batch(*rng.uniform(2.0, 5.0, N_UES).tolist())
        for _ in range(3):
            task = f"run{run}-{n}"
            args = {"task": task, "ue": f"ue{rng.integers(N_UES)}", "work": msgspec.to_builtins(LONG)}
            dealer.send(msgspec.msgpack.encode({"verb": "submit", "id": n, "args": args}))
            ledger.asked.add(task)
            n += 1
        if ledger.accepted and rng.random() < 0.5:
            task = str(rng.choice(sorted(ledger.accepted)))
            dealer.send(msgspec.msgpack.encode({"verb": "release", "id": n, "args": {"task": task}}))
            ledger.asked.add(task)
        dealer.wait(0.01)
        for payload in dealer.drain():
            ledger.hear(payload)


def check(client: Client, ledger: Ledger, before: int) -> None:
    """Compare what lives after a restart with what was promised before it."""
    views = [view for run in range(KILLS) for view in client.list(f"run{run}-").tasks]  # an answer has a thousand
    names = [view.task for view in views]
    assert client.list().total == len(names)
    assert len(names) == len(set(names)), "doubled"
    assert set(ledger.accepted) - ledger.asked <= set(names), "lost"
    assert not ledger.released & set(names), "came back"
    assert set(names) <= set(ledger.accepted) | ledger.asked
    ledger.asked.clear()
    for view in views:
        ledger.accepted[view.task] = view.lease
        assert view.lease.plan > before, "generations only grow"
    for task in set(ledger.accepted) - set(names):
        del ledger.accepted[task]


def killed_under_load(daemon: Daemon, ledger: Ledger, rng: np.random.Generator, run: int, *, is_on: bool) -> None:
    """is_on: whether the radio is; without it the daemon goes on with what it heard in an earlier life."""
    before = ledger.generation
    with ExitStack() as stack:
        client = stack.enter_context(daemon.ready())
        source = stack.enter_context(radio(daemon.place, client, N_UES)) if is_on else None
        check(client, ledger, before)
        dealer = Dealer(daemon.place.control)
        load(dealer, source, ledger, rng, time.monotonic() + rng.uniform(0.01, 1.0), run)
        daemon.stop(signal.SIGKILL)
        while dealer.wait(0.05):  # answers that had left the daemon before it died
            for payload in dealer.drain():
                ledger.hear(payload)
        dealer.close()


@pytest.mark.parametrize("is_on", [True, False])
def test_kill_9_at_random_moments(is_on: bool, tmp_path: Path):
    (tmp_path / "site.toml").write_text(ROOMY)
    own = {"SITE": f"{tmp_path}/site.toml", "LEASE_LIFE_S": "20000", "CAPTURE_KEEP": f"{KILLS + 2}"}
    place = Place(tmp_path, own)
    rng, ledger = np.random.default_rng(SEED), Ledger()
    for run in range(KILLS):
        with place.daemon() as daemon:
            killed_under_load(daemon, ledger, rng, run, is_on=is_on or not run)
        assert "Traceback" not in daemon.log(), daemon.log()
    with place.daemon() as daemon, daemon.ready() as client:
        check(client, ledger, ledger.generation)
        assert ledger.accepted or ledger.released, "nobody was served"  # a short life may have released all
        assert daemon.stop()[0] == 0
    captures = place.captures
    assert len(captures) == KILLS + 1
    done = cosched("verify", *map(str, captures))
    assert done.returncode == 0, done.stdout + done.stderr
