"""Baselines: cases worked out by hand, and what every policy must keep on random problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import check, registry
from solvers.errors import BadProblem
from solvers.price import solver as price
from solvers.problem import Floats, Ints, Problem
from solvers.solution import Solution

POLICIES = [name for name, where in registry.SOLVERS.items() if where.startswith("solvers.baselines:")]
ORDINARY = [name for name in POLICIES if name not in registry.FLOATING]  # these promise nothing and plan no use
ADMITTING = ["pf-admit", "equal-rate-admit", "greedy", "greedy-residual"]  # promise all that they serve
CELL, NODE, MEMORY = 0, 1, 2
EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)


@dataclass
class Point:
    """One operating point by hand: {resource: ...}."""

    slack: tuple[float, float] = (1.0, math.inf)
    work: dict[int, float] = field(default_factory=dict)
    second: dict[int, float] = field(default_factory=dict)
    floor: dict[int, float] = field(default_factory=dict)
    cap: dict[int, float] = field(default_factory=dict)
    rigid: dict[int, float] = field(default_factory=dict)
    value: float = 1.0


def columns(points: list[Point], what: str, fill: float = 0.0):
    return np.array([[getattr(p, what).get(r, fill) for r in range(3)] for p in points]).reshape(-1, 3)


Numbers = Sequence[float] | Floats | Ints | None


def problem(
    tasks: list[list[Point]],
    *,
    channel: Numbers = None,
    held: Numbers = None,
    order: Numbers = None,
    coupling: float = 0.0,
) -> Problem:
    """One cell, one node, one memory; slot s of every point is resource s (or padding where it has nothing)."""
    points = [p for task in tasks for p in task]
    n = len(tasks)
    touched = columns(points, "work") + columns(points, "second") + columns(points, "floor") + columns(points, "rigid")
    coupled = [0] if coupling else []
    return Problem(
        resource_ids=("cell", "node", "memory"),
        kinds=("comm", "compute", "memory"),
        background=np.zeros(3),
        coupling_from=np.array(coupled, dtype=np.int64),
        coupling_to=np.array(coupled, dtype=np.int64) + 1,
        coupling_per_share=np.array([coupling] * len(coupled), dtype=np.float64),
        task_ids=tuple(f"t{i:03}" for i in range(n)),
        first=np.cumsum([0, *(len(t) for t in tasks)]),
        point_ids=tuple(f"p{j}" for j in range(len(points))),
        value=np.array([p.value for p in points], dtype=np.float64),
        slack=np.array([p.slack for p in points]).reshape(-1, 2),
        slot=np.where(touched > 0, np.arange(3), 3),
        work=np.stack([columns(points, "work"), columns(points, "second")], axis=1),
        floor=columns(points, "floor"),
        cap=columns(points, "cap", 1.0),
        activity=np.ones((len(points), 3)),
        rigid=columns(points, "rigid"),
        held=np.full(n, -1) if held is None else np.array(held, dtype=np.int64),
        order=np.arange(n) if order is None else np.array(order, dtype=np.int64),
        channel=np.ones(n) if channel is None else np.array(channel, dtype=np.float64),
    )


def run(name: str, p: Problem, **options: float):
    """Solve and verify; where shares are given away several times over, they count for that part of themselves."""
    solution, overbook = registry.get(name)(p, options=options), max(1.0, options.get("overbook", 1.0))
    weighed = replace(p, activity=p.activity / overbook, background=p.background / overbook)
    assert check.verify(weighed, solution) == []
    return solution


def both(cell: float, node: float, slack: float, rigid: dict[int, float] | None = None) -> Point:
    return Point(slack=(slack, math.inf), work={CELL: cell, NODE: node}, rigid=rigid or {})


def random_problem(seed: int, *, running: bool = False) -> Problem:
    """Mixed tasks with a local point, splits of different cost, one or two phases, memory, coupling."""
    rng = np.random.default_rng(seed)
    tasks = []
    for _ in range(int(rng.integers(1, 14))):
        deadline, device, weight = rng.uniform(0.1, 0.5), rng.uniform(0.05, 1.2), float(rng.choice([1.0, 5.0]))
        bits, flop, two = rng.lognormal(-4, 0.8), rng.lognormal(-3.5, 0.8), rng.random() < 0.5
        points = []
        for k in np.linspace(0, 1, 6):
            used = {CELL: bits * (1 - 0.6 * k), NODE: flop * (1 - k)} if k < 1 else {}
            points.append(
                Point(
                    slack=(deadline - k * device * 0.5, 0.05 if two else math.inf),
                    work=used,
                    second={r: w * 0.2 for r, w in used.items()} if two else {},
                    floor={r: w * rng.uniform(0, 2) for r, w in used.items()},
                    cap={r: rng.uniform(0.3, 1) for r in used},
                    rigid={MEMORY: rng.uniform(0, 0.3)} if used else {},
                    value=weight * (1 - 0.02 * k),
                )
            )
        tasks.append(points)
    p = problem(tasks, channel=rng.uniform(0.3, 5, len(tasks)), order=rng.permutation(len(tasks)), coupling=0.2)
    if not running:
        return p
    served = registry.get("pf-admit")(p)
    keep = np.where(rng.random(p.n_tasks) < 0.7, served.chosen, -1)
    fade = rng.uniform(0.5, 3)  # the channel has changed since
    work = p.work * np.where(p.slot == CELL, fade, 1.0)[:, None, :]
    return replace(p, held=keep, work=work)


# By hand


def test_pf_gives_equal_airtime_and_promises_what_holds():
    p = problem([[both(0.02, 0.04, 0.1)], [both(0.02, 0.04, 0.13)]])  # both take (0.02 + 0.04) / 0.5 = 0.12 s
    solution = run("pf", p)
    assert solution.share[:, :2] == pytest.approx(np.full((2, 2), 0.5))
    assert solution.promised.tolist() == [False, True]
    assert solution.chosen.tolist() == [0, 1]
    assert (solution.certificate.value, solution.certificate.bound) == (1.0, 2.0)


def test_pf_chooses_the_split_that_is_least_late_at_its_share():
    # At a half each: 0.2 / 0.5 + 0.1 / 0.5 = 0.6 of 1; 0.05 / 0.5 + 0.15 / 0.5 = 0.4 of 0.5 (0.8 of the slack).
    task = [both(0.2, 0.1, 1.0), both(0.05, 0.15, 0.5)]
    assert run("pf", problem([task, task])).chosen.tolist() == [0, 2]


def test_pf_passes_on_what_a_cap_leaves():
    p = problem([[Point(work={CELL: 0.1}, cap={CELL: 0.2})], [Point(work={CELL: 0.1})]])
    assert run("pf", p).share[:, CELL] == pytest.approx([0.2, 0.8])


def test_pf_leaves_the_cell_to_others_when_the_device_can_do_it():
    local = Point(slack=(0.01, math.inf), value=0.5)
    p = problem([[both(0.1, 0.1, 1.0), local], [both(0.1, 0.1, 1.0)]])
    solution = run("pf", p)
    assert solution.chosen.tolist() == [1, 2]
    assert solution.share[1, CELL] == pytest.approx(1.0)


def test_overbooking_assumes_more_than_an_equal_part():
    p = problem([[both(0.02, 0.04, 0.07)], [both(0.02, 0.04, 0.07)]])
    assert not run("pf", p).promised.any()
    assert run("pf", p, overbook=2.0).promised.all()
    assert run("pf-admit", p, overbook=2.0).promised.sum() == 2
    assert run("pf-admit", p).promised.sum() == 1


def test_pf_admit_drops_the_most_late_until_the_rest_holds():
    # Alone 0.1 s; three share: 0.3 s, two: 0.2 s. Slacks 0.15, 0.2 and 0.25: the first is most late of three.
    p = problem([[Point(slack=(s, math.inf), work={CELL: 0.1})] for s in (0.15, 0.2, 0.25)])
    assert run("pf-admit", p).chosen.tolist() == [-1, 1, 2]


def test_pf_admit_prefers_weight_when_that_is_worth_more():
    heavy = Point(slack=(0.1, math.inf), work={CELL: 0.1}, value=5.0)  # needs the whole cell
    light = [Point(slack=(0.2, math.inf), work={CELL: 0.1})]
    assert run("pf-admit", problem([light, light, [heavy]])).certificate.value == 5.0


def test_pf_admit_never_drops_a_running_task_for_a_newcomer():
    task = [Point(slack=(0.15, math.inf), work={CELL: 0.1})]
    solution = run("pf-admit", problem([task, task], held=[-1, 1], order=[0, 1]))
    assert solution.chosen.tolist() == [-1, 1]


def test_a_running_task_that_is_late_anyway_does_not_keep_newcomers_out():
    late, easy = [Point(slack=(0.05, math.inf), work={CELL: 0.1})], [Point(slack=(1.0, math.inf), work={CELL: 0.1})]
    solution = run("pf-admit", problem([late, easy], held=[0, -1]))
    assert solution.chosen.tolist() == [0, 1]
    assert solution.promised.tolist() == [False, True]


def test_pf_util_admits_up_to_rho():
    tasks = [[Point(work={CELL: 0.1}, floor={CELL: f})] for f in (0.4, 0.3, 0.3)]
    assert (run("pf-util", problem(tasks)).chosen >= 0).sum() == 2
    assert (run("pf-util", problem(tasks), rho=0.65).chosen >= 0).sum() == 2
    assert (run("pf-util", problem(tasks), rho=0.35).chosen >= 0).sum() == 1
    assert (run("pf-util", problem(tasks), rho=1.0).chosen >= 0).sum() == 2  # 0.4 is more than an equal part of three


def test_equal_rate_gives_airtime_inverse_to_the_channel():
    p = problem([[Point(work={CELL: 0.01})]] * 2, channel=[3.0, 1.0])
    assert run("equal-rate-admit", p).share[:, CELL] == pytest.approx([0.25, 0.75])


def test_equal_rate_takes_the_best_channels():
    bits = 0.1
    p = problem([[Point(slack=(0.12, math.inf), work={CELL: bits / c})] for c in (1.0, 2.0, 4.0)], channel=[1, 2, 4])
    assert run("equal-rate-admit", p).chosen.tolist() == [-1, 1, 2]  # 0.05 + 0.025 fits 0.12 s, with 0.1 it does not


def test_unknown_channels_count_as_usual_ones():
    p = problem([[Point(work={CELL: 0.01})]] * 3, channel=[2.0, math.nan, 2.0])
    assert run("equal-rate-admit", p).share[:, CELL] == pytest.approx([1 / 3] * 3)


def test_with_identical_tasks_equal_rate_is_nearly_optimal():
    channel = np.random.default_rng(3).uniform(0.5, 5, 80)
    splits = np.linspace(0, 1, 8)[:-1]
    tasks = [[both(0.008 * (1 - 0.7 * k) / c, 0.013 * (1 - k), 0.3 - 0.25 * k) for k in splits] for c in channel]
    p = problem(tasks, channel=channel)
    bound, _ = price.dual_bound(p)
    assert run("equal-rate-admit", p).certificate.value >= 0.97 * math.floor(bound + 1e-6)


def test_compute_only_is_blind_to_the_channel():
    # Equal but for the channel: it admits both, expecting 0.05 / 0.5 + 0.1 / 0.5 = 0.3 of 0.4 s from each.
    p = problem([[both(0.05 / c, 0.1, 0.4)] for c in (1.0, 0.25)], channel=[1.0, 0.25])
    solution = run("compute-only", p, nominal_efficiency=1.0)
    assert (solution.chosen >= 0).all()
    assert solution.promised.tolist() == [True, False]


def test_compute_only_takes_the_least_needs_first():
    p = problem([[both(0.001, c, 0.2)] for c in (0.12, 0.05, 0.06)])
    assert run("compute-only", p).chosen.tolist() == [-1, 1, 2]


def test_local_and_edge_are_all_or_nothing():
    splits = [both(0.01, 0.02, 0.5), both(0.005, 0.01, 0.4), Point(slack=(0.1, math.inf))]
    weak = [both(0.01, 0.02, 0.5), Point(slack=(-0.1, math.inf))]
    p = problem([splits, weak])
    assert run("local", p).chosen.tolist() == [2, -1]
    assert run("edge", p).chosen.tolist() == [0, 3]


def test_greedy_is_first_come_first_served():
    hog, small = [Point(slack=(0.1, math.inf), work={CELL: 0.08})], [Point(slack=(0.1, math.inf), work={CELL: 0.03})]
    assert run("greedy", problem([small, small, hog], order=[1, 2, 0])).chosen.tolist() == [-1, -1, 2]
    assert run("greedy", problem([small, small, hog], order=[0, 1, 2])).chosen.tolist() == [0, 1, -1]


def test_greedy_takes_the_cheapest_point():
    # Flat prices: (sqrt(.1) + sqrt(.1))^2 = 0.4 against (sqrt(.2) + sqrt(.01))^2 = 0.30.
    assert run("greedy", problem([[both(0.1, 0.1, 1.0), both(0.2, 0.01, 1.0)]])).chosen.tolist() == [1]


def test_greedy_rebalances_before_it_refuses():
    # At flat prices each takes sqrt(.38) (sqrt(.38) + sqrt(.1)) = 0.57 of the cell; with more of the node 0.5 does.
    p = problem([[both(0.38, 0.1, 1.0)]] * 2)
    assert run("greedy", p).promised.all()
    assert run("greedy-residual", p).promised.all()
    assert run("greedy", p, tries=0).promised.sum() == 1


def test_greedy_leaves_the_rest_to_a_running_task_that_cannot_hold():
    fits, faded = [both(0.3, 0.1, 1.0)], [both(0.9, 0.3, 1.0)]
    solution = run("greedy", problem([fits, faded], held=[0, 1]))
    assert solution.chosen.tolist() == [0, 1]
    assert solution.promised.tolist() == [True, False]
    assert (solution.share[1, :2] > 0.1).all()


@pytest.mark.parametrize("name", [n for n in POLICIES if n != "local"])
def test_memory_is_never_overfull(name: str):
    p = problem([[both(0.01, 0.01, 1.0, rigid={MEMORY: 0.6})]] * 2)
    assert (run(name, p).chosen >= 0).sum() == 1


OVERBOOKING = ["pf", "pf-admit", "pf-util", "equal-rate-admit", "compute-only", "edge"]


@pytest.mark.parametrize("overbook", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("name", OVERBOOKING)
def test_memory_is_held_and_not_given_away_twice(name: str, overbook: float):
    p = problem([[both(0.01, 0.01, 1.0, rigid={MEMORY: 0.3})]] * 9)
    assert (run(name, p, overbook=overbook).chosen >= 0).sum() == 3
    with_load = replace(p, background=np.array([0.0, 0.0, 0.35]))
    assert (run(name, with_load, overbook=overbook).chosen >= 0).sum() == 2


def test_running_tasks_that_memory_no_longer_holds_go_latest_first():
    p = problem([[both(0.01, 0.01, 1.0, rigid={MEMORY: 0.6})]] * 2, held=[0, 1], order=[1, 0])
    for name in ORDINARY:
        assert run(name, p).chosen.tolist() == [-1, 1], name


@pytest.mark.parametrize("name", registry.FLOATING)
def test_who_promises_nothing_keeps_whom_he_serves_though_memory_no_longer_holds_them(name: str):
    p = problem([[both(0.01, 0.01, 1.0, rigid={MEMORY: 0.6})]] * 3, held=[0, 1, -1], order=[1, 0, 2])
    solution = registry.get(name)(p)
    assert solution.chosen.tolist() == [0, 1, -1]
    assert not solution.promised.any()


@pytest.mark.parametrize("name", POLICIES)
def test_options_that_there_are_not_are_refused(name: str):
    p = problem([[both(0.01, 0.01, 1.0)]])
    with pytest.raises(BadProblem, match="no such option"):
        registry.get(name)(p, options={"overbok": 1.0})


def test_an_option_must_be_a_sensible_number():
    for value in (-1.0, math.nan):
        with pytest.raises(BadProblem, match="at least 0"):
            registry.get("pf")(problem([[both(0.01, 0.01, 1.0)]]), options={"overbook": value})


# On random problems


def used(p: Problem, solution: Solution, r: int) -> float:
    """Rigid demand on r by a plain loop."""
    total = p.background[r]
    for j in solution.chosen[solution.chosen >= 0]:
        total += sum(p.rigid[j, s] for s in range(3) if p.slot[j, s] == r)
    return float(total)


@EXAMPLES
@given(seed=st.integers(0, 100_000), running=st.booleans())
@pytest.mark.parametrize("name", ORDINARY)
def test_every_plan_holds_what_it_promises(name: str, seed: int, running: bool):
    p = random_problem(seed, running=running)
    solution = run(name, p)  # verifies it
    assert used(p, solution, MEMORY) <= 1 + 1e-9
    stays = p.held >= 0
    assert (solution.chosen[stays] == p.held[stays]).all()
    if name in ADMITTING and not running:
        assert (solution.promised == (solution.chosen >= 0)).all()
    again = registry.get(name)(p)
    assert (again.chosen == solution.chosen).all()
    assert again.share.tobytes() == solution.share.tobytes()


@EXAMPLES
@given(seed=st.integers(0, 100_000), running=st.booleans())
@pytest.mark.parametrize("name", registry.FLOATING)
def test_who_lets_steps_be_as_long_as_they_come_promises_nothing_and_fills_memory_once(
    name: str, seed: int, running: bool
):
    """Airtime and node are equal parts of what each has; the couplings between them are nobody's there."""
    p = random_problem(seed, running=running)
    solution = registry.get(name)(p)
    none = np.zeros(0, dtype=np.int64)
    apart = replace(p, coupling_from=none, coupling_to=none, coupling_per_share=np.zeros(0))
    assert check.verify(apart, solution) == []
    assert not solution.promised.any()
    assert used(p, solution, MEMORY) <= 1 + 1e-9
    stays = p.held >= 0
    assert (solution.chosen[stays] == p.held[stays]).all()
    again = registry.get(name)(p)
    assert (again.chosen == solution.chosen).all()
    assert again.share.tobytes() == solution.share.tobytes()


@EXAMPLES
@given(seed=st.integers(0, 100_000), running=st.booleans(), overbook=st.sampled_from([1.5, 2.0, 4.0]))
@pytest.mark.parametrize("name", OVERBOOKING)
def test_overbooked_plans_hold_what_they_promise_and_memory_once(name: str, seed: int, running: bool, overbook: float):
    p = random_problem(seed, running=running)
    p = replace(p, rigid=2 * p.rigid, background=np.array([0.1, 0.1, 0.2]))
    assert used(p, run(name, p, overbook=overbook), MEMORY) <= 1 + 1e-9


@EXAMPLES
@given(seed=st.integers(0, 100_000), running=st.booleans())
@pytest.mark.parametrize("name", POLICIES)
def test_the_order_in_which_tasks_are_listed_does_not_matter(name: str, seed: int, running: bool):
    p = random_problem(seed, running=running)
    shuffled = np.random.default_rng(seed).permutation(p.n_tasks)
    points = np.concatenate([np.arange(p.first[i], p.first[i + 1]) for i in shuffled])
    place = np.argsort(points)
    held = np.array([place[p.held[i]] if p.held[i] >= 0 else -1 for i in shuffled])
    other = replace(
        p,
        task_ids=tuple(p.task_ids[i] for i in shuffled),
        first=np.concatenate(([0], np.cumsum(np.diff(p.first)[shuffled]))),
        point_ids=tuple(p.point_ids[j] for j in points),
        **{c: getattr(p, c)[points] for c in ("value", "slack", "slot", "work", "floor", "cap", "activity", "rigid")},
        held=held,
        order=p.order[shuffled],
        channel=p.channel[shuffled],
    )
    one, two = registry.get(name)(p), registry.get(name)(other)
    there = np.where(two.chosen >= 0, points[two.chosen], -1)
    assert (there == one.chosen[shuffled]).all()
    assert two.share == pytest.approx(one.share[shuffled], abs=1e-6)


@EXAMPLES
@given(seed=st.integers(0, 100_000))
def test_greedy_refuses_only_what_cannot_fit(seed: int):
    """Independent: with one cell, one node and one phase, shares fit if and only if they do at some price ratio."""
    rng = np.random.default_rng(seed)
    tasks = [[both(*rng.uniform(0.02, 0.3, 2), 1.0) for _ in range(3)] for _ in range(6)]
    p = problem(tasks)
    solution = run("greedy", p)
    work = p.work[:, 0, :2]
    ratios = np.sqrt(np.geomspace(1e-4, 1e4, 2001))  # sqrt(price of the cell / price of the node)
    roots = np.sqrt(work)
    total = roots[:, :1] * ratios + roots[:, 1:]  # (J, ratios)
    cell, node = roots[:, :1] / ratios * total, roots[:, 1:] * total
    served = solution.chosen[solution.chosen >= 0]
    for i in np.flatnonzero(solution.chosen < 0):
        for j in range(p.first[i], p.first[i + 1]):
            together = [*served, j]
            assert not ((cell[together].sum(axis=0) < 1 - 1e-6) & (node[together].sum(axis=0) < 1 - 1e-6)).any()


@EXAMPLES
@given(seed=st.integers(0, 100_000))
def test_no_baseline_beats_the_dual_bound(seed: int):
    p = random_problem(seed)
    bound, _ = price.dual_bound(p)
    for name in POLICIES:
        assert registry.get(name)(p).certificate.value <= bound * (1 + 1e-9), name


def test_an_empty_problem_is_served():
    p = problem([])
    for name in POLICIES:
        assert registry.get(name)(p).certificate.value == 0.0, name
