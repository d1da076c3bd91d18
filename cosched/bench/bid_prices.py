"""Suite `bid-prices`: tasks of weight 1 and 5 on recorded channels; what joint admission is worth over greedy.

With equal weights there is little to choose between those who ask; with weights a session let in may keep a more
valuable one out for its whole life, which is what bid prices (cosched/core/bids.py) are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from cosched.bench.closed_loop import (
    DURATION_S,
    FIRST_SEED,
    LoopJob,
    rate_at_load_1,
    read_recordings,
    recordings_folder,
    run_jobs,
)
from cosched.bench.model import BenchRow, ModelClaim, Result, spread
from cosched.core.policy import GREEDY
from cosched.report.model import Sweep, SweepRow
from cosched.resources import config_file
from cosched.site import load_site

SUITE: Final = "bid-prices"
SITE: Final = "node-bound"
WEIGHTS: Final = (1.0, 5.0)
LOADS: Final = (0.3, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
HIGH_LOAD: Final = 1.25  # from here on there is something to gain


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """All loads. Claims: the gain over the first come first served, and no loss to the better greedy at lower loads."""
    recordings = read_recordings(recordings_folder())
    site = load_site(config_file("sites", f"{SITE}.toml"))
    site = msgspec.structs.replace(site, mix=msgspec.structs.replace(site.mix, weights=WEIGHTS))
    rate = rate_at_load_1(recordings, site)
    jobs = [
        LoopJob(site, load, load * rate, seed, DURATION_S, ("joint", *GREEDY))
        for load in LOADS
        for seed in range(FIRST_SEED, FIRST_SEED + seeds)
    ]
    rows = run_jobs(recordings, jobs, progress)
    command = f"cosched bench {SUITE} --seeds {seeds}"
    return Result(
        rows=_bench_rows(rows), claims=claims(rows), sweeps=[Sweep(v=1, name=SUITE, command=command, rows=rows)]
    )


def value(rows: Sequence[SweepRow], load: float, policy: str) -> float:
    """Weight of the tasks met, summed over the seeds."""
    return sum(r.value for r in rows if r.load == load and r.policy == policy)


def claims(rows: Sequence[SweepRow]) -> list[ModelClaim]:
    """What the README states: ratios of weighted value, and the least margin over the noise at lower loads."""
    over = [value(rows, load, "joint") / value(rows, load, "greedy") for load in LOADS if load >= HIGH_LOAD]
    reached = [value(rows, load, "joint") / _bound(rows, load) for load in LOADS]
    margins = [_margin(rows, load) for load in LOADS if load < HIGH_LOAD]
    return [
        ModelClaim(
            text="weighted value, joint over greedy, mean over loads 1.25 to 2",
            reached=float(np.mean(over)),
            asked=1.15,
        ),
        ModelClaim(
            text="weighted value, joint over greedy, least over loads 1.25 to 2", reached=float(min(over)), asked=1.15
        ),
        ModelClaim(
            text="joint less the better greedy plus the noise, least over lower loads", reached=min(margins), asked=0.0
        ),
        ModelClaim(text="share of the hindsight bound, least over loads", reached=float(min(reached)), asked=0.85),
    ]


def _bound(rows: Sequence[SweepRow], load: float) -> float:
    return sum(r.hindsight_bound for r in rows if r.load == load and r.policy == "joint")


def _margin(rows: Sequence[SweepRow], load: float) -> float:
    """Joint's value less the better greedy's plus two standard errors of their paired difference, per seed."""
    best = max(GREEDY, key=lambda p: value(rows, load, p))
    of = {p: np.array([r.value for r in rows if r.load == load and r.policy == p]) for p in ("joint", best)}
    difference = of["joint"] - of[best]
    if len(difference) < 2:
        return float(np.inf)
    return float(difference.mean() + 2 * difference.std(ddof=1) / np.sqrt(len(difference)))


def _bench_rows(rows: Sequence[SweepRow]) -> list[BenchRow]:
    out = []
    for load in LOADS:
        some = [r for r in rows if r.load == load]
        for policy in dict.fromkeys(r.policy for r in some):
            p50, p99, mean = spread([r.value for r in some if r.policy == policy])
            out.append(
                BenchRow(
                    suite=SUITE, case=f"{SITE} load={load:g}", subject=policy, figure="value", p50=p50, p99=p99,
                    n=len(some) // (1 + len(GREEDY)), value=mean,
                    bound=float(np.mean([r.hindsight_bound for r in some if r.policy == policy])),
                )
            )  # fmt: skip
    return out
