"""Tells new subscribers the present decisions of what they asked for, in portions and with rests.

XPUB tells everybody who has subscribed: whoever subscribes to all, again and again, would have all decisions sent to
all. So what was asked for meanwhile is told once, and what telling takes is followed by a rest several times as long.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from cosched.api.messages import DECISION_TOPIC
from cosched.daemon.board import Board
from telemetry.bus import DecisionSocket

NS: Final = 1e-9
TOPICS: Final = 200  # looked at in one go, less than a millisecond
TASKS: Final = 100  # told in one go, some 2 ms
MANY: Final = 1_000  # topics that wait: from here on all decisions are told instead
REST: Final = 9  # times what telling took


class Greeter:
    """Greets on one socket. `drain` is for a Pump, whose `again` is to be put in `again`."""

    def __init__(self, socket: DecisionSocket, board: Board, clock: Callable[[], int]) -> None:
        self._socket, self._board, self._clock = socket, board, clock
        self._topics: set[bytes] = set()
        self._tasks: deque[str] = deque()
        self._spent_ns = 0
        self._rest_until_ns = 0
        self._due: asyncio.TimerHandle | None = None
        self.again: Callable[[], None] = lambda: None

    def drain(self) -> bool:
        """Take in subscriptions and tell a portion; True when there may be more at once."""
        fresh, more = self._socket.subscribed(TOPICS)
        self._topics |= fresh
        if len(self._topics) > MANY:
            self._topics = {DECISION_TOPIC.encode()}
        now_ns = self._clock()
        if not self._tasks and self._topics:
            if now_ns < self._rest_until_ns:
                self._later((self._rest_until_ns - now_ns) * NS)
                return more
            self._tasks.extend(self._board.asked_for(self._topics))
            self._topics = set()
        if portion := min(TASKS, len(self._tasks)):
            for _ in range(portion):
                self._board.tell(self._tasks.popleft(), now_ns)
            self._spent_ns += (ended_ns := self._clock()) - now_ns
            if not self._tasks:
                self._rest_until_ns, self._spent_ns = ended_ns + REST * self._spent_ns, 0
        return more or bool(self._tasks) or bool(self._topics)

    def _later(self, wait_s: float) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def _wake(self) -> None:
        self._due = None
        self.again()

    def stop(self) -> None:
        """Greet no more."""
        if self._due is not None:
            self._due.cancel()
