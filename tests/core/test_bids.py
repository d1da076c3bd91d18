"""Bid prices: against a linear programme by another solver, who is refused and when, that they survive a restart."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from cosched.core.bids import LEAST_ARRIVALS, MOST_ARRIVALS, Arrival, BidPrices, is_screened, life_work
from cosched.core.planner import Planned, make_layout, plan_problem
from cosched.core.settings import Settings
from cosched.core.state import State, Task
from cosched.resources import config_file
from cosched.site import load_site
from cosched.workloads import registry
from cosched.workloads.context import load_profiles, session_memory_bytes
from telemetry.messages import LlmSession, TaskOffer, UeReport

SITE = load_site(config_file("sites", "node-bound.toml"))
PROFILES = load_profiles(SITE)
BYTES = session_memory_bytes(PROFILES)
SETTINGS = Settings()
EFFICIENCY = 2.0
NOW_S = 60.0
FREE = np.zeros(3)
FULL = np.array([1.0, 1.0, 1.0])


def offer(name: str, weight: float, *, private: bool = False, tpot_s: float = 0.1, tokens: int = 400) -> TaskOffer:
    work = LlmSession(
        model="llama-3-8b", context_tokens=500, new_tokens=64, max_output_tokens=tokens, ttft_s=2.0, tpot_s=tpot_s,
        private=private,
    )  # fmt: skip
    return TaskOffer(at_ns=0, source="s", seq=0, task=name, ue="ue00", work=work, weight=weight)


def arrival(name: str, weight: float, at_s: float = 0.0, *, device: int = 0, **work: float) -> Arrival:
    asked = offer(name, weight, **work)  # type: ignore[arg-type]
    return Arrival(at_s, asked, registry.points(asked, PROFILES.context_of(device, 0)), 0, EFFICIENCY)


def seconds_of(a: Arrival) -> np.ndarray:
    """(J, 2) seconds of uplink and node in the life of a session, and whether the point is counted on, by hand."""
    work, table = a.offer.work, a.table
    assert isinstance(work, LlmSession)
    tokens = SETTINGS.expected_output * work.max_output_tokens
    air = table.ul_bits / (EFFICIENCY * SITE.cells[0].ul_bandwidth_hz)
    rows = []
    for j in range(table.n_points):
        alone = (air[j] + table.node_s[j]) / SETTINGS.bid_share + table.fixed_s[j]
        good = bool((alone <= table.deadline_s).all())
        rows.append([air[j, 0] + tokens * air[j, 1], table.node_s[j, 0] + tokens * table.node_s[j, 1], good])
    return np.array(rows)


def learned(arrivals: list[Arrival], now_s: float = NOW_S) -> BidPrices:
    bids = BidPrices(SITE, SETTINGS)
    for a in arrivals:
        bids.note(a)
    bids.refresh(now_s, FREE)
    return bids


def fluid_value(arrivals: list[Arrival], capacity_s: float) -> float:
    """Value of the fluid programme by another solver."""
    rows = [
        (i, a, s) for i, a in enumerate(arrivals) for s in zip(a.table.quality, seconds_of(a), strict=True) if s[1][2]
    ]
    gain = -np.array([a.offer.weight * s[0] for _, a, s in rows])
    use = np.array([s[1][:2] for _, _, s in rows]).T
    once = np.zeros((len(arrivals), len(rows)))
    once[[i for i, _, _ in rows], np.arange(len(rows))] = 1.0
    limits = np.concatenate([[capacity_s, capacity_s], np.ones(len(arrivals))])
    answer = linprog(gain, A_ub=np.concatenate([use, once]), b_ub=limits, method="highs")
    return float(-answer.fun)


def dual_value(bids: BidPrices, arrivals: list[Arrival], capacity_s: float) -> float:
    """The dual function of the fluid programme at the prices, by hand."""
    total = float(bids.price.sum()) * capacity_s
    for a in arrivals:
        rows = seconds_of(a)
        net = a.offer.weight * a.table.quality - rows[:, :2] @ bids.price
        total += max(0.0, float(net[rows[:, 2] > 0].max(initial=0.0)))
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_prices_are_the_duals_of_the_fluid_programme(seed: int):
    rng = np.random.default_rng(seed)
    arrivals = [
        arrival(
            f"t{i}", float(rng.choice([1.0, 5.0])), float(rng.uniform(0, 20)), device=int(rng.integers(3)),
            private=bool(rng.integers(2)), tpot_s=float(rng.choice([0.1, 0.2])),
        )
        for i in range(int(rng.integers(LEAST_ARRIVALS, 80)))
    ]  # fmt: skip
    arrivals.sort(key=lambda a: a.at_s)
    capacity_s = (NOW_S - arrivals[0].at_s) * SETTINGS.bid_fill
    bids = learned(arrivals)
    assert (bids.price >= 0).all()
    best = fluid_value(arrivals, capacity_s)
    found = dual_value(bids, arrivals, capacity_s)
    assert best * (1 - 1e-9) <= found <= best * 1.01 + 1e-9


def planned_with(task: Task, state: State) -> Planned:
    return plan_problem(state, make_layout(state, [task], SETTINGS, BYTES), NOW_S, SETTINGS)


def newcomer(weight: float) -> tuple[Task, State]:
    state = State(SITE, SETTINGS)
    report = UeReport(at_ns=0, source="r", seq=0, ue="ue00", cell=SITE.cells[0].id, ul_efficiency_bps_hz=EFFICIENCY)
    state.observe(0.0, report)
    asked = offer("new", weight)
    return Task(asked, registry.points(asked, PROFILES.context_of(0, 0)), 0, 0), state


@pytest.mark.parametrize(
    ("weight", "use", "refused"), [(1.0, FULL, True), (5.0, FULL, False), (1.0, FREE, False), (1.0, 0.3 * FULL, False)]
)
def test_the_less_valuable_are_refused_only_where_a_resource_is_full(weight: float, use: np.ndarray, refused: bool):
    # a seventh of a second of the node each at least: heavy ones alone would take more than the 30 s
    bids = learned([arrival(f"t{i:03d}", 5.0 if i % 2 else 1.0, NOW_S - 30.0 + i / 16) for i in range(480)])
    task, state = newcomer(weight)
    planned = planned_with(task, state)
    screened = bids.screen(planned.problem, planned, use)
    assert is_screened(planned.problem, screened, slice(0, planned.problem.n_points)) == refused
    assert (screened.value == 0).all() if refused else (screened.value == planned.problem.value).all()


@pytest.mark.parametrize("phase", [0, 1])
def test_a_point_that_misses_one_of_its_deadlines_is_not_counted_on(phase: int):
    crowd = [arrival(f"t{i:03d}", 5.0, i * 0.5) for i in range(119)]
    assert learned(crowd).price.any()
    limits = [np.where(np.arange(2) == phase, 1e-6, a.table.deadline_s) for a in crowd]
    late = [replace(a, table=replace(a.table, deadline_s=d)) for a, d in zip(crowd, limits, strict=True)]
    assert not learned(late).price.any()


def test_a_channel_that_carries_nothing_counts_for_what_is_sent_alone():
    """A report may say 0 bit/s/Hz: what has nothing to send is as good as before, the rest takes for ever."""
    one, bids = arrival("t0", 1.0), BidPrices(SITE, SETTINGS)
    local = np.arange(one.table.n_points) == 0
    silent = replace(one.table, ul_bits=np.where(local[:, None], 0.0, one.table.ul_bits))
    one = replace(one, table=silent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seconds, alone_s = life_work(SITE, replace(one, efficiency_bps_hz=0.0), SETTINGS.expected_output)
        for i in range(LEAST_ARRIVALS):
            bids.note(replace(one, at_s=float(i), efficiency_bps_hz=0.0))
        bids.refresh(NOW_S, FREE)
        bids.validate()
        task, state = newcomer(1.0)
        planned = planned_with(task, state)
        planned = replace(planned, efficiency=np.zeros_like(planned.efficiency))
        bids.price = np.array([0.0, 1e-9])  # the air costs nothing
        assert bids.screen(planned.problem, planned, FULL).value.tolist() == planned.problem.value.tolist()
    usual, _ = life_work(SITE, one, SETTINGS.expected_output)
    assert seconds[local].tolist() == usual[local].tolist()
    assert np.isinf(seconds[~local, 0]).all()
    assert np.isinf(alone_s[~local]).any(axis=1).all()


@pytest.mark.parametrize(
    ("value", "weighed", "screened"),
    [
        ([1.0, 1.0], [0.0, 0.0], True),
        ([1.0, 1.0], [0.0, 0.5], False),  # one point is still worth it
        ([1.0, 0.0], [0.0, 0.0], True),  # the other never was
        ([0.0, 0.0], [0.0, 0.0], False),  # nothing was lost
    ],
)
def test_who_has_lost_all_value_was_screened(value: list[float], weighed: list[float], screened: bool):
    task, state = newcomer(1.0)
    problem = planned_with(task, state).problem
    before, after = problem.value.copy(), problem.value.copy()
    before[:2], after[:2] = value, weighed
    assert is_screened(replace(problem, value=before), replace(problem, value=after), slice(0, 2)) == screened


def test_nobody_pays_while_everybody_fits():
    bids = learned([arrival(f"t{i}", 1.0, i * 2.0) for i in range(10)])
    assert bids.price.max() < 1e-6


def test_few_arrivals_say_nothing():
    assert not learned([arrival(f"t{i}", 1.0, tokens=4000) for i in range(LEAST_ARRIVALS - 1)]).price.any()


def test_what_is_old_or_too_much_is_forgotten():
    bids = learned([arrival(f"t{i:04d}", 1.0, i * 0.01) for i in range(MOST_ARRIVALS + 7)], now_s=6.0)
    assert len(bids.arrivals) == MOST_ARRIVALS
    assert bids.arrivals[0].offer.task == "t0007"
    bids.refresh(6.0 + SETTINGS.bid_window_s + 6.0, FREE)
    assert not bids.arrivals
    assert not bids.price.any()


def test_who_asks_again_under_the_same_name_counts_twice_until_the_first_is_forgotten():
    again = [arrival("t0", 1.0, 0.0), *(arrival(f"t{i}", 1.0 + i % 3, 0.5 * i) for i in range(119))]
    renamed = [arrival("x", 1.0, 0.0), *again[1:]]
    for now_s in (60.0, SETTINGS.bid_window_s + 20.0):
        found, expected = learned(again, now_s), learned(renamed, now_s)
        assert found.price.tobytes() == expected.price.tobytes()
        assert found.price.any()
    found.refresh(now_s + SETTINGS.bid_period_s, FREE)
    assert len(found.arrivals) == len([a for a in again if a.at_s >= now_s + SETTINGS.bid_period_s - 60.0])


def test_prices_stay_until_they_are_due():
    bids = learned([arrival(f"t{i:03d}", 1.0, i * 0.5) for i in range(119)])
    before = bids.price.copy()
    for i in range(200):
        bids.note(arrival(f"u{i}", 5.0, NOW_S))
    bids.refresh(NOW_S + SETTINGS.bid_period_s / 2, FREE)
    assert (bids.price == before).all()
    bids.refresh(NOW_S + SETTINGS.bid_period_s, FREE)
    assert bids.price.max() > 2 * before.max()


def test_a_restart_goes_on_with_what_was_learned():
    old = learned([arrival(f"t{i:03d}", 1.0 + 4.0 * (i % 2), i * 0.5) for i in range(119)])
    new = BidPrices(SITE, SETTINGS)
    new.restore(tuple(old.arrivals), old.price.copy(), old.due_s)
    for bids in (old, new):
        bids.note(arrival("late", 5.0, NOW_S + 1.0))
        bids.refresh(NOW_S + 2.5, FREE)
    assert (old.price == new.price).all()
