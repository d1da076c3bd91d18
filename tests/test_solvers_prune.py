"""Pruning keeps exactly the undominated points, and values stay what they were."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from solver_cases import random_problem

from solvers import price
from solvers.problem import Floats, Ints, Problem
from solvers.prune import prune


def by_definition(columns: Floats, groups: Ints) -> list[bool]:
    keep = []
    for j, row in enumerate(columns):
        rivals = [
            k
            for k in range(len(columns))
            if groups[k] == groups[j] and (columns[k] <= row).all() and ((columns[k] < row).any() or k < j)
        ]
        keep.append(not rivals)
    return keep


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            arrays(np.float64, (n, 3), elements=st.sampled_from([0.0, 1.0, 2.0, np.inf])),
            arrays(np.int64, n, elements=st.integers(0, 2)),
        )
    )
)
def test_it_is_the_definition(case: tuple[Floats, Ints]):
    columns, groups = case
    assert prune(columns, groups).tolist() == by_definition(columns, groups)


def test_groups_longer_than_a_block():
    rng = np.random.default_rng(1)
    columns = rng.integers(0, 12, (700, 3)).astype(np.float64)
    groups = np.zeros(700, dtype=np.int64)
    assert prune(columns, groups).tolist() == by_definition(columns, groups)


@pytest.mark.parametrize("columns", [np.zeros((2, 2)), np.zeros(3), np.array([[np.nan], [0.0], [1.0]])])
def test_what_does_not_fit_together_is_refused(columns: Floats):
    with pytest.raises(ValueError, match="columns"):
        prune(columns, np.zeros(3, dtype=np.int64))


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_is_worth_the_same_without_dominated_points(seed: int):
    problem = comparable(random_problem(seed, 6, 8, 2, load=2.0))
    flat = problem.work.reshape(problem.n_points, -1)
    columns = np.concatenate([-problem.value[:, None], -problem.slack, flat, problem.rigid], axis=1)
    owner = np.repeat(np.arange(problem.n_tasks), np.diff(problem.first))
    keep = prune(columns, owner)
    assert 0 < keep.sum() < problem.n_points
    pruned = dataclasses.replace(problem, value=np.where(keep, problem.value, 0.0))  # worth nothing: never chosen
    assert price.solve(pruned).certificate.value == pytest.approx(price.solve(problem).certificate.value)


def comparable(problem: Problem) -> Problem:
    """Every point has work on both resources and no floors or caps, so that columns say everything."""
    rng = np.random.default_rng(0)
    n = problem.n_points
    return dataclasses.replace(
        problem,
        slot=np.tile(np.arange(2), (n, 1)),
        work=rng.choice([0.01, 0.02, 0.04], (n, 2, 2)) * [[[1.0], [0.1]]],
        slack=np.tile([0.2, 0.02], (n, 1)),
        floor=np.zeros((n, 2)),
        cap=np.ones((n, 2)),
        rigid=np.zeros((n, 2)),
    )
