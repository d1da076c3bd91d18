"""The price solver beside CP-SAT and HiGHS on the grid, and the second stage beside cvxpy, on the same problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from cosched.bench.instances import make
from cosched.bench.sheet import Sheet, case_name, cpu_ms
from solvers.grid import solver as on_steps
from solvers.objectives import convex
from solvers.objectives.second_stage import Goal, leftover, second_stage, value_of
from solvers.price import solver as price
from solvers.problem import Floats, Problem
from solvers.referees import exact, mip
from solvers.solution import Solution

SIZES: Final = (100, 300, 1_000)  # tasks, mixed
LIMIT_S: Final = 15.0  # of CP-SAT's deterministic time, and of HiGHS' wall time
STAGE_SIZES: Final = (100, 1_000)  # tasks offered; all but a fifth are admitted
REPEATS: Final = 3  # of a second stage in cvxpy
QUICK: Final = 10  # times as many of the dual method
PRICE: Final = "price/compiled"
CP_SAT: Final = "CP-SAT"
HIGHS: Final = "HiGHS MIP"
DUAL: Final = "dual"
CVXPY: Final = "cvxpy"  # stated, canonicalised and solved, as its user pays for it
CVXPY_AGAIN: Final = "cvxpy, compiled before"  # with DPP parameters: only the numbers are new


def on_grid(sheet: Sheet, seeds: int, tell: Callable[[float], None]) -> None:
    """Value, bound and time from arrays to a plan of whole PRBs and node steps, everything counted."""
    rounds = max(1, seeds // 10)
    on_steps.solve(make(SIZES[0], 0, mixed=True).problem)  # compiles or loads the loops
    for done, n_tasks in enumerate(SIZES, start=1):
        plans: dict[str, list[tuple[Solution, float]]] = {}
        for seed in range(rounds):
            problem = make(n_tasks, seed, mixed=True).problem
            for subject, solve in _SUBJECTS.items():
                plans.setdefault(subject, []).append(cpu_ms(lambda s=solve, p=problem: s(p)))  # type: ignore[misc]  # bound now
        case = case_name(n_tasks, "grid")
        for subject, some in plans.items():
            sheet.add(case, subject, "plan_ms", [ms for _, ms in some])
            bound = float(np.mean([plan.certificate.bound for plan, _ in some]))
            sheet.add(case, subject, "value", [plan.certificate.value for plan, _ in some], bound=bound)
        tell(done / len(SIZES))


_SUBJECTS: Final[dict[str, Callable[[Problem], Solution]]] = {
    PRICE: on_steps.solve,
    CP_SAT: lambda problem: exact.solve(problem, options={"limit_s": LIMIT_S}),
    HIGHS: lambda problem: mip.solve(problem, options={"limit_s": LIMIT_S}),
}


def stages(sheet: Sheet, seeds: int) -> None:
    """The second stage at the points of one plan: least sum of latency over deadline."""
    goal = Goal()
    repeats = REPEATS * max(1, seeds // 10)
    for n_tasks in STAGE_SIZES:
        problem = make(n_tasks, 1, mixed=True).problem
        plan = price.solve(problem, options={"second_stage": 0.0})
        left = leftover(problem, plan.chosen, goal)
        subjects: dict[str, tuple[int, Callable[[Problem, Solution], Floats]]] = {
            DUAL: (QUICK * repeats, lambda p, s: second_stage(p, s, goal).share),
            CVXPY: (repeats, lambda p, s: convex.second_stage(p, s.chosen, parameters=False)[0]),
            CVXPY_AGAIN: (repeats, lambda p, s: convex.second_stage(p, s.chosen, parameters=True)[0]),
        }
        for subject, (times, share_out) in subjects.items():
            share = share_out(problem, plan)  # compiles
            ms = [cpu_ms(lambda f=share_out, p=problem, s=plan: f(p, s))[1] for _ in range(times)]  # type: ignore[misc]  # bound now
            case = case_name(n_tasks, "second stage")
            sheet.add(case, subject, "plan_ms", ms)
            sheet.add(case, subject, "objective", [value_of(left, goal, share[left.task, left.slot])])
