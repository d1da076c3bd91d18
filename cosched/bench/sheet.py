"""What the solver suite's parts fill in: rows in the order in which they were measured, and times of this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np

from cosched.bench.model import BenchRow, spread

SUITE: Final = "solvers"

Answer = TypeVar("Answer")


class Sheet:
    """Figures by case, subject and name."""

    def __init__(self) -> None:
        self.rows: list[BenchRow] = []
        self._values: dict[tuple[str, str, str], tuple[float, ...]] = {}

    def add(self, case: str, subject: str, figure: str, values: Sequence[float], bound: float | None = None) -> None:
        """Add a row. values: one or more measurements; bound: a proven upper bound on their mean."""
        p50, p99, mean = spread(values)
        self.rows.append(
            BenchRow(
                suite=SUITE, case=case, subject=subject, figure=figure, p50=p50, p99=p99, n=len(values), value=mean,
                bound=None if bound is None else float(bound),  # NumPy's do not go into JSON
            )
        )  # fmt: skip
        self._values[case, subject, figure] = tuple(values)

    def median(self, case: str, subject: str, figure: str) -> float:
        """Median of what was added."""
        return float(np.median(self._values[case, subject, figure]))

    def p99(self, case: str, subject: str, figure: str) -> float:
        """99th percentile of what was added."""
        return float(np.percentile(self._values[case, subject, figure], 99))


def case_name(n_tasks: int, kind: str = "") -> str:
    """Tasks x cells x nodes x points, as all instances of the suite have them."""
    return f"{kind} {n_tasks}x4x4x32".lstrip()


def cpu_ms(function: Callable[[], Answer]) -> tuple[Answer, float]:
    """Call it; also return the processor time of this process in ms: other work on the machine does not count."""
    started = time.process_time_ns()
    answer = function()
    return answer, (time.process_time_ns() - started) * 1e-6
