"""Which UEs are known, and which are forgotten when there are too many (docs/decisions/0019).

It follows from events alone, and costs as much as are forgotten: UEs stand in three queues, by how long they have been
heard of, each in the order of their latest reports.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from itertools import islice
from typing import Final

from cosched.errors import hold

CROWDED: Final = 0.9  # of the most: from here on those that are silent go, and an alarm says so
FEW: Final = 0.25  # of the most: beyond, those that were heard for a moment only and are silent since go
PASSED_S: Final = 30.0  # ... for this long
SILENT_S: Final = 60.0  # a UE that is not reported for this long is gone, or will be new when it comes back
PROVEN_S: Final = 1.0  # who is heard of for longer is no invention of a moment
ROOM: Final = 16  # of the most, this part is made free at once


class KnownUes:
    """First and latest report of each UE."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.due = self._least_due
        self.forgotten = 0
        # UE -> its first and latest report, of those heard at one instant only, then for a moment only, then proven;
        # each with the oldest latest report first
        self._queues: tuple[dict[str, tuple[float, float]], ...] = ({}, {}, {})

    @property
    def _least_due(self) -> int:
        return max(1, int(CROWDED * self.most))

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def heard(self, ue: str, at_s: float) -> None:
        """Take note of a report."""
        proven = self._queues[2]
        if (seen := proven.pop(ue, None)) is not None:  # nearly all: this is done for every report
            proven[ue] = seen[0], at_s
            return
        found = (queue.pop(ue, None) for queue in self._queues[:2])
        first_s = next((one[0] for one in found if one is not None), at_s)
        self._queues[_rank(first_s, at_s)][ue] = first_s, at_s

    @property
    def is_due(self) -> bool:
        """Whether it is time to look for some to forget."""
        return len(self) >= self.due

    @property
    def is_crowded(self) -> bool:
        """Whether it is nearly full."""
        return len(self) >= self._least_due

    def holds_silent(self, now_s: float) -> bool:
        """Whether some that were heard for a moment only have been silent for long, and are many."""
        if len(self) <= FEW * self.most:
            return False
        oldest = (last_s for queue in self._queues[:2] for _, last_s in islice(queue.values(), 1))
        return any(now_s - last_s > PASSED_S for last_s in oldest)

    def forget(self, now_s: float, keep: Container[str]) -> list[str]:
        """Forget those that have been silent for long, then, where these are too few, those that matter least."""
        limits_s = zip(self._queues, (PASSED_S, PASSED_S, SILENT_S if self.is_crowded else math.inf), strict=True)
        gone = [ue for queue, limit_s in limits_s for ue in _silent(queue, now_s - limit_s) if ue not in keep]
        self._drop(gone)
        over = len(self) - self.most
        if over > 0:
            others = (ue for queue in self._queues for ue in queue if ue not in keep)
            least = list(islice(others, over + self.most // ROOM))
            self._drop(least)
            gone += least
        self.due = max(self._least_due, min(len(self) + max(1, self.most // 64), self.most + 1))
        return gone

    def _drop(self, ues: list[str]) -> None:
        for ue in ues:
            for queue in self._queues:
                queue.pop(ue, None)
        self.forgotten += len(ues)

    def rows(self) -> dict[str, tuple[float, float]]:
        """First and latest report of each, in the order in which they would be forgotten."""
        return {ue: seen for queue in self._queues for ue, seen in queue.items()}

    def restore(self, rows: Mapping[str, tuple[float, float]], due: int, forgotten: int) -> None:
        """Take over what `rows` returned, from one that may have been larger or smaller."""
        self._queues = ({}, {}, {})
        for ue, (first_s, last_s) in rows.items():
            self._queues[_rank(first_s, last_s)][ue] = first_s, last_s
        self.due = min(max(self._least_due, due), self.most + 1)
        self.forgotten = forgotten

    def validate(self) -> None:
        """Hold the queues against their order. Raises Broken."""
        hold(len({ue for queue in self._queues for ue in queue}) == len(self), "a UE is in two queues")
        for rank, queue in enumerate(self._queues):
            last = [last_s for _, last_s in queue.values()]
            hold(last == sorted(last), "queue", rank, "of UEs is not in the order of their latest reports")
            for ue, (first_s, last_s) in queue.items():
                hold(first_s <= last_s, "UE", ue, "was heard last before it was heard first")
                hold(_rank(first_s, last_s) == rank, "UE", ue, "is in queue", rank, "of another rank")
        hold(self._least_due <= self.due <= self.most + 1, "UEs are to be thinned out at", self.due)
        hold(self.forgotten >= 0, "UEs forgotten:", self.forgotten)


def _rank(first_s: float, last_s: float) -> int:
    """Which queue a UE is in."""
    return (last_s > first_s) + (last_s - first_s >= PROVEN_S)


def _silent(queue: dict[str, tuple[float, float]], since_s: float) -> Iterator[str]:
    """UEs of a queue whose latest report is older."""
    for ue, (_, last_s) in queue.items():
        if last_s >= since_s:
            return
        yield ue
