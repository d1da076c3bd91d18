"""What the core is told. Time arrives as a stamp (seconds on the feeder's monotonic clock) on every event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from cosched.core.layers import NodeLayers
from cosched.core.policy import Policy
from solvers.solution import Solution
from telemetry.messages import CellReport, NodeReport, TaskOffer, TaskTiming, UeReport, UeReportBatch


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A plausible report, or UE reports that came together; implausible ones never get here (telemetry/quality.py)."""

    at_s: float
    report: tuple[UeReport, ...] | UeReport | UeReportBatch | CellReport | NodeReport | TaskTiming


@dataclass(frozen=True, slots=True)
class Offered:
    """Tasks that arrive at one instant; they are decided together."""

    at_s: float
    offers: tuple[TaskOffer, ...]


class Progress(msgspec.Struct, frozen=True):
    """How far a running task is, as its runtime reports it."""

    task: str
    phase: int  # 0: the first token is still to come (or: video); 1: decoding
    done: int  # tokens out, or frames in time
    late: int  # frames that missed their deadline
    first_s: float  # instant of the first token (meaningless in phase 0)
    last_s: float  # instant of the latest token
    ul_bits_left: float  # of the prefill (phase 0 only)
    node_s_left: float
    fixed_s_left: float


@dataclass(frozen=True, slots=True)
class Progressed:
    """Progress of all running tasks, at the start of a period."""

    at_s: float
    tasks: tuple[Progress, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """A task came to its end."""

    at_s: float
    task: str


@dataclass(frozen=True, slots=True)
class Tick:
    """The near-RT period is over: time to plan again."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Solved:
    """The answer to a Solve command."""

    at_s: float
    request: int
    solution: Solution


@dataclass(frozen=True, slots=True)
class SolveFailed:
    """A Solve command was given up: over its wall budget, or its process died."""

    at_s: float
    request: int


@dataclass(frozen=True, slots=True)
class Switched:
    """From the next Solve on, plan by another policy."""

    at_s: float
    policy: Policy


@dataclass(frozen=True, slots=True)
class Barred:
    """From here on no task may be on these nodes and on no others: they are gone, or do not do what they are told."""

    at_s: float
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """From here on nodes hold these layers, and points that need others are not open; of others nothing is known."""

    at_s: float
    nodes: tuple[NodeLayers, ...]


@dataclass(frozen=True, slots=True)
class Shrunk:
    """From here on nodes have so many bytes less than the site says, all others what it says."""

    at_s: float
    short_bytes: Mapping[str, float]


Event = Telemetry | Offered | Progressed | Finished | Tick | Solved | SolveFailed | Switched | Barred | Placed | Shrunk
