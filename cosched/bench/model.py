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


class CapacityRow(msgspec.Struct, frozen=True, kw_only=True):
    """Greatest load at which 95 % of some tasks hold their deadlines, and what is met there a second."""

    site: str
    policy: str
    of: str  # "offered", "feasible alone", "admitted"
    limit: str  # "": `load` it is; "<": not even at `load`, the least that was tried; ">": at the greatest as well
    load: float
    met_per_s: float
    tokens_per_s: float  # of the sessions that were met


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """What of a suite is to be run; what is empty or 0 is the suite's own choice."""

    sites: tuple[str, ...] = ()
    loads: tuple[float, ...] = ()
    mix: str = ""
    batch: float = 0.0
    clairvoyant: bool = False


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All that one suite measured."""

    rows: list[BenchRow]
    claims: list[ModelClaim]
    sweeps: list[Sweep]
    capacities: list[CapacityRow] = []


class Suite(Protocol):
    """Runs a benchmark. Deterministic but for times."""

    def __call__(self, *, seeds: int, progress: Callable[[float], None]) -> Result:
        """Run with that many seeds; progress(fraction) is called now and then."""
        ...


class ScopedSuite(Protocol):
    """A suite of which a part can be run."""

    def __call__(self, *, seeds: int, progress: Callable[[float], None], scope: Scope = ...) -> Result:
        """As any suite's. Raises BadInput where the scope names what there is not."""
        ...


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 99th percentile and mean."""
    return float(np.percentile(values, 50)), float(np.percentile(values, 99)), float(np.mean(values))
