"""Problems cut into blocks of tasks and put together again (solvers/sharded.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from solvers.problem import Floats, Ints, Problem

_POINT_COLUMNS = ("value", "slack", "slot", "work", "floor", "cap", "activity", "rigid")


def by_id(problem: Problem) -> Ints:
    """(N,) tasks in the order of their ids; a task's place in it is its rank."""
    return np.array(sorted(range(problem.n_tasks), key=problem.task_ids.__getitem__), dtype=np.int64)


def split(problem: Problem, size: int) -> list[Problem]:
    """Blocks of `size` tasks, in the order of their ids; one empty block if there are no tasks."""
    ranked = by_id(problem)
    return [take(problem, ranked[k : k + size]) for k in range(0, max(1, len(ranked)), size)]


def take(problem: Problem, tasks: Ints) -> Problem:
    """The problem of some tasks (K,) alone, in that order, on the same resources."""
    count = np.diff(problem.first)[tasks]
    first = np.concatenate([[0], np.cumsum(count)])
    old = np.repeat(problem.first[:-1][tasks] - first[:-1], count) + np.arange(first[-1])  # (J',)
    held = problem.held[tasks]
    columns = {name: getattr(problem, name)[old] for name in _POINT_COLUMNS}
    return dataclasses.replace(
        problem,
        task_ids=tuple(problem.task_ids[i] for i in tasks),
        first=first,
        point_ids=tuple(problem.point_ids[j] for j in old),
        held=np.where(held >= 0, held - problem.first[:-1][tasks] + first[:-1], -1),
        order=problem.order[tasks],
        channel=problem.channel[tasks],
        **columns,
    )


def join(parts: Sequence[Problem]) -> Problem:
    """One problem of the tasks of all parts, on the resources (and with the background) of the first.

    The parts have the same resources, couplings and number of slots.
    """
    starts = np.cumsum([0, *(p.n_points for p in parts)])
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(p, name) for p in parts]) for name in (*_POINT_COLUMNS, "order", "channel")
    }
    held = [np.where(p.held >= 0, p.held + start, -1) for p, start in zip(parts, starts[:-1], strict=True)]
    first = [p.first[:-1] + start for p, start in zip(parts, starts[:-1], strict=True)]
    return dataclasses.replace(
        parts[0],
        task_ids=tuple(name for p in parts for name in p.task_ids),
        first=np.concatenate([*first, starts[-1:]]),
        point_ids=tuple(name for p in parts for name in p.point_ids),
        held=np.concatenate(held),
        **columns,
    )


def use_of(problem: Problem, points: Ints, share: Floats) -> Floats:
    """(R,) what points (K,) with shares (K, S) take, couplings included, background left out."""
    n = problem.n_resources
    slot = problem.slot[points].ravel()
    elastic = np.bincount(slot, weights=(problem.activity[points] * share).ravel(), minlength=n + 1)
    total = elastic + np.bincount(slot, weights=problem.rigid[points].ravel(), minlength=n + 1)
    for a, b, kappa in zip(problem.coupling_from, problem.coupling_to, problem.coupling_per_share, strict=True):
        total[b] += kappa * elastic[a]
    return np.asarray(total[:n], dtype=np.float64)
