"""SIGTERM in the middle of submits, questions and telemetry: exit code 0, no defect, the capture whole."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from pathlib import Path

import msgspec
import pytest
from daemon_cases import CLIP, PATIENCE_S, SESSION, Place, radio, until

from cosched.api import messages as api
from cosched.daemon.verify import verify
from telemetry import wire
from telemetry.bus import ControlSocket, Dealer, Follower, Publisher, Pump
from telemetry.messages import UeReport

STOPS = int(os.environ.get("DAEMON_STOPS", "3"))
SEED = int(os.environ.get("DAEMON_STOPS_SEED", "1"))


def load(place: Place, life: int, ended: threading.Event) -> None:
    """Submits, releases, questions and reports as fast as they go; nobody waits for answers."""
    control, publisher = Dealer(place.control), Publisher(place.bus)
    followers = [Follower(place.control.replace("control", "decisions"), [b""]) for _ in range(2)]
    n = 0
    while not ended.is_set():
        n += 1
        work = CLIP if n % 3 else SESSION
        requests = [
            ("submit", api.SubmitArgs(task=f"s{life}-{n}", ue=f"ue{n % 4}", work=work)),
            ("status", api.NoArgs()),
        ]
        if n % 20 == 0:
            requests += [
                ("whatif", api.WhatifArgs(nodes_gone=("edge0",))),
                ("explain", api.TaskArgs(task=f"s{life}-{n - 1}")),
            ]
        if n % 2 == 0:
            requests.append(("release", api.TaskArgs(task=f"s{life}-{n - 1}")))
        for number, (verb, args) in enumerate(requests):
            raw = msgspec.Raw(msgspec.msgpack.encode(args))
            control.send(msgspec.msgpack.encode(api.Request(verb=verb, id=number, args=raw)))
        for ue in range(4):
            report = UeReport(
                at_ns=time.monotonic_ns(), source=f"ran/ue{ue}", seq=10**6 * life + n, ue=f"ue{ue}", cell="cell0",
                ul_efficiency_bps_hz=2.0,
            )  # fmt: skip
            publisher.send(*wire.encode(report))
        control.drain()
        for follower in followers:
            follower.drain()
        time.sleep(0.01)
    for one in (control, publisher, *followers):
        one.close()


def test_a_pump_that_was_stopped_looks_at_its_socket_no_more(tmp_path: Path) -> None:
    """What is answered or published while the daemon ends asks for one more look, at a socket closed by then."""
    looks = 0

    def look() -> bool:
        nonlocal looks
        looks += 1
        return False

    async def main() -> None:
        control = ControlSocket()
        control.bind([f"ipc://{tmp_path}/c"])
        pump = Pump(asyncio.get_running_loop(), control, look)
        await asyncio.sleep(0)
        before = looks
        assert before
        pump.stop()
        pump.again()
        control.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert looks == before

    asyncio.run(main())


@pytest.mark.slow
def test_a_stop_under_load_is_no_defect(tmp_path: Path) -> None:
    rng = random.Random(SEED)  # noqa: S311  # an instant
    for life in range(STOPS):
        (tmp_path / str(life)).mkdir()
        place = Place(tmp_path / str(life))
        with place.daemon() as daemon:
            with daemon.ready() as client, radio(place, client):
                pass
            ended = threading.Event()
            threads = [threading.Thread(target=load, args=(place, 10 * life + i, ended)) for i in range(2)]
            for thread in threads:
                thread.start()
            with daemon.client() as client:
                until(lambda client=client: client.status().tasks > 3)
            time.sleep(rng.uniform(0.0, 0.4))
            daemon.process.send_signal(signal.SIGTERM)
            code = daemon.process.wait(PATIENCE_S)
            ended.set()
            for thread in threads:
                thread.join()
            assert (code, "defect" in daemon.log(), "Traceback" in daemon.log()) == (0, False, False), daemon.log()[
                -3000:
            ]
        assert all(not verify(path).difference for path in place.captures)
