"""The price solver from tick to tick on a moving channel: warm and cold, compiled and as NumPy, at all sizes."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Final

from cosched.bench.instances import at_channel, channels, make
from cosched.bench.sheet import Sheet, case_name, cpu_ms
from solvers import check
from solvers.price import solver as price
from solvers.problem import Floats, Problem
from solvers.solution import Solution

TICKS: Final = {1_000: 20.0, 10_000: 2.0, 100_000: 0.3}  # per seed asked for: about equal time at each size
COLD: Final = {1_000: 2.0, 10_000: 0.3, 100_000: 0.1}  # of them that are solved cold as well
SMALL: Final = (30, 100, 300)  # tasks, mixed
NUMPY: Final = 1_000  # tasks of the comparison with NumPy
COMPILED: Final = "price/compiled"
INTERPRETED: Final = "price/numpy"


def ladder(sheet: Sheet, seeds: int, tell: Callable[[float], None]) -> None:
    """Warm and cold solves at each size; figures in ms of one core."""
    for done, n_tasks in enumerate(TICKS, start=1):
        _climb(sheet, n_tasks, math.ceil(TICKS[n_tasks] * seeds), math.ceil(COLD[n_tasks] * seeds))
        tell(done / len(TICKS))


def _climb(sheet: Sheet, n_tasks: int, ticks: int, cold_ticks: int) -> None:
    instance, moving, case = make(n_tasks, 1), channels(n_tasks, 1), case_name(n_tasks)
    problem = at_channel(instance, next(moving))
    before = price.solve(problem)  # the first tick has nothing to start from
    kept = price.Tables(problem)
    figures: dict[str, list[float]] = {}
    for tick in range(ticks):
        problem = at_channel(instance, next(moving))
        warm = before.prices
        tables_ms = cpu_ms(partial(kept.refresh, problem, warm))[1]
        before, noted = _plan(problem, warm, kept)
        noted |= {"tables_ms": tables_ms, "ms": tables_ms + noted["ms"]}
        noted["solve_with_new_tables_ms"] = cpu_ms(partial(price.solve, problem, warm=warm))[1]
        noted = {f"warm_{name}": value for name, value in noted.items()}
        if tick < cold_ticks:
            cold = _plan(problem, None, kept)[1]
            noted |= {f"cold_{name}": value for name, value in cold.items()}
            noted["cold_ms"] += tables_ms
        for name, value in noted.items():
            figures.setdefault(name, []).append(value)
    for name, values in figures.items():
        sheet.add(case, COMPILED, name, values)
    sheet.add(case, COMPILED, "value", [before.certificate.value], bound=before.certificate.bound)
    if n_tasks <= NUMPY:
        over = check.dual_value(problem, before.prices) - before.certificate.bound
        sheet.add(case, COMPILED, "dual_over_bound", [over / before.certificate.bound])


def _plan(problem: Problem, warm: Floats | None, ready: price.Tables) -> tuple[Solution, dict[str, float]]:
    """Solve with tables made ready; returns the plan, and figures."""
    plan, solve_ms = cpu_ms(lambda: price.solve(problem, warm=warm, tables=ready))
    noted = {"solve_ms": solve_ms, "evaluations": plan.evaluations, "gap_percent": _gap_percent(plan)}
    return plan, noted | {"ms": solve_ms}


def _gap_percent(plan: Solution) -> float:
    return 100.0 * plan.certificate.gap / plan.certificate.bound


def small(sheet: Sheet, seeds: int) -> None:
    """Gap of mixed problems with few tasks, in tasks of the greatest value per saturated resource."""
    for n_tasks in SMALL:
        gaps = []
        for seed in range(seeds):
            problem = make(n_tasks, seed, mixed=True).problem
            plan = price.solve(problem)
            worth = plan.prices * (1.0 - problem.background)
            saturated = max(1, int((worth > 1e-6 * plan.certificate.bound).sum()))
            gaps.append(plan.certificate.gap / (saturated * float(problem.value.max())))
        sheet.add(case_name(n_tasks, "mixed"), COMPILED, "gap_in_tasks_per_resource", gaps)


def interpreted(sheet: Sheet, seeds: int) -> None:
    """The same problems without the compiler, in a process of its own: same points, how much slower."""
    seen = []
    with _without_compiler(), ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
        for seed in range(max(1, seeds // 3)):
            here = solve_one(NUMPY, seed)
            seen.append((here, other.submit(solve_one, NUMPY, seed).result()))
    case = case_name(NUMPY, "mixed")
    for subject, k in ((COMPILED, 0), (INTERPRETED, 1)):
        sheet.add(case, subject, "plan_ms", [pair[k][0] for pair in seen])
        sheet.add(case, subject, "value", [pair[k][1] for pair in seen], bound=seen[0][k][2])
    sheet.add(case, INTERPRETED, "same_points", [float(a[3] == b[3]) for a, b in seen])


def solve_one(n_tasks: int, seed: int) -> tuple[float, float, float, bytes]:
    """Tables and a cold solve of a mixed problem: ms, value, bound and the points chosen."""
    problem = make(n_tasks, seed, mixed=True).problem
    price.solve(problem)  # loads or compiles what there is
    plan, ms = cpu_ms(lambda: price.solve(problem))
    return ms, plan.certificate.value, plan.certificate.bound, plan.chosen.tobytes()


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Processes started meanwhile run the kernels as they stand (solvers/jit.py)."""
    before = os.environ.get("COSCHED_KERNEL")
    os.environ["COSCHED_KERNEL"] = "numpy"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COSCHED_KERNEL"]
        else:
            os.environ["COSCHED_KERNEL"] = before
