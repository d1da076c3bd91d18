"""What is left over after admission (docs/model.md, section 5).

The price solver's second stage for a plan of whoever made it: the tests' reference.
"""

from __future__ import annotations

import dataclasses

from solvers.problem import Problem
from solvers.solution import Solution


def share_out(problem: Problem, solution: Solution) -> Solution:
    """Give what the plan's promised tasks leave over to them: least sum of max over phases of latency / slack.

    Points and certificate stay. Returns the solution as it is where its promised tasks do not fit together or where
    it also serves tasks that it does not promise.
    """
    from solvers.price.solver import serve

    if (solution.promised != (solution.chosen >= 0)).any():
        return solution
    served = serve(problem, solution.chosen, warm=solution.prices)
    return solution if served is None else dataclasses.replace(solution, share=served[0])
