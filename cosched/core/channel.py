"""Channel estimates: running mean and spread of each UE's uplink efficiency; idle is "no sample", not "bad"."""

from __future__ import annotations

import numpy as np

from cosched.core.settings import Settings
from cosched.workloads.base import Floats


class ChannelEstimates:
    """Exponentially weighted mean and variance per UE (bit/s/Hz), widened while a UE is idle."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._index: dict[str, int] = {}
        self._mean = np.zeros(0)
        self._variance = np.zeros(0)
        self._at_s = np.zeros(0)

    def update(self, ue: str, at_s: float, efficiency_bps_hz: float) -> None:
        """Take one valid sample."""
        i = self._index.get(ue)
        if i is None:
            self._index[ue] = len(self._index)
            self._mean = np.append(self._mean, efficiency_bps_hz)
            self._variance = np.append(self._variance, 0.0)
            self._at_s = np.append(self._at_s, at_s)
            return
        weight = self._settings.ewma
        step = efficiency_bps_hz - self._mean[i]
        self._mean[i] += weight * step
        self._variance[i] = (1 - weight) * (self._variance[i] + weight * step * step)
        self._at_s[i] = at_s

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
