"""The sharded solver in one process and on local Ray workers: the same plan, and what the transport costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from cosched.bench.instances import make
from cosched.bench.sheet import Sheet, case_name, wall_ms
from cosched.drivers.shards import RayShards, local_ray
from solvers.blocks import split, take
from solvers.problem import Problem
from solvers.sharded import BLOCK, OneProcess, Plan, Pool, plan

SIZES: Final = (1_000, 10_000, 100_000)
WORKERS: Final = 2
REPEATS: Final = 5
ONE: Final = "sharded/one process"
RAY: Final = f"sharded/{WORKERS} Ray workers"


def ladder(sheet: Sheet, tell: Callable[[float], None]) -> None:
    """Wall time of a plan with tables in place, cold and warm, and of one round of the dual."""
    plan(OneProcess(blocks_of(BLOCK, 0, 1)))  # compiles or loads the loop
    with local_ray(WORKERS):
        for done, n_tasks in enumerate(SIZES, start=1):
            _compare(sheet, n_tasks)
            tell(done / len(SIZES))


def blocks_of(n_tasks: int, part: int, parts: int) -> list[Problem]:
    """Part of an instance's blocks, built where it is called. Ids are numbers with leading zeros: ranks are places."""
    problem = make(n_tasks, 1).problem
    count = -(-n_tasks // BLOCK)
    low, high = (min(n_tasks, BLOCK * (count * k // parts)) for k in (part, part + 1))
    return split(take(problem, np.arange(low, high)), BLOCK)


def _compare(sheet: Sheet, n_tasks: int) -> None:
    blocks = blocks_of(n_tasks, 0, 1)
    one, one_ms = wall_ms(lambda: OneProcess(blocks))
    makers = [partial(blocks_of, n_tasks, k, WORKERS) for k in range(WORKERS)]
    count = len(blocks)
    sizes = [sum(b.n_tasks for b in blocks[count * k // WORKERS : count * (k + 1) // WORKERS]) for k in range(WORKERS)]
    ray = RayShards(makers, sizes)
    try:
        ray.ask("outline")
        case = case_name(n_tasks, "shards")
        pools: dict[str, Pool] = {ONE: one, RAY: ray}
        sheet.add(case, ONE, "tables_ms", [one_ms])
        first = {subject: plan(pool) for subject, pool in pools.items()}  # loads the compiled loop
        sheet.add(case, RAY, "same_plan", [float(same(first[ONE], first[RAY]))])
        for subject, found in first.items():
            certificate = found.certificate
            sheet.add(case, subject, "value", [certificate.value], bound=certificate.bound)
        _time(sheet, case, pools, first[ONE])
    finally:
        ray.close()


def _time(sheet: Sheet, case: str, pools: dict[str, Pool], found: Plan) -> None:
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(REPEATS):
        for subject, pool in pools.items():
            for figure, work in (
                ("round_ms", partial(pool.ask, "respond", found.price)),
                ("warm_ms", partial(plan, pool, warm=found.price)),
                ("cold_ms", partial(plan, pool)),
            ):
                times.setdefault((subject, figure), []).append(wall_ms(work)[1])
    for (subject, figure), some in times.items():
        sheet.add(case, subject, figure, some)


def same(a: Plan, b: Plan) -> bool:
    """Bit for bit."""
    arrays = ((a.point, b.point), (a.share, b.share), (a.price, b.price))
    return a.certificate == b.certificate and all(x.tobytes() == y.tobytes() for x, y in arrays)
