"""A process that has the daemon's three sockets, behind the door or as they are, and serves them: what attacks meet.

`python door_peer.py FOLDER`; lines on stdin: `pause`, `go`, `count`, `end`. For each a line on stdout: messages
so far, and JSON at the end. DIRECT=1: without the door; HEARTBEATS=ms: with those of libzmq, as it was once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import zmq

from cosched.api.keys import read_pair
from cosched.config.log import configure
from cosched.config.settings import load
from cosched.daemon import endpoints as places
from telemetry import bus


def sockets_of(folder: Path) -> tuple[bus.TelemetrySocket, bus.ControlSocket, bus.DecisionSocket, Any]:
    keys = None
    if (folder / "daemon.key").exists():
        pair = read_pair(folder / "daemon.key")
        keys = bus.Curve(pair.public, pair.secret)
    if not os.environ.get("DIRECT"):
        found = places.bind(load(None), keys)
        return found.telemetry, found.control, found.decisions, found.gate
    made = bus.TelemetrySocket(keys), bus.ControlSocket(keys), bus.DecisionSocket(keys)
    settings = load(None).settings
    for one, bound in zip(
        made, (settings.telemetry.bind, settings.control.bind, settings.control.decisions), strict=True
    ):
        if beats := int(os.environ.get("HEARTBEATS", "0")):
            one.socket.setsockopt(zmq.HEARTBEAT_IVL, beats)
        one.bind([places.filled(endpoint) for endpoint in bound])
    return (*made, None)


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main() -> None:
    configure()
    telemetry, control, decisions, gate = sockets_of(Path(sys.argv[1]))
    alarms: list[str] = []
    loop = asyncio.get_running_loop()
    if gate is not None:
        gate.attach(loop, lambda _, text: alarms.append(text))
    words: list[str] = []
    threading.Thread(target=lambda: words.extend(iter(sys.stdin.readline, "")), daemon=True).start()
    say = json.dumps({"telemetry": telemetry.endpoints, "control": control.endpoints, "decisions": decisions.endpoints})
    tell(say)
    paused, told, messages, topics, size = False, 0, 0, 0, int(os.environ.get("SIZE", "200"))
    while True:
        await asyncio.sleep(0.002)
        while len(words) > told:
            word = words[told].strip()
            told += 1
            paused = (word == "pause") or (paused and word == "count")
            if word == "end":
                counted = gate.counted() if gate is not None else []
                descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names alone
                tell(json.dumps([messages, topics, alarms, counted, descriptors, gate.open if gate else {}]))
                return
            tell(str(messages))
        decisions.send(b"decision/t%d" % (time.monotonic_ns() % 97), b"x" * size)
        decisions.send(b"status", b"y" * size)
        if not paused:
            messages += len(telemetry.drain(500))
            topics += len(decisions.subscribed(500)[0])
            for asked in control.drain(100):
                control.answer(asked.route, asked.payload)


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
