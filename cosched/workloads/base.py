"""The contract between a kind of work and the planner.

A workload is a pure function `(offer, context) -> PointTable`: all complete ways to serve the task, in physical
units that do not depend on the channel's present state. The planner turns rows into solver columns each period.
The kinds there are: registry.py. How to add one: docs/workloads.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from cosched.profiles.calibration import PHASES, Calibration, Factors, name, of_owner
from cosched.profiles.device import Device, Host
from cosched.profiles.model import Model
from cosched.site import ModelRef, Site
from cosched.workloads.quality import QualityTable
from telemetry.messages import TaskOffer, TaskTiming

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LOCAL: Final = -1  # `node` of a point that the device serves alone


@dataclass(frozen=True, slots=True)
class PointTable:
    """J operating points of one task, Q = 2 phases (phase 0: TTFT or end to end; phase 1: TPOT, inf deadline if none).

    Quantities per phase are for ONE activation of the phase: the whole prefill, one decoded token, one frame. A node
    decodes in steps (docs/workloads.md): the work of a token there is in step_s, not in node_s.
    """

    point_ids: tuple[str, ...]  # (J,) e.g. "k=4/8bit/edge0", "local"
    split: Ints  # (J,) decoder layers on the device (llm); percent of C1 on the device (video)
    precision_bits: Ints  # (J,) of activations on the air, 0 = none sent
    node: Ints  # (J,) index into site.nodes, LOCAL = -1
    quality: Floats  # (J,) 0..1, multiplies the task's weight
    fixed_s: Floats  # (J, 2) device time, propagation, weight reads: what no share changes
    device_s: Floats  # (J, 2) the part of fixed_s before the uplink starts (device compute)
    ul_bits: Floats  # (J, 2)
    node_s: Floats  # (J, 2) seconds when the task holds all of the node, 0 for what it decodes in steps
    node_bytes: Floats  # (J,) KV cache and buffers on the node while the session lasts
    device_energy_j: Floats  # (J, 2) per activation, without the radio
    deadline_s: Floats  # (2,) D_q, inf where the phase does not exist
    rate_hz: Floats  # (2,) activations a second while the phase lasts, at the deadline's pace
    step_s: Floats | None = None  # (J, 2) of a node's step: what all in it share, what this sequence adds; None: 0
    device_bytes: Floats | None = None  # (J, 2) part of the device's memory: layers (once a model), KV cache; None: 0
    alone_s: Floats | None = None  # (J, 2) of the node, executing for this task alone; None: nothing is calibrated
    chunks: tuple[float, ...] = (1.0,)  # phase 0 goes through device, air and node in these parts, one after the other
    owners: tuple[str, ...] = ()  # whose times measurements correct: the device, then site.nodes ("edge0/llama-3-8b")
    guess: tuple[str, ...] = ()  # what in these numbers has no measurement behind it ("phone: prefill time")

    @property
    def n_points(self) -> int:
        """J."""
        return len(self.point_ids)

    @property
    def steps(self) -> Floats:
        """(J, 2) step_s, zeros where nothing decodes in steps."""
        return np.zeros((self.n_points, 2)) if self.step_s is None else self.step_s

    @property
    def device_use(self) -> Floats:
        """(J,) part of its device's time that a point takes, in the phase in which it takes more."""
        return np.asarray((self.device_s * self.rate_hz).max(axis=1), dtype=np.float64)

    @property
    def least_s(self) -> Floats:
        """(J, 2) seconds of an activation on the node, with all of it and nobody else in the step."""
        alone = self.node_s.copy()
        alone[:, 1] += self.steps.sum(axis=1)
        return alone


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that the site serves, with its layers and widths."""

    ref: ModelRef
    model: Model


@dataclass(frozen=True, slots=True)
class WorkloadContext:
    """What a workload may know besides the offer: the site, and where the asking UE is and what it has.

    Built by cosched/workloads/context.py; the workloads themselves read no file.
    """

    site: Site
    device: Device  # of the UE
    max_layers: int | None  # of a decoder that the UE may hold; None: as many as fit its memory
    cell_one_way_s: float  # of the UE's serving cell
    node_devices: tuple[Device, ...]  # in the order of site.nodes
    node_hosts: tuple[Host, ...]  # same
    models: Mapping[str, ServedModel]  # by ModelRef.id
    quality: QualityTable
    factors: Mapping[str, float] = field(default_factory=dict)  # corrections of profiled times, 1 where not named


def on_air(context: WorkloadContext, payload_bits: Floats, messages: int) -> Floats:
    """(J,) bits on the air of payloads in so many messages each, with what the transport adds; nothing is nothing."""
    transport = context.site.transport
    return payload_bits * (1 + transport.overhead) + (payload_bits > 0) * 8 * transport.message_bytes * messages


def pipelined_s(chunks: Sequence[float], stages_s: Sequence[float]) -> float:
    """Seconds for chunks (parts of a whole, in order) to pass all stages, each of which does one at a time.

    stages_s: what the whole takes in each stage. One chunk: their sum; many: about the longest of them.
    """
    free_s = [0.0] * len(stages_s)
    for part in chunks:
        at_s = 0.0
        for stage, whole_s in enumerate(stages_s):
            at_s = free_s[stage] = max(at_s, free_s[stage]) + part * whole_s
    return free_s[-1]


def learn(calibration: Calibration, table: PointTable, factors: Factors, timing: TaskTiming) -> None:
    """Hold what a session measured against the profile behind its table, which was made with `factors`.

    A point that the table does not have, or a kind of work that is not calibrated, teaches nothing.
    """
    if table.alone_s is None or timing.point not in table.point_ids:
        return
    j, used = table.point_ids.index(timing.point), dict(factors)
    sides = [(table.owners[0], table.device_s[j], (timing.device_prefill_s, timing.device_token_s))]
    if (node := int(table.node[j])) != LOCAL:
        sides.append((table.owners[1 + node], table.alone_s[j], (timing.node_prefill_s, timing.node_token_s)))
    for owner, planned_s, took_s in sides:
        for q, factor in enumerate(of_owner(used, owner)):
            calibration.measured(name(owner, PHASES[q]), took_s[q], float(planned_s[q]) / factor)


class Workload(Protocol):
    """A pure function: equal offers and contexts give equal tables, bit for bit."""

    def __call__(self, offer: TaskOffer, context: WorkloadContext) -> PointTable:
        """Return the points that can hold the offer's deadlines; none at all is an answer. Raises BadInput."""
        ...
