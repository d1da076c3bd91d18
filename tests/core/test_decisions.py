"""What consumers are told of a plan: by hand, against the table of the task and the row of the plan."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from core_cases import answer, report
from two_nodes import TWO, offer

from cosched.core.commands import Decision, Plan
from cosched.core.core import EMPTY
from cosched.core.decisions import (
    Needs,
    Phase,
    PlanRow,
    decision_message,
    grant,
    needs_of,
    predicted_s,
    row_of,
    rows_of,
)
from cosched.core.events import Offered
from cosched.core.settings import Settings
from cosched.workloads.base import pipelined_s
from telemetry.messages import Reserved

SITE = TWO.site
CELL = SITE.cells[0]


@pytest.fixture(scope="module")
def plan() -> Plan:
    core = TWO.core("joint", Settings())
    for ue in ("ue00", "ue01"):
        core.handle(msgspec.structs.replace(report(ue, 0.0, 4.0), cell="cell0"), 0.0)
    offers = offer("t0", 0.1), msgspec.structs.replace(offer("t1", 0.1), ue="ue01")
    (made,) = answer(core, core.handle(Offered(offers), 0.1), 0.1)
    assert made.tasks == ("t0", "t1")
    return made


def needs(**changes: object) -> Needs:
    """273 PRBs of 100 MHz; one phase: 1 s, 0.1 s of it fixed, 10 Mbit on the air, 0.2 s of the node."""
    one = Needs(100e6, 273.0, True, (Phase(1.0, 0.1, 1e7, 0.2),), (1.0,), 0.05)
    return one._replace(**changes)


def row(**changes: object) -> PlanRow:
    """A tenth of the cell, half of the node, 4 bit/s/Hz, a token every 0.1 s in steps of 30 ms, no waits."""
    one = PlanRow(27.3, [0.1, 0.5, 0.01], 0.7, [0.05, 0.25, 0.01], 4.0, True, 0, [0.0, 0.0], 0.1, 0.03)
    return one._replace(**changes)


AIR_S = 1e7 / (0.1 * 100e6 * 4.0)  # 0.25
NODE_S = 0.2 / 0.5


def test_a_phase_takes_what_is_fixed_and_its_work_at_the_shares():
    assert predicted_s(needs(), row()) == pytest.approx([0.1 + AIR_S + NODE_S])
    two = needs(phases=(Phase(1.0, 0.1, 1e7, 0.2), Phase(0.5, 0.02, 1e5, 0.0)))
    assert predicted_s(two, row()) == pytest.approx([0.75, 0.02 + 1e5 / 4e7])


def test_each_phase_waits_for_steps_of_its_node():
    waits = row(wait_s=[0.03, 0.045])
    assert predicted_s(needs(), waits) == pytest.approx([0.1 + AIR_S + NODE_S + 0.03])
    two = needs(phases=(Phase(1.0, 0.1, 1e7, 0.2), Phase(0.5, 0.02, 1e5, 0.0)))
    assert predicted_s(two, waits) == pytest.approx([0.78, 0.02 + 1e5 / 4e7 + 0.045])
    told = grant(two, waits, 7.0)
    assert told.slack_s == pytest.approx((1.0 - 0.78, 0.5 - 0.0675))


def test_chunks_overlap_on_their_way_through_device_air_and_node():
    chunks = (0.25, 0.25, 0.5)
    whole, parts = predicted_s(needs(), row()), predicted_s(needs(chunks=chunks), row())
    assert parts[0] == pytest.approx(whole[0] - (0.05 + AIR_S + NODE_S) + pipelined_s(chunks, (0.05, AIR_S, NODE_S)))
    assert parts[0] < whole[0]
    waits = predicted_s(needs(chunks=chunks), row(wait_s=[0.03, 0.0]))
    assert waits[0] == pytest.approx(parts[0] + 0.03), "the last piece's step, whatever overlapped before"


@pytest.mark.parametrize("chunks", [(1.0,), (0.5, 0.5)])
def test_without_a_share_work_never_ends_and_no_work_takes_no_time(chunks: tuple[float, ...]):
    idle = row(prbs=0.0)
    assert predicted_s(needs(chunks=chunks), idle) == [math.inf]
    nothing = needs(phases=(Phase(1.0, 0.1, 0.0, 0.0),))
    assert predicted_s(nothing, row(prbs=0.0, share=[0.0, 0.0, 0.0])) == pytest.approx([0.1])
    told = grant(needs(chunks=chunks), idle, 7.0)
    assert (told.predicted_s, told.slack_s) == ((None,), (None,)), "JSON has no infinity"


def test_a_grant_is_the_row_in_units_of_the_cell():
    told = grant(needs(), row(), 7.25)
    assert told.bandwidth_hz == pytest.approx(27.3 * 100e6 / 273)
    assert (told.weight_prb, told.weight_node) == (27.3, 0.7)
    assert (told.pace_s, told.step_s) == (0.1, 0.03)
    assert told.reserved == Reserved(cell=0.05, node=0.25, memory=0.01)
    assert told.predicted_s == pytest.approx((0.75,))
    assert told.slack_s == pytest.approx((0.25,))
    assert told.valid_until_ns == 7_250_000_000
    alone = grant(needs(is_on_node=False), row(), 7.0)
    assert (alone.weight_node, alone.pace_s, alone.step_s) == (0.0, 0.0, 0.0), "the device needs no node"
    assert [grant(needs(), row(promised=p), 7.0).priority for p in (True, False)] == [0, 1], "promised ones come first"


def test_rows_of_a_plan_are_its_columns(plan: Plan):
    rows = list(rows_of(plan))
    assert rows == [row_of(plan, 0), row_of(plan, 1)]
    for i, one in enumerate(rows):
        assert one.prbs == plan.prbs[i]
        assert one.share == plan.share[i].tolist()
        assert one.node_weight == plan.node_weight[i]
        assert one.reserved == plan.reserved[i].tolist()
        assert one.efficiency_bps_hz == plan.efficiency[i]
        assert one.promised is bool(plan.promised[i])
        assert one.cell == plan.cell[i]
        assert one.wait_s == plan.wait_s[i].tolist()
        assert one.pace_s == plan.pace_s[i] > 0
        assert one.step_s == plan.step_s[plan.node[i]]


def test_needs_are_of_the_phases_with_a_deadline_at_the_point(plan: Plan):
    decision = plan.decisions[0]
    found, table, j = needs_of(SITE, decision), decision.table, decision.point
    assert (found.ul_bandwidth_hz, found.ul_prbs) == (CELL.ul_bandwidth_hz, CELL.ul_prbs)
    assert found.is_on_node == (table.node[j] >= 0)
    assert found.device_s == table.device_s[j, 0]
    assert [p.deadline_s for p in found.phases] == table.deadline_s.tolist()
    assert [p.ul_bits for p in found.phases] == table.ul_bits[j].tolist()
    endless = replace(table, deadline_s=np.array([2.0, np.inf]))
    assert [p.deadline_s for p in needs_of(SITE, replace(decision, table=endless)).phases] == [2.0]
    away = np.where(np.arange(table.n_points) == j, -1, table.node)
    assert not needs_of(SITE, replace(decision, table=replace(table, node=away))).is_on_node


def test_a_message_says_where_and_how_a_task_is_served(plan: Plan):
    decision = plan.decisions[1]
    told, j = decision_message(SITE, plan, decision, 1), decision.point
    assert (told.task, told.reason, told.plan, told.seq) == ("t1", "admitted", plan.generation, plan.generation)
    assert told.point == decision.table.point_ids[j]
    assert told.split_layer == decision.table.split[j]
    assert told.precision_bits == decision.table.precision_bits[j]
    assert (told.cell, told.node) == ("cell0", SITE.nodes[decision.table.node[j]].id)
    assert (told.at_ns, told.valid_until_ns) == (100_000_000, 600_000_000)
    assert told.input_age_ms == pytest.approx(100.0)
    granted = grant(needs_of(SITE, decision), row_of(plan, 1), plan.valid_until_s)
    assert {name: getattr(told, name) for name in granted._asdict()} == granted._asdict()
    assert told.weight_prb == plan.prbs[1]
    assert all(s is not None and s >= 0 for s in told.slack_s)


def test_who_is_refused_has_nothing_and_no_time(plan: Plan):
    refusal = Decision("no", "rejected_no_capacity", -1, EMPTY, 2.0, cell=0, input_age_s=0.02, binding="edge0")
    told = decision_message(SITE, plan, refusal, None)
    assert (told.point, told.split_layer, told.precision_bits, told.node, told.cell) == ("", -1, 0, "", "cell0")
    assert (told.weight_prb, told.bandwidth_hz, told.weight_node, told.reserved) == (0.0, 0.0, 0.0, Reserved())
    assert (told.predicted_s, told.slack_s) == ((), ())
    assert told.valid_until_ns == told.at_ns == 100_000_000
    assert (told.binding_resource, told.input_age_ms) == ("edge0", pytest.approx(20.0))
    assert decision_message(SITE, plan, replace(refusal, cell=-1), None).cell == ""


@pytest.mark.parametrize("row_in_plan", [None, 0])
def test_a_point_without_a_row_or_a_row_without_a_point_grants_nothing(plan: Plan, row_in_plan: int | None):
    decision = plan.decisions[0]
    told = decision_message(SITE, plan, decision if row_in_plan is None else replace(decision, point=-1), row_in_plan)
    assert told.weight_prb == 0.0
    assert told.valid_until_ns == told.at_ns
