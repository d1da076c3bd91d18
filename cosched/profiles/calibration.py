"""Profiles corrected by what running sessions measure: a factor for each device or node, model and phase.

A factor is the median of the last ratios of measured to profiled time. It is bounded, waits for a few measurements,
and changes only by steps worth a change, so that one odd session moves nothing. Order statistics only: equal
measurements give equal factors, bit for bit, on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from cosched.errors import hold

PREFILL: Final = "prefill"
DECODE: Final = "decode"
PHASES: Final = (PREFILL, DECODE)
WINDOW: Final = 31  # latest measurements that a factor is the median of
LEAST: Final = 5  # measurements before a factor leaves 1
STEP: Final = 1.03  # a factor that would change by less stays
DRIFT: Final = 1.5  # so far off its profile, either way, a time is somebody's business

Factors = tuple[tuple[str, float], ...]
"""(name, factor) sorted by name; what is not named has factor 1."""


def name(owner: str, phase: str) -> str:
    """Name of a factor; `owner`: "phone/llama-3-8b", "edge0/llama-3-8b"."""
    return f"{owner}/{phase}"


def of_owner(factors: Mapping[str, float], owner: str) -> tuple[float, float]:
    """Factors of prefill and decode."""
    return factors.get(name(owner, PREFILL), 1.0), factors.get(name(owner, DECODE), 1.0)


class CalibrationRow(msgspec.Struct, frozen=True, kw_only=True):
    """One factor with the measurements behind it, oldest first."""

    name: str
    factor: float
    ratios: tuple[float, ...]


class Calibration:
    """The factors in force. `most`: none is greater, or smaller than its inverse; at 1 nothing is corrected."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._ratios: dict[str, tuple[float, ...]] = {}
        self._factors: dict[str, float] = {}
        self.factors: Factors = ()

    def measured(self, factor: str, measured_s: float | None, profile_s: float) -> None:
        """Take in how long something took that the profile, uncorrected, says takes `profile_s`."""
        if measured_s is None or measured_s <= 0 or profile_s <= 0:
            return
        ratios = (*self._ratios.get(factor, ()), measured_s / profile_s)[-WINDOW:]
        self._ratios[factor] = ratios
        if len(ratios) < LEAST:
            return
        median = self._bounded(sorted(ratios)[len(ratios) // 2])
        if not 1 / STEP <= median / self._factors.get(factor, 1.0) <= STEP:
            self._factors[factor] = median
            self.factors = tuple(sorted(self._factors.items()))

    def _bounded(self, factor: float) -> float:
        return min(self._most, max(1 / self._most, factor))

    @property
    def drifted(self) -> tuple[str, ...]:
        """What takes much longer, or shorter, than its profile says; one line each."""
        return tuple(f"{n} takes {f:.2g} x its profile" for n, f in self.factors if not 1 / DRIFT <= f <= DRIFT)

    def rows(self) -> tuple[CalibrationRow, ...]:
        """All that is known, in the order of names."""
        return tuple(
            CalibrationRow(name=n, factor=self._factors.get(n, 1.0), ratios=r) for n, r in sorted(self._ratios.items())
        )

    def restore(self, rows: Sequence[CalibrationRow]) -> None:
        """Become what `rows` say, within these bounds: another configuration may have allowed more."""
        self._ratios = {row.name: row.ratios for row in rows}
        factors = ((row.name, self._bounded(row.factor)) for row in rows)
        self._factors = {n: factor for n, factor in factors if factor != 1.0}
        self.factors = tuple(sorted(self._factors.items()))

    def validate(self) -> None:
        """Hold the factors against their measurements. Raises Broken."""
        hold(self.factors == tuple(sorted(self._factors.items())), "the factors in force are not those worked out")
        hold(self._factors.keys() <= self._ratios.keys(), "a factor without a measurement:", sorted(self._factors))
        for owner, ratios in self._ratios.items():
            hold(0 < len(ratios) <= WINDOW, "of", owner, "so many measurements are kept:", len(ratios))
            hold(all(0 < r < math.inf for r in ratios), "a measurement of", owner, "is no number above 0:", ratios)
        for owner, factor in self._factors.items():
            hold(self._bounded(factor) == factor, "the factor of", owner, "is", factor, "of at most", self._most)


def about(factors: Factors, owners: Iterable[str]) -> dict[str, float]:
    """Factors of these owners, for people."""
    of = dict(factors)
    return {n: of[n] for owner in owners for phase in PHASES if (n := name(owner, phase)) in of}
