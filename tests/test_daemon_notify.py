"""What systemd is told, on a real datagram socket; one that nobody reads holds nobody up."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from cosched.drivers.notify import PATIENCE_S, Notifier


def test_systemd_hears_and_is_waited_for_for_a_moment_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": str(os.getpid())})
        assert notifier.watchdog_s == 5.0
        notifier.ready()
        assert systemd.recv(100) == b"READY=1"
        began = time.monotonic()
        for _ in range(20):  # its queue holds ten or so
            notifier.alive()
        assert time.monotonic() - began < 20 * PATIENCE_S + 5.0
        assert systemd.recv(100) == b"WATCHDOG=1"


def test_without_systemd_nothing_is_said() -> None:
    Notifier({}).ready()
    Notifier({"NOTIFY_SOCKET": "/nowhere/notify"}).stopping()
