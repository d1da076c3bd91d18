"""Suite `constant-batch`: what the node's model of before claimed, and what becomes of its plans on nodes that step.

Before, decoding was processor sharing: a token took 1 / B of a read of the weights and its sequence's own part,
whatever else ran, with B the same number always (decisions 0006, 0023). Three worlds on the same traces:

    claimed    plans with a batch of B, on nodes on which a token takes just that
    executed   the same plans, on nodes that serve in steps
    steps      plans of today, on nodes that serve in steps

The decoupled rivals are those of then, tuned for each world and load on a seed of their own. Nothing of it can be
configured anywhere: the points are changed here, between the trace and the replay.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from cosched.bench.closed_loop import (
    DURATION_S,
    TUNING_SEED,
    WHOLE,
    Recordings,
    book_of,
    both_sets,
    rate_at_load_1,
    read_recordings,
    recordings_folder,
    site_of_mix,
)
from cosched.bench.loop_figures import broken, met
from cosched.bench.model import BenchRow, Result, Scope, spread
from cosched.core.policy import policy as parse_policy
from cosched.core.settings import Settings
from cosched.errors import BadInput
from cosched.replay.outcome import policy_result
from cosched.replay.replayer import Replayer, Workbook
from cosched.report.model import SweepRow
from cosched.site import Site
from cosched.workloads.base import LOCAL, PointTable

SUITE: Final = "constant-batch"
SITES: Final = ("node-bound",)
LOADS: Final = (0.6, 1.0, 1.5)
BATCH: Final = 8.0
WORLDS: Final = ("claimed", "executed", "steps")
STEP_S: Final = 0.05  # of an engine that plans of before tell no length: it keeps the tightest TPOT
RIVALS: Final[dict[str, tuple[str, ...]]] = {
    "pf-admit": tuple(f"pf-admit:overbook={o}" for o in (1.5, 3)),
    "compute-only": tuple(f"compute-only:overbook={o}" for o in (1, 2)),
    "deadline-split": tuple(f"deadline-split:radio={r}" for r in (0.3, 0.6)),
}
SPECS: Final = tuple(spec for specs in RIVALS.values() for spec in specs)


@dataclass(frozen=True)
class BatchJob:
    """One trace, to be run in every world."""

    site: Site
    load: float
    rate_per_s: float
    seed: int
    batch: float
    duration_s: float = DURATION_S


def as_shared(table: PointTable, batch: float) -> PointTable:
    """Points whose tokens take 1 / batch of a read and their own part, as work that is shared like any other."""
    if table.step_s is None:
        return table
    node_s = table.node_s.copy()
    away = table.node != LOCAL
    node_s[away, 1] += table.step_s[away, 0] / batch + table.step_s[away, 1]
    return replace(table, node_s=node_s, step_s=np.zeros_like(table.step_s))


def in_world(book: Workbook, world: str, batch: float) -> Workbook:
    """The trace as a policy of that world plans with it, and as it is carried out."""
    if world == "steps":
        return book
    shared = {task: as_shared(table, batch) for task, table in book.tables.items()}
    if world == "claimed":
        return replace(book, tables=shared)
    return replace(book, planned=shared, unplanned_step_s=STEP_S)


def run_traces(job: BatchJob) -> list[SweepRow]:
    """Replay one trace in each world with joint and every variant of every rival. The site's name carries the world."""
    book = book_of(_recordings(), job.site, job.rate_per_s, job.duration_s, job.seed)
    rows = []
    for world in WORLDS:
        seen = in_world(book, world, job.batch)
        for spec in ("joint", *SPECS):
            s = policy_result(seen, Replayer(seen, parse_policy(spec), Settings()).run(), 0.0).summary
            rows.append(
                SweepRow(
                    site=f"{job.site.name} {world}", load=job.load, seed=job.seed, policy=spec, offered=s.offered,
                    admitted=s.admitted, met=s.met, value=s.value, hindsight_bound=0.0, promised=s.promised,
                    broken=s.broken, tokens_met=s.tokens_met, duration_s=job.duration_s,
                )
            )  # fmt: skip
    return rows


_HANDED: list[Recordings] = []  # to a worker process, once


def _recordings() -> Recordings:
    return _HANDED[0]


def _start(recordings: Recordings) -> None:
    _HANDED[:] = [recordings]


def run(*, seeds: int, progress: Callable[[float], None], scope: Scope = WHOLE) -> Result:
    """All sites and loads, two sets of so many seeds. It claims nothing: what it shows is gone.

    Raises BadInput for a site that there is not, a load or a batch that is none, and for a mix.
    """
    batch, loads = scope.batch or BATCH, tuple(sorted(scope.loads or LOADS))
    if scope.mix or not all(0 < x < np.inf for x in (*loads, batch)):
        raise BadInput("constant-batch: give --site, --load and --batch, positive numbers; it has no mixes")
    sites = [site_of_mix(name, "drawn") for name in scope.sites or SITES]
    recordings = read_recordings(recordings_folder())
    jobs = [
        BatchJob(site, load, load * rate, seed, batch)
        for site in sites
        for rate in [rate_at_load_1(recordings, site)]
        for load in loads
        for seed in (TUNING_SEED + 1, *both_sets(seeds))
    ]
    rows: list[SweepRow] = []
    workers = min(len(os.sched_getaffinity(0)), len(jobs))
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(recordings,)) as pool:
        for done, some in enumerate(pool.map(run_traces, jobs), start=1):
            rows += some
            progress(done / len(jobs))
    shown = [row for site in sites for load in loads for row in figures(site.name, load, rows)]
    return Result(rows=shown, claims=[], sweeps=[])


def figures(site: str, load: float, rows: Sequence[SweepRow]) -> list[BenchRow]:
    """Of one site and load: in each world what joint and the best rival meet and break, and the ratio of the two."""
    out = []
    for world in WORLDS:
        mine = [row for row in rows if row.site == f"{site} {world}" and row.load == load]
        test = [row for row in mine if row.seed < TUNING_SEED]
        tuning = [row for row in mine if row.seed >= TUNING_SEED]
        best = best_rival(load, tuning, test)
        case, seeds = f"{site} load={load:g}", sorted({row.seed for row in test})
        for subject, policy in ((f"{world} joint", "joint"), (f"{world} rival", best)):
            of_seed = [met([row for row in test if row.seed == seed], load, policy) for seed in seeds]
            out += [
                _row(case, subject, "met_ratio", of_seed),
                _row(case, subject, "broken_of_promised_percent", [100 * broken(test, load, policy)]),
            ]
        out.append(_row(case, world, "ratio", [met(test, load, "joint") / max(met(test, load, best), 1e-9)]))
    return out


def best_rival(load: float, tuning: Sequence[SweepRow], test: Sequence[SweepRow]) -> str:
    """The rival, tuned on the rows `tuning`, that meets most in the rows `test`."""
    tuned = [max(specs, key=lambda spec: met(tuning, load, spec)) for specs in RIVALS.values()]
    return max(tuned, key=lambda spec: met(test, load, spec))


def _row(case: str, subject: str, figure: str, values: Sequence[float]) -> BenchRow:
    p50, p99, mean = spread(values)
    return BenchRow(suite=SUITE, case=case, subject=subject, figure=figure, p50=p50, p99=p99, n=len(values), value=mean)
