"""Resources that serve in steps: what lengths and periods of steps make of a problem, by the rules, point by point."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from step_cases import CELL, NODE, OTHER, RUNS, Point, made, on_nodes, problem_of, random_tasks

from solvers import check, registry, steps
from solvers.problem import NEVER, Problem
from solvers.solution import Solution


def test_who_runs_reads_once_a_period_the_greatest_part_of_all() -> None:
    deeper = dataclasses.replace(RUNS, shared_s=0.012, pace_s=0.05, own_s=0.003)
    found = made([[RUNS], [deeper]], 0.02, 0.05)
    assert found.steps is None
    assert found.background.tolist() == pytest.approx([0.0, 0.012 / 0.05, 0.0])
    assert found.rigid[:, 1].tolist() == pytest.approx([0.002 / 0.1, 0.003 / 0.05])
    assert found.rigid[:, 0].tolist() == [0.0, 0.0]


def test_each_phase_waits_for_so_many_lengths_of_a_step() -> None:
    found = made([[dataclasses.replace(RUNS, wait=(1.0, 1.5))], [Point(wait=(0.5, 1.0))]], 0.03, 0.1)
    assert found.slack == pytest.approx(np.array([[1 - 0.03, 0.1 - 0.045], [1 - 0.015, 0.1 - 0.03]]))


def test_groups_add_what_they_read() -> None:
    tasks = [[RUNS], [dataclasses.replace(RUNS, shared_s=0.007, group=1)], [dataclasses.replace(RUNS, shared_s=0.008)]]
    assert made(tasks, 0.03, 0.1).background[NODE] == pytest.approx((0.01 + 0.007) / 0.1)


def test_who_is_asked_for_each_token_waits_for_half_a_period_if_he_can() -> None:
    asked = Point(streams=False, air_s=(0.01, 0.002), held=True)
    found = made([[asked]], 0.02, 0.1)
    # 100 ms less a step of 20 ms is 80 ms; 4 x 2 ms of it for the air: 144 ms of period would do, but no more than 100
    assert found.slack[0, 1] == pytest.approx(0.1 - 0.02 - 0.05)
    assert found.rigid[0, 1] == pytest.approx(0.002 / 0.1)
    assert found.background[NODE] == pytest.approx(0.01 / 0.1)


@pytest.mark.parametrize(("air_s", "rides"), [(0.0074, True), (0.0076, False)])
def test_who_cannot_wait_has_reads_of_his_own(air_s: float, rides: bool) -> None:
    """80 ms - 4 x 7.5 ms are 50 ms, half of a period of 100 ms. Another one's own reads are 0.1 of the node already."""
    other = Point(streams=False, air_s=(0.01, 0.015), held=True)
    found = made([[RUNS], [other], [Point(streams=False, air_s=(0.01, air_s))]], 0.02, 0.1)
    assert found.slack[2, 1] == pytest.approx(0.1 - 0.02 - (0.05 if rides else 0.0))
    assert found.background[NODE] == pytest.approx(0.01 / 0.1), "who rides does so in reads of others as well"
    assert found.rigid[:, 1].tolist() == pytest.approx([0.02, 0.02, 0.02 + (0.0 if rides else 0.01 / 0.1)])


def test_reads_are_those_of_the_period_or_those_of_who_cannot_wait_whichever_are_more() -> None:
    asked = Point(streams=False, air_s=(0.01, 0.015), pace_s=0.05, held=True)
    assert made([[RUNS], [asked]], 0.02, 0.1).background[NODE] == pytest.approx(0.01 / 0.05)
    assert made([[RUNS], [asked], [asked]], 0.02, 0.1).background[NODE] == pytest.approx(2 * 0.01 / 0.05)
    assert made([[RUNS], [dataclasses.replace(asked, pace_s=0.2)]], 0.02, 0.1).background[NODE] == pytest.approx(0.1)


def test_a_newcomer_who_wants_tokens_more_often_pays_for_what_that_shortens_the_period_by() -> None:
    found = made([[RUNS], [Point(pace_s=0.04, slack_s=(1.0, 0.04))]], 0.02, 0.1)
    assert found.background[NODE] == pytest.approx(0.01 / 0.1)
    assert found.rigid[1, 1] == pytest.approx(0.002 / 0.04 + 0.01 * (1 / 0.04 - 1 / 0.1))


def test_the_first_pays_for_all_reads() -> None:
    found = made([[Point(pace_s=0.04, slack_s=(1.0, 0.04))]], 0.02, NEVER)
    assert found.background[NODE] == 0.0
    assert found.rigid[0, 1] == pytest.approx((0.01 + 0.002) / 0.04)


def test_a_lone_newcomer_who_needs_more_layers_pays_for_them() -> None:
    found = made([[RUNS], [Point(shared_s=0.015)]], 0.02, 0.1)
    assert found.background[NODE] == pytest.approx(0.01 / 0.1)
    assert found.rigid[1, 1] == pytest.approx(0.002 / 0.1 + 0.005 / 0.1)


def test_one_who_needs_more_layers_and_more_often_pays_for_both() -> None:
    """With him 15 ms are read every 40 ms, without him 10 ms every 100 ms."""
    found = made([[RUNS], [Point(shared_s=0.015, pace_s=0.04, slack_s=(1.0, 0.04))]], 0.02, 0.1)
    paid = found.background[NODE] + found.rigid[1, 1] - 0.002 / 0.04
    assert paid == pytest.approx(0.015 / 0.04)


def test_a_lone_newcomer_of_another_model_pays_for_reading_it() -> None:
    found = made([[RUNS], [Point(shared_s=0.008, group=1)]], 0.02, 0.1)
    assert found.background[NODE] + found.rigid[1, 1] == pytest.approx((0.01 + 0.008) / 0.1 + 0.002 / 0.1)


def test_of_several_newcomers_what_they_need_is_read_for_all_and_none_pays_alone() -> None:
    found = made([[RUNS], [Point(shared_s=0.015)], [Point(shared_s=0.012)]], 0.02, 0.1)
    assert found.background[NODE] == pytest.approx(0.015 / 0.1)
    assert found.rigid[:, 1].tolist() == pytest.approx([0.02] * 3)


def test_several_points_of_one_newcomer_are_one_newcomer() -> None:
    found = made([[RUNS], [Point(shared_s=0.015), Point(shared_s=0.012)]], 0.02, 0.1)
    assert found.background[NODE] == pytest.approx(0.01 / 0.1)
    assert found.rigid[1:, 1].tolist() == pytest.approx([0.02 + 0.05, 0.02 + 0.02])


def test_frames_wait_for_half_a_step_and_read_nothing() -> None:
    frame = Point(shared_s=0.0, own_s=0.0, streams=True, wait=(0.5, 0.0), slack_s=(0.2, math.inf))
    found = made([[RUNS], [frame]], 0.02, 0.1)
    assert found.slack[1].tolist() == pytest.approx([0.19, math.inf])
    assert found.rigid[1].tolist() == [0.0, 0.0]
    alone = made([[frame]], NEVER, NEVER)
    assert alone.slack[0].tolist() == [0.2, math.inf]
    assert alone.background.tolist() == [0.0, 0.0, 0.0]


def test_where_nobody_decodes_nobody_may() -> None:
    found = steps.at(problem_of([[RUNS, Point(node=OTHER)]]), on_nodes(0.02), on_nodes(0.1))
    assert found.slack[1].tolist() == [1.0, -np.inf], "no token is in time"
    assert np.isfinite(found.slack[0]).all()
    assert found.background[OTHER] == 0.0


def test_a_problem_is_not_changed_and_one_without_steps_is_returned() -> None:
    problem = problem_of([[RUNS], [Point()]])
    before = problem.slack.copy(), problem.rigid.copy(), problem.background.copy()
    found = steps.at(problem, on_nodes(0.02), on_nodes(0.1))
    for old, now in zip(before, (problem.slack, problem.rigid, problem.background), strict=True):
        assert np.array_equal(old, now)
    assert steps.at(found, np.zeros(0), np.zeros(0)) is found


# lengths and periods


def cost_of(runs: list[Point], length_s: float, period_s: float) -> float:
    """Part of the node that reads of those who run take at a period, inf where it is too long for one who streams."""
    riders, alone = [], 0.0
    for p in runs:
        left = 2 * (p.slack_s[1] - p.wait[1] * length_s - 4 * p.air_s[1])
        if p.streams and p.pace_s < period_s:
            return math.inf
        if p.streams or min(left, p.pace_s) >= period_s:
            riders.append(p)
        else:
            alone += p.shared_s / p.pace_s
    return max(max((p.shared_s for p in runs), default=0.0) / period_s * bool(riders), alone)


@pytest.mark.parametrize("seed", range(40))
def test_the_period_is_the_one_at_which_those_who_run_read_least(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tasks = [[dataclasses.replace(task[0], held=True, node=NODE)] for task in random_tasks(rng, 6)]
    length_s, period_s = (x[NODE] for x in steps.lengths(problem_of(tasks)))
    runs = [task[0] for task in tasks if task[0].shared_s > 0]
    if not runs:
        assert (length_s, period_s) == (NEVER, NEVER)
        return
    others = [cost_of(runs, length_s, p) for p in np.linspace(length_s, 0.2, 2000)]
    assert cost_of(runs, length_s, period_s) <= min(others) + 1e-9


def test_a_step_is_as_long_as_those_who_run_make_it_with_some_room() -> None:
    for n in range(1, 30):
        (length_s, _) = steps.lengths(problem_of([[RUNS]] * n))
        least = max(1.2 * 0.01, 0.01 + n * 0.002)
        assert least * (1 - 1e-9) <= length_s[NODE] <= least * 1.05
        assert math.log(length_s[NODE] / 1e-3) / math.log(1.05) == pytest.approx(
            round(math.log(length_s[NODE] / 1e-3) / math.log(1.05)), abs=1e-6
        ), "on one grid, so that little changes nothing"
        assert np.isinf(length_s[[CELL, OTHER]]).all()


def test_a_fixed_length_is_that_of_all_who_decode_and_no_option_of_the_solver() -> None:
    problem = problem_of([[RUNS], [Point(node=OTHER)], [Point(shared_s=0.0, own_s=0.0, slack_s=(0.5, math.inf))]])
    found = registry.solve("joint", problem, options={"step_s": 0.033})
    assert found.step_s.tolist() == [NEVER, 0.033, 0.033]
    assert check.verify(problem, found, dual=True) == []
    usual = registry.solve("joint", problem)
    assert usual.step_s[NODE] != 0.033
    only_frames = problem_of([[Point(shared_s=0.0, own_s=0.0, slack_s=(0.5, math.inf))]])
    found = registry.solve("joint", only_frames, options={"step_s": 0.033})
    assert np.isinf(found.step_s).all()
    assert np.isinf(found.period_s).all()


# solutions


def solved(name: str, problem: Problem) -> Solution:
    options = {"second_stage": 0.0} if name in ("joint", "greedy") else {}
    return registry.solve(name, problem, options=options)


@pytest.mark.parametrize("name", ["joint", "greedy", "pf-admit", "compute-only"])
@pytest.mark.parametrize("groups", [1, 2])
def test_every_plan_passes_the_check(name: str, groups: int) -> None:
    promised = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        problem = problem_of(random_tasks(rng, int(rng.integers(1, 12)), groups=groups), (0.1, 0.0, 0.2))
        found = solved(name, problem)
        assert check.verify(problem, found, dual=True) == [], seed
        promised += int(found.promised.sum())
    assert promised > 60


@pytest.mark.parametrize("name", ["joint", "greedy", "pf-admit", "compute-only"])
def test_one_newcomer_passes_the_check(name: str) -> None:
    """As the core mostly asks: many run, one comes and pays for what he changes."""
    admitted = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        tasks = random_tasks(rng, 8, groups=2, running=1.0) + random_tasks(rng, 1, groups=2, running=0.0)
        problem = problem_of(tasks)
        found = solved(name, problem)
        assert check.verify(problem, found, dual=True) == [], seed
        admitted += bool(found.promised[-1])
    assert admitted > 10


def test_equal_problems_give_equal_plans_bit_for_bit() -> None:
    for seed in range(10):
        problems = [problem_of(random_tasks(np.random.default_rng(seed), 8, groups=2)) for _ in range(2)]
        first, again = (solved("joint", p) for p in problems)
        for field in dataclasses.fields(first):
            a, b = getattr(first, field.name), getattr(again, field.name)
            assert a.tobytes() == b.tobytes() if isinstance(a, np.ndarray) else a == b, field.name


@pytest.mark.parametrize(("shared_s", "fits"), [(0.02, True), (0.035, False)])
def test_who_wants_tokens_more_often_is_admitted_where_there_is_room_for_his_reads(shared_s: float, fits: bool) -> None:
    """Reads of 20 (35) ms every 40 ms and not 100: half (or seven eighths) of a node that is 0.2 other people's."""
    newcomer = Point(shared_s=shared_s, pace_s=0.04, slack_s=(1.0, 0.2), node_s=0.001)
    problem = problem_of([[dataclasses.replace(RUNS, shared_s=shared_s, value=2.0)], [newcomer]], (0.0, 0.2, 0.0))
    found = solved("joint", problem)
    assert check.verify(problem, found, dual=True) == []
    assert found.promised.tolist() == [True, fits]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_those_who_run_keep_their_promise_whoever_comes(n: int) -> None:
    """Newcomers who want a token every 15 ms cannot be served here; that is no reason to break a promise."""
    hasty = Point(pace_s=0.015, slack_s=(1.0, 0.05), node_s=0.001)
    problem = problem_of([[dataclasses.replace(RUNS, value=2.0)], *[[hasty]] * n], (0.0, 0.6, 0.0))
    for name in ("joint", "greedy"):
        found = solved(name, problem)
        assert check.verify(problem, found, dual=True) == []
        assert found.promised[0], name


def test_several_who_come_to_decode_push_no_clip_out() -> None:
    """A clip takes six tenths of the node; reads for newcomers every 40 ms would take nearly four."""
    clip = Point(
        held=True,
        shared_s=0.0,
        own_s=0.0,
        streams=True,
        wait=(0.5, 0.0),
        slack_s=(0.1, math.inf),
        node_s=0.06,
        value=2.0,
    )
    newcomer = Point(shared_s=0.015, pace_s=0.04, slack_s=(1.0, 0.2), node_s=0.001)
    for name in ("joint", "greedy"):
        found = solved(name, problem_of([[clip], [newcomer], [newcomer]]))
        assert found.promised[0], name


@pytest.mark.parametrize("name", ["joint", "greedy"])
def test_newcomers_break_no_promise_that_can_be_kept_without_them(name: str) -> None:
    """Who runs is worth more than all newcomers together. First come first served, they have nothing to do with him.

    For several newcomers reads may come more often than without them; whether those who run can bear that is estimated
    at equal prices of all resources (solvers/steps.py), and where one of them is scarce they need more than that.
    """
    kept = broken = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        running = [
            [dataclasses.replace(p, value=p.value + 10.0) for p in task] for task in random_tasks(rng, 5, running=1.0)
        ]
        alone = solved(name, problem_of(running, (0.1, 0.2, 0.2)))
        if not alone.promised.all():
            continue
        kept += 1
        found = solved(name, problem_of(running + random_tasks(rng, 3, running=0.0), (0.1, 0.2, 0.2)))
        broken += not found.promised[: len(running)].all()
    assert kept > 10
    assert broken <= (0.05 * kept if name == "joint" else 0)
