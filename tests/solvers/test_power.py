"""Power-limited uplinks: tangents, cheapest shares and bounds against code that shares nothing with them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solver_cases import random_problem
from typer.testing import CliRunner

from cosched.cli.main import app
from solvers import check, codec, power, registry
from solvers.errors import BadProblem
from solvers.latency import seconds
from solvers.objectives import convex
from solvers.objectives.second_stage import Goal, leftover, parse_goal
from solvers.price import solver as price
from solvers.problem import Floats, Problem
from solvers.solution import Solution


def case(seed: int, tasks: int = 14) -> tuple[Problem, Floats]:
    """Three resources, two phases, floors, caps and couplings; over half of the slots limited, -10 to 20 dB."""
    kinds = {"coupled": seed % 2 == 0, "soft": seed % 4 == 0}
    problem = random_problem(seed, tasks, 3, 3, load=(0.5, 1.0, 2.0, 3.0)[seed % 4], **kinds)
    rng = np.random.default_rng(seed)
    limited = rng.random(problem.slot.shape) < 0.6
    return problem, np.where(limited, 10 ** rng.uniform(-1, 2, problem.slot.shape), np.inf)


def shannon_s(bits: float, hz: float, snr: float, share: float) -> float:
    """The law as the textbook has it: power spread over the band used."""
    return bits / (share * hz * np.log2(1 + snr / share))


@given(snr=st.floats(1e-6, 1e9), share=st.floats(1e-4, 1.0), bits=st.floats(1.0, 1e8))
def test_seconds_are_those_of_the_law(snr: float, share: float, bits: float):
    whole = shannon_s(bits, 1e7, snr, 1.0)
    one = [np.array([x]) for x in (whole, snr, share)]
    assert seconds(*one)[0] == pytest.approx(shannon_s(bits, 1e7, snr, share), rel=1e-9)


def alone(snr: float | None, **more: dict[str, float]) -> tuple[Problem, Floats]:
    point = {"id": "p", "value": 1.0, "phases": [{"slack_s": 1.0, "work_s": {"cell/ul": 0.1, "node": 0.1}}], **more}
    if snr is not None:
        point["snr"] = {"cell/ul": snr}
    data = {"resources": [{"id": "cell/ul"}, {"id": "node"}], "tasks": [{"id": "t", "points": [point]}]}
    problem, found = codec.read(json.dumps(data))
    return problem, np.full(problem.slot.shape, np.inf) if found is None else found


@given(snr=st.floats(1e-6, 1e9), at=st.floats(1e-4, 1.0), share=st.floats(1e-4, 1.0))
def test_a_tangent_lies_above_the_curve_and_touches_it(snr: float, at: float, share: float):
    problem, limit = alone(snr)
    tangent = power.tangents(problem, limit, np.array([[at, at]]))

    def seconds(x: float) -> float:
        return float(tangent.work[0, 0, 0] / x + problem.slack[0, 0] - tangent.slack[0, 0])

    true_s = shannon_s(0.1 * np.log2(1 + snr), 1.0, snr, share)
    assert seconds(share) >= true_s * (1 - 1e-9)
    assert seconds(at) == pytest.approx(shannon_s(0.1 * np.log2(1 + snr), 1.0, snr, at), rel=1e-9)
    assert tangent.work[0, 0, 1] == problem.work[0, 0, 1]


@pytest.mark.parametrize("seed", range(12))
def test_the_tangent_problem_costs_the_same_at_the_prices_where_it_was_taken(seed: int):
    problem, snr = case(seed)
    prices = 10 ** np.random.default_rng(seed).uniform(-2, 1, problem.n_resources)
    cost, share = power.cheapest(problem, snr, prices)
    tangent, at = price.point_costs(power.tangents(problem, snr, share), prices)
    served = np.isfinite(cost)
    assert (np.isfinite(tangent) == served).all()
    assert tangent[served] == pytest.approx(cost[served], rel=1e-9, abs=1e-12)
    assert at[served] == pytest.approx(share[served], rel=1e-4, abs=1e-9)
    elsewhere, _ = price.point_costs(power.tangents(problem, snr, share), prices[::-1].copy())
    true_cost, _ = power.cheapest(problem, snr, prices[::-1].copy())
    assert (elsewhere >= true_cost * (1 - 1e-9) - 1e-12)[served].all()


@pytest.mark.parametrize("seed", range(6))
def test_without_limits_it_is_the_closed_form(seed: int):
    problem, snr = case(seed)
    prices = 10 ** np.random.default_rng(seed).uniform(-2, 1, problem.n_resources)
    cost, _ = power.cheapest(problem, np.full(snr.shape, np.inf), prices)
    assert cost == pytest.approx(price.point_costs(problem, prices)[0], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("snr", "prices", "more"),
    [
        (10.0, (1.0, 1.0), {}),
        (0.3, (5.0, 0.2), {}),
        (200.0, (0.1, 3.0), {"floor": {"cell/ul": 0.3}}),
        (2.0, (2.0, 1.0), {"cap": {"node": 0.15}}),
    ],
)
def test_cheapest_shares_by_trying_them_all(snr: float, prices: tuple[float, float], more: dict[str, dict[str, float]]):
    problem, limit = alone(snr, **more)
    cost, share = power.cheapest(problem, limit, np.array(prices))
    x = np.linspace(problem.floor[0, 0] + 1e-4, 1.0, 200_001)
    left = 1.0 - shannon_s(0.1 * np.log2(1 + snr), 1.0, snr, x)  # for the node
    node = np.where(left > 0, 0.1 / np.where(left > 0, left, 1.0), np.inf)
    tried = np.where(node <= problem.cap[0, 1], prices[0] * x + prices[1] * node, np.inf)
    assert cost[0] <= tried.min() * (1 + 1e-9)
    assert cost[0] == pytest.approx(tried.min(), rel=1e-5)
    assert share[0, 0] == pytest.approx(x[np.argmin(tried)], abs=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_plans_hold_and_bounds_are_proven_by_other_code(seed: int):
    problem, snr = case(seed, tasks=8)
    solution = power.solve(problem, snr, price.solve)
    assert check.verify(problem, solution, snr=snr) == []
    dual = check.dual_value(problem, solution.prices, snr)
    assert dual == pytest.approx(solution.certificate.bound, rel=1e-6)
    warm = power.solve(problem, snr, price.solve, warm=solution.prices)
    assert warm.certificate.bound <= solution.certificate.bound * (1 + 1e-3)
    assert check.verify(problem, warm, snr=snr) == []


def test_a_plan_that_power_does_not_carry_is_found_out():
    problem, snr = case(3)
    solution = power.solve(problem, snr, price.solve)
    weaker = np.where(np.isfinite(snr), np.inf, snr)  # the same work as if the rate were in proportion to the share
    assert any("takes" in finding for finding in check.verify(problem, solution, dual=False, snr=weaker))


def test_the_bound_holds_for_every_set_that_the_cone_solver_can_serve():
    problem, snr = case(6, tasks=5)
    solution = power.solve(problem, snr, price.solve)
    points = np.where(solution.chosen >= 0, solution.chosen, problem.first[:-1])
    best = 0.0
    for some in itertools.product((True, False), repeat=5):
        chosen = np.where(some, points, -1)
        value = float(problem.value[chosen[chosen >= 0]].sum())
        if value > best and can_serve(problem, chosen, snr):
            best = value
    assert solution.certificate.value * (1 - 1e-9) <= best <= solution.certificate.bound * (1 + 1e-6)


def can_serve(problem: Problem, chosen: np.ndarray, snr: Floats) -> bool:
    try:
        convex.second_stage(problem, chosen, snr=snr, parameters=False)
    except (BadProblem, convex.Unsolved):
        return False
    return True


def test_both_phases_of_a_slot_scale_by_one_factor():
    problem, snr = case(2)
    tangent = power.tangents(problem, snr, np.full(snr.shape, 0.1))
    both = (problem.work > 0).all(axis=1) & np.isfinite(snr)
    ratio = tangent.work / np.where(problem.work > 0, problem.work, 1.0)
    assert both.any()
    assert ratio[:, 0][both] == pytest.approx(ratio[:, 1][both])


@pytest.mark.parametrize("name", ["latency", "max-latency", "energy"])
def test_the_second_stage_is_the_cone_solvers_within_all_limits(name: str):
    problem, snr = case(1)
    problem = dataclasses.replace(problem, kinds=("comm", "compute", "compute"))
    plan = power.solve(problem, snr, price.solve)
    goal = parse_goal(name)
    after = power.second_stage(problem, snr, plan, goal)
    assert check.verify(problem, after, snr=snr) == []
    assert after.certificate == plan.certificate

    def worth(share: Floats) -> float:
        left = leftover(problem, plan.chosen, goal, None)
        x, each = share[left.task, left.slot], snr[plan.chosen[left.task], left.slot]
        late = [seconds(a, each, x) for a in left.a]
        per_task = np.stack([np.bincount(left.owner, weights=a, minlength=len(left.weight)) for a in late]).max(axis=0)
        return (
            float(per_task.max())
            if name == "max-latency"
            else float(left.weight @ per_task + seconds(left.energy, each, x).sum())
        )

    _, least = convex.second_stage(problem, plan.chosen, objective=goal, snr=snr)
    assert worth(after.share) == pytest.approx(least, rel=1e-5)
    assert worth(after.share) <= worth(plan.share)


LOOSE = [(8.0, 0), (4e2, 4), (5e4, 5), (8e5, 8)]  # deadlines over the work; seeds on which the cone solver gave up


def loose(times: float, seed: int) -> tuple[Problem, Floats]:
    """Work of milliseconds to be done within so many seconds."""
    rng = np.random.default_rng(seed)
    tasks = []
    for i in range(int(rng.integers(2, 12))):
        work = float(rng.uniform(0.001, 0.02))
        phase = {"slack_s": float(rng.uniform(0.5, 1) * times), "work_s": {"cell/ul": work, "node": work}}
        point = {"id": "p", "value": 1.0, "snr": {"cell/ul": float(10 ** rng.uniform(-2, 3))}, "phases": [phase]}
        tasks.append({"id": f"t{i}", "points": [point]})
    data = {"resources": [{"id": "cell/ul"}, {"id": "node"}], "tasks": tasks}
    problem, snr = codec.read(json.dumps(data))
    assert snr is not None
    return problem, snr


def latest(problem: Problem, snr: Floats, plan: Solution) -> Floats:
    """(N,) latency over deadline of each task, true."""
    j = plan.chosen
    each = seconds(problem.work[j, 0], snr[j], plan.share).sum(axis=1)
    return np.asarray(each / problem.slack[j, 0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["latency", "max-latency", "alpha-fair", "alpha-fair:2", "energy"])
@pytest.mark.parametrize(("times", "seed"), LOOSE)
def test_loose_deadlines_are_shared_out_without_a_failure(times: float, seed: int, name: str):
    problem, snr = loose(times, seed)
    plan = power.solve(problem, snr, price.solve)
    assert (plan.chosen >= 0).all()
    goal, said = parse_goal(name), list[str]()
    after = power.second_stage(problem, snr, plan, goal, said.append)
    assert check.verify(problem, after, dual=False, snr=snr) == []
    before, now = latest(problem, snr, plan), latest(problem, snr, after)
    if name == "latency":
        assert now.sum() <= before.sum() * (1 + 1e-9)
    if name == "max-latency":
        assert now.max() <= before.max() * (1 + 1e-9)
    assert all("second stage" in line for line in said)


@pytest.mark.parametrize("name", ["latency", "max-latency", "energy"])
def test_where_the_cone_solver_gives_up_the_fast_paths_shares_stand_and_it_is_said(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    problem, snr = case(1)
    plan, said = power.solve(problem, snr, price.solve), list[str]()

    def gives_up(*_: object, **__: object) -> None:
        raise convex.Unsolved("second stage: no optimum")

    monkeypatch.setattr(convex, "second_stage", gives_up)
    after = power.second_stage(problem, snr, plan, parse_goal(name), said.append)
    assert check.verify(problem, after, dual=False, snr=snr) == []
    assert (after.share != plan.share).any()
    assert len(said) == 1
    assert "fast path" in said[0]


@pytest.mark.parametrize("name", ["greedy", "pf-admit", "local"])
def test_baselines_plan_with_tangents_too(name: str):
    problem, snr = case(5)
    solution = power.solve(problem, snr, registry.get(name))
    assert check.verify(problem, solution, snr=snr) == []


def test_more_power_never_admits_less_than_the_certificate_says():
    problem, snr = case(7)
    weak, strong = (power.solve(problem, snr * x, price.solve).certificate for x in (1.0, 10.0))
    # work is at full share: with more power the same work is less concave, so needs more of the band
    assert strong.value <= weak.bound * (1 + 1e-9)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), 1e13])
def test_ratios_that_there_are_not(bad: float):
    with pytest.raises(BadProblem, match=r"snr|NaN|JSON"):
        alone(bad)


def test_shapes_and_solvers_that_do_not_know_power():
    problem, snr = case(1)
    with pytest.raises(BadProblem, match="shape"):
        power.tangents(problem, snr[:-1], snr)
    point = {"id": "p", "value": 1.0, "phases": [{"slack_s": 1.0, "work_s": {"c/ul": 0.1}}], "snr": {"c/ul": 3.0}}
    data = {"resources": [{"id": "c/ul"}], "tasks": [{"id": "t", "points": [point]}]}
    with pytest.raises(BadProblem, match="in proportion"):
        codec.problem_from_data(data)


def test_solve_prints_true_latencies(tmp_path: Path):
    data = {
        "resources": [{"id": "cell/ul"}],
        "tasks": [{"id": f"t{i}", "points": [{"id": "p", "value": 1.0, "snr": {"cell/ul": 8.0},
                   "phases": [{"slack_s": 0.5, "work_s": {"cell/ul": 0.1}}]}]} for i in range(9)],
    }  # fmt: skip
    path = tmp_path / "limited.json"
    path.write_text(json.dumps(data))
    for more in ([], ["--objective", "max-latency"]):
        result = CliRunner().invoke(app, ["solve", str(path), "--json", *more])
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        served = [task for task in answer["tasks"].values() if task is not None]
        assert len(served) == answer["value"] > 5  # 5 fit if the rate were in proportion to the share
        for task in served:
            x = task["shares"]["cell/ul"]
            assert task["latency_s"][0] == pytest.approx(shannon_s(0.1 * np.log2(9), 1.0, 8.0, x))
            assert task["latency_s"][0] <= 0.5 * (1 + 1e-9)


@pytest.mark.parametrize("tasks", [[], [{"id": "t"}, {"id": "u"}]])
def test_nobody_and_tasks_without_points(tasks: list[dict[str, object]]):
    problem, _ = codec.read(json.dumps({"resources": [{"id": "c/ul"}], "tasks": tasks}))
    solution = power.solve(problem, np.full(problem.slot.shape, np.inf), price.solve)
    assert (solution.certificate.value, solution.certificate.bound) == (0.0, 0.0)


def test_goal_default_is_left_to_the_solver():
    problem, snr = case(9)
    plan = power.solve(problem, snr, price.solve)
    unpromised = dataclasses.replace(plan, promised=np.zeros(problem.n_tasks, dtype=bool))
    assert power.second_stage(problem, snr, unpromised, Goal()) is unpromised
