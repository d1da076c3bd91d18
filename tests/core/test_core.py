"""The core: estimates, planner columns, promises, leases, and what it refuses."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from core_cases import CONTEXT, SITE, answer, make_core, session
from hypothesis import given, settings
from hypothesis import strategies as st

from cosched.core.channel import ChannelEstimates
from cosched.core.core import StaleEvent
from cosched.core.decide import node_weights
from cosched.core.events import Finished, Offered, Progress, Progressed, Solved, Switched, Tick
from cosched.core.policy import POLICIES, policy
from cosched.core.settings import Settings
from cosched.core.state import Task
from cosched.errors import BadInput
from cosched.workloads import registry
from solvers import registry as solvers
from telemetry.messages import CellReport, NodeReport, TaskOffer, VideoClip


def test_a_task_is_admitted_with_whole_prbs_and_a_lease():
    core = make_core()
    (plan,) = answer(core, core.handle(Offered((session("a"),)), 0.1), 0.1)
    assert plan.tasks == ("a",)
    assert plan.prbs[0] == int(plan.prbs[0]) >= 1
    assert plan.valid_until_s == pytest.approx(0.1 + Settings().lease_s)
    (decision,) = plan.decisions
    assert decision.reason == "admitted"
    assert decision.table.split[decision.point] >= 1  # private: raw tokens stay on the device


def test_the_promise_of_a_plan_holds_at_its_shares():
    core = make_core()
    plans = answer(core, core.handle(Offered(tuple(session(f"t{i}") for i in range(6))), 0.1), 0.1)
    hz = SITE.cells[0].ul_bandwidth_hz
    assert len(plans[-1].tasks) >= 2
    for plan, d in [(p, d) for p in plans for d in p.decisions]:
        if d.point < 0:
            continue
        row = plan.tasks.index(d.task)
        t, j = d.table, d.point
        rate = plan.prbs[row] / SITE.cells[0].ul_prbs * hz * d.efficiency_bps_hz
        latency = t.fixed_s[j] + t.ul_bits[j] / rate + t.node_s[j] / plan.share[row, 1] + plan.wait_s[row]
        assert (latency <= t.deadline_s * Settings().deadline_margin + 1e-9).all()


def test_a_ue_without_a_sample_is_refused_by_name_of_the_reason():
    core = make_core()
    stranger = msgspec.structs.replace(session("a"), ue="ue99")
    plans = answer(core, core.handle(Offered((stranger,)), 0.1), 0.1)
    assert [d.reason for p in plans for d in p.decisions] == ["rejected_no_channel"]


def test_generations_only_grow_and_a_step_back_in_time_changes_nothing():
    core = make_core()
    generations = []
    for i in range(5):
        at = 1.0 + i
        plans = answer(core, core.handle(Offered((session(f"t{i}", at),)), at), at)
        generations += [p.generation for p in plans]
    assert generations == sorted(set(generations))
    before = dict(core.state.tasks)
    with pytest.raises(StaleEvent):
        core.handle(Tick(), 0.5)
    assert core.state.tasks == before


def test_what_arrives_while_a_solve_is_open_waits_for_the_next_one():
    core = make_core()
    (solve,) = core.handle(Offered((session("a"),)), 0.1)
    assert core.handle(Offered((session("b", 0.2),)), 0.2) == []
    plans = answer(core, [solve], 0.3)
    assert [d.task for p in plans for d in p.decisions] == ["a", "b"]


def test_newcomers_do_not_wait_for_a_tick_s_solve_but_take_its_place():
    core = make_core()
    answer(core, core.handle(Offered((session("a"),)), 0.1), 0.1)
    (tick,) = core.handle(Tick(), 0.2)
    (solve,) = core.handle(Offered((session("b", 0.21),)), 0.21)
    with pytest.raises(StaleEvent):
        core.handle(Solved(tick.request, solution=solvers.solve("joint", tick.problem)), 0.22)
    assert core.handle(Tick(), 0.23) == []  # somebody waits for the open one now
    assert core.handle(Offered((msgspec.structs.replace(session("c"), ue="ue99"),)), 0.24) == []
    plans = answer(core, [solve], 0.25)
    assert [d.task for p in plans for d in p.decisions] == ["c", "b"]
    assert set(plans[0].tasks) == {"a", "b"}


def test_a_solve_of_the_policy_of_before_is_awaited_by_newcomers_and_followed_by_one_of_the_new():
    """Its tick would plan the newcomers' tasks by another policy: they come after it."""
    core = make_core()
    answer(core, core.handle(Offered((session("a", 0.1),)), 0.1), 0.1)
    (tick,) = core.handle(Tick(), 0.2)
    core.handle(Switched("greedy"), 0.2)
    assert core.handle(Offered((session("b", 0.21),)), 0.21) == []
    assert core.asked(tick.request) is not None
    core.handle(Switched("joint"), 0.22)
    (solve,) = core.handle(Offered((session("c", 0.23),)), 0.23)  # of the same policy again: nobody waits for it
    assert core.asked(tick.request) is None
    assert [t.offer.task for t in core.newcomers] == ["b", "c"]
    answer(core, [solve], 0.24)


def test_an_answer_to_no_open_request_is_refused():
    core = make_core()
    (solve,) = core.handle(Offered((session("a"),)), 0.1)
    solution = solvers.solve("joint", solve.problem)
    with pytest.raises(StaleEvent):
        core.handle(Solved(solve.request + 1, solution=solution), 0.1)


def test_a_session_that_missed_its_first_token_loses_its_lease():
    core = make_core()
    answer(core, core.handle(Offered((session("a", 0.1),)), 0.1), 0.1)
    late = Progress("a", 0, 0, 0, float("nan"), 0.0, 1e5, 0.01, 0.0)
    core.handle(Progressed((late,)), 2.5)
    plans = answer(core, core.handle(Tick(), 2.5), 2.5)
    assert [(d.task, d.reason) for p in plans for d in p.decisions] == [("a", "ttft_missed")]
    assert core.state.tasks == {}


def test_a_policy_without_admission_serves_on():
    core = make_core("pf")
    answer(core, core.handle(Offered((session("a", 0.1),)), 0.1), 0.1)
    core.handle(Progressed((Progress("a", 0, 0, 0, float("nan"), 0.0, 1e5, 0.01, 0.0),)), 2.5)
    answer(core, core.handle(Tick(), 2.5), 2.5)
    assert list(core.state.tasks) == ["a"]


def test_a_node_that_is_down_gets_no_newcomer():
    core = make_core()
    core.handle(NodeReport(at_ns=0, source="n", seq=0, node=SITE.nodes[0].id, up=False), 0.05)
    plans = answer(core, core.handle(Offered((session("a"),)), 0.1), 0.1)
    assert [d.reason for p in plans for d in p.decisions] == ["rejected_no_capacity"]


def test_background_load_leaves_less_for_ours():
    admitted = []
    for background in (0.0, 0.8):
        core = make_core()
        load = CellReport(at_ns=0, source="c", seq=0, cell=SITE.cells[0].id, background_ul_fraction=background)
        core.handle(load, 0.05)
        plans = answer(core, core.handle(Offered(tuple(session(f"t{i}") for i in range(30))), 0.1), 0.1)
        admitted.append(sum(d.reason == "admitted" for p in plans for d in p.decisions))
    assert admitted[1] < admitted[0]


def test_finished_tasks_leave():
    core = make_core()
    answer(core, core.handle(Offered((session("a"),)), 0.1), 0.1)
    core.handle(Finished("a"), 0.5)
    assert core.state.tasks == {}
    assert core.handle(Tick(), 0.6) == []


def test_a_running_session_keeps_split_and_node_and_may_change_precision():
    offer = session("a")
    table = registry.points(offer, CONTEXT)
    task = Task(offer, table, ue=0, cell=0, point=table.n_points - 1)
    assert list(task.candidates()) == [task.point]  # the prefill is under way
    task.progress = Progress("a", 1, 5, 0, 1.0, 1.5, 0.0, 0.0, 0.0)
    rows = task.candidates()
    assert task.point in rows
    assert {(table.split[r], table.node[r]) for r in rows} == {(table.split[task.point], table.node[task.point])}


def test_a_clip_is_lost_when_its_target_cannot_be_reached_any_more():
    work = VideoClip(frame_flop=250e9, frame_bits=5e5, fps=5, deadline_s=0.2, frames=40)
    offer = TaskOffer(at_ns=0, source="s", seq=0, task="v", ue="ue00", work=work)
    task = Task(offer, registry.points(offer, CONTEXT), ue=0, cell=0, point=0)
    task.progress = Progress("v", 0, 10, 2, float("nan"), 0.0, 0.0, 0.0, 0.0)
    assert task.is_lost(3.0, 1e7) == ""
    task.progress = Progress("v", 0, 10, 3, float("nan"), 0.0, 0.0, 0.0, 0.0)
    assert task.is_lost(3.0, 1e7) == "frames_missed"


@given(st.lists(st.floats(0.05, 8.0), min_size=1, max_size=60), st.floats(0, 30))
@settings(max_examples=80, deadline=None)
def test_estimates_stay_between_a_quarter_of_the_mean_and_the_best_sample(samples: list[float], idle_s: float):
    estimates = ChannelEstimates(Settings())
    for i, value in enumerate(samples):
        estimates.update("u", 0.25 * i, value)
    planned = float(estimates.planned(0.25 * len(samples) + idle_s, 1.0)[0])
    assert 0.25 * min(samples) - 1e-12 <= planned <= max(samples) + 1e-12


def test_idle_time_lowers_the_estimate_and_never_raises_it():
    estimates = ChannelEstimates(Settings())
    for i in range(20):
        estimates.update("u", 0.25 * i, 2.0)
    planned = [float(estimates.planned(5.0 + age, 1.0)[0]) for age in (0.0, 2.0, 5.0, 20.0, 100.0)]
    assert planned == sorted(planned, reverse=True)
    assert planned[0] == pytest.approx(2.0)
    assert planned[-1] >= 1.0


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_plans_and_passes_verification(name: str):
    core = make_core(name)
    rng = np.random.default_rng(5)
    at = 0.1
    for i in range(12):
        offer = session(f"t{i}", at, private=bool(rng.integers(2)), tpot_s=float(rng.choice([0.1, 0.2])))
        answer(core, core.handle(Offered((offer,)), at), at)
        at += 0.05
        answer(core, core.handle(Tick(), at), at)
    assert len(core.state.tasks) <= 12


@pytest.mark.parametrize("spec", ["nobody", "pf-util:rho", "pf-util:rho=high"])
def test_a_bad_policy_is_named_with_those_there_are(spec: str):
    with pytest.raises(BadInput, match="policy"):
        policy(spec)


def test_joint_keeps_shares_tight_where_they_are_weights():
    core = make_core()
    (solve,) = core.handle(Offered((session("a"), session("b"))), 0.1)
    tight = solvers.solve("joint", solve.problem, warm=solve.warm, options=solve.policy.options)
    generous = solvers.solve("joint", solve.problem, warm=solve.warm, options={"second_stage": 1.0})
    assert (tight.chosen >= 0).all()
    assert (tight.share <= generous.share + 1e-9).all()
    assert tight.share.sum() < 0.8 * generous.share.sum()


def test_node_weights_give_every_session_its_share_while_it_is_served():
    """By simulation: six sessions come and go at one node, which shares itself out by the weights of the plan."""
    share, use = np.array([0.7, 0.4, 0.3, 0.2, 0.1, 0.1]), np.array([0.2, 0.1, 0.1, 0.1, 0.08, 0.08])
    weight = node_weights(share, use, np.ones(6))
    assert (np.argsort(weight) == np.argsort(share)).all()
    rng = np.random.default_rng(1)
    got = {False: np.zeros(6), True: np.zeros(6)}
    for fair in (False, True):
        w = weight if fair else share
        left, work = (
            rng.exponential(1.0, 6),
            np.full(6, np.inf),
        )  # until the next token is asked for; work of the open one
        busy_s, done, asks_per_s = np.zeros(6), np.zeros(6), use / share / (1 - use / share)
        for _ in range(40_000):
            on = np.isfinite(work)
            rate = np.where(on, w, 0.0) / max(w[on].sum(), 1e-12)
            with np.errstate(divide="ignore", invalid="ignore"):
                next_s = np.where(on, work / rate, left)
            i = int(np.argmin(next_s))
            step = float(next_s[i])
            busy_s += np.where(on, step, 0.0)
            done += rate * step
            work = np.where(on, work - rate * step, np.inf)
            left = np.where(on, np.inf, left - step)
            if on[i]:
                work[i], left[i] = np.inf, rng.exponential(1.0 / asks_per_s[i])
            else:
                work[i], left[i] = rng.exponential(share[i]), np.inf
        got[fair] = done / busy_s
    assert (got[True] >= 0.95 * share).all()
    assert got[True][0] > 1.05 * got[False][0]  # weights equal to the shares give the tightest one too little
    assert got[False][0] < 0.95 * share[0]


def test_node_weights_count_the_value_of_a_task():
    share, use = np.array([0.2, 0.2]), np.array([0.1, 0.1])
    light, heavy = node_weights(share, use, np.array([1.0, 5.0]))
    assert heavy == pytest.approx(5 * light)
