"""How long work takes with a share: in proportion, or slower where a device's transmit power limits an uplink."""

from __future__ import annotations

import numpy as np

from solvers.problem import Floats


def seconds(work_s: Floats, snr: Floats, share: Floats) -> Floats:
    """Seconds that work (seconds at full share) takes with a share; arrays of one shape, snr inf: work / share."""
    limited = np.isfinite(snr)
    s = np.where(limited, snr, 1.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        slow = work_s * np.log1p(s) / (share * np.log1p(s / share))
        return np.asarray(np.where(work_s > 0, np.where(limited, slow, work_s / share), 0.0), dtype=np.float64)
