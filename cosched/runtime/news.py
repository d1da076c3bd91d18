"""What a host has to say to people: kept until somebody reads it, bounded, and refusals no more than now and then.

The serving thread writes here and never to a log: a log that nobody reads must not stop it.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

KEPT: Final = 200  # lines; then the oldest go, and how many is said
EVERY_S: Final = 10.0  # between two lines about refusals
NAMED: Final = 5  # identities in one
SHOWN: Final = 160  # characters of what others wrote

Counts = Mapping[str, Mapping[str, int]]


class News:
    """Lines, oldest first. `say` and the like from the serving thread, `take` from any."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT)
        self._said = 0  # lines ever
        self._taken = 0
        self._told: Counts = {}
        self._told_refused = 0
        self._told_s = self._closed_s = float("-inf")
        self._closed = 0

    def say(self, line: str) -> None:
        """Keep a line; what of it is not printable is shown as in Python."""
        self._lines.append(line if line.isprintable() else ascii(line))
        self._said += 1

    def defect(self, error: Exception) -> None:
        """Keep where an exception that was not foreseen came from."""
        at = traceback.extract_tb(error.__traceback__)
        where = f"{Path(at[-1].filename).name}:{at[-1].lineno}, from {Path(at[0].filename).name}" if at else "nowhere"
        self.say(f"a defect, answered `internal`: {type(error).__name__}: {str(error)[:SHOWN]} ({where})")

    def closed(self, sessions: int, idle_s: float, now_s: float) -> None:
        """Say how many sessions were closed because nobody used them, if there are any and it is time."""
        self._closed += sessions
        if self._closed and now_s - self._closed_s >= EVERY_S:
            self.say(f"{self._closed} sessions closed: not used for {idle_s:g} s")
            self._closed, self._closed_s = 0, now_s

    def refused(self, counts: Callable[[], Counts], total: int, now_s: float) -> None:
        """Say what was refused since the last time, by identity and reason, if there is anything and it is time."""
        if total == self._told_refused or now_s - self._told_s < EVERY_S:
            return
        present = counts()
        fresh: list[tuple[int, str]] = []
        for label, reasons in present.items():
            before = self._told.get(label, {})
            more = {reason: n - before.get(reason, 0) for reason, n in reasons.items() if n > before.get(reason, 0)}
            if more:
                told = ", ".join(f"{n} {reason}" for reason, n in sorted(more.items()))
                fresh.append((sum(more.values()), f"{label}: {told}"))
        fresh.sort(key=lambda one: (-one[0], one[1]))
        rest = f"; and of {len(fresh) - NAMED} others" if len(fresh) > NAMED else ""
        self.say(f"refused {total - self._told_refused} requests: {'; '.join(text for _, text in fresh[:NAMED])}{rest}")
        self._told, self._told_refused, self._told_s = present, total, now_s

    def take(self) -> list[str]:
        """Return the lines since the last call; where some were lost, how many comes first."""
        lines: list[str] = []
        while self._lines:
            lines.append(self._lines.popleft())
        lost = self._said - self._taken - len(lines)
        self._taken = self._said
        return [f"{lost} lines were lost", *lines] if lost > 0 else lines
