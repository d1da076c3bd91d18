"""The columnar problem that every solver reads.

One row per operating point, points grouped by task (CSR). A point touches at most S resources; its columns
have S *slots*, and `slot[j, s]` says which resource a slot stands for (R = padding: no resource).

For point j with shares x[s] of the resources in its slots, latency of phase q is `sum_s work[j,q,s] / x[s]` and
must not exceed `slack[j,q]`; `floor <= x <= cap`; its use of resource r counts `activity * x + rigid`, and each
coupling (a -> b, kappa) adds `kappa * activity * x` of its use of a to its use of b. The use of all chosen
points plus `background` stays within 1 on every resource. See docs/model.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PHASES: Final = 2  # end to end, or (TTFT, TPOT); docs/model.md, section 2, has closed forms for both
KINDS: Final = ("comm", "compute", "memory", "other")


@dataclass(frozen=True, slots=True)
class Problem:
    """One instant's joint scheduling problem. R resources, N tasks, J points, S slots, Q = 2 phases.

    All times in seconds, shares and utilisations as fractions of a resource.
    """

    resource_ids: tuple[str, ...]
    kinds: tuple[str, ...]  # (R,) one of KINDS: only decoupled baselines look at it
    background: Floats  # (R,) part of the resource already taken
    coupling_from: Ints  # (C,)
    coupling_to: Ints  # (C,)
    coupling_per_share: Floats  # (C,)
    task_ids: tuple[str, ...]  # (N,)
    first: Ints  # (N + 1,) points of task i are first[i] .. first[i + 1] - 1
    point_ids: tuple[str, ...]  # (J,)
    value: Floats  # (J,)
    slack: Floats  # (J, Q) inf where the phase does not exist
    slot: Ints  # (J, S) resource of each slot, R = padding
    work: Floats  # (J, Q, S) seconds at full share
    floor: Floats  # (J, S) least share (queue stability: mean use)
    cap: Floats  # (J, S) greatest share (1 where there is none)
    activity: Floats  # (J, S) what a share counts for
    rigid: Floats  # (J, S) fixed fraction taken
    held: Ints  # (N,) point (global index) that the task holds now, -1 = it is new
    order: Ints  # (N,) rank of arrival, for first-come-first-served policies
    channel: Floats  # (N,) spectral efficiency (bit/s/Hz), nan = unknown: only decoupled baselines look at it

    @property
    def n_resources(self) -> int:
        """R."""
        return len(self.resource_ids)

    @property
    def n_tasks(self) -> int:
        """N."""
        return len(self.task_ids)

    @property
    def n_points(self) -> int:
        """J."""
        return len(self.point_ids)
