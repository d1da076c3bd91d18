"""Solution -> Plan: PRBs, who is served on without room, what a plan counts for whom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from core_cases import answer, make_core, report, session
from hypothesis import given
from hypothesis import strategies as st
from two_nodes import TWO

from cosched.core.commands import Dispatch, Plan
from cosched.core.core import Core
from cosched.core.decide import _prbs
from cosched.core.events import Offered, Solved, Tick
from cosched.core.settings import Settings
from cosched.core.state import State
from solvers import registry as solvers

PRBS = TWO.site.cells[0].ul_prbs


def prbs_of(share: float, *, promised: bool) -> float:
    (found,) = _prbs(State(TWO.site, Settings()), np.zeros(1, int), np.array([share]), np.array([promised]))
    return float(found)


@pytest.mark.parametrize(
    ("prbs", "whole"),
    [(10.2, 11), (10.999, 11), (10.0, 10), (10.0 + 1e-12, 10), (10.0 - 1e-12, 10), (1e-6, 1), (0.0, 0), (PRBS, PRBS)],
)
def test_a_promised_share_is_whole_prbs_rounded_up(prbs: float, whole: int):
    assert prbs_of(prbs / PRBS, promised=True) == whole


@given(st.floats(1e-9, 1.0))
def test_no_promise_is_lost_to_rounding_and_none_takes_a_prb_too_many(share: float):
    found = prbs_of(share, promised=True)
    assert found == int(found)
    assert share * PRBS - 1e-6 <= found < max(share * PRBS, 1e-6) + 1
    assert prbs_of(share, promised=False) == share * PRBS, "a weight without a promise is no number of PRBs"


def served_without_room(core: Core, weight: float, other: float) -> tuple[Plan, int]:
    """A plan in which a running session of some weight got no room beside another; and its row."""
    offers = tuple(session(n, 0.1, private=False, weight=w) for n, w in (("kept", weight), ("other", other)))
    answer(core, core.handle(Offered(offers), 0.1), 0.1)
    (command,) = core.handle(Tick(), 0.2)
    found = solvers.solve("joint", command.problem, warm=command.warm, options=command.policy.options)  # type: ignore[union-attr]
    assert (found.chosen >= 0).all()
    out = np.array([task == "kept" for task in command.problem.task_ids])  # type: ignore[union-attr]
    found = replace(
        found,
        chosen=np.where(out, -1, found.chosen),
        share=np.where(out[:, None], 0.0, found.share),
        promised=found.promised & ~out,
    )
    (dispatch,) = core.handle(Solved(command.request, solution=found), 0.2)  # type: ignore[union-attr]
    assert isinstance(dispatch, Dispatch)
    core.validate()
    dispatch.plan.validate()
    return dispatch.plan, dispatch.plan.tasks.index("kept")


@pytest.mark.parametrize(("weight", "other", "served"), [(1, 1, True), (2, 1, True), (1, 5, False), (0.999, 1, False)])
def test_a_session_without_room_is_served_on_unless_tasks_of_more_weight_are_in_the_plan(
    weight: float, other: float, served: bool
):
    plan, row = served_without_room(make_core(), weight, other)
    assert set(plan.tasks) == {"kept", "other"}
    assert not plan.promised[row]
    assert bool((plan.share[row, :2] > 0).any()) == served
    assert plan.promised[1 - row]


def test_of_who_has_no_room_nothing_but_his_memory_is_counted():
    plan, row = served_without_room(make_core(), 1.0, 1.0)
    assert (plan.reserved[row, :2] == 0).all()
    assert plan.reserved[row, 2] > 0
    assert (plan.reserved[1 - row, :2] > 0).all()


def test_the_variance_of_a_plan_is_of_those_that_are_promised_something():
    core = make_core()
    plan, _ = served_without_room(core, 1.0, 1.0)
    alone = make_core()
    (alone_plan,) = answer(alone, alone.handle(Offered((session("other", 0.1, private=False),)), 0.1), 0.1)
    assert (plan.variance > 0).any()
    assert ((plan.variance > 0) == (alone_plan.variance > 0)).all()
    assert plan.variance.max() < 2 * alone_plan.variance.max(), "of one, not of two"


def test_an_answer_says_how_old_the_channel_was_that_it_was_decided_with():
    core = make_core()
    core.state.observe(0.5, report("ue00", 0.5, 2.0))
    (plan,) = answer(core, core.handle(Offered((session("a", 0.8),)), 0.8), 0.8)
    assert plan.decisions[0].input_age_s == pytest.approx(0.3)
    assert plan.decisions[0].cell == 0
