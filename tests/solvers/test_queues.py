"""Work that waits for what is due before: the demand bound against plain simulation, who pays, and the plans."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from step_cases import NODE, Point, problem_of, random_tasks

from solvers import check, registry, steps
from solvers.problem import Floats, Problem
from solvers.queues import unqueued
from solvers.solution import Solution

WAITS = Point(queued=True, held=True, slack_s=(1.0, 0.1), air_s=(0.0, 0.0), node_s=0.2, wait=(0.0, 1.0))
DECODES = Point(held=True, slack_s=(math.inf, 0.1), air_s=(0.0, 0.0), node_s=0.0, lead_s=0.0, own_s=1e-6)


def made(tasks: list[list[Point]], period_s: float, background: float = 0.0) -> Problem:
    lengths, periods = np.full(3, math.inf), np.full(3, math.inf)
    lengths[NODE], periods[NODE] = 0.012, period_s
    return steps.at(problem_of(tasks, (0.0, background, 0.0)), lengths, periods)


def solved(problem: Problem, name: str = "joint") -> Solution:
    options = {"second_stage": 0.0} if name in ("joint", "greedy") else {}
    return registry.solve(name, problem, options=options)


def is_in_time(jobs: list[tuple[float, float]], rate: float) -> bool:
    """Serve (work, due) earliest due first at a rate, one after the other."""
    now = 0.0
    for work, due in sorted(jobs, key=lambda job: job[1]):
        now += work / rate
        if now > due:
            return False
    return True


@pytest.mark.parametrize("seed", range(50))
def test_a_queue_takes_the_least_part_of_the_node_at_which_all_of_it_is_in_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = [(float(rng.uniform(0.01, 0.2)), float(rng.uniform(0.25, 2.0))) for _ in range(int(rng.integers(1, 7)))]
    tasks = [[dataclasses.replace(WAITS, node_s=w, slack_s=(d, 0.1), own_s=1e-7)] for w, d in jobs]
    problem = problem_of(tasks)
    part = made(tasks, math.inf).background[NODE]
    room = 1.0 - float(steps.change(problem, problem.steps, *nowhere()).rigid[:, 1].sum())  # type: ignore[arg-type]
    wanted = part
    if is_in_time(jobs, room * (1 - 1e-6)):
        assert is_in_time(jobs, wanted * (1 + 1e-9))
        assert not is_in_time(jobs, wanted * (1 - 1e-6))
    else:
        assert wanted == pytest.approx(room), "what runs has its room, the queue the rest"


def nowhere() -> tuple[Floats, Floats]:
    return np.array([math.inf, 0.012, math.inf]), np.full(3, math.inf)


def test_who_is_ahead_lets_the_queue_have_the_time_of_his_reads() -> None:
    """Reads of 10 ms every 50 ms are a fifth of the node. Until 0.4 s he needs none, or two, or eight."""
    prefill = dataclasses.replace(WAITS, node_s=0.3, slack_s=(0.4, 0.1))
    for lead_s, reads in ((0.4, 0), (0.3, 2), (0.0, 8)):
        decoder = dataclasses.replace(DECODES, lead_s=lead_s, pace_s=0.05)
        found = made([[decoder], [prefill]], 0.05).background[NODE]
        rest = DECODES.own_s / 0.05 + DECODES.own_s / 0.1
        assert found == pytest.approx(min(1 - rest, (0.3 + reads * 0.01) / 0.4))


def test_who_is_asked_for_each_token_is_never_ahead() -> None:
    prefill = dataclasses.replace(WAITS, node_s=0.3, slack_s=(0.4, 0.1))
    asked = dataclasses.replace(DECODES, streams=False, lead_s=10.0, pace_s=0.1, air_s=(0.0, 0.001))
    assert made([[asked], [prefill]], 0.1).background[NODE] == pytest.approx((0.3 + 0.04) / 0.4)


def test_reads_take_no_less_in_the_long_run() -> None:
    decoder = dataclasses.replace(DECODES, lead_s=9.0, pace_s=0.05)
    found = made([[decoder], [dataclasses.replace(WAITS, node_s=0.001)]], 0.05)
    assert found.background[NODE] == pytest.approx(0.01 / 0.05)


def test_a_newcomer_pays_for_what_the_queue_grows_by_with_him() -> None:
    """0.2 of 0.4 s is half of the node. 0.1 s of work fit behind, by 1 s, for nothing; not before, by 0.3 s."""
    runs = dataclasses.replace(WAITS, node_s=0.2, slack_s=(0.4, 0.1))
    for node_s, due_s, added in ((0.1, 1.0, 0.0), (0.4, 1.0, 0.1), (0.1, 0.3, 0.25), (0.25, 0.4, 0.625)):
        comes = dataclasses.replace(WAITS, node_s=node_s, slack_s=(due_s, 0.1), held=False)
        found = made([[runs], [comes]], 1e9)
        assert found.background[NODE] == pytest.approx(0.5)
        own = comes.own_s / comes.pace_s + comes.shared_s / comes.pace_s
        assert found.rigid[1, 1] - own == pytest.approx(added, abs=1e-9), (node_s, due_s)
        assert found.work[:, 0, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(30))
def test_several_newcomers_pay_together_at_least_what_the_queue_grows_by(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def drawn(held: bool) -> list[Point]:
        return [
            dataclasses.replace(
                WAITS, held=held, own_s=1e-7, node_s=float(rng.uniform(0.001, 0.1)),
                slack_s=(float(rng.uniform(0.2, 1.0)), 0.1),
            )
        ]  # fmt: skip

    running, coming = [drawn(True) for _ in range(3)], [drawn(False) for _ in range(3)]
    found = made(running + coming, math.inf)
    all_run = made([*running, *[[dataclasses.replace(p, held=True) for p in task] for task in coming]], math.inf)
    assert found.background[NODE] + found.rigid[3:, 1].sum() >= all_run.background[NODE] - 1e-9


def test_who_could_not_be_in_time_even_alone_does_not_come() -> None:
    comes = dataclasses.replace(WAITS, node_s=0.5, slack_s=(0.4, 0.1), held=False)
    assert made([[comes]], math.inf).slack[0, 0] == -math.inf


@pytest.mark.parametrize("slack_s", [-5.0, 0.0, 0.29])
def test_who_runs_and_could_not_be_in_time_even_alone_keeps_nobody_away(slack_s: float) -> None:
    """A session of which nobody reports anything would else close its node to all others for all of its life."""
    late = dataclasses.replace(WAITS, node_s=0.3, slack_s=(slack_s, 0.1), wait=(1.0, 1.0), value=2.0)
    comes = dataclasses.replace(WAITS, node_s=0.3, slack_s=(0.6, 0.1), held=False)
    problem = problem_of([[late], [comes]])
    for name in ("joint", "greedy"):
        found = solved(problem, name)
        assert found.promised.tolist() == [False, True]
        assert check.verify(problem, found, dual=True) == []


def test_who_runs_has_no_step_to_wait_for() -> None:
    """0.3 s of work in 0.301 s, and a step of 12 ms: he is in the next one, and is given what there is."""
    runs = dataclasses.replace(WAITS, node_s=0.3, slack_s=(0.301, 0.1), wait=(1.0, 1.0), own_s=1e-6)
    assert np.isinf(made([[runs]], math.inf).slack[0, 0])
    assert made([[dataclasses.replace(runs, held=False)]], math.inf).slack[0, 0] == -math.inf


def test_what_a_prompt_needs_on_its_way_is_taken_off_its_time() -> None:
    """10 ms of air and 40 ms of node: at equal prices a third of the time is for the air."""
    comes = dataclasses.replace(WAITS, air_s=(0.01, 0.0), node_s=0.04, slack_s=(0.3, 0.1), held=False)
    found = made([[comes]], math.inf)
    assert found.slack[0, 0] == pytest.approx(0.1)
    assert found.rigid[0, 1] - (comes.own_s + comes.shared_s) / comes.pace_s == pytest.approx(0.04 / 0.2)


def queued_tasks(rng: np.random.Generator, running: int, coming: int) -> list[list[Point]]:
    """Random tasks; of sessions that a node serves alone, those at the beginning wait in order, and some are ahead."""
    tasks = random_tasks(rng, running, groups=2, running=1.0) + random_tasks(rng, coming, groups=2, running=0.0)
    out = []
    for i, task in enumerate(tasks):
        held = next((p for p in task if p.held), None)
        decodes = bool(rng.random() < 0.5) and held is not None
        lead_s = float(rng.choice([0.0, 0.1, 0.5]))
        some = []
        for p in task:
            alone = p.streams and p.shared_s > 0
            if decodes and p.held and p.shared_s > 0:
                some.append(
                    dataclasses.replace(p, node_s=0.0, floor=0.0, lead_s=lead_s, slack_s=(math.inf, p.slack_s[1]))
                )
            else:
                waits = alone and (p.held or (i >= running and coming == 1))
                some.append(dataclasses.replace(p, queued=waits))
        out.append(some)
    return out


@pytest.mark.parametrize("name", ["joint", "greedy", "pf-admit", "compute-only"])
@pytest.mark.parametrize("coming", [0, 1, 3])
def test_every_plan_passes_the_check(name: str, coming: int) -> None:
    promised = waited = 0
    for seed in range(60):
        problem = problem_of(queued_tasks(np.random.default_rng(seed), 6, coming), (0.1, 0.0, 0.2))
        found = solved(problem, name)
        assert check.verify(problem, found, dual=True) == [], seed
        promised += int(found.promised.sum())
        chosen = found.chosen[found.promised]
        waited += int(problem.steps.queued[chosen].sum())  # type: ignore[union-attr]
    assert promised > 60
    assert waited > 20


def test_the_check_sees_a_queue_that_is_too_long() -> None:
    """The plan of a problem in which the second prefill is short, held against one in which it is not."""
    short = dataclasses.replace(WAITS, node_s=0.05, held=False)
    tasks = [[dataclasses.replace(WAITS, node_s=0.6, value=2.0)], [short]]
    found = solved(problem_of(tasks))
    assert found.promised.all()
    longer = problem_of([tasks[0], [dataclasses.replace(short, node_s=0.5)]])
    assert any("node" in finding for finding in check.verify(longer, found, dual=False))


def test_a_queue_that_is_over_full_keeps_newcomers_away_and_nobody_who_runs() -> None:
    """1.5 s of work within a second. Who decodes keeps his room, and a frame finds none."""
    behind = [[dataclasses.replace(WAITS, node_s=0.5, value=2.0)] for _ in range(3)]
    decoder = [dataclasses.replace(DECODES, own_s=0.01, value=2.0)]
    frame = [Point(shared_s=0.0, own_s=0.0, wait=(0.5, 0.0), slack_s=(0.1, math.inf), node_s=0.01)]
    for name in ("joint", "greedy"):
        problem = problem_of([*behind, decoder, frame, [dataclasses.replace(WAITS, held=False, node_s=0.01)]])
        found = solved(problem, name)
        assert found.promised.tolist() == [True, True, True, True, False, False]
        assert check.verify(problem, found, dual=True) == []


@pytest.mark.parametrize(("queue", "comes"), [(0.0, False), (1.0, True)])
def test_predicted_may_predict_with_the_queue(queue: float, comes: bool) -> None:
    """0.1 s of work due in 0.12 s make a node busy for 0.83 on average; behind them 0.3 s are done well before 1 s."""
    runs = dataclasses.replace(WAITS, node_s=0.1, slack_s=(0.12, 0.1), floor=0.83, own_s=1e-4, shared_s=1e-3)
    new = dataclasses.replace(WAITS, node_s=0.3, slack_s=(1.0, 0.1), held=False, own_s=1e-4, shared_s=1e-3)
    found = registry.solve("predicted", problem_of([[runs], [new]]), options={"queue": queue})
    assert found.chosen.tolist() == [0, 1 if comes else -1]


def test_predicted_lets_nobody_in_who_makes_others_late() -> None:
    """0.5 s that are due in 0.52 s, and somebody with 0.2 s who is due before."""
    runs = dataclasses.replace(WAITS, node_s=0.5, slack_s=(0.52, 0.1), own_s=1e-4, shared_s=1e-3)
    new = dataclasses.replace(WAITS, node_s=0.2, slack_s=(0.4, 0.1), held=False, own_s=1e-4, shared_s=1e-3)
    found = registry.solve("predicted", problem_of([[runs], [new]]), options={"queue": 1.0})
    assert found.chosen.tolist() == [0, -1]


def test_a_plan_that_overbooks_has_no_queue_that_it_is_held_against() -> None:
    late = problem_of([[dataclasses.replace(WAITS, node_s=0.9)], [dataclasses.replace(WAITS, node_s=0.9)]])
    assert late.steps is not None
    free = unqueued(late, late.steps)
    found = solved(free)
    assert found.promised.all()
    assert check.verify(free, found, dual=False) == []
    assert late.work[:, 0, 1].tolist() == [0.9, 0.9]
