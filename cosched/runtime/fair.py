"""Sharing a node by weight: start-time fair queueing (Goyal, Vin & Cheng, SIGCOMM 1996, section 2), in two levels.

An item waits with a start tag, the later of the queue's virtual time and the end of its key's item before; its end is
start + cost / weight; the least start tag is served next, and virtual time is the tag of what is in service. Nothing is
held back while anything waits (work conservation), and a key that was idle claims nothing for it.

`FairTurns` shares among flows (an identity, or a task that the plan gives a weight) by weight, and within a flow evenly
among its sessions: whoever opens many sessions has no more of the node for it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Container, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

REMEMBERED: Final = 4_096  # keys that nothing waits of, with an end that virtual time has not reached


class _Ends:
    """Ends of keys, forgotten once they mean nothing: virtual time has passed them, or they are too many."""

    def __init__(self) -> None:
        self._ends: dict[Hashable, float] = {}
        self._idle: list[tuple[float, int, Hashable]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._ends)

    def of(self, key: Hashable) -> float:
        return self._ends.get(key, 0.0)

    def put(self, key: Hashable, end: float) -> None:
        self._ends[key] = end

    def idle(self, key: Hashable) -> None:
        """Nothing of a key waits any more."""
        heapq.heappush(self._idle, (self._ends[key], next(self._numbers), key))

    def passed(self, virtual: float, waiting: Container[Hashable]) -> None:
        """Forget what virtual time has passed. waiting: keys that are needed."""
        while self._idle and (self._idle[0][0] <= virtual or len(self._idle) > REMEMBERED):
            end, _, key = heapq.heappop(self._idle)
            if self._ends.get(key) == end and key not in waiting:
                del self._ends[key]


class FairQueue(Generic[Item]):
    """Items of keys, in the order in which they are served; of one key, in the order of arrival."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Hashable, Item]] = []
        self._arrivals = itertools.count()
        self._ends = _Ends()
        self._virtual = 0.0
        self._waiting: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def remembered(self) -> int:
        """Keys that something is kept of."""
        return len(self._ends)

    def waiting(self, key: Hashable) -> int:
        """Items of one key that wait."""
        return self._waiting.get(key, 0)

    def push(self, key: Hashable, item: Item, cost: float, weight: float) -> None:
        """Let an item wait. cost: work in any one unit; weight: greater than 0."""
        start = max(self._virtual, self._ends.of(key))
        self._ends.put(key, start + cost / weight)
        self._waiting[key] = self.waiting(key) + 1
        heapq.heappush(self._heap, (start, next(self._arrivals), key, item))

    def pop(self) -> Item:
        """Take the item to be served next. Raises IndexError: nothing waits."""
        start, _, key, item = heapq.heappop(self._heap)
        self._virtual = start
        self._waiting[key] -= 1
        if not self._waiting[key]:
            del self._waiting[key]
            self._ends.idle(key)
        self._ends.passed(start, self._waiting)
        return item


@dataclass(slots=True)
class _Flow(Generic[Item]):
    weight: float
    queue: FairQueue[tuple[Item, float]] = field(default_factory=FairQueue)


class FairTurns(Generic[Item]):
    """Items of flows by weight, and of a flow's sessions in turn."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Hashable]] = []  # flows that wait, by the start tag of their next item
        self._flows: dict[Hashable, _Flow[Item]] = {}
        self._arrivals = itertools.count()
        self._ends = _Ends()
        self._virtual = 0.0
        self._n = 0

    def __len__(self) -> int:
        return self._n

    @property
    def remembered(self) -> int:
        """Flows that something is kept of."""
        return len(self._ends)

    def waiting(self, flow: Hashable, session: Hashable) -> int:
        """Items of one session that wait."""
        found = self._flows.get(flow)
        return 0 if found is None else found.queue.waiting(session)

    def push(self, flow: Hashable, session: Hashable, item: Item, cost: float, weight: float) -> None:
        """Let an item wait. cost: work in any one unit; weight: of the flow, from here on; greater than 0."""
        found = self._flows.get(flow)
        if found is None:
            found = self._flows[flow] = _Flow(weight)
            self._line_up(flow, max(self._virtual, self._ends.of(flow)))
        found.weight = weight
        found.queue.push(session, (item, cost), cost, 1.0)
        self._n += 1

    def pop(self) -> Item:
        """Take the item to be served next. Raises IndexError: nothing waits."""
        start, _, key = heapq.heappop(self._heap)
        flow = self._flows[key]
        item, cost = flow.queue.pop()
        self._virtual, self._n = start, self._n - 1
        end = start + cost / flow.weight
        self._ends.put(key, end)
        if len(flow.queue):
            self._line_up(key, end)
        else:
            del self._flows[key]
            self._ends.idle(key)
        self._ends.passed(start, self._flows)
        return item

    def _line_up(self, flow: Hashable, start: float) -> None:
        heapq.heappush(self._heap, (start, next(self._arrivals), flow))
