"""A plan's decisions as consumers see them, and what a plan has for each task (docs/control-api.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy.typing as npt

from cosched.core.commands import Decision, Plan
from cosched.site import Site
from cosched.workloads.base import pipelined_s
from telemetry.messages import DecisionMessage, Reserved

S_NS = 1_000_000_000


def decision_message(site: Site, plan: Plan, decision: Decision, row: int | None) -> DecisionMessage:
    """A decision for consumers (docs/control-api.md). row: the task's in the plan, None when it holds no lease."""
    table, point = decision.table, decision.point
    node = int(table.node[point]) if point >= 0 else -1
    holds = row is not None and point >= 0
    at_ns = round(plan.at_s * S_NS)
    granted = Granted(valid_until_ns=at_ns)
    if row is not None and holds:
        granted = grant(needs_of(site, decision), row_of(plan, row), plan.valid_until_s)
    return DecisionMessage(
        at_ns=at_ns,
        source="cosched",
        seq=plan.generation,
        task=decision.task,
        plan=plan.generation,
        reason=decision.reason,
        point=table.point_ids[point] if point >= 0 else "",
        split_layer=int(table.split[point]) if point >= 0 else -1,
        precision_bits=int(table.precision_bits[point]) if point >= 0 else 0,
        cell=site.cells[decision.cell].id if decision.cell >= 0 else "",
        node=site.nodes[node].id if node >= 0 else "",
        input_age_ms=1e3 * decision.input_age_s,
        efficiency_bps_hz=decision.efficiency_bps_hz,
        binding_resource=decision.binding,
        guess=table.guess if point >= 0 else (),
        **granted._asdict(),
    )


class Granted(NamedTuple):
    """What of a decision is another with every plan."""

    bandwidth_hz: float = 0.0
    weight_prb: float = 0.0
    weight_node: float = 0.0
    pace_s: float = 0.0
    step_s: float = 0.0
    priority: int = 0
    reserved: Reserved = Reserved()
    predicted_s: tuple[float | None, ...] = ()
    slack_s: tuple[float | None, ...] = ()
    valid_until_ns: int = 0


class PlanRow(NamedTuple):
    """What a plan has for one task, as numbers of Python: a live plan's rows are read thousands of times a second."""

    prbs: float
    share: list[float]  # of cell uplink, node, node memory
    node_weight: float
    reserved: list[float]  # same as share
    efficiency_bps_hz: float
    promised: bool
    cell: int
    wait_s: list[float]  # of each phase, for steps of the node
    pace_s: float  # a token, 0 = none is decoded on a node
    step_s: float  # of its node, 0 = nobody decodes there


def row_of(plan: Plan, row: int) -> PlanRow:
    """One row of a plan."""
    return PlanRow(*(column[row].tolist() for column in _columns(plan)))


def rows_of(plan: Plan) -> Iterator[PlanRow]:
    """All rows of a plan, in its order."""
    return map(PlanRow._make, zip(*(column.tolist() for column in _columns(plan)), strict=True))


def _columns(plan: Plan) -> tuple[npt.NDArray[Any], ...]:
    columns = plan.prbs, plan.share, plan.node_weight, plan.reserved, plan.efficiency, plan.promised
    return *columns, plan.cell, plan.wait_s, plan.pace_s, plan.longest_step_s


class Phase(NamedTuple):
    """One activation of a phase that has a deadline, at a point."""

    deadline_s: float
    fixed_s: float
    ul_bits: float
    node_s: float


class Needs(NamedTuple):
    """What a task needs at the point that it holds: the same from plan to plan."""

    ul_bandwidth_hz: float  # of the cell
    ul_prbs: float
    is_on_node: bool
    phases: tuple[Phase, ...]
    chunks: tuple[float, ...]  # that phase 0 goes through device, air and node in
    device_s: float  # of phase 0


def needs_of(site: Site, decision: Decision) -> Needs:
    """Return what a task needs at the point of its decision."""
    table, point, cell = decision.table, decision.point, site.cells[decision.cell]
    columns = table.deadline_s, table.fixed_s[point], table.ul_bits[point], table.node_s[point]
    phases = (Phase(*values) for values in zip(*(c.tolist() for c in columns), strict=True))
    return Needs(
        ul_bandwidth_hz=cell.ul_bandwidth_hz,
        ul_prbs=cell.ul_prbs,
        is_on_node=bool(table.node[point] >= 0),
        phases=tuple(p for p in phases if p.deadline_s < math.inf),
        chunks=table.chunks,
        device_s=float(table.device_s[point, 0]),
    )


def grant(needs: Needs, row: PlanRow, valid_until_s: float) -> Granted:
    """What the plan's row has for a task that holds a point."""
    predicted = predicted_s(needs, row)
    return Granted(
        bandwidth_hz=row.prbs * needs.ul_bandwidth_hz / needs.ul_prbs,
        weight_prb=row.prbs,
        weight_node=row.node_weight if needs.is_on_node else 0.0,
        pace_s=row.pace_s if needs.is_on_node else 0.0,
        step_s=row.step_s if needs.is_on_node else 0.0,
        priority=0 if row.promised else 1,
        reserved=Reserved(*row.reserved),
        predicted_s=tuple([_finite(p) for p in predicted]),
        slack_s=tuple([_finite(q.deadline_s - p) for q, p in zip(needs.phases, predicted, strict=True)]),
        valid_until_ns=round(valid_until_s * S_NS),
    )


def predicted_s(needs: Needs, row: PlanRow) -> list[float]:
    """Latency of each phase that has a deadline, at the shares of the plan and the efficiency planned with."""
    bps = row.prbs / needs.ul_prbs * needs.ul_bandwidth_hz * row.efficiency_bps_hz
    share = row.share[1]
    phases = zip(needs.phases, row.wait_s, strict=False)  # a clip has one
    whole = [q.fixed_s + _time(q.ul_bits, bps) + _time(q.node_s, share) + wait_s for q, wait_s in phases]
    if len(needs.chunks) > 1 and math.isfinite(whole[0]):
        first = needs.phases[0]
        stages_s = needs.device_s, _time(first.ul_bits, bps), _time(first.node_s, share)
        whole[0] -= sum(stages_s) - pipelined_s(needs.chunks, stages_s)
    return whole


def _finite(seconds: float) -> float | None:
    """JSON has no infinity."""
    return seconds if math.isfinite(seconds) else None


def _time(work: float, rate: float) -> float:
    """Seconds that work takes; without a share it never ends."""
    if work <= 0:
        return 0.0
    return work / rate if rate > 0 else float("inf")
