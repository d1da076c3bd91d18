"""Running figures: quantiles over the latest measurements."""

from __future__ import annotations

from collections import deque
from typing import Final

from cosched.api.messages import Quantiles

SIZE: Final = 4_096


class Window:
    """The latest measurements of one quantity."""

    def __init__(self, size: int = SIZE) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, value: float) -> None:
        """Take one in."""
        self._values.append(value)

    def quantiles(self) -> Quantiles:
        """Median, 99th percentile (nearest rank) and maximum."""
        if not self._values:
            return Quantiles()
        ordered = sorted(self._values)
        n = len(ordered)
        return Quantiles(n=n, p50=ordered[n // 2], p99=ordered[min(n - 1, (99 * n) // 100)], max=ordered[-1])
