"""What the core is told, and what a capture records of it: the same types (cosched/daemon/journal.py).

Time is no part of an event: whoever feeds the core hands a stamp with each, seconds on his monotonic clock.
"""

from __future__ import annotations

import msgspec

from cosched.core.layers import NodeLayers
from solvers.solution import Solution
from telemetry.messages import CellReport, NodeReport, TaskOffer, TaskTiming, UeReport, UeReportBatch


class Reported(msgspec.Struct, frozen=True):
    """UE reports that came one by one and are taken in together; implausible ones never get here."""

    reports: tuple[UeReport, ...]


class Offered(msgspec.Struct, frozen=True):
    """Tasks that arrive at one instant; they are decided together."""

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


class Progressed(msgspec.Struct, frozen=True):
    """Progress of all running tasks, at the start of a period."""

    tasks: tuple[Progress, ...]


class Finished(msgspec.Struct, frozen=True):
    """A task came to its end."""

    task: str
    reason: str = ""  # for whoever reads a capture


class Tick(msgspec.Struct, frozen=True):
    """The near-RT period is over: time to plan again."""


class Answered(msgspec.Struct, frozen=True):
    """A Solve command is answered, or was given up: as captures have it, for whoever verifies one solves again."""

    request: int
    failed: str = ""  # over its wall budget, or its process died; "": it has a solution


class Solved(Answered, frozen=True):
    """The same, as the core has it."""

    solution: Solution | None = None  # where it has failed


class Switched(msgspec.Struct, frozen=True):
    """From the next Solve on, plan by another policy."""

    policy: str


class Barred(msgspec.Struct, frozen=True):
    """From here on no task may be on these nodes and on no others: they are gone, or do not do what they are told."""

    nodes: tuple[str, ...]


class Placed(msgspec.Struct, frozen=True):
    """From here on nodes hold these layers, and points that need others are not open; of others nothing is known."""

    nodes: tuple[NodeLayers, ...]


class Shrunk(msgspec.Struct, frozen=True):
    """From here on nodes have so many bytes less than the site says, all others what it says."""

    short_bytes: dict[str, float]


Telemetry = Reported | UeReport | UeReportBatch | CellReport | NodeReport | TaskTiming
Event = Telemetry | Offered | Progressed | Finished | Tick | Solved | Switched | Barred | Placed | Shrunk
