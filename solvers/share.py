"""After admission: what is left over, and whole PRBs (docs/model.md, section 5).

`share_out` is the second stage by itself, for plans of any solver. `round_prbs` makes the shares of one resource whole
numbers of physical resource blocks, `round_grid` those of several; a deadline is given up only where moving PRBs
between tasks and paying with their other shares no longer keeps it.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np

from solvers.errors import BadProblem
from solvers.problem import Ints, Problem
from solvers.solution import Certificate, Solution


def share_out(problem: Problem, solution: Solution) -> Solution:
    """Give what the plan's promised tasks leave over to them: least sum of max over phases of latency / slack.

    Points and certificate stay. Returns the solution as it is where its promised tasks do not fit together or where
    it also serves tasks that it does not promise.
    """
    from solvers.price import serve

    if (solution.promised != (solution.chosen >= 0)).any():
        return solution
    served = serve(problem, solution.chosen, warm=solution.prices)
    return solution if served is None else dataclasses.replace(solution, share=served[0])


def round_prbs(problem: Problem, solution: Solution, resource: int, n_prb: int) -> tuple[Solution, Ints]:
    """Make the shares of `resource` multiples of 1 / n_prb; returns the solution and the PRBs of each task (N,).

    As `round_grid` with one grid. Raises BadProblem if n_prb < 1.
    """
    if n_prb < 1:
        raise BadProblem("n_prb", f"{n_prb} is not a number of PRBs")
    grid = np.zeros(problem.n_resources, dtype=np.int64)
    grid[resource] = n_prb
    rounded, prbs = round_grid(problem, solution, grid)
    return rounded, np.asarray(prbs.sum(axis=1), dtype=np.int64)


def round_grid(problem: Problem, solution: Solution, grid: Ints) -> tuple[Solution, Ints]:
    """Make the shares of each resource r with grid[r] > 0 multiples of 1 / grid[r]; grid (R,), 0: any share will do.

    Returns the solution and the multiples (N, S), in the slots of the chosen points. Promised deadlines hold
    afterwards too: PRBs go to the tasks whose other shares they relieve most, at the plan's prices to begin with, and
    what a task is short of PRBs it makes up for with its other shares, all stretched by one factor. Where that fails,
    those worth least for what they take lose their promise (and the certificate its value). What is left goes towards
    the shares given. Ties go by task id.
    """
    from solvers._jit import plain
    from solvers._prbs import Site
    from solvers._round import Given, round_shares

    order = _by_id(problem.task_ids)
    task = order[solution.chosen[order] >= 0]
    names = ("slot", "work", "slack", "floor", "cap", "activity", "rigid", "value")
    point = solution.chosen[task]
    columns = {name: getattr(problem, name).take(point, axis=0) for name in names}
    given = Given(task, share=solution.share.take(task, axis=0), promised=solution.promised[task], **columns)
    link = np.stack([problem.coupling_from, problem.coupling_to], axis=1)
    room = np.append(1.0 - problem.background, np.inf)
    site = Site(np.append(grid, 0), room, link, plain(problem.coupling_per_share), plain(solution.prices))
    whole = round_shares(given, site, problem.n_tasks)
    certificate = Certificate(whole.value, solution.certificate.bound)
    rounded = dataclasses.replace(solution, share=whole.share, promised=whole.promised, certificate=certificate)
    return rounded, whole.prbs


@lru_cache(maxsize=4)
def _by_id(ids: tuple[str, ...]) -> Ints:
    """(N,) tasks in the order of their ids; from one tick to the next these are mostly the same."""
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
