"""Shared batching: nodes that decode for many sequences in one batch, and how long their steps should be.

A step reads the weights once and then does each sequence's own part: `shared + sum own` (docs/workloads.md; measured:
docs/profiles.md). Sequences join and leave between steps (Yu et al., Orca, OSDI 2022), and a session has at most one
token in a step. If no step takes longer than T, then on that node

    latency   a token that arrives during a step is out with the next one: at most 2 T
    room      shared + sum own <= T, that is  shared / T + sum own / T <= 1: rigid demands on a background

So with T given for every node the problem is an ordinary one. Long steps read the weights less often and so make room;
they cost every token time, which must come from the air or is not there. What else the node does (prefills in pieces
between the decode parts, frames) shares what is left as before.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from solvers.errors import BadProblem
from solvers.problem import Floats, Ints, Problem
from solvers.registry import Solver
from solvers.solution import Solution

DECODE: Final = 1  # phase
NEVER: Final = math.inf  # step time of a node that decodes for nobody: no weights are read
STEPS_OF_WAIT: Final = 2  # the rest of the step that a token arrives in, and the one that serves it
SAME: Final = 1e-9  # of two values: rounding


@dataclass(frozen=True, slots=True)
class Decoding:
    """What decoding in a batch needs, beside a Problem whose points have no decode work on their node."""

    slot: Ints  # (J,) slot of the node that decodes for the point, -1 = none does
    own_s: Floats  # (J,) what its sequence adds to a step
    shared_s: Floats  # (R,) what a step of a node costs before any sequence; 0 where nobody decodes


@dataclass(frozen=True, slots=True)
class Batched:
    """The step times chosen, the problem at them and its solution."""

    step_s: Floats  # (R,) NEVER where nobody is decoded for
    problem: Problem
    solution: Solution
    solves: int


def with_steps(problem: Problem, decoding: Decoding, step_s: Floats) -> Problem:
    """Return the problem at step times (R,). Raises BadProblem for a step too short to read the weights in."""
    short = np.flatnonzero(step_s <= decoding.shared_s)
    if len(short):
        where = f"step_s.{problem.resource_ids[short[0]]}"
        raise BadProblem(where, f"{step_s[short[0]]:g} s: reading takes {decoding.shared_s[short[0]]:g} s")
    rows = np.flatnonzero(decoding.slot >= 0)
    slots = decoding.slot[rows]
    step = step_s[problem.slot[rows, slots]]  # of the node of each row
    slack, rigid = problem.slack.copy(), problem.rigid.copy()
    slack[rows, DECODE] = np.where(np.isinf(step), -np.inf, slack[rows, DECODE] - STEPS_OF_WAIT * step)
    rigid[rows, slots] += decoding.own_s[rows] / step
    return dataclasses.replace(
        problem, slack=slack, rigid=rigid, background=problem.background + decoding.shared_s / step_s
    )


def choose_steps(
    problem: Problem,
    decoding: Decoding,
    grid_s: Sequence[float],
    solver: Solver,
    options: Mapping[str, float] | None = None,
) -> Batched:
    """Find the step time of each node, out of grid_s or NEVER, at which the solver admits the greatest value.

    All nodes at the same step first, then one node after another while that helps; of equal values the first found
    stays, the shorter step. One node: the best of the grid. More: no change of a single node's step is better.
    """
    search = _Search(problem, decoding, solver, options)
    rows = np.flatnonzero(decoding.slot >= 0)
    nodes = np.unique(problem.slot[rows, decoding.slot[rows]])
    choices = sorted(grid_s)
    for step_s in choices:
        search.attempt(nodes, step_s)
    improved = len(nodes) > 1
    while improved:
        improved = sum(search.attempt(nodes[k : k + 1], t) for k in range(len(nodes)) for t in (*choices, NEVER)) > 0
    return dataclasses.replace(search.best, solves=len(search.seen))


class _Search:
    """Best step times so far; at first no node decodes."""

    def __init__(
        self, problem: Problem, decoding: Decoding, solver: Solver, options: Mapping[str, float] | None
    ) -> None:
        self._problem, self._decoding = problem, decoding
        self._solver, self._options = solver, options
        never = np.full(problem.n_resources, NEVER)
        self.seen = {never.tobytes()}
        self.best = self._solved(never, None)

    def _solved(self, step_s: Floats, warm: Floats | None) -> Batched:
        problem = with_steps(self._problem, self._decoding, step_s)
        return Batched(step_s, problem, self._solver(problem, warm=warm, options=self._options), 0)

    def attempt(self, nodes: Ints, step_s: float) -> bool:
        """Solve with another step at `nodes`, unless that was tried or is too short; whether it beats the best."""
        steps = self.best.step_s.copy()
        steps[nodes] = step_s
        if steps.tobytes() in self.seen or not (steps > self._decoding.shared_s).all():
            return False
        self.seen.add(steps.tobytes())
        found = self._solved(steps, self.best.solution.prices)
        if found.solution.certificate.value <= self.best.solution.certificate.value + SAME:
            return False
        self.best = found
        return True
