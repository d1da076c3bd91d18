"""What a capture holds besides telemetry messages: the other events of the core, its plans, and where it began.

A capture is the journal of one core: `config` first, with the state that the core had then; every event in the order
in which it was handled, as the core has it, stamped with its instant (log time, ns; the core's `at_s` is that x 1e-9);
after the events that led to a plan its digest and its decisions. Enough to recompute every decision.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Final

import msgspec
import numpy as np

from cosched.core import events
from cosched.core.commands import Plan
from cosched.core.snapshot import Snapshot
from telemetry.messages import CellReport, DecisionMessage, NodeReport, TaskTiming, UeReportBatch

VERSION: Final = 1
NS: Final = 1e-9


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What the core was made of and knew when the file began."""

    v: int
    version: str  # of cosched
    profiles_sha256: str
    site_toml: str
    policy: str
    ue_devices: dict[str, str]
    core: dict[str, Any]  # cosched/core/settings.py
    snapshot: Snapshot


class PlanMade(msgspec.Struct, frozen=True, kw_only=True):
    """A plan went into force."""

    generation: int
    sha256: str
    tasks: int
    value: float
    bound: float


TOPICS: Final[dict[str, type[msgspec.Struct]]] = {
    "config": Config,
    "ran.ue": events.Reported,
    "ran.ue.batch": UeReportBatch,
    "ran.cell": CellReport,
    "compute.node": NodeReport,
    "task.timing": TaskTiming,
    "offered": events.Offered,
    "progressed": events.Progressed,
    "finished": events.Finished,
    "tick": events.Tick,
    "solved": events.Answered,
    "switched": events.Switched,
    "barred": events.Barred,
    "placed": events.Placed,
    "shrunk": events.Shrunk,
    "plan": PlanMade,
    "decision": DecisionMessage,
}
TOPIC_OF: Final = {kind: topic for topic, kind in TOPICS.items()}


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
