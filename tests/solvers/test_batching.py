"""Shared batching: the decision against enumeration, and its promises against a server that really runs in steps."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from solvers import check
from solvers.batching import NEVER, Decoding, choose_steps, with_steps
from solvers.errors import BadProblem
from solvers.price import solver as price
from solvers.problem import Floats, Problem

GRID_S = (0.02, 0.03, 0.05, 0.08)


def decoders(seed: int, n_tasks: int, n_points: int, n_nodes: int) -> tuple[Problem, Decoding]:
    """Sessions that send activations over one cell and decode on one of the nodes; a token has one deadline."""
    rng = np.random.default_rng(seed)
    n = n_tasks * n_points
    node = rng.integers(n_nodes, size=n)
    work, slack = np.zeros((n, 2, 2)), np.full((n, 2), np.inf)
    slack[:, 1] = np.repeat(rng.choice([0.06, 0.1, 0.2], n_tasks), n_points) - rng.uniform(0, 0.02, n)
    work[:, 1, 0] = slack[:, 1] * rng.uniform(0.02, 0.5, n)
    problem = Problem(
        resource_ids=("cell", *(f"node{k}" for k in range(n_nodes))),
        kinds=("comm", *("compute",) * n_nodes),
        background=np.zeros(1 + n_nodes),
        coupling_from=np.zeros(0, dtype=np.int64),
        coupling_to=np.zeros(0, dtype=np.int64),
        coupling_per_share=np.zeros(0),
        task_ids=tuple(f"t{i}" for i in range(n_tasks)),
        first=np.arange(n_tasks + 1) * n_points,
        point_ids=tuple(f"p{j % n_points}" for j in range(n)),
        value=np.repeat(rng.choice([1.0, 2.0], n_tasks), n_points) * rng.choice([1.0, 0.9], n),
        slack=slack,
        slot=np.stack([np.zeros(n, dtype=np.int64), 1 + node], axis=1),
        work=work,
        floor=np.zeros((n, 2)),
        cap=np.ones((n, 2)),
        activity=np.ones((n, 2)),
        rigid=np.zeros((n, 2)),
        held=np.full(n_tasks, -1),
        order=np.arange(n_tasks),
        channel=np.full(n_tasks, np.nan),
    )
    shared_s = np.concatenate([[0.0], rng.uniform(0.008, 0.025, n_nodes)])
    own_s = rng.uniform(0.002, 0.012, n)
    return problem, Decoding(slot=np.ones(n, dtype=np.int64), own_s=own_s, shared_s=shared_s)


def best_by_enumeration(problem: Problem, decoding: Decoding) -> float:
    """Greatest value over all step times and all choices of points, from the physics: no prices, no Problem columns."""
    n_nodes = problem.n_resources - 1
    choices = [[-1, *range(a, b)] for a, b in itertools.pairwise(problem.first.tolist())]
    best = 0.0
    for steps in itertools.product((*GRID_S, NEVER), repeat=n_nodes):
        for chosen in itertools.product(*choices):
            value = sum(problem.value[j] for j in chosen if j >= 0)
            if value > best + 1e-9 and holds(problem, decoding, chosen, steps):
                best = value
    return best


def holds(problem: Problem, decoding: Decoding, chosen: tuple[int, ...], steps: tuple[float, ...]) -> bool:
    air, busy = 0.0, [0.0] * len(steps)
    for j in chosen:
        if j < 0:
            continue
        node = int(problem.slot[j, 1]) - 1
        left_s = problem.slack[j, 1] - 2 * steps[node]
        if left_s <= 0:
            return False
        air += problem.work[j, 1, 0] / left_s
        busy[node] += decoding.own_s[j]
    fits = all(decoding.shared_s[1 + k] + b <= steps[k] + 1e-12 for k, b in enumerate(busy) if b)
    return fits and air <= 1 + 1e-9


@pytest.mark.parametrize("n_nodes", [1, 2])
def test_decision_against_enumeration(n_nodes: int) -> None:
    """Every plan holds; the value is enumeration's in all but few cases, and never above it."""
    equal = 0
    for seed in range(40):
        problem, decoding = decoders(seed, 4, 3, n_nodes)
        found = choose_steps(problem, decoding, GRID_S, price.solve)
        assert check.verify(found.problem, found.solution) == []
        value, best = found.solution.certificate.value, best_by_enumeration(problem, decoding)
        assert value <= best + 1e-6
        equal += value >= best - 1e-6
    assert equal >= 39


def test_the_best_step_lies_between_the_extremes() -> None:
    """Eight sessions of 100 ms a token: 20 ms steps have no room for them, 50 ms ones no time."""
    problem, decoding = decoders(1, 8, 1, 1)
    own_s = np.full(8, 0.004)
    decoding = Decoding(decoding.slot, own_s, np.array([0.0, 0.01]))
    slack = problem.slack.copy()
    slack[:, 1] = 0.1
    work = problem.work.copy()
    work[:, 1, 0] = 0.0007
    problem = replace(problem, slack=slack, work=work, value=np.ones(8))
    admitted = {}
    for step_s in (0.02, 0.03, 0.043, 0.049):
        at = with_steps(problem, decoding, np.array([NEVER, step_s]))
        admitted[step_s] = int((price.solve(at).chosen >= 0).sum())
    assert admitted == {0.02: 2, 0.03: 5, 0.043: 8, 0.049: 2}  # 0.02: (20 - 10) / 4; 0.049: 2 ms / 0.7 ms
    found = choose_steps(problem, decoding, tuple(admitted), price.solve)
    assert found.step_s.tolist() == [NEVER, 0.043]
    assert found.solves == 5


def tokens_of(own_s: Floats, shared_s: float, think_s: Floats, seconds: float, rng: np.random.Generator) -> Floats:
    """Node latencies of every token on a server that runs step after step; a session thinks between two tokens."""
    n = len(own_s)
    ready = rng.uniform(0, think_s)  # when each session's next token arrives
    now, latencies = 0.0, []
    while now < seconds:
        batch = np.flatnonzero(ready <= now)
        if not len(batch):
            now = float(ready.min())
            continue
        end = now + shared_s + own_s[batch].sum()
        latencies += (end - ready[batch]).tolist()
        ready[batch] = end + think_s[batch] * rng.uniform(0.2, 1.0, len(batch))
        now = float(end)
    assert len(latencies) > n
    return np.array(latencies)


@given(st.integers(0, 2**32 - 1))
@hypothesis_settings(max_examples=30, deadline=None)
def test_no_token_waits_longer_than_two_steps(seed: int) -> None:
    """As many sessions as a step has room for, on a server that starts its next step as soon as it can."""
    rng = np.random.default_rng(seed)
    shared_s, step_s = float(rng.uniform(0.005, 0.02)), float(rng.uniform(0.03, 0.1))
    own_s = rng.uniform(0.001, 0.01, 200)
    own_s = own_s[np.cumsum(own_s) / step_s + shared_s / step_s <= 1]
    latencies = tokens_of(own_s, shared_s, rng.uniform(0.001, 0.3, len(own_s)), 20.0, rng)
    assert latencies.max() <= 2 * step_s + 1e-9


def test_a_step_too_short_for_the_weights_is_refused_and_never_chosen() -> None:
    problem, decoding = decoders(3, 4, 2, 1)
    short = float(decoding.shared_s[1])
    with pytest.raises(BadProblem, match=r"step_s\.node0"):
        with_steps(problem, decoding, np.array([NEVER, short]))
    found = choose_steps(problem, decoding, (short,), price.solve)
    assert found.step_s.tolist() == [NEVER, NEVER]
    assert (found.solution.chosen < 0).all()


def test_a_node_that_decodes_for_nobody_reads_no_weights() -> None:
    problem, decoding = decoders(3, 4, 2, 1)
    at = with_steps(problem, decoding, np.array([NEVER, NEVER]))
    assert np.array_equal(at.background, problem.background)
    assert (at.slack[:, 1] < 0).all()
