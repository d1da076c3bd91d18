"""What systemd is told, on a real datagram socket; one that nobody reads holds nobody up, and loses no state."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from cosched.daemon.notify import Notifier


def test_systemd_hears_and_is_never_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": str(os.getpid())})
        assert notifier.watchdog_s == 5.0
        notifier.ready()
        assert systemd.recv(100) == b"READY=1"
        began = time.monotonic()
        for _ in range(1_000):  # its queue holds ten or so
            notifier.alive()
        assert time.monotonic() - began < 1_000 * 0.01  # no wait; PATIENCE_S each would be 100 s
        assert systemd.recv(100) == b"WATCHDOG=1"


def test_a_change_of_state_that_finds_the_queue_full_is_told_later_and_in_order(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(0)
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "5000000"})
        for _ in range(1_000):
            notifier.alive()
        notifier.reloading()
        notifier.ready()
        told = _drained(systemd)
        assert set(told) == {"WATCHDOG=1"}
        notifier.alive()
        assert [line.partition("\n")[0] for line in _drained(systemd)] == ["RELOADING=1", "READY=1", "WATCHDOG=1"]
        for _ in range(1_000):
            notifier.alive()
        notifier.stopping()  # nobody reads: a moment, then it ends all the same


def _drained(systemd: socket.socket) -> list[str]:
    told = []
    with contextlib.suppress(BlockingIOError):
        while True:
            told.append(systemd.recv(100).decode())
    return told


def test_without_systemd_nothing_is_said() -> None:
    Notifier({}).ready()
    Notifier({"NOTIFY_SOCKET": "/nowhere/notify"}).stopping()
