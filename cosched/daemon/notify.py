"""sd_notify(3): tells systemd that the daemon is ready, alive, reloading or stopping; does nothing elsewhere."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from typing import Final

PATIENCE_S: Final = 0.1  # with a systemd that reads nothing, at the end: nothing else waits then
OWED: Final = 4  # changes of state that systemd has not taken yet; a reload makes two


class Notifier:
    """Sends to $NOTIFY_SOCKET and never waits.

    A sign of life that finds the socket's queue full is dropped; a change of state goes before the next of them, as
    often as it takes. `watchdog_s`: within which a sign of life is due, 0 = never.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._owed: deque[str] = deque(maxlen=OWED)
        wanted = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(environ.get("WATCHDOG_USEC", "0")) * 1e-6 if wanted else 0.0

    def ready(self) -> None:
        """Start-up, or a reload, is over."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """A reload begins. systemd compares the stamp with its own of the signal (Type=notify-reload)."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The end begins."""
        self._tell("STOPPING=1", PATIENCE_S)

    def alive(self) -> None:
        """Decisions are being made."""
        self._say("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._say(f"STATUS={text}")

    def _tell(self, state: str, patience_s: float = 0.0) -> None:
        self._owed.append(state)
        self._pay(patience_s)

    def _say(self, text: str) -> None:
        if self._pay():
            self._send(text)

    def _pay(self, patience_s: float = 0.0) -> bool:
        """Whether all that was owed has gone."""
        while self._owed and self._send(self._owed[0], patience_s):
            self._owed.popleft()
        return not self._owed

    def _send(self, text: str, patience_s: float = 0.0) -> bool:
        """Whether it went, or there is nobody to go to."""
        if not self._address:
            return True
        name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(patience_s)
            try:
                channel.sendto(text.encode(), name)
            except OSError:  # it restarts itself now and then, or reads nothing; the next message finds it again
                return False
        return True
