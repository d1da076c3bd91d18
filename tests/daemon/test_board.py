"""The board of leases: who is told what and when, and what is known of whom afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from core_cases import answer, report
from life_cases import S_NS, SESSION, Home
from two_nodes import TWO, offer

from cosched.api.messages import DECISION_TOPIC, Lease
from cosched.core.commands import Plan
from cosched.core.core import Core
from cosched.core.decisions import decision_message
from cosched.core.events import Offered, Tick
from cosched.core.settings import Settings
from cosched.daemon import board as leases
from cosched.daemon.board import CHANGE, Board
from cosched.errors import Broken


class Told:
    """A core with two tasks, and a board that was told of its first plan."""

    def __init__(self) -> None:
        self.out: list[tuple[str, Lease]] = []
        self.core: Core = TWO.core("joint", Settings())
        for ue in ("ue00", "ue01"):
            self.core.handle(msgspec.structs.replace(report(ue, 0.0, 4.0), cell="cell0"), 0.0)
        self.board = Board(TWO.site, self._publish)
        self.offers = {f"t{i}": msgspec.structs.replace(offer(f"t{i}", 0.1), ue=f"ue0{i}") for i in (0, 1)}
        (self.plan,) = answer(self.core, self.core.handle(Offered(tuple(self.offers.values())), 0.1), 0.1)
        for row, decision in enumerate(self.plan.decisions):
            message = decision_message(TWO.site, self.plan, decision, row)
            self.board.decided(self.offers[decision.task], decision, message, self.plan, row)
        self.board.validate()

    def _publish(self, topic: bytes, payload: bytes) -> None:
        self.out.append((topic.decode(), msgspec.json.decode(payload, type=Lease)))

    def heard(self) -> list[Lease]:
        """What was told since the last call."""
        found = [lease for _, lease in self.out]
        self.out.clear()
        return found

    def renewed(self, plan: Plan) -> list[Lease]:
        """Who is told what of a plan."""
        self.heard()
        self.board.renew(plan)
        self.board.validate()
        return self.heard()


def later(plan: Plan, after_s: float, **changes: object) -> Plan:
    """The next plan, which changes nothing but what is given."""
    at_s = plan.at_s + after_s
    return replace(plan, generation=plan.generation + 1, at_s=at_s, valid_until_s=at_s + 0.5, decisions=(), **changes)


def test_a_decision_is_published_under_its_task_as_it_is_answered():
    told = Told()
    assert [topic for topic, _ in told.out] == [f"{DECISION_TOPIC}t0", f"{DECISION_TOPIC}t1"]
    lease = told.out[0][1]
    assert lease == told.board.held["t0"].lease
    assert (lease.reason, lease.ue, lease.fallback, lease.promised) == ("admitted", "ue00", "local", True)
    assert lease.valid_for_ms == pytest.approx(500.0)
    assert lease.text


def test_nobody_hears_of_the_plan_that_he_was_told_of_or_of_one_that_changes_nothing():
    told = Told()
    assert told.renewed(told.plan) == []
    assert told.renewed(later(told.plan, 0.1)) == []


@pytest.mark.parametrize(("after_s", "heard"), [(0.24, False), (0.26, True)])
def test_a_lease_is_renewed_before_half_of_the_new_one_would_be_over(after_s: float, heard: bool):
    """The lease ends at 0.6 s; the middle of a lease made at 0.35 s is there."""
    told = Told()
    plan = later(told.plan, after_s)
    found = told.renewed(plan)
    assert bool(found) == heard
    for lease in found:
        assert (lease.plan, lease.seq, lease.at_ns) == (plan.generation, plan.generation, round(plan.at_s * S_NS))
        assert lease.valid_until_ns == round(plan.valid_until_s * S_NS)
        assert lease.valid_for_ms == pytest.approx(500.0)


@pytest.mark.parametrize("column", ["prbs", "node"])
@pytest.mark.parametrize(
    ("factor", "heard"),
    [(1.0, False), (1 - CHANGE + 0.01, False), (1 - CHANGE - 0.01, True), (1.105, False), (1.12, True), (0.0, True)],
)
def test_a_share_that_changes_by_a_tenth_is_told(column: str, factor: float, heard: bool):
    told = Told()
    if column == "prbs":
        plan = later(told.plan, 0.1, prbs=told.plan.prbs * [factor, 1.0])
    else:
        share = told.plan.share.copy()
        assert share[0, 1] > 0
        share[0, 1] *= factor
        plan = later(told.plan, 0.1, share=share)
    found = told.renewed(plan)
    assert [lease.task for lease in found] == (["t0"] if heard else [])
    if heard and column == "prbs":
        assert found[0].weight_prb == plan.prbs[0]
        assert told.renewed(later(plan, 0.1)) == [], "from what was told last, not from what was told first"


def test_many_small_changes_are_told_once_they_have_added_up():
    told = Told()
    plan, heard = told.plan, 0
    for _ in range(6):
        plan = later(plan, 0.0, prbs=plan.prbs * [0.96, 1.0])
        heard += len(told.renewed(plan))
    assert heard == 2


def test_a_promise_that_is_lost_is_told_at_once():
    told = Told()
    found = told.renewed(later(told.plan, 0.1, promised=np.array([True, False])))
    assert [(lease.task, lease.promised) for lease in found] == [("t1", False)]


def test_a_plan_with_somebody_whom_the_board_does_not_hold_tells_nobody_of_him():
    told = Told()
    told.board.held.pop("t0")
    found = told.renewed(later(told.plan, 0.4))
    assert [lease.task for lease in found] == ["t1"]


def test_a_plan_in_another_cell_is_told_at_once_though_no_share_has_changed():
    told = Told()
    other = msgspec.structs.replace(TWO.site.cells[0], id="other", scs_khz=15)
    told.board.site = msgspec.structs.replace(TWO.site, cells=(*TWO.site.cells, other))
    moved = later(told.plan, 0.1, cell=np.array([1, 0]))
    (lease,) = told.renewed(moved)
    assert (lease.task, lease.cell) == ("t0", "other")
    assert lease.bandwidth_hz == pytest.approx(lease.weight_prb * 12 * 15e3)
    assert told.renewed(later(moved, 0.1)) == []


def test_whoever_goes_on_to_another_cell_is_told_of_that_and_of_its_bandwidth(tmp_path: Path):
    """PRBs of the new cell are half as wide, and others."""
    home = Home(tmp_path)
    home.report(cell="cell0")
    (first,) = home.submit("a")
    assert first.cell == "cell0"
    assert first.bandwidth_hz == pytest.approx(first.weight_prb * 12 * 30e3)
    home.wait(0.1, cells=("cell1",))
    assert home.published[-1].cell == "cell1", "with the first plan that has it there"
    home.wait(1.0, cells=("cell1",))
    last = home.published[-1]
    assert last.cell == "cell1"
    assert last.bandwidth_hz == pytest.approx(last.weight_prb * 12 * 15e3)
    home.wait(0.1, cells=("cell0",))
    assert (home.published[-1].cell, home.published[-1].task) == ("cell0", "a")
    home.close()


def test_a_task_of_before_a_restart_is_told_where_the_first_plan_has_it(tmp_path: Path):
    before = Home(tmp_path)
    before.report(cell="cell0")
    before.submit("a")
    before.close()
    home = Home(tmp_path, now_ns=before.now_ns + S_NS)
    assert home.engine.board.current("a", home.now_ns) is None
    assert home.engine.board.offer("a") is not None
    home.wait(0.1, cells=("cell1",))
    (lease,) = home.published
    assert (lease.task, lease.cell, lease.reason) == ("a", "cell1", "admitted")
    assert lease.bandwidth_hz == pytest.approx(lease.weight_prb * 12 * 15e3)
    assert lease.promised == bool(home.plans[-1].promised[0])
    assert home.engine.trackers["a"].offer.work == SESSION
    home.close()


def test_an_end_takes_the_lease_and_is_remembered():
    told = Told()
    told.heard()
    lease = told.board.end(told.offers["t0"], "released", 7, 300_000_000)
    assert told.heard() == [lease]
    assert "t0" not in told.board.held
    assert (lease.reason, lease.point, lease.valid_for_ms, lease.plan) == ("released", "", 0.0, 7)
    assert lease.valid_until_ns == 300_000_000
    assert told.board.current("t0", 400_000_000) == lease
    ended = told.board.ended("t0")
    assert ended is not None
    assert ended.offer == told.board.offer("t0") == told.offers["t0"]
    assert told.board.ended("t1") is None
    assert [one.task for one in told.renewed(later(told.plan, 0.4))] == ["t1"], "and renewed no more"


def test_a_refusal_is_remembered_and_an_id_that_comes_back_is_the_new_task():
    told = Told()
    refusal = replace(told.plan.decisions[0], point=-1, reason="rejected_no_capacity", promised=False)
    message = decision_message(TWO.site, told.plan, refusal, None)
    lease = told.board.decided(told.offers["t0"], refusal, message, told.plan, None)
    assert (lease.valid_for_ms, lease.valid_until_ns) == (0.0, lease.at_ns)
    assert "t0" not in told.board.held
    assert told.board.current("t0", 0) == lease
    admitted = told.plan.decisions[0]
    told.board.decided(told.offers["t0"], admitted, decision_message(TWO.site, told.plan, admitted, 0), told.plan, 0)
    current = told.board.current("t0", 0)
    assert current is not None
    assert current.reason == "admitted"


def test_only_the_last_of_the_ended_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(leases, "ENDED", 3)
    told = Told()
    for name in ("a", "b", "c", "a", "d"):
        told.board.end(offer(name, 0.0), "released", 1, 0)
    assert [name for name in "abcd" if told.board.ended(name) is not None] == ["a", "c", "d"], "the oldest has gone"


def test_what_is_left_of_a_lease_is_counted_from_now():
    told = Told()
    for now_ns, left_ms in ((100_000_000, 500.0), (350_000_000, 250.0), (900_000_000, 0.0)):
        lease = told.board.current("t0", now_ns)
        assert lease is not None
        assert lease.valid_for_ms == pytest.approx(left_ms)
        assert lease.valid_until_ns == 600_000_000
    assert told.board.current("nobody", 0) is None
    assert told.board.offer("nobody") is None


def test_who_subscribes_is_told_what_is_left():
    told = Told()
    told.heard()
    told.board.tell("t0", 350_000_000)
    told.board.tell("nobody", 350_000_000)
    assert [(lease.task, lease.valid_for_ms) for lease in told.heard()] == [("t0", pytest.approx(250.0))]


def test_at_the_end_all_leases_are_shorter_and_none_is_longer():
    told = Told()
    told.heard()
    told.board.shorten(0.2, 150_000_000)
    assert [(lease.valid_until_ns, lease.valid_for_ms) for lease in told.heard()] == [(350_000_000, 200.0)] * 2
    told.board.shorten(9.0, 300_000_000)
    assert [(lease.valid_until_ns, lease.valid_for_ms) for lease in told.heard()] == [(350_000_000, 50.0)] * 2
    told.board.shorten(9.0, 400_000_000)
    assert {lease.valid_for_ms for lease in told.heard()} == {0.0}


def test_a_lease_names_where_its_node_is_served_as_it_is_now():
    told = Told()
    node = told.board.held["t0"].lease.node  # type: ignore[union-attr]
    told.board.endpoints = {node: ("tcp://edge:1", "key")}
    moved = later(told.plan, 0.4)
    for lease in told.renewed(moved):
        assert (lease.node_endpoint, lease.node_key) == (("tcp://edge:1", "key") if lease.node == node else ("", ""))
    told.board.endpoints = {}
    assert {lease.node_endpoint for lease in told.renewed(later(moved, 0.4))} == {""}


def test_what_breaks_a_board_is_seen():
    told = Told()
    (plan,) = answer(told.core, told.core.handle(Tick(), 0.4), 0.4)
    told.board.renew(plan)
    told.board.validate()
    told.board.held["t0"].needs = told.board.held["t0"].needs._replace(ul_prbs=1.0)  # type: ignore[union-attr]
    with pytest.raises(Broken):
        told.board.validate()
