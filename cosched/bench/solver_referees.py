"""The price solver beside CP-SAT and HiGHS on the grid, and the second stage beside cvxpy, on the same problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from cosched.bench.instances import make
from cosched.bench.sheet import Sheet, case_name, cpu_ms
from solvers import convex, exact, mip, price
from solvers import grid as on_steps
from solvers.problem import Problem
from solvers.second_stage import Goal, leftover, second_stage, value_of
from solvers.solution import Solution

SIZES: Final = (100, 300, 1_000)  # tasks, mixed
LIMIT_S: Final = 15.0  # of CP-SAT's deterministic time, and of HiGHS' wall time
STAGE_SIZES: Final = (100, 1_000)  # below and above where cvxpy's parameters stop paying
REPEATS: Final = 3  # of a second stage; cvxpy compiles at the first
PRICE: Final = "price/compiled"
CP_SAT: Final = "CP-SAT"
HIGHS: Final = "HiGHS MIP"
DUAL: Final = "dual"
CVXPY: Final = "cvxpy"


def on_grid(sheet: Sheet, seeds: int, tell: Callable[[float], None]) -> None:
    """Value, bound and time from arrays to a plan of whole PRBs and node steps, everything counted."""
    rounds = max(1, seeds // 10)
    _price(make(SIZES[0], 0, mixed=True).problem)  # compiles or loads the loops
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


def _price(problem: Problem) -> Solution:
    grid = np.array([exact.PRBS if kind == "comm" else exact.STEPS for kind in problem.kinds], dtype=np.int64)
    return on_steps.solve(problem, grid)


_SUBJECTS: Final[dict[str, Callable[[Problem], Solution]]] = {
    PRICE: _price,
    CP_SAT: lambda problem: exact.solve(problem, options={"limit_s": LIMIT_S}),
    HIGHS: lambda problem: mip.solve(problem, options={"limit_s": LIMIT_S}),
}


def stages(sheet: Sheet, seeds: int) -> None:
    """The second stage at the points of one plan: least sum of latency over deadline."""
    goal = Goal()
    for n_tasks in STAGE_SIZES:
        problem = make(n_tasks, 1, mixed=True).problem
        plan = price.solve(problem, options={"second_stage": 0.0})
        left = leftover(problem, plan.chosen, goal)
        times: dict[str, list[float]] = {}
        values: dict[str, float] = {}
        for repeat in range(1 + REPEATS * max(1, seeds // 10)):
            quick, dual_ms = cpu_ms(lambda p=problem, s=plan: second_stage(p, s, goal).share)  # type: ignore[misc]  # bound now
            cone, cone_ms = cpu_ms(lambda p=problem, s=plan: convex.second_stage(p, s.chosen)[0])  # type: ignore[misc]  # same
            if repeat == 0:
                continue  # both compile
            for subject, shares, ms in ((DUAL, quick, dual_ms), (CVXPY, cone, cone_ms)):
                times.setdefault(subject, []).append(ms)
                values[subject] = value_of(left, goal, shares[left.task, left.slot])
        for subject, some in times.items():
            sheet.add(case_name(n_tasks, "second stage"), subject, "plan_ms", some)
            sheet.add(case_name(n_tasks, "second stage"), subject, "objective", [values[subject]])
