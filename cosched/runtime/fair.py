"""Sharing a node by weight: start-time fair queueing (Goyal, Vin & Cheng, SIGCOMM 1996, section 2), in two levels.

An item waits with a start tag, the later of the queue's virtual time and the end of its key's item before; its end is
start + cost / weight; the least start tag is served next, and virtual time is the tag of what is in service. Nothing is
held back while anything waits (work conservation), and a key that was idle claims nothing for it.

`FairTurns` shares among flows (an identity, or a task that the plan gives a weight) by weight, and within a flow evenly
among its sessions: whoever opens many sessions has no more of the node for it. An item can be taken out of turn (a step
that is due): its flow pays for it with its later turns.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Container, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")
Fits = Callable[[Item], bool]

REMEMBERED: Final = 4_096  # keys that nothing waits of, with an end that virtual time has not reached
STALE: Final = 64  # entries of items taken out of turn that a heap may have beside twice those that wait


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
        self._heap: list[tuple[float, int, Hashable]] = []  # items by start tag; those taken out of turn are stale
        self._lines: dict[Hashable, deque[tuple[float, int, Item]]] = {}
        self._arrivals = itertools.count()
        self._ends = _Ends()
        self._virtual = 0.0
        self._n = 0

    def __len__(self) -> int:
        return self._n

    @property
    def remembered(self) -> int:
        """Keys that something is kept of."""
        return len(self._ends)

    def waiting(self, key: Hashable) -> int:
        """Items of one key that wait."""
        return len(self._lines.get(key, ()))

    def push(self, key: Hashable, item: Item, cost: float, weight: float) -> None:
        """Let an item wait. cost: work in any one unit; weight: greater than 0."""
        start, number = max(self._virtual, self._ends.of(key)), next(self._arrivals)
        self._ends.put(key, start + cost / weight)
        self._lines.setdefault(key, deque()).append((start, number, item))
        heapq.heappush(self._heap, (start, number, key))
        self._n += 1

    def pop(self) -> Item:
        """Take the item to be served next. Raises IndexError: nothing waits."""
        self._clean()
        return self.take(self._heap[0][2])

    def first(self, fits: Fits[Item]) -> Hashable | None:
        """Key of the first item, in the order in which they are served, that fits; None: none does."""
        heap = list(self._heap)
        while heap:
            _, number, key = heapq.heappop(heap)
            if self._is_head(number, key) and fits(self._lines[key][0][2]):
                return key
        return None

    def heads(self) -> Iterator[tuple[Hashable, Item]]:
        """Each key's next item."""
        return ((key, line[0][2]) for key, line in self._lines.items())

    def head(self, key: Hashable) -> Item | None:
        """A key's next item; None: nothing of it waits."""
        line = self._lines.get(key)
        return line[0][2] if line else None

    def take(self, key: Hashable) -> Item:
        """Take a key's next item, whosever turn it is; its key has had it all the same."""
        line = self._lines[key]
        start, _, item = line.popleft()
        self._n -= 1
        if not line:
            del self._lines[key]
            self._ends.idle(key)
        self._clean()
        # what is taken out of turn moves virtual time no further than those who still wait for theirs
        self._virtual = max(self._virtual, min(start, self._heap[0][0]) if self._heap else start)
        self._ends.passed(self._virtual, self._lines)
        return item

    def _is_head(self, number: int, key: Hashable) -> bool:
        line = self._lines.get(key)
        return line is not None and line[0][1] == number

    def _clean(self) -> None:
        while self._heap and not self._is_head(self._heap[0][1], self._heap[0][2]):
            heapq.heappop(self._heap)
        if len(self._heap) > 2 * self._n + STALE:
            self._heap = [(start, number, key) for key, line in self._lines.items() for start, number, _ in line]
            heapq.heapify(self._heap)


@dataclass(slots=True)
class _Flow(Generic[Item]):
    weight: float
    start: float = 0.0
    number: int = 0  # of its entry in the heap of flows
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
        self._clean()
        flow = self._heap[0][2]
        return self._took(flow, *self._flows[flow].queue.pop())

    def pop_if(self, fits: Fits[Item]) -> Item | None:
        """Take the first item, in the order in which they are served, that fits; None: none does."""
        heap = list(self._heap)
        while heap:
            _, number, flow = heapq.heappop(heap)
            if self._is_line(number, flow):
                session = self._flows[flow].queue.first(lambda held: fits(held[0]))
                if session is not None:
                    return self.take(flow, session)
        return None

    def heads(self) -> Iterator[tuple[Hashable, Hashable, Item]]:
        """Flow, session and next item of each session that waits."""
        return ((flow, key, held[0]) for flow, one in self._flows.items() for key, held in one.queue.heads())

    def head(self, flow: Hashable, session: Hashable) -> Item | None:
        """A session's next item; None: nothing of it waits."""
        found = self._flows.get(flow)
        held = None if found is None else found.queue.head(session)
        return None if held is None else held[0]

    def take(self, flow: Hashable, session: Hashable) -> Item:
        """Take a session's next item, whosever turn it is; its flow has had it all the same."""
        return self._took(flow, *self._flows[flow].queue.take(session))

    def _took(self, key: Hashable, item: Item, cost: float) -> Item:
        flow = self._flows[key]
        start, end = flow.start, flow.start + cost / flow.weight
        self._n -= 1
        self._ends.put(key, end)
        if len(flow.queue):
            self._line_up(key, end)
        else:
            del self._flows[key]
            self._ends.idle(key)
        self._clean()
        self._virtual = max(self._virtual, min(start, self._heap[0][0]) if self._heap else start)
        self._ends.passed(self._virtual, self._flows)
        return item

    def _is_line(self, number: int, flow: Hashable) -> bool:
        found = self._flows.get(flow)
        return found is not None and found.number == number

    def _clean(self) -> None:
        while self._heap and not self._is_line(self._heap[0][1], self._heap[0][2]):
            heapq.heappop(self._heap)
        if len(self._heap) > 2 * len(self._flows) + STALE:
            self._heap = [(one.start, one.number, flow) for flow, one in self._flows.items()]
            heapq.heapify(self._heap)

    def _line_up(self, flow: Hashable, start: float) -> None:
        found = self._flows[flow]
        found.start, found.number = start, next(self._arrivals)
        heapq.heappush(self._heap, (start, found.number, flow))
