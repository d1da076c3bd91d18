"""A real daemon on sockets, and hostile frames by the thousand: it goes on, answers others, and grows no larger.

`HOSTILE_FRAMES=1000000 python -m pytest -s tests/test_daemon_hostile.py` sends a million on each socket.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from daemon_cases import SESSION, Daemon, Place, radio, repeated

from telemetry.bus import Dealer, Publisher

sys.path.append(str(Path(__file__).parent / "fuzz"))
from mutation import mutated
from targets import TOPICS, bus_seeds, control_seeds

FRAMES = int(os.environ.get("HOSTILE_FRAMES", "20000"))
KINDS = 4000  # different ones, sent again and again
WINDOW = 100  # requests without an answer yet
GROWTH = 0.10
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")


def resident_mb(daemon: Daemon) -> float:
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def hostile(seeds: list[bytes]) -> list[bytes]:
    return [m for i in range(KINDS) if len(m := mutated(seeds[i % len(seeds)], i, seeds)) < 50_000]


def flood_bus(place: Place, frames: list[bytes], n: int, seconds: float) -> int:
    """Publish as fast as is taken in, and no faster: what is dropped on the way attacks nobody."""
    publisher = Publisher(place.bus)
    end_s, sent = time.monotonic() + seconds, 0
    time.sleep(0.2)
    try:
        while sent < n and time.monotonic() < end_s:
            for data in frames[sent % len(frames) :][:50]:
                publisher.send(TOPICS[data[0] % len(TOPICS)] if data else b"", data[1:])
                sent += 1
            time.sleep(0.004)
    finally:
        publisher.close()
    return sent


def flood_control(place: Place, frames: list[bytes], n: int, seconds: float) -> int:
    dealer = Dealer(place.control)
    end_s, sent, answered = time.monotonic() + seconds, 0, 0
    try:
        while answered < n and time.monotonic() < end_s:
            while sent - answered < WINDOW and sent < n:
                dealer.send(frames[sent % len(frames)][1:])
                sent += 1
            if not dealer.wait(1.0):
                answered = sent  # what is no request at all has no answer
            answered += len(dealer.drain())
    finally:
        dealer.close()
    return sent


def test_hostile_frames_leave_a_daemon_as_it_was(tmp_path: Path) -> None:
    place = Place(tmp_path, {"TELEMETRY_STALE_INPUT_S": "1000", "SHADOW_ENABLED": "false"})
    bus, control = hostile(bus_seeds()), hostile(control_seeds())
    control = [c for c in control if b"reload" not in c and b"drain" not in c and b"policy" not in c]
    seconds = max(60.0, FRAMES / 1000)
    with place.daemon() as daemon, daemon.ready() as client, radio(place, client) as source:
        report = repeated(lambda: source.report(2.0, 2.1, 2.2, 2.3), 0.1)
        with report:
            assert client.submit("bystander", "ue3", SESSION).reason == "admitted"
            for flood, frames in ((flood_bus, bus), (flood_control, control)):
                flood(place, frames, FRAMES // 10, seconds)  # what is filled once
                before = resident_mb(daemon)
                sent = flood(place, frames, FRAMES, seconds)
                status = client.status()
                after = resident_mb(daemon)
                seen = f"{status.ingest.messages} messages, {len(status.ingest.refused)} kinds of refusals"
                print(f"\n{flood.__name__}: {sent} frames, {before:.0f} -> {after:.0f} MB; {seen}")  # noqa: T201
                assert daemon.process.poll() is None, daemon.log()[-2000:]
                assert not [a for a in status.alarms if a.startswith("request")], daemon.log()[-2000:]
                assert after <= before * (1 + GROWTH)
        client.release("bystander")
        assert daemon.stop()[0] == 0
