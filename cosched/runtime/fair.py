"""Sharing a node by weight: start-time fair queueing (Goyal, Vin & Cheng, SIGCOMM 1996, section 2).

A step waits with a start tag, the later of the queue's virtual time and the end of its session's step before; its
end is start + cost / weight; the least start tag is served next, and virtual time is the tag of what is in service.
Nothing is held back while anything waits (work conservation), and a session that was idle claims nothing for it.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items of sessions, in the order in which a node serves them; of one session, in the order of arrival."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str, Item]] = []
        self._arrivals = itertools.count()
        self._ends: dict[str, float] = {}
        self._virtual = 0.0
        self._waiting: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._heap)

    def waiting(self, session: str) -> int:
        """Items of one session that wait."""
        return self._waiting.get(session, 0)

    def push(self, session: str, item: Item, cost: float, weight: float) -> None:
        """Let an item wait. cost: work in any one unit; weight: greater than 0."""
        start = max(self._virtual, self._ends.get(session, 0.0))
        self._ends[session] = start + cost / weight
        self._waiting[session] = self.waiting(session) + 1
        heapq.heappush(self._heap, (start, next(self._arrivals), session, item))

    def pop(self) -> Item:
        """Take the item to be served next. Raises IndexError: nothing waits."""
        start, _, session, item = heapq.heappop(self._heap)
        self._virtual = start
        self._waiting[session] -= 1
        return item

    def forget(self, session: str) -> None:
        """Drop a session that has ended; what of it still waits is served."""
        self._ends.pop(session, None)
        if not self.waiting(session):
            self._waiting.pop(session, None)
