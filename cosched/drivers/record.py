"""A replay as a recording: the trace's messages with one policy's decisions between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from cosched.core.commands import Decision, Plan
from cosched.core.policy import Policy
from cosched.core.settings import Settings
from cosched.drivers.replay import Replayer, Workbook
from cosched.site import Site
from cosched.workloads.base import pipelined_s
from telemetry.messages import DecisionMessage, Message, Reserved

S_NS = 1_000_000_000


def recorded(messages: Sequence[Message], book: Workbook, policy: Policy, settings: Settings) -> list[Message]:
    """Replay and return all messages with a `decision` wherever a task was admitted, moved, refused or let go."""
    decisions: list[Message] = []

    def keep(plan: Plan) -> None:
        rows = {name: i for i, name in enumerate(plan.tasks)}
        decisions.extend(decision_message(book.site, plan, d, rows.get(d.task)) for d in plan.decisions)

    Replayer(book, policy, settings, watch=keep).run()
    return [*messages, *decisions]


def decision_message(site: Site, plan: Plan, decision: Decision, row: int | None) -> DecisionMessage:
    """A decision for consumers (docs/control-api.md). row: the task's in the plan, None when it holds no lease."""
    table, point = decision.table, decision.point
    node = int(table.node[point]) if point >= 0 else -1
    holds = row is not None and point >= 0
    at_ns = round(plan.at_s * S_NS)
    granted = Granted(valid_until_ns=at_ns) if row is None or not holds else grant(site, plan, decision, row)
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
    reserved: Reserved = Reserved()
    predicted_s: tuple[float | None, ...] = ()
    slack_s: tuple[float | None, ...] = ()
    valid_until_ns: int = 0


def grant(site: Site, plan: Plan, decision: Decision, row: int) -> Granted:
    """What the plan's row has for a task that holds a point."""
    cell, prbs = site.cells[decision.cell], float(plan.prbs[row])
    predicted = predicted_s(site, plan, decision, row)
    deadlines_s = decision.table.deadline_s.tolist()
    return Granted(
        bandwidth_hz=prbs * cell.ul_bandwidth_hz / cell.ul_prbs,
        weight_prb=prbs,
        weight_node=float(plan.node_weight[row]) if decision.table.node[decision.point] >= 0 else 0.0,
        reserved=Reserved(*plan.reserved[row].tolist()),
        predicted_s=tuple(map(_finite, predicted)),
        slack_s=tuple(_finite(d - p) for d, p in zip(deadlines_s, predicted, strict=False)),
        valid_until_ns=round(plan.valid_until_s * S_NS),
    )


def predicted_s(site: Site, plan: Plan, decision: Decision, row: int) -> tuple[float, ...]:
    """Latency of each phase that has a deadline, at the shares of the plan and the efficiency planned with."""
    table, point, cell = decision.table, decision.point, site.cells[decision.cell]
    rate = float(plan.prbs[row]) / cell.ul_prbs * cell.ul_bandwidth_hz * float(plan.efficiency[row])
    share = float(plan.share[row, 1])
    air = [_time(b, rate) for b in table.ul_bits[point].tolist()]
    node = [_time(s, share) for s in table.node_s[point].tolist()]
    phases = [q for q, d in enumerate(table.deadline_s.tolist()) if d < float("inf")]
    whole = [float(table.fixed_s[point, q]) + air[q] + node[q] for q in phases]
    if len(table.chunks) > 1 and math.isfinite(whole[0]):
        stages_s = (float(table.device_s[point, 0]), air[0], node[0])
        whole[0] -= sum(stages_s) - pipelined_s(table.chunks, stages_s)
    return tuple(whole)


def _finite(seconds: float) -> float | None:
    """JSON has no infinity."""
    return seconds if math.isfinite(seconds) else None


def _time(work: float, rate: float) -> float:
    """Seconds that work takes; without a share it never ends."""
    if work <= 0:
        return 0.0
    return work / rate if rate > 0 else float("inf")
