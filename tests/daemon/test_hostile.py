"""A real daemon on sockets, and hostile frames by the thousand: it goes on, answers others, and grows no larger.

`HOSTILE_FRAMES=1000000 python -m pytest -s tests/daemon/test_hostile.py` sends a million on each socket.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_cases import SESSION, Daemon, Place, radio, repeated
from mutation import mutated
from targets import TOPICS, bus_seeds, control_seeds

from cosched.api.client import Client
from cosched.daemon.ingest import TOO_FAST
from telemetry.bus import Dealer, Publisher

FRAMES = int(os.environ.get("HOSTILE_FRAMES", "20000"))
KINDS = 4000  # different ones, sent again and again
WINDOW = 100  # requests without an answer yet
GROWTH = 1.1  # of memory; and the index of the capture being written
SECONDS = float(os.environ.get("HOSTILE_SECONDS", "120"))  # at most for one flood
Flood = Callable[[Place, Client, list[bytes], int], int]
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")


def resident_mb(daemon: Daemon) -> float:
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def hostile(seeds: list[bytes]) -> list[bytes]:
    return [m for i in range(KINDS) if len(m := mutated(seeds[i % len(seeds)], i, seeds)) < 50_000]


def flood_bus(place: Place, client: Client, frames: list[bytes], n: int) -> int:
    """Publish until so many were taken in: what is dropped on the way attacks nobody."""
    publisher = Publisher(place.bus)
    end_s, sent, before = time.monotonic() + SECONDS, 0, taken_in(client)
    try:
        while time.monotonic() < end_s and (sent % 5000 or taken_in(client) - before < n):
            for data in frames[sent % len(frames) :][:50]:
                publisher.send(TOPICS[data[0] % len(TOPICS)] if data else b"", data[1:])
            sent += 50
            time.sleep(0.004)
        return taken_in(client) - before
    finally:
        publisher.close()


def taken_in(client: Client) -> int:
    found = client.status().ingest
    return found.messages + sum(r.n for r in found.refused if r.reason in {"not a topic and a payload", TOO_FAST})


def flood_control(place: Place, _: Client, frames: list[bytes], n: int) -> int:
    """Ask, with some requests under way at a time; what is no request at all has no answer."""
    dealer = Dealer(place.control)
    end_s, sent, answered = time.monotonic() + SECONDS, 0, 0
    try:
        while answered < n and time.monotonic() < end_s:
            while sent - answered < WINDOW and sent < n:
                dealer.send(frames[sent % len(frames)][1:])
                sent += 1
            if not dealer.wait(1.0):
                answered = sent
            answered += len(dealer.drain())
        return sent
    finally:
        dealer.close()


def hostile_requests() -> list[bytes]:
    """Without those by which an operator has the daemon decide otherwise."""
    return [c for c in hostile(control_seeds()) if not any(verb in c for verb in (b"reload", b"drain", b"policy"))]


@pytest.mark.parametrize(
    ("flood", "frames"),
    [(flood_bus, hostile(bus_seeds())), (flood_control, hostile_requests())],
    ids=["bus", "control"],
)
def test_hostile_frames_leave_a_daemon_as_it_was(tmp_path: Path, flood: Flood, frames: list[bytes]) -> None:
    place = Place(tmp_path, {"TELEMETRY_STALE_INPUT_S": "1000", "SHADOW_ENABLED": "false"})
    with place.daemon() as daemon, daemon.ready() as client, radio(place, client) as source:
        with repeated(lambda: source.report(2.0, 2.1, 2.2, 2.3), 0.1):
            assert client.submit("bystander", "ue3", SESSION).reason == "admitted"
            flood(place, client, frames, FRAMES // 10)  # what is filled once
            before = resident_mb(daemon)
            n = flood(place, client, frames, FRAMES)
            status, after = client.status(), resident_mb(daemon)
            print(f"\n{flood.__name__}: {n} frames, {before:.0f} -> {after:.0f} MB")  # noqa: T201
            assert daemon.process.poll() is None, daemon.log()[-2000:]
            assert not [a for a in status.alarms if a.startswith("request")], daemon.log()[-2000:]
            assert after <= before * GROWTH + 10
            assert len(status.ingest.refused) < 1000
            assert client.submit("afterwards", "ue2", SESSION).task == "afterwards"
        assert daemon.stop()[0] == 0
