"""What a capture holds besides telemetry messages: the other events of the core, its plans, and where it began.

A capture is the journal of one core: `config` first, with the state that the core had then; every event in the order
in which it was handled, stamped with its instant (log time, ns; an event's `at_s` is that x 1e-9); after the events
that led to a plan its digest and its decisions. Enough to recompute every decision.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Final

import msgspec
import numpy as np

from cosched.core.commands import Plan
from cosched.core.events import Progress
from cosched.core.layers import NodeLayers
from cosched.core.snapshot import Snapshot
from telemetry.messages import CellReport, DecisionMessage, NodeReport, TaskOffer, TaskTiming, UeReport, UeReportBatch

VERSION: Final = 1
NS: Final = 1e-9


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the journal."""


class Config(Record, frozen=True, kw_only=True):
    """What the core was made of and knew when the file began."""

    v: int
    version: str  # of cosched
    profiles_sha256: str
    site_toml: str
    policy: str
    ue_devices: dict[str, str]
    core: dict[str, Any]  # cosched/core/settings.py
    snapshot: Snapshot


class Reports(Record, frozen=True, kw_only=True):
    """UE reports that came one by one and were taken in together."""

    reports: tuple[UeReport, ...]


class Offers(Record, frozen=True, kw_only=True):
    """Tasks offered at one instant."""

    offers: tuple[TaskOffer, ...]


class Progresses(Record, frozen=True, kw_only=True):
    """Progress of running tasks."""

    tasks: tuple[Progress, ...]


class Finish(Record, frozen=True, kw_only=True):
    """A task's end, and why."""

    task: str
    reason: str


class Tick(Record, frozen=True, kw_only=True):
    """A near-RT period was over."""


class Answer(Record, frozen=True, kw_only=True):
    """A solve came back, or was given up."""

    request: int
    failed: str = ""  # why


class Switch(Record, frozen=True, kw_only=True):
    """Another policy from here on."""

    policy: str


class Barred(Record, frozen=True, kw_only=True):
    """Nodes that no task may be on from here on."""

    nodes: tuple[str, ...]


class Placed(Record, frozen=True, kw_only=True):
    """Layers that nodes hold from here on."""

    nodes: tuple[NodeLayers, ...]


class Shrunk(Record, frozen=True, kw_only=True):
    """Memory that nodes lack, from here on, of what the site says."""

    short_bytes: dict[str, float]


class PlanMade(Record, frozen=True, kw_only=True):
    """A plan went into force."""

    generation: int
    sha256: str
    tasks: int
    value: float
    bound: float


TOPICS: Final[dict[str, type[msgspec.Struct]]] = {
    "config": Config,
    "ran.ue": Reports,
    "ran.ue.batch": UeReportBatch,
    "ran.cell": CellReport,
    "compute.node": NodeReport,
    "task.timing": TaskTiming,
    "offered": Offers,
    "progressed": Progresses,
    "finished": Finish,
    "tick": Tick,
    "solved": Answer,
    "switched": Switch,
    "barred": Barred,
    "placed": Placed,
    "shrunk": Shrunk,
    "plan": PlanMade,
    "decision": DecisionMessage,
}


def plan_sha256(plan: Plan) -> str:
    """Digest of everything that a plan decides, bit for bit. What it counts for each task follows from that.

    Nor are cells in it, which captures of before have not: `prbs` are of them.
    """
    digest = hashlib.sha256()
    for part in dataclasses.fields(plan):
        if part.name in {"reserved", "cell"}:
            continue
        value = getattr(plan, part.name)
        if isinstance(value, np.ndarray):
            digest.update(f"{part.name} {value.dtype.str} {value.shape}".encode() + value.tobytes())
        elif part.name != "decisions":  # which are recorded one by one
            digest.update(f"{part.name} {value!r}".encode())
    return digest.hexdigest()


def plan_made(plan: Plan) -> PlanMade:
    """Return the record of a plan."""
    return PlanMade(
        generation=plan.generation,
        sha256=plan_sha256(plan),
        tasks=len(plan.tasks),
        value=float(plan.value),
        bound=float(plan.bound),
    )
