"""Channel estimates: running mean and spread of each UE's uplink efficiency; idle is "no sample", not "bad"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cosched.core.settings import Settings
from cosched.errors import hold
from cosched.workloads.base import Floats


class ChannelRow(NamedTuple):
    """One UE's estimate: mean and variance of its uplink efficiency (bit/s/Hz), instant of its last valid sample."""

    ue: str
    mean_bps_hz: float
    variance: float
    at_s: float


class ChannelEstimates:
    """Exponentially weighted mean and variance per UE (bit/s/Hz), widened while a UE is idle."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._index: dict[str, int] = {}
        self._free: list[int] = []  # rows of nobody; a row stays its UE's as long as that is known
        self._mean = np.zeros(0)
        self._variance = np.zeros(0)
        self._at_s = np.zeros(0)

    def __len__(self) -> int:
        return len(self._index)

    def update(self, ue: str, at_s: float, efficiency_bps_hz: float) -> None:
        """Take one valid sample."""
        i = self._index.get(ue)
        if i is None:
            i = self._index[ue] = self._new_row()
            self._mean[i], self._variance[i], self._at_s[i] = efficiency_bps_hz, 0.0, at_s
            return
        weight = self._settings.ewma
        step = efficiency_bps_hz - self._mean[i]
        self._mean[i] += weight * step
        self._variance[i] = (1 - weight) * (self._variance[i] + weight * step * step)
        self._at_s[i] = at_s

    def _new_row(self) -> int:
        if not self._free:
            n = len(self._mean)
            more = np.zeros(max(16, n))
            self._mean, self._variance, self._at_s = (
                np.concatenate([column, more]) for column in (self._mean, self._variance, self._at_s)
            )
            self._free = list(range(n + len(more) - 1, n - 1, -1))
        return self._free.pop()

    def forget(self, ue: str) -> None:
        """Let a UE go; its row is the next newcomer's."""
        row = self._index.pop(ue, None)
        if row is not None:
            self._free.append(row)

    def update_many(self, ues: Sequence[str], at_s: float, efficiency_bps_hz: Floats) -> None:
        """Take samples (n,) of n different UEs; equal to n single updates, bit for bit."""
        known = np.array([self._index.get(ue, -1) for ue in ues], dtype=np.int64)
        if (known < 0).any():
            for ue, value in zip(ues, efficiency_bps_hz.tolist(), strict=True):
                self.update(ue, at_s, value)
            return
        weight = self._settings.ewma
        step = efficiency_bps_hz - self._mean[known]
        self._mean[known] += weight * step
        self._variance[known] = (1 - weight) * (self._variance[known] + weight * step * step)
        self._at_s[known] = at_s

    def index(self, ue: str) -> int:
        """Row of the UE, -1 if it never had a valid sample."""
        return self._index.get(ue, -1)

    def age_s(self, row: int, now_s: float) -> float:
        """Age of the UE's last valid sample."""
        return float(now_s - self._at_s[row])

    def planned(self, now_s: float, risk_sd: float) -> Floats:
        """Efficiency to plan with, per row (U,): mean - risk_sd x sd, the sd growing with the sample's age."""
        s = self._settings
        idle = np.minimum(s.idle_sd_per_s * np.maximum(now_s - self._at_s - 1.0, 0.0), s.idle_sd_max)
        sd = np.sqrt(self._variance + np.square(self._mean * idle))
        # a quarter of the mean is the floor: a burst of bad samples must not price a UE out of reach
        return np.maximum(self._mean - risk_sd * sd, 0.25 * self._mean)

    def rows(self) -> tuple[ChannelRow, ...]:
        """All estimates, in the order in which UEs were first heard."""
        which = np.array(list(self._index.values()), dtype=np.int64)
        columns = (self._mean[which].tolist(), self._variance[which].tolist(), self._at_s[which].tolist())
        return tuple(ChannelRow(*row) for row in zip(self._index, *columns, strict=True))

    def row(self, ue: str) -> ChannelRow:
        """One UE's estimate. Raises KeyError for one that never had a valid sample."""
        i = self._index[ue]
        return ChannelRow(ue, float(self._mean[i]), float(self._variance[i]), float(self._at_s[i]))

    def restore(self, rows: Sequence[ChannelRow]) -> None:
        """Take over estimates that `rows` returned."""
        self._index = {row.ue: i for i, row in enumerate(rows)}
        self._free = []
        self._mean = np.array([row.mean_bps_hz for row in rows])
        self._variance = np.array([row.variance for row in rows])
        self._at_s = np.array([row.at_s for row in rows])

    def validate(self) -> None:
        """Hold the rows against who has them. Raises Broken."""
        rows = list(self._index.values())
        hold(sorted((*rows, *self._free)) == list(range(len(self._mean))), "rows of the channel are shared or lost")
        hold(len(self._mean) == len(self._variance) == len(self._at_s), "columns of the channel are of unequal length")
        mean, variance, at_s = self._mean[rows], self._variance[rows], self._at_s[rows]
        hold((np.isfinite(mean) & (mean >= 0)).all(), "a mean efficiency is no number from 0 on:", mean)
        hold((np.isfinite(variance) & (variance >= 0)).all(), "a variance of the channel is no number:", variance)
        hold(np.isfinite(at_s).all(), "a sample of the channel has no instant:", at_s)
