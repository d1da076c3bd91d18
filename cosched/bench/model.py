"""What a suite returns: rows (the keys of `bench --json`), claims, and the points of its curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec
import numpy as np

from cosched.report.model import Sweep

RATIO: Final = "ratio"  # figure of rows that compare two subjects


class BenchRow(msgspec.Struct, frozen=True, kw_only=True):
    """One case, subject and figure. Subjects of one case ran in turn in one process: their ratios mean something."""

    suite: str
    case: str
    subject: str
    figure: str
    p50: float
    p99: float
    n: int
    value: float  # the mean, or the figure itself where there is one only
    bound: float | None = None  # proven upper bound on the value


class ModelClaim(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the README states, and whether this run bears it out."""

    text: str
    reached: float
    asked: float
    at_most: bool = False  # of errors: `asked` is the most that may be reached

    @property
    def holds(self) -> bool:
        """Whether at least (`at_most`: at most) as much was reached as is asked."""
        return self.reached <= self.asked if self.at_most else self.reached >= self.asked


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All that one suite measured."""

    rows: list[BenchRow]
    claims: list[ModelClaim]
    sweeps: list[Sweep]


class Suite(Protocol):
    """Runs a benchmark. Deterministic but for times."""

    def __call__(self, *, seeds: int, progress: Callable[[float], None], **options: object) -> Result:
        """Run with that many seeds; progress(fraction) is called now and then. options: some suites have their own."""
        ...


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 99th percentile and mean."""
    return float(np.percentile(values, 50)), float(np.percentile(values, 99)), float(np.mean(values))
