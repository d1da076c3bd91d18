"""Suite `solvers`: the price solver, compiled and as NumPy, beside CP-SAT, HiGHS and cvxpy on the same instances.

Subjects of one case take turns in one process. Times are processor time of one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from cosched.bench import solver_referees, solver_ticks, tick
from cosched.bench.model import ModelClaim, Result
from cosched.bench.sheet import SUITE, Sheet, case_name
from cosched.bench.solver_referees import CP_SAT, CVXPY, DUAL, HIGHS, STAGE_SIZES
from cosched.bench.solver_ticks import COMPILED, INTERPRETED, NUMPY, SMALL, TICKS

WARM_MS: Final = {1_000: 1.0, 10_000: 6.0, 100_000: 80.0}  # asked of the median
P99_MS: Final = 3.0  # ... of 1 000 tasks
COLD: Final = 6.0  # times warm, at most
GAP_PERCENT: Final = 0.1  # from 1 000 tasks up
DUAL_TOLERANCE: Final = 1e-6
OF_BEST: Final = 0.995  # of the best value that CP-SAT or HiGHS found
FASTER_THAN_CP_SAT: Final = 500.0
FASTER_THAN_CVXPY: Final = 100.0
SAME_OBJECTIVE: Final = 1e-6  # relative


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """All parts in turn: five minutes on two idle cores with 10 seeds."""
    sheet = Sheet()
    solver_ticks.ladder(sheet, seeds, _part(progress, 0.0, 0.3))
    solver_ticks.small(sheet, seeds)
    solver_ticks.interpreted(sheet, seeds)
    solver_referees.on_grid(sheet, seeds, _part(progress, 0.35, 0.9))
    solver_referees.stages(sheet, seeds)
    around = tick.run(seeds=max(1, seeds // 3), progress=_part(progress, 0.95, 1.0))
    rows = [*sheet.rows, *(msgspec.structs.replace(row, suite=SUITE) for row in around.rows)]
    return Result(rows=rows, claims=[*claims(sheet), *around.claims], sweeps=[])


def _part(progress: Callable[[float], None], low: float, high: float) -> Callable[[float], None]:
    return lambda fraction: progress(low + (high - low) * fraction)


def claims(sheet: Sheet) -> Iterator[ModelClaim]:
    """What is asked of the solvers, each as a number of which more is better."""
    yield from _speed(sheet)
    yield from _value(sheet)
    yield from _others(sheet)


def _speed(sheet: Sheet) -> Iterator[ModelClaim]:
    for n_tasks, limit_ms in WARM_MS.items():
        warm_ms = sheet.median(case_name(n_tasks), COMPILED, "warm_ms")
        yield ModelClaim(
            text=f"{n_tasks} tasks: {limit_ms:g} ms over the median warm plan",
            reached=limit_ms / warm_ms,
            asked=1,
        )
    slow_ms = sheet.p99(case_name(1_000), COMPILED, "warm_ms")
    yield ModelClaim(text=f"1000 tasks: {P99_MS:g} ms over the 99th percentile", reached=P99_MS / slow_ms, asked=1)
    for n_tasks in WARM_MS:
        cold, warm = (sheet.median(case_name(n_tasks), COMPILED, f"{how}_ms") for how in ("cold", "warm"))
        yield ModelClaim(text=f"{n_tasks} tasks: {COLD:g} x warm over cold", reached=COLD * warm / cold, asked=1)


def _value(sheet: Sheet) -> Iterator[ModelClaim]:
    for n_tasks in TICKS:
        gap = sheet.p99(case_name(n_tasks), COMPILED, "warm_gap_percent")
        yield ModelClaim(
            text=f"{n_tasks} tasks: value as a percentage of the bound", reached=100 - gap, asked=100 - GAP_PERCENT
        )
    most = max(sheet.p99(case_name(n, "mixed"), COMPILED, "gap_in_tasks_per_resource") for n in SMALL)
    yield ModelClaim(text="fewer tasks: 1 less the gap in tasks per saturated resource", reached=1 - most, asked=0)
    over = sheet.median(case_name(NUMPY), COMPILED, "dual_over_bound")
    yield ModelClaim(text="bound less the dual evaluated by other code, relative", reached=-over, asked=-DUAL_TOLERANCE)
    equal = sheet.median(case_name(NUMPY, "mixed"), INTERPRETED, "same_points")
    yield ModelClaim(text="NumPy and compiled choose the same points", reached=equal, asked=1)


def _others(sheet: Sheet) -> Iterator[ModelClaim]:
    for n_tasks in solver_referees.SIZES:
        case = case_name(n_tasks, "grid")
        value, cp_sat, highs = (sheet.median(case, subject, "value") for subject in (COMPILED, CP_SAT, HIGHS))
        yield ModelClaim(
            text=f"{n_tasks} mixed tasks: value over the better referee's",
            reached=value / max(cp_sat, highs),
            asked=OF_BEST,
        )
        time = [sheet.median(case, subject, "plan_ms") for subject in (COMPILED, CP_SAT)]
        yield ModelClaim(
            text=f"{n_tasks} mixed tasks: CP-SAT's time over ours", reached=time[1] / time[0], asked=FASTER_THAN_CP_SAT
        )
    for n_tasks in STAGE_SIZES:
        case = case_name(n_tasks, "second stage")
        times, found = ([sheet.median(case, s, figure) for s in (DUAL, CVXPY)] for figure in ("plan_ms", "objective"))
        yield ModelClaim(
            text=f"second stage, {n_tasks} tasks: cvxpy's time over ours",
            reached=times[1] / times[0],
            asked=FASTER_THAN_CVXPY,
        )
        yield ModelClaim(
            text=f"second stage, {n_tasks} tasks: objective better than cvxpy's, relative",
            reached=(found[1] - found[0]) / abs(found[1]), asked=-SAME_OBJECTIVE,
        )  # fmt: skip
