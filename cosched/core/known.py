"""Which UEs are known, and which are forgotten when there are too many (docs/decisions/0019).

It follows from events alone, and what it costs is shared out over the UEs that came new: after a look through all,
there is none before a sixty-fourth of them more have come.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Final

CROWDED: Final = 0.9  # of the most: from here on those that are silent go, and an alarm says so
SILENT_S: Final = 60.0  # a UE that is not reported for this long is gone, or will be new when it comes back
PROVEN_S: Final = 1.0  # who is heard of for longer is no invention of a moment
ROOM: Final = 16  # of the most, this part is made free at once


class KnownUes:
    """First and latest report of each UE, in the order in which they were first heard."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.due = self._least_due
        self.forgotten = 0
        self._first_s: dict[str, float] = {}
        self._last_s: dict[str, float] = {}

    @property
    def _least_due(self) -> int:
        return max(1, int(CROWDED * self.most))

    def __len__(self) -> int:
        return len(self._first_s)

    def heard(self, ue: str, at_s: float) -> None:
        """Take note of a report."""
        if ue not in self._first_s:
            self._first_s[ue] = at_s
        self._last_s[ue] = at_s

    @property
    def is_due(self) -> bool:
        """Whether it is time to look for some to forget."""
        return len(self._first_s) >= self.due

    @property
    def is_crowded(self) -> bool:
        """Whether it is nearly full."""
        return len(self._first_s) >= self._least_due

    def forget(self, now_s: float, keep: Container[str]) -> list[str]:
        """Forget those that have been silent for long, then, where these are too few, those that matter least."""
        gone = [ue for ue, last_s in self._last_s.items() if now_s - last_s > SILENT_S and ue not in keep]
        self._drop(gone)
        over = len(self._first_s) - self.most
        if over > 0:
            others = sorted((ue for ue in self._first_s if ue not in keep), key=self._rank)
            others = others[: over + self.most // ROOM]
            self._drop(others)
            gone += others
        self.due = max(self._least_due, min(len(self._first_s) + max(1, self.most // 64), self.most + 1))
        return gone

    def _rank(self, ue: str) -> tuple[int, float]:
        """Heard at one instant only, then for a moment only, then those whose latest report is the oldest."""
        first_s, last_s = self._first_s[ue], self._last_s[ue]
        return (last_s > first_s) + (last_s - first_s >= PROVEN_S), last_s

    def _drop(self, ues: list[str]) -> None:
        for ue in ues:
            del self._first_s[ue], self._last_s[ue]
        self.forgotten += len(ues)

    def rows(self) -> dict[str, tuple[float, float]]:
        """First and latest report of each."""
        return {ue: (first_s, self._last_s[ue]) for ue, first_s in self._first_s.items()}

    def restore(self, rows: Mapping[str, tuple[float, float]], due: int, forgotten: int) -> None:
        """Take over what `rows` returned, from one that may have been larger or smaller."""
        self._first_s = {ue: first_s for ue, (first_s, _) in rows.items()}
        self._last_s = {ue: last_s for ue, (_, last_s) in rows.items()}
        self.due = min(max(self._least_due, due), self.most + 1)
        self.forgotten = forgotten
