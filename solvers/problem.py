"""The columnar problem that every solver reads.

One row per operating point, points grouped by task (CSR). A point touches at most S resources; its columns
have S *slots*, and `slot[j, s]` says which resource a slot stands for (R = padding: no resource).

For point j with shares x[s] of the resources in its slots, latency of phase q is `sum_s work[j,q,s] / x[s]` and
must not exceed `slack[j,q]`; `floor <= x <= cap`; its use of resource r counts `activity * x + rigid`, and each
coupling (a -> b, kappa) adds `kappa * activity * x` of its use of a to its use of b. The use of all chosen
points plus `background` stays within 1 on every resource. See docs/model.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

PHASES: Final = 2  # end to end, or (TTFT, TPOT); docs/model.md, section 2, has closed forms for both
KINDS: Final = ("comm", "compute", "memory", "other")
NEVER: Final = math.inf  # length and period of steps where nobody decodes: no weights are read


@dataclass(frozen=True, slots=True)
class Steps:
    """Resources that serve in steps, and what of each point depends on how long and how often these are.

    solvers/steps.py says what is made of it. Where nothing is decoded, shared_s is 0.
    """

    slot: Ints  # (J,) slot of the resource that serves the point in steps, -1 = none does
    shared_s: Floats  # (J,) of a step, before any sequence: reading the layers that the point needs
    own_s: Floats  # (J,) what its sequence adds to a step that it is in
    pace_s: Floats  # (J,) longest time from one of its tokens to the next
    streams: Bools  # (J,) whether the next token waits for nothing but the next step
    demand: Floats  # (J,) part of the resource that its own parts of steps take: a rigid demand
    wait: Floats  # (J, Q) lengths of a step by which slack is less
    group: Ints  # (J,) from 0: points of one group (a model) share what they need, the greatest serves all
    weight: Floats  # (N,) of tasks as they came
    queued: Bools  # (J,) whether its first phase's work there waits for what is due before (solvers/queues.py)
    lead_s: Floats  # (N,) seconds until a task's next token is due, inf where it decodes nothing yet


@dataclass(frozen=True, slots=True)
class Devices:
    """Processors of UEs, each for its own UE's tasks alone. Slacks allow for these already; the check needs them."""

    ue: Ints  # (N,) whose each task is
    use: Floats  # (J,) part of that UE's device that a point takes


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
    devices: Devices | None = None
    steps: Steps | None = None  # where resources serve in steps, which are decided with the rest

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
