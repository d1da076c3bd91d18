"""From the weights of evaluations to points: no resource drifts off the mean, and what all agree on stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Loops as they stand: compiled ones can only be called by their entry. Two resources, 12 equal tasks with a point on
# each; evaluations in which all of them choose the first resource, and the second, with the weights handed in.
SCRIPT = """
import json, sys
import numpy as np
from solvers.codec import problem_from_data
from solvers.price import solver as price
from solvers.price.dual import Dual, new_bundle
from solvers.price.fit import new_set
from solvers.price.oracle import new_look
from solvers.price.point import new_point
from solvers.price.recovery import recover

def point(r):
    return {"id": r, "value": 1.0, "phases": [{"slack_s": 1.0, "work_s": {r: 0.01}}]}

tasks = [{"id": f"t{i:02d}", "points": [point("a"), point("b")]} for i in range(12)]
problem = problem_from_data({"resources": [{"id": r} for r in "ab"], "tasks": tasks})
t = price.Tables(problem).table
bundle, n = new_bundle(t), problem.n_tasks
bundle.pick[:] = 7  # of places that are empty
for m, (weight, chosen) in enumerate(json.loads(sys.argv[1])):
    bundle.weight[m] = weight
    bundle.pick[m] = np.where(np.array(chosen) < 0, -1, 2 * np.arange(n) + np.array(chosen))
k = new_set(t)
recover(t, bundle, Dual(1.0, np.ones(2), new_look(t), 1, True), k, new_point(t))
print(json.dumps([-1 if j < 0 else int(j) % 2 for j in k.chosen]))
"""
FIRST, SECOND, NONE = [0] * 12, [1] * 12, [-1] * 12


def recovered(*evaluations: tuple[float, list[int]]) -> list[int]:
    """Which of its points each task has: 0 or 1, -1 = none."""
    environ = {**os.environ, "COSCHED_KERNEL": "numpy", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, json.dumps(evaluations)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=True)
    found: list[int] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("weight", "first"), [(0.5, 6), (0.75, 9), (1 / 3, 4)])
def test_tasks_are_divided_as_the_weights_say_and_no_resource_drifts_off_on_the_way(weight: float, first: int):
    chosen = recovered((weight, FIRST), (1 - weight, SECOND))
    assert chosen.count(0) == first
    for n in range(1, 13):  # of the first n tasks, within one of the mean
        assert abs(chosen[:n].count(0) - weight * n) <= 1.0


def test_a_part_that_is_left_out_is_left_out_evenly():
    chosen = recovered((0.5, FIRST), (0.5, NONE))
    assert sorted(chosen) == [-1] * 6 + [0] * 6


def test_what_all_that_count_agree_on_stays():
    mixed = [1, 1, 1, -1, *[0] * 8]
    chosen = recovered((0.9, mixed), (0.1, mixed), (0.0, SECOND), (1e-7, SECOND))
    assert chosen == mixed
