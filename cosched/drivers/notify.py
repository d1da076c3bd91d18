"""sd_notify(3): tells systemd that the daemon is ready, alive, reloading or stopping; does nothing elsewhere."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Final

PATIENCE_S: Final = 0.1  # with a systemd that reads nothing: the event loop waits meanwhile


class Notifier:
    """Sends to $NOTIFY_SOCKET. `watchdog_s`: within which a sign of life is due, 0 = never."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = environ.get("NOTIFY_SOCKET", "")
        wanted = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(environ.get("WATCHDOG_USEC", "0")) * 1e-6 if wanted else 0.0

    def ready(self) -> None:
        """Start-up, or a reload, is over."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins. systemd compares the stamp with its own of the signal (Type=notify-reload)."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The end begins."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Decisions are being made."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(PATIENCE_S)
            try:
                channel.sendto(text.encode(), name)
            except OSError:  # it restarts itself now and then, or reads nothing; the next message finds it again
                return
