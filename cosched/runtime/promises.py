"""What a host was promised to keep, and how long its steps are: who is due when, and what fits into a step.

A session's token is due a pace after the one before, and never before it was asked for: who asks late has lost that
time himself, who is served early is ahead by it. So a promise makes at most one step a pace urgent, however fast its
owner asks. Time is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

MEMORY: Final = 0.98  # of what was seen, from one step to the next: the last 50 count
LEAST_SEEN: Final = 3.0  # steps before anything is predicted


class Promise(NamedTuple):
    """What a task's session is to get. priority: who has more goes first."""

    pace_s: float  # a token
    priority: int = 0


@dataclass(slots=True)
class StepLengths:
    """A line through the steps of late, seconds over rows: what a step of so many would take."""

    n: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def saw(self, rows: float, seconds: float) -> None:
        """Take note of a step. rows: tokens, each by the part of all layers that it went through."""
        self.n = self.n * MEMORY + 1.0
        self.rows = self.rows * MEMORY + rows
        self.seconds = self.seconds * MEMORY + seconds
        self.squares = self.squares * MEMORY + rows * rows
        self.products = self.products * MEMORY + rows * seconds

    def of(self, rows: float) -> float:
        """Seconds of a step of so many rows; 0 where too little was seen."""
        if self.n < LEAST_SEEN:
            return 0.0
        mean, mean_s = self.rows / self.n, self.seconds / self.n
        spread = self.squares / self.n - mean * mean
        slope = max(0.0, (self.products / self.n - mean * mean_s) / spread) if spread > 1e-9 * mean * mean else 0.0
        slope = min(slope, mean_s / mean) if mean > 0 else slope
        return max(0.0, mean_s + slope * (rows - mean))
